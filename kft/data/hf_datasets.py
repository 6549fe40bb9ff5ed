"""Reads Hugging Face data sets, from the hub or as `datasets` saved them to disk."""

from __future__ import annotations

import hashlib
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kft.data import images
from kft.data.chatter import one_line, silenced
from kft.data.parquet import class_names
from kft.data.table import Table
from kft.errors import DataError
from kft.fetch import cache_folder

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data

_FORM = r"hf://datasets/([\w.-]+(?:/[\w.-]+)?)(?:/([\w.+-]+))?"


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads all splits of a data set, downloading it first where it is not in the cache of `datasets`.

    Code that comes with a data set is never run. Class labels stay numbers, their names stand in `class_names`.
    Images are left out, or for `modality` image kept as PNG files in the cache.

    Args:
        location: `hf://datasets/OWNER/NAME[/CONFIG]`, or a folder that `save_to_disk` wrote.
        options: not used here.
        modality: `text` or `image`.
        progress: hears that a data set is being downloaded.

    Raises:
        DataError: if the data set cannot be had; the message says how to use a local copy.
    """
    if "://" not in location:
        found, origin = _from_disk(location), Path(location).name
    else:
        if progress:
            progress.note(f"Loading {location}")
        found, origin = _from_hub(location), location
    splits = found if isinstance(found, dict) else {"train": found}
    with silenced():
        return {str(name): _table(split, f"{origin} {name}", modality) for name, split in splits.items()}


def _from_disk(location: str) -> Any:
    try:
        with silenced():
            return importlib.import_module("datasets").load_from_disk(location)
    except Exception as error:
        raise DataError(
            f"Cannot read '{location}' as a data set saved to disk: {one_line(error)}. Save it again with save_to_disk."
        ) from None


def _from_hub(location: str) -> Any:
    handle = re.fullmatch(_FORM, location)
    if not handle:
        raise DataError(f"'{location}' is not a handle of a data set. Type it as hf://datasets/OWNER/NAME[/CONFIG].")
    try:
        with silenced():
            return importlib.import_module("datasets").load_dataset(handle[1], handle[2])
    except Exception as error:
        config = f", '{handle[2]}'" if handle[2] else ""
        raise DataError(
            f"Cannot load {location}: {one_line(error)}. If the network is closed here, save it elsewhere, "
            f"python -c \"import datasets; datasets.load_dataset('{handle[1]}'{config}).save_to_disk('copy')\", "
            "and give the folder 'copy' as data.source."
        ) from None


def _table(split: Any, origin: str, modality: str) -> Table:
    datasets = importlib.import_module("datasets")
    pictures = [name for name, feature in split.features.items() if isinstance(feature, datasets.Image)]
    others = split.select_columns([name for name in split.column_names if name not in pictures])
    columns = others.with_format("arrow")[:]
    named = class_names(others.features.arrow_schema.metadata)
    if modality != "image" or not pictures:
        return Table(columns, origin, class_names=named)
    key = hashlib.sha256(f"{origin} {split._fingerprint}".encode()).hexdigest()[:16]
    root = cache_folder() / "hf-images" / key
    for name in pictures:
        files = _write(split.select_columns([name]).cast_column(name, datasets.Image(decode=False)), name, root, origin)
        columns = columns.append_column(name, pa.array(files, pa.string()))
    return Table(columns.select(split.column_names), origin, class_names=named, root=root)


def _write(split: Any, name: str, root: Path, origin: str) -> list[str]:
    final = root / hashlib.sha256(name.encode()).hexdigest()[:8]
    with images.folder_once(final) as folder:
        if folder:
            for row, example in enumerate(split):
                picture = example[name]
                content = picture["bytes"] or Path(picture["path"]).read_bytes()
                images.write_encoded(content, folder / f"{row:07d}.png", f"{origin} row {row + 1}")
    return [f"{final.name}/{row:07d}.png" for row in range(len(split))]
