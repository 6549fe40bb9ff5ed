"""Reads CoNLL columns: a token a line, its tag in the last column, sentences parted by blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from kft.data.reading import lines_of, read_text
from kft.data.table import Table
from kft.errors import DataError

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads a CoNLL file: a row is a sentence, its columns are lists with one string a token.

    Columns are parted by tabs if the file has any outside blank lines, else by white space. The first is `tokens`,
    the last `tags`, those between `column_2` and so on; a file of one column has `tokens` only. `-DOCSTART-` lines
    are passed over. The place of a row is the line its sentence starts on.

    Raises:
        DataError: if the file cannot be read, is empty, or a line has another number of columns than the first.
    """
    file = Path(location)
    lines = lines_of(read_text(file, options.encoding))
    sentences = list(_sentences(file, lines))
    if not sentences:
        raise DataError(f"{file} has no tokens. Give a token a line and its tag in the last column.")
    names = _names(len(sentences[0][1][0]))
    kind = pa.list_(pa.string())
    arrays = [pa.array([[row[at] for row in rows] for _, rows in sentences], kind) for at in range(len(names))]
    return {"train": Table(pa.table(arrays, names=names), file.name, [line for line, _ in sentences], root=file.parent)}


def _names(width: int) -> list[str]:
    return ["tokens", *(f"column_{number}" for number in range(2, width)), *(["tags"] if width > 1 else [])]


def _sentences(file: Path, lines: list[str]) -> Iterator[tuple[int, list[list[str]]]]:
    sentence: list[list[str]] = []
    start = 0
    for number, row in _rows(file, lines):
        if row:
            start = start if sentence else number
            sentence.append(row)
        elif sentence:
            yield start, sentence
            sentence = []
    if sentence:
        yield start, sentence


def _rows(file: Path, lines: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the fields of each line; no fields stand for the end of a sentence."""
    separator = "\t" if any("\t" in line and line.strip() for line in lines) else None
    width = first = 0
    for number, line in enumerate(lines, 1):
        row = line.split(separator) if line.strip() else []
        if row and row[0].split()[:1] == ["-DOCSTART-"]:
            row = []
        if row and not width:
            width, first = len(row), number
        if row and len(row) != width:
            raise DataError(
                f"{file} line {number}: expected {width} columns as in line {first}, received {len(row)}. Part columns "
                f"by {'one tab' if separator else 'white space'}, and sentences by a blank line."
            )
        yield number, row
