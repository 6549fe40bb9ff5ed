"""Finds the source that serves a handle, by its scheme, its suffix or what lies in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kft.data import SOURCES
from kft.data.folders import SPLIT_NAMES
from kft.data.table import Table
from kft.errors import DataError, listed, nearest, unknown

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".txt": "conll",
}
_LOCAL = {*SUFFIXES.values(), "text_folder", "image_folder"}


def is_handle(location: str) -> bool:
    """Says whether a location begins with a scheme; what does not is a local path."""
    return "://" in location


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads every split behind a handle or a local path.

    Args:
        location: `tfds://…`, `hf://datasets/…`, `pypi://…`, a scheme that an installed source adds, or a path.
        options: the recipe's `data` section, for the encoding and the digest.
        modality: `text` or `image`.
        progress: hears of downloads and of files passed over.

    Returns:
        Tables by the names that the source gives its splits; a single file is `train`.

    Raises:
        KftError: if nothing serves the location, or what lies there cannot be used.
    """
    if not is_handle(location):
        return load_local(Path(location).expanduser(), options, modality, progress)
    scheme = location.partition("://")[0]
    schemes = set(SOURCES) - _LOCAL
    if scheme not in schemes:
        hint = "Give one of these schemes, or the path of a local file or folder."
        raise DataError(unknown("scheme of data source", scheme, schemes, f"{hint} Received: {location}"))
    return _load(scheme, location, options, modality, progress)


def load_local(path: Path, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads every split of a local file or folder.

    Raises:
        KftError: if there is nothing at the path, or nothing that a source reads.
    """
    if not path.exists():
        raise DataError(missing(path))
    if path.is_dir():
        return _load_folder(path, options, modality, progress)
    return _load(_by_suffix(path), str(path), options, modality, progress)


def missing(path: Path) -> str:
    """Returns the sentence for a path where nothing is, with the nearest name in its folder."""
    if not path.parent.is_dir():
        return (
            f"No data at '{path}': there is no folder '{path.parent}'. Type the path of a file or folder that exists."
        )
    siblings = sorted(entry.name for entry in path.parent.iterdir() if not entry.name.startswith("."))
    close = nearest(path.name, siblings)
    return f"No data at '{path}'.{close} The folder '{path.parent}' holds: {listed(siblings)}."


def _load(name: str, location: str, options: Data, modality: str, progress: Progress | None) -> dict[str, Table]:
    tables: dict[str, Table] = SOURCES.load(name)(location, options, modality, progress)
    return tables


def _by_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    name = SUFFIXES.get(suffix) or suffix.removeprefix(".")
    if name not in SOURCES:
        raise DataError(
            f"'{path}' is of no kind that kft reads. Give a file ending in {listed(SUFFIXES)}, or a folder."
        )
    return name


def _load_folder(path: Path, options: Data, modality: str, progress: Progress | None) -> dict[str, Table]:
    names = {entry.name for entry in path.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        return _load("hf", str(path), options, modality, progress)
    if {"dataset_info.json", "features.json"} <= names:
        return _load("tfds", str(path), options, modality, progress)
    if files := _split_files(path):
        return {
            split: _load(_by_suffix(file), str(file), options, modality, progress)["train"]
            for split, file in files.items()
        }
    return _load(f"{modality}_folder", str(path), options, modality, progress)


def _split_files(folder: Path) -> dict[str, Path]:
    """Returns the files of a folder that are named after a split, when they include `train`."""
    found = [
        entry
        for entry in sorted(folder.iterdir())
        if entry.is_file() and entry.stem in SPLIT_NAMES and entry.suffix.lower() in SUFFIXES
    ]
    if not any(file.stem == "train" for file in found):
        return {}
    _refuse_kinds(folder, found)
    by_name = {file.stem: file for file in found}
    return {name: by_name[name] for name in SPLIT_NAMES if name in by_name}


def _refuse_kinds(folder: Path, files: Sequence[Path]) -> None:
    if len({file.suffix.lower() for file in files}) > 1:
        raise DataError(
            f"'{folder}' holds splits in files of different kinds: {listed(file.name for file in files)}. "
            f"Name the files themselves, as in data.source={folder / 'train.csv'} data.test={folder / 'test.csv'}."
        )


def load_table(data: Data, modality: str = "text", progress: Progress | None = None) -> Table:
    """Loads one table to evaluate or predict: a file, or the test split, else the only split, of what has several.

    Raises:
        KftError: if it cannot be read, or which of its splits is meant cannot be told.
    """
    tables = load(data.source, data, modality, progress)
    if "test" in tables:
        return tables["test"]
    if len(tables) > 1:
        raise DataError(f"{data.source} has several splits ({listed(tables)}) and no test. Give a file.")
    return next(iter(tables.values()))


def is_here(data: Data) -> bool:
    """Says whether a recipe's data can be read without asking a hub: local files, wheels, and what was prepared before."""
    handles = [data.source, *(part for part in (data.train, data.validation, data.test) if isinstance(part, str))]
    return all(_is_here(handle) for handle in handles)


def known_columns(location: str) -> list[str] | None:
    """Returns the columns of a hub's data set where they are known without a download, else None.

    Raises:
        DataError: if there is no such data set.
    """
    if location.startswith("tfds://") and not SOURCES["tfds"].missing():
        from kft.data.tfds import tfds_features

        found = tfds_features(location)
        return None if found is None else found[0]
    return None


def _is_here(location: str) -> bool:
    scheme = location.partition("://")[0] if is_handle(location) else ""
    if scheme == "tfds" and not SOURCES["tfds"].missing():
        from kft.data.tfds import is_prepared

        return is_prepared(location)
    return scheme not in ("tfds", "hf")
