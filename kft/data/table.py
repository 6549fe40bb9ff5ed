"""Raw data as it was read: named columns, and for each row the place it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kft.errors import DataError, nearest


@dataclass(frozen=True)
class Table:
    """Rows of one split, as they were read and before anything is encoded.

    Attributes:
        columns: the columns, by name, as an Arrow table.
        origin: what the table is called in messages: a file, a handle, a split.
        places: for each row a line number (int) or a file name (str), or None where rows have no place of their own.
        class_names: for a column, the names of its classes in the source's own order, where the source knows them.
        root: the folder that relative file names in the columns start from.
    """

    columns: pa.Table
    origin: str
    places: Sequence[int] | Sequence[str] | None = None
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    root: Path | None = None

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    @property
    def names(self) -> list[str]:
        """The names of the columns, in the source's order."""
        return list(self.columns.column_names)

    def column(self, name: str) -> list[Any]:
        """Returns a column as a Python list.

        Raises:
            DataError: if there is no column of that name; the message lists those there are.
        """
        if name not in self.names:
            raise DataError(
                f"Unknown column '{name}' in {self.origin}.{nearest(name, self.names)} "
                f"Its columns: {', '.join(self.names)}."
            )
        values: list[Any] = self.columns.column(name).to_pylist()
        return values

    def where(self, row: int) -> str:
        """Returns the place of a row for a message, as in `reviews.csv line 7`."""
        if self.places is None:
            return f"{self.origin} row {row + 1}"
        place = self.places[row]
        return place if isinstance(place, str) else f"{self.origin} line {place}"

    def take(self, rows: Sequence[int] | np.ndarray) -> Table:
        """Returns the table of the given rows, in that order."""
        index = [int(row) for row in rows]
        places: Any = None if self.places is None else [self.places[row] for row in index]
        return replace(self, columns=self.columns.take(pa.array(index, pa.int64())), places=places)

    def select(self, names: Sequence[str]) -> Table:
        """Returns the table with the given columns only."""
        for name in names:
            if name not in self.names:
                self.column(name)
        return replace(self, columns=self.columns.select(list(names)))

    def sha256(self) -> str:
        """Returns a digest of names and values; where the rows came from does not count."""
        digest = hashlib.sha256()
        plain = self.columns.replace_schema_metadata(None).combine_chunks()
        with pa.ipc.new_stream(_Sink(digest), plain.schema) as writer:
            writer.write_table(plain)
        return digest.hexdigest()


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
