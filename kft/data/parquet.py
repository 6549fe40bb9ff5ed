"""Reads Apache Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kft.data.table import Table
from kft.errors import DataError

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads a Parquet file; class names that Hugging Face's `datasets` wrote into it are kept.

    Raises:
        DataError: if the file cannot be read, is not Parquet, or has no rows.
    """
    import pyarrow.parquet

    file = Path(location)
    try:
        with file.open("rb") as opened:
            columns = pyarrow.parquet.read_table(opened)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Cannot read '{file}' as Parquet: {error}. Give a file that a Parquet writer finished."
        ) from None
    if not columns.num_rows:
        raise DataError(f"{file} has columns ({', '.join(columns.column_names)}) and no rows. Give a file with rows.")
    return {"train": Table(columns, file.name, class_names=class_names(columns.schema.metadata), root=file.parent)}


def class_names(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Returns the class names by column that Hugging Face's `datasets` leaves in a schema, or none."""
    try:
        features: Any = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: _names(feature) for name, feature in features.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if names}


def _names(feature: Any) -> tuple[str, ...]:
    """Returns the names of a ClassLabel or of a list of them."""
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    return tuple(str(name) for name in feature.get("names") or ())
