"""Reads folders with one folder of files a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from kft.data.reading import read_text
from kft.data.table import Table
from kft.errors import DataError

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data

TEXTS = (".txt",)
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
VALIDATION_NAMES = ("validation", "val", "valid", "dev")
SPLIT_NAMES = ("train", *VALIDATION_NAMES, "test")


def load_texts(
    location: str, options: Data, modality: str = "text", progress: Progress | None = None
) -> dict[str, Table]:
    """Loads text files, a folder a class, into columns `text` and `label`; the place of a row is its file.

    Below the folder stand either the classes, or `train`, `validation` (`val`, `valid`, `dev`) and `test` with the
    classes in each. Hidden files and those that are not `.txt` are passed over, and counted in a note.

    Raises:
        DataError: if no file is left, or one cannot be read.
    """
    return _load(Path(location), TEXTS, options.encoding, progress)


def load_images(
    location: str, options: Data, modality: str = "image", progress: Progress | None = None
) -> dict[str, Table]:
    """Loads the names of image files, a folder a class, into columns `image` (path from `root`) and `label`.

    Below the folder stand either the classes, or `train`, `validation` (`val`, `valid`, `dev`) and `test` with the
    classes in each. Hidden files and those of another kind are passed over, and counted in a note.

    Raises:
        DataError: if no file is left.
    """
    return _load(Path(location), IMAGES, None, progress)


def _load(root: Path, suffixes: tuple[str, ...], encoding: str | None, progress: Progress | None) -> dict[str, Table]:
    skipped: Counter[str] = Counter()
    names = {folder.name for folder in _subfolders(root)}
    splits = [name for name in SPLIT_NAMES if name in names] if "train" in names else []
    tables = {}
    for split in splits or [""]:
        files = list(_files(root / split, suffixes, skipped))
        if files:
            tables[split or "train"] = _table(root, split, files, encoding)
    if not tables:
        raise DataError(_nothing(root, suffixes, skipped, bool(splits)))
    if skipped and progress:
        progress.note(f"{root}: passed over {_counted(skipped)}")
    return tables


def _table(root: Path, split: str, files: list[tuple[str, Path]], encoding: str | None) -> Table:
    places = [file.relative_to(root).as_posix() for _, file in files]
    labels = [label for label, _ in files]
    if encoding is None:
        columns = pa.table({"image": places, "label": labels})
    else:
        columns = pa.table({"text": [read_text(file, encoding) for _, file in files], "label": labels})
    return Table(columns, f"{root.name} {split}".strip(), places, root=root)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, suffixes: tuple[str, ...], skipped: Counter[str]) -> Iterator[tuple[str, Path]]:
    """Yields label and file, in the order of their names."""
    for entry in folder.iterdir():
        if entry.is_file():
            skipped[f"{_kind(entry)} outside a class"] += 1
    for subfolder in _subfolders(folder):
        for file in _below(subfolder):
            if not file.name.startswith(".") and file.suffix.lower() in suffixes:
                yield subfolder.name, file
            else:
                skipped[_kind(file)] += 1


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(files))


def _kind(file: Path) -> str:
    return "hidden" if file.name.startswith(".") else file.suffix.lower() or "without suffix"


def _counted(skipped: Counter[str]) -> str:
    parts = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(5))
    return f"{skipped.total()} files ({parts})"


def _nothing(root: Path, suffixes: tuple[str, ...], skipped: Counter[str], split: bool) -> str:
    found = f"found {_counted(skipped)}" if skipped else "found no files in class folders"
    below = "train/CLASS/" if split else "CLASS/"
    images = suffixes == TEXTS and any(kind in IMAGES for kind in skipped)
    hint = " For images choose task=image_classification." if images else ""
    return f"{root} has no {', '.join(suffixes)} files in folders named after their class ({below}FILE): {found}.{hint}"
