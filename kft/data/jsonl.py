"""Reads JSON: an object a line, or one list of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kft.data import squad
from kft.data.reading import column, lines_of, read_text
from kft.data.table import Table
from kft.errors import DataError

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads a file with one JSON object a line, or one list of objects, or SQuAD's own; a key that a row lacks is null there.

    Strings, numbers and lists stay what they are. The place of a row is its line; in a list rows are counted.

    Raises:
        DataError: if the file cannot be read, is not JSON, or a column holds values of different types.
    """
    file = Path(location)
    text = read_text(file, options.encoding)
    as_list = text.lstrip()[:1] == "["
    if not as_list and (asked := _asked(file, text)):
        return {"train": asked}
    rows = _listed(file, text) if as_list else _lines(file, text)
    if not rows:
        raise DataError(f'{file} has no rows. Give one JSON object a line, as in {{"text": "...", "label": "..."}}.')
    return {"train": _table(file, rows, "row" if as_list else "line")}


def _asked(file: Path, text: str) -> Table | None:
    """Returns the questions of a file in SQuAD's layout, or None where it has another: its one object is the whole file."""
    if '"paragraphs"' not in text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not squad.is_one(value):
        return None
    rows = list(squad.rows(file, value))
    if not rows:
        raise DataError(f"{file} has no questions. Give one in SQuAD's layout that has some.")
    places = [place for place, _ in rows]
    arrays = {name: column(name, [row[name] for _, row in rows], lambda row: places[row]) for name in rows[0][1]}
    return Table(pa.table(arrays), file.name, places, root=file.parent)


def _lines(file: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    filled = [(number, line) for number, line in enumerate(lines_of(text), 1) if line.strip()]
    return [(number, _object(_parse(file, line, number), f"{file} line {number}")) for number, line in filled]


def _listed(file: Path, text: str) -> list[tuple[int, dict[str, Any]]]:
    return [(number, _object(value, f"{file} row {number}")) for number, value in enumerate(_parse(file, text, 1), 1)]


def _parse(file: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at, reason = (
            (error.lineno - 1, error.msg) if isinstance(error, json.JSONDecodeError) else (0, "nested too deep")
        )
        column = f" column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(
            f"{file} line {line + at}{column}: not valid JSON: {reason}. "
            "Give one JSON object a line, or one list of objects."
        ) from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise DataError(f"{where}: expected a JSON object with keys, received {json.dumps(value)[:60]}.")
    return value


def _table(file: Path, rows: list[tuple[int, dict[str, Any]]], unit: str) -> Table:
    names = list(dict.fromkeys(key for _, row in rows for key in row))
    arrays = [
        column(name, [row.get(name) for _, row in rows], lambda row: f"{file} {unit} {rows[row][0]}") for name in names
    ]
    places = [number for number, _ in rows] if unit == "line" else None
    return Table(pa.table(arrays, names=names), file.name, places, root=file.parent)
