"""Keeps images that come inside a data set as files in the cache, once."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kft.errors import DataError

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def folder_once(final: Path) -> Iterator[Path | None]:
    """Gives a folder to fill, which becomes `final` when all went well; None if `final` is there already.

    Raises:
        DataError: if the folder cannot be written.
    """
    if final.exists():
        yield None
        return
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=final.parent, ignore_cleanup_errors=True) as name:
            filled = Path(name) / "images"
            filled.mkdir()
            yield filled
            _move(filled, final)
    except OSError as error:
        raise DataError(
            f"Cannot keep images in '{final.parent}': {error.strerror or error}. "
            "Set KFT_CACHE to a folder that has room."
        ) from None


def _move(filled: Path, final: Path) -> None:
    try:
        filled.replace(final)
    except OSError:
        if not final.exists():  # another process was quicker: its files are the same
            raise


def write_pixels(pixels: np.ndarray, file: Path) -> None:
    """Writes an array of shape (height, width, channels), uint8 with 1, 3 or 4 channels, as a PNG file."""
    from PIL import Image

    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")


def write_encoded(content: bytes, file: Path, where: str) -> None:
    """Writes the bytes of an image file in any format that Pillow reads as a PNG file.

    Raises:
        DataError: if they are no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            kept: Any = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
            kept.save(file, "PNG")
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: not an image that Pillow reads: {error}. Take the row out.") from None
