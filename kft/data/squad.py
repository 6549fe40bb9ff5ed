"""Reads SQuAD's own JSON: articles with paragraphs with questions, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kft.errors import DataError


def is_one(value: Any) -> bool:
    """Says whether a file's JSON has the layout that SQuAD's files have (Rajpurkar et al. 2016, 2018)."""
    articles = value.get("data") if isinstance(value, dict) else None
    return (
        isinstance(articles, list) and bool(articles) and isinstance(articles[0], dict) and "paragraphs" in articles[0]
    )


def rows(file: Path, value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Gives each question's place and row: `id`, `title`, `context`, `question`, `answers`.

    `answers` has the lists `text` and `answer_start`, which are empty where a question has no answer; it is None where the file
    does not say them.

    Raises:
        DataError: if an article, a paragraph or a question lacks what the layout has; the message has its place.
    """
    for number, article in enumerate(value["data"], 1):
        for count, paragraph in enumerate(_part(article, "paragraphs", f"{file} article {number}"), 1):
            where = f"{file} article {number} paragraph {count}"
            for place, entry in enumerate(_part(paragraph, "qas", where), 1):
                at = f"{where} question {place}"
                yield (
                    at,
                    {
                        "id": _id(entry, at),
                        "title": str(article.get("title", "")),
                        "context": _part(paragraph, "context", where, str),
                        "question": _part(entry, "question", at, str),
                        "answers": _answers(entry, at),
                    },
                )


def _id(entry: Any, where: str) -> str:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: received {str(entry)[:40]!r}, where SQuAD's layout has an object. Correct the file.")
    return str(entry.get("id", ""))


def _answers(entry: dict[str, Any], where: str) -> dict[str, list[Any]] | None:
    """Returns a question's answers, or None where the file keeps them to itself, as that of a test does."""
    if entry.get("answers") is None:
        return None
    answers = _part(entry, "answers", where)
    starts = [_part(answer, "answer_start", where, int) for answer in answers]
    return {"text": [_part(answer, "text", where, str) for answer in answers], "answer_start": starts}


def _part(value: Any, name: str, where: str, kind: type = list) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise DataError(f"{where}: no '{name}', which SQuAD's layout has there. Correct the file.")
    if not isinstance(value[name], kind):
        raise DataError(
            f"{where}: '{name}' is {str(value[name])[:40]!r}, where SQuAD's layout has a {kind.__name__}. Correct the file."
        )
    return value[name]
