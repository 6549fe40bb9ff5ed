"""Reads TensorFlow Datasets."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pyarrow as pa

from kft.data import images
from kft.data.chatter import one_line, silenced
from kft.data.reading import column
from kft.data.table import Table
from kft.errors import DataError, listed, unknown
from kft.fetch import cache_folder

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data

_FORM = r"tfds://([A-Za-z]\w*)(?:/([\w.+-]+))?(?::(\d+\.\d+\.\d+))?"


def load(location: str, options: Data, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    """Loads all splits of a data set, downloading and preparing it first where that was not done before.

    Text becomes strings, sequences lists; class labels stay numbers, their names stand in `class_names`. Images are
    left out, or for `modality` image kept as PNG files in the cache.

    Args:
        location: `tfds://NAME[/CONFIG][:VERSION]`, or the folder of a prepared data set.
        options: not used here.
        modality: `text` or `image`.
        progress: hears that a data set is being downloaded.

    Raises:
        DataError: if the name is unknown, or the data set is not prepared and cannot be.
    """
    with silenced():
        builder = _builder(location)
    if not builder.is_prepared():
        if progress:
            progress.note(f"Downloading and preparing {location} in {builder.data_path}")
        with silenced():
            _prepare(builder, location)
    with silenced():
        return {split: _table(builder, split, location, modality) for split in builder.info.splits}


def is_prepared(location: str) -> bool:
    """Says whether a data set lies prepared on this machine.

    Raises:
        DataError: if there is no data set of that name.
    """
    with silenced():
        return bool(_builder(location).is_prepared())


def tfds_features(location: str) -> tuple[list[str], dict[str, tuple[str, ...]]] | None:
    """Returns the names of the columns and of the classes by column, without downloading anything.

    Args:
        location: `tfds://NAME[/CONFIG][:VERSION]`.

    Returns:
        None where TensorFlow Datasets is not installed or cannot tell before it has downloaded.

    Raises:
        DataError: if there is no data set, configuration or version of that name.
    """
    try:
        with silenced():
            features = _builder(location).info.features
            return list(features), _class_names(features)
    except DataError:
        raise
    except Exception:
        return None


def _tfds() -> Any:
    return importlib.import_module("tensorflow_datasets")


def _builder(location: str) -> Any:
    if "://" not in location:
        return _tfds().builder_from_directory(location)
    found = re.fullmatch(_FORM, location)
    if not found:
        raise DataError(
            f"'{location}' is not a handle of a TensorFlow Dataset. Type it as tfds://NAME[/CONFIG][:VERSION]."
        )
    try:
        return _tfds().builder(location.removeprefix("tfds://"))
    except ImportError:
        raise
    except Exception as error:
        _refuse_name(location, found[1], found[2], error)


def _refuse_name(location: str, name: str, config: str | None, error: Exception) -> NoReturn:
    tfds = _tfds()
    names = tfds.list_builders(with_community_datasets=False)
    if name not in names:
        raise DataError(f"{location}: {unknown('TensorFlow Dataset', name, names)}") from None
    configs = list(tfds.builder_cls(name).builder_configs)
    if config and config not in configs:
        raise DataError(f"{location}: {unknown(f'configuration of {name}', config, configs)}") from None
    known = f" Its configurations: {listed(configs)}." if configs else ""
    raise DataError(f"{location}: {one_line(error)}.{known} Type tfds://NAME[/CONFIG][:VERSION].") from None


def _prepare(builder: Any, location: str) -> None:
    downloader: Any = importlib.import_module("tensorflow_datasets.core.download.downloader")
    patience = getattr(downloader, "MAX_RETRIES", None)
    try:
        downloader.MAX_RETRIES = 2  # ten, its own choice, is minutes of silence where the network is closed
        builder.download_and_prepare()
    except Exception as error:
        name = location.removeprefix("tfds://")
        raise DataError(
            f"{location} is not prepared in '{builder.data_path}' and cannot be: {_reason(error)}. Prepare it "
            f"elsewhere, python -c \"import tensorflow_datasets as t; t.builder('{name}').download_and_prepare()\", "
            "and copy that machine's ~/tensorflow_datasets here, or give a local file."
        ) from None
    finally:
        downloader.MAX_RETRIES = patience


def _reason(error: Exception) -> str:
    closed = re.search(r"NameResolution|Max retries|Connection|resolve|unreachable|timed out", f"{type(error)} {error}")
    return "the network is closed, or its server is" if closed else one_line(error)


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    label = _tfds().features.ClassLabel
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    named = {name: feature.names for name, feature in inner.items() if isinstance(feature, label)}
    return {name: tuple(names) for name, names in named.items() if names}


def _table(builder: Any, split: str, location: str, modality: str) -> Table:
    features = builder.info.features
    origin = f"{location} {split}" if "://" in location else f"{Path(location).name} {split}"
    pictures = [name for name, feature in features.items() if isinstance(feature, _tfds().features.Image)]
    root = _image_folder(builder)
    if modality == "image" and pictures:
        final = root / re.sub(r"[^\w.-]", "_", split)
        with images.folder_once(final) as folder:
            rows = [_row(example, pictures, folder, n) for n, example in _read(builder, split, pictures, folder)]
        for number, row in enumerate(rows):
            row.update({name: f"{final.name}/{_file_name(name, number)}" for name in pictures})
    else:
        rows = [_row(example, pictures, None, n) for n, example in _read(builder, split, pictures, None)]
    names = [name for name in features if rows and name in rows[0]]
    arrays = [column(name, [row[name] for row in rows], lambda row: f"{origin} row {row + 1}") for name in names]
    return Table(pa.table(arrays, names=names), origin, class_names=_class_names(features), root=root)


def _image_folder(builder: Any) -> Path:
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    key = hashlib.sha256(f"{builder.data_path} {sizes}".encode()).hexdigest()[:16]
    return cache_folder() / "tfds-images" / f"{builder.name}-{key}"


def _read(builder: Any, split: str, pictures: list[str], folder: Path | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the examples in the order they are stored; images are decoded only if there is a folder for them."""
    tfds = _tfds()
    decoders = None if folder else {name: tfds.decode.SkipDecoding() for name in pictures} or None
    order = tfds.ReadConfig(interleave_cycle_length=1)
    stored = builder.as_dataset(split=split, shuffle_files=False, decoders=decoders, read_config=order)
    yield from enumerate(tfds.as_numpy(stored))


def _row(example: dict[str, Any], pictures: list[str], folder: Path | None, number: int) -> dict[str, Any]:
    if folder:
        for name in pictures:
            images.write_pixels(example[name], folder / _file_name(name, number))
    return {name: _plain(value) for name, value in example.items() if name not in pictures}


def _file_name(name: str, number: int) -> str:
    return f"{name}-{number:07d}.png"


def _plain(value: Any) -> Any:
    """Returns a value of NumPy or TensorFlow as Python has it, text as str."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return _plain(value.to_list()) if hasattr(value, "to_list") else value
