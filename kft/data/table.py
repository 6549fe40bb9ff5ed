"""Raw data as it was read: named columns, and for each row the place it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kft.errors import DataError, nearest

# What a target column holds.
Targets = Literal["labels", "tags", "values", "spans"]
CHUNK = 10_000  # rows that are Python objects at a time


@dataclass(frozen=True)
class Table:
    """Rows of one split, as they were read and before anything is encoded.

    Attributes:
        columns: the columns, by name, as an Arrow table.
        origin: what the table is called in messages: a file, a handle, a split.
        places: for each row a line number (int) or a file name (str), or None where rows have no place of their own.
        before: how many rows stood before this table's, in the one it is a slice of.
        class_names: for a column, the names of its classes in the source's own order, where the source knows them.
        root: the folder that relative file names in the columns start from.
    """

    columns: pa.Table
    origin: str
    places: Sequence[int] | Sequence[str] | np.ndarray | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    root: Path | None = None
    before: int = 0

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the source's order."""
        return list(self.columns.column_names)

    def arrow(self, name: str) -> pa.ChunkedArray:
        """Returns a column as Arrow keeps it.

        Raises:
            DataError: if there is no column of that name; the message lists those there are.
        """
        if name not in self.names:
            raise DataError(
                f"Unknown column '{name}' in {self.origin}.{nearest(name, self.names)} "
                f"Its columns: {', '.join(self.names)}."
            )
        return self.columns.column(name)

    def column(self, name: str) -> list[Any]:
        """Returns a column as a Python list.

        Raises:
            DataError: if there is no column of that name.
        """
        values: list[Any] = self.arrow(name).to_pylist()
        return values

    def cells(self, name: str) -> Iterator[Any]:
        """Yields a column's values as Python objects, few of which are there at a time.

        Raises:
            DataError: if there is no column of that name.
        """
        column = self.arrow(name)
        return (value for start in range(0, len(self), CHUNK) for value in column.slice(start, CHUNK).to_pylist())

    def codes(self, name: str) -> tuple[list[Any], np.ndarray] | None:
        """Returns a column's different values, by first appearance, and for each row the number of its value.

        Returns:
            The values and int64 numbers, shape (rows,); None for a column that is neither text, integers nor booleans.

        Raises:
            DataError: if there is no column of that name.
        """
        column = self.arrow(name)
        is_plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
        if not any(is_kind(column.type) for is_kind in is_plain):
            return None
        different = column.unique()
        numbers: np.ndarray = pc.index_in(column, value_set=different).to_numpy().astype(np.int64)
        return different.to_pylist(), numbers

    def where(self, row: int) -> str:
        """Returns the place of a row for a message, as in `reviews.csv line 7`."""
        if self.places is None:
            return f"{self.origin} row {self.before + row + 1}"
        place = self.places[row]
        return place if isinstance(place, str) else f"{self.origin} line {place}"

    def take(self, rows: Sequence[int] | np.ndarray) -> Table:
        """Returns the table of the given rows, in that order."""
        index = np.asarray(rows, np.int64)
        places = self.places
        if places is not None:
            places = places[index] if isinstance(places, np.ndarray) else [places[row] for row in index.tolist()]
        return replace(self, columns=self.columns.take(pa.array(index)), places=places, before=0)

    def slice(self, start: int, stop: int) -> Table:
        """Returns the table of the rows from `start` up to `stop`, which it has in common with this one."""
        start, stop, _ = slice(start, stop).indices(len(self))
        places = None if self.places is None else self.places[start:stop]
        columns = self.columns.slice(start, max(stop - start, 0))
        return replace(self, columns=columns, places=places, before=self.before + start)

    def slices(self) -> Iterator[Table]:
        """Yields the table in slices of few rows, at least one of them, for work that makes Python objects of each row."""
        return (self.slice(start, start + CHUNK) for start in range(0, len(self) or 1, CHUNK))

    def select(self, names: Sequence[str]) -> Table:
        """Returns the table with the given columns only."""
        for name in names:
            self.arrow(name)
        return replace(self, columns=self.columns.select(list(names)))

    def sha256(self) -> str:
        """Returns a digest of names and values; where the rows came from and how they are chunked does not count."""
        digest = hashlib.sha256()
        plain = self.columns.replace_schema_metadata(None).combine_chunks()
        with pa.ipc.new_stream(_Sink(digest), plain.schema) as writer:
            writer.write_table(plain)
        return digest.hexdigest()


def refuse_other_than_text(table: Table, names: list[str]) -> None:
    """Raises a DataError for a cell of some columns that is no text."""
    for name in names:
        kind = table.arrow(name).type
        cells: Iterable[Any] = () if pa.types.is_string(kind) else table.cells(name)
        for row, cell in enumerate(cells):
            if not isinstance(cell, str | None):
                raise DataError(f"{table.where(row)}: column '{name}' has to be text, received {cell!r}.")


class _Sink:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class Splits:
    """The three splits of a data set; the test split is kept apart and used once.

    Attributes:
        train: what is trained on.
        validation: what is watched while training, or None.
        test: what is evaluated once at the end, or None.
    """

    train: Table
    validation: Table | None = None
    test: Table | None = None

    def items(self) -> list[tuple[str, Table]]:
        """Returns the splits there are, by name, in the order train, validation, test."""
        every = (("train", self.train), ("validation", self.validation), ("test", self.test))
        return [(name, table) for name, table in every if table is not None]

    def sha256(self) -> dict[str, str]:
        """Returns a digest for each split."""
        return {name: table.sha256() for name, table in self.items()}
