"""Image classification: files to arrays of one size; normalization and augmentation are layers of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kft.data.encoded import Encoded
from kft.data.table import Table
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task, one_row_each

USUAL = ("image", "path", "file", "filename")


def columns(table: Table, data: Data) -> list[str]:
    """Returns the column of image files: the one the recipe names, or a usual name.

    Raises:
        DataError: if it is not there, or more than one is named.
    """
    if data.inputs is None:
        for name in USUAL:
            if name in table.names:
                return [name]
        raise DataError(
            f"data.inputs: name the column of image files. {table.origin} has: {', '.join(table.names)}. "
            f"Type, for example: data.inputs=[{table.names[0]}]"
        )
    if len(data.inputs) != 1:
        raise DataError(f"data.inputs: one column of images, received {len(data.inputs)}: {', '.join(data.inputs)}.")
    table.arrow(data.inputs[0])
    return data.inputs


def files(table: Table, names: list[str]) -> list[Path]:
    """Returns the image file of each row.

    Raises:
        DataError: for a row without a file name, or a file that does not exist.
    """
    root = table.root or Path()
    found = []
    for row, cell in enumerate(table.cells(names[0])):
        if not isinstance(cell, str) or not cell.strip():
            raise DataError(f"{table.where(row)}: no image in column '{names[0]}' (received {cell!r}).")
        if not (root / cell).is_file():
            raise DataError(f"{table.where(row)}: no image at '{root / cell}'. Its path counts from '{root}'.")
        found.append(root / cell)
    return found


def read(file: Path, channels: int) -> np.ndarray:
    """Returns an image as uint8, shape (height, width, channels).

    Raises:
        DataError: if the file is not an image that Pillow can read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"Cannot read the image '{file}': {error}.") from None
    return array[:, :, None] if channels == 1 else array


def encode(table: Table, encoding: Encoding, target: Target | None) -> Encoded:
    """Encodes images as `images`, shape (examples, height, width, channels): uint8, or float32 where they were resized."""
    paths = files(table, columns(table, encoding.data))
    size = encoding.image_size or read(paths[0], encoding.channels).shape[:2]
    height, width = int(size[0]), int(size[1])
    arrays = [_fit(read(path, encoding.channels), (height, width)) for path in paths]
    dtype = np.uint8 if all(array.dtype == np.uint8 for array in arrays) else np.float32
    images = np.stack([array.astype(dtype) for array in arrays])
    wanted = None
    if target is not None:
        wanted = np.asarray(targets_.encode(table, target, encoding.data))
        wanted = wanted[:, 0] if target.kind == "labels" else wanted
    return Encoded(inputs={"images": images}, targets=wanted)


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes by Keras' own layer, whose arithmetic is the same on each backend; what fits stays uint8."""
    if image.shape[:2] == size:
        return image
    import keras

    resized = keras.layers.Resizing(*size, data_format="channels_last")(image[None].astype(np.float32))
    array: np.ndarray = np.clip(keras.ops.convert_to_numpy(resized)[0], 0, 255)
    return array


CLASSIFICATION = Task(
    name="image_classification",
    summary="one label, or several, of an image",
    modality="image",
    targets="labels",
    metrics={"labels": ("accuracy", "f1_macro"), "multi_label": ("f1_micro", "f1_macro", "accuracy")},
    columns=columns,
    inputs=files,
    encode=encode,
    head="image",
    join=one_row_each,
)
