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

    `answers` has the lists `text` and `answer_start`, which are empty where a question has no answer.

    Raises:
        DataError: if an article, a paragraph or a question lacks what the layout has; the message has its place.
    """
    for number, article in enumerate(value["data"], 1):
        for count, paragraph in enumerate(_part(article, "paragraphs", f"{file} article {number}"), 1):
            where = f"{file} article {number} paragraph {count}"
            for place, entry in enumerate(_part(paragraph, "qas", where), 1):
                at = f"{where} question {place}"
                answers = _part(entry, "answers", at)
                yield (
                    at,
                    {
                        "id": str(entry.get("id", "")),
                        "title": str(article.get("title", "")),
                        "context": _part(paragraph, "context", where),
                        "question": _part(entry, "question", at),
                        "answers": {
                            "text": [_part(answer, "text", at) for answer in answers],
                            "answer_start": [int(_part(answer, "answer_start", at)) for answer in answers],
                        },
                    },
                )


def _part(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise DataError(f"{where}: no '{name}', which SQuAD's layout has there. Correct the file.")
    return value[name]
