"""Reads files of separated values: CSV as RFC 4180 has it, and TSV, which has no quoting."""

from __future__ import annotations

import contextlib
import csv
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from kft.data.reading import read_lines
from kft.data.table import Table
from kft.errors import DataError

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data

_LIMIT = threading.Lock()
CHUNK = 20_000  # rows that are Python objects at a time


def load_csv(
    location: str, options: Data, modality: str = "text", progress: Progress | None = None
) -> dict[str, Table]:
    """Loads a CSV file: comma-separated, quoted as in RFC 4180, with a header; all values are strings.

    The place of a row is the line of the file that it starts on. Blank lines are passed over.

    Raises:
        DataError: if the file cannot be read, has no header or no rows, a row of another width, or an open quote.
    """
    file = Path(location)
    with _long_fields():
        return {"train": _table(file, _csv_records(file, read_lines(file, options.encoding, "")), "")}


def load_tsv(
    location: str, options: Data, modality: str = "text", progress: Progress | None = None
) -> dict[str, Table]:
    """Loads a TSV file: values parted by tabs, a row a line, with a header; all values are strings.

    There is no quoting: a quote is a character like any other, and no value can hold a tab or a line end.

    Raises:
        DataError: if the file cannot be read, has no header or no rows, or a row of another width.
    """
    file = Path(location)
    lines = (line.removesuffix("\n").removesuffix("\r") for line in read_lines(file, options.encoding, "\n"))
    records = ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)
    return {"train": _table(file, records, " Fields of a TSV file are parted by single tabs and never quoted.")}


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    with _LIMIT:  # the longest field is a setting of the whole process
        before = csv.field_size_limit(2**31 - 1)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _csv_records(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise DataError(_quoting(file, start, reader.line_num, str(error))) from None
        if record is None:
            return
        if record:
            yield start, record


def _quoting(file: Path, start: int, line: int, reason: str) -> str:
    if reason == "unexpected end of data":
        return (
            f"{file} line {start}: a quote that opens in this row is never closed. Close it; a quote inside a quoted "
            'value is written twice, as in "say ""yes""".'
        )
    reached = f" (at line {line})" if line != start else ""
    return (
        f"{file} line {start}: broken quoting{reached}: {reason}. A value with a comma, a quote or a line end stands "
        'in quotes, a quote in it is written twice, as in "say ""yes""".'
    )


def _table(file: Path, records: Iterator[tuple[int, list[str]]], hint: str) -> Table:
    _, header = next(records, (0, []))
    _check_header(file, header)
    parts, places = [], []
    while chunk := list(itertools.islice(records, CHUNK)):
        for line, record in chunk:
            if len(record) != len(header):
                raise DataError(
                    f"{file} line {line}: expected {len(header)} fields as in the header ({', '.join(header)}), "
                    f"received {len(record)}.{hint or ' Quote values that hold a comma.'}"
                )
        columns = zip(*(record for _, record in chunk), strict=True)
        parts.append(pa.table([pa.array(values, pa.string()) for values in columns], names=header))
        places.append(np.asarray([line for line, _ in chunk]))
    if not parts:
        raise DataError(f"{file} has a header ({', '.join(header)}) and no rows. Give a file with rows.")
    columns = pa.concat_tables(parts).combine_chunks()
    parts.clear()
    pa.default_memory_pool().release_unused()
    return Table(columns, file.name, np.concatenate(places), root=file.parent)


def _check_header(file: Path, header: Sequence[str]) -> None:
    if not header:
        raise DataError(f"{file} is empty. Its first line has to be a header: the names of the columns.")
    twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
    if twice is not None:
        raise DataError(f"{file} line 1: the header names column '{twice}' twice. Give each column a name of its own.")
