"""Arrays that begin where a cache line does: a backend on a CPU takes such memory as it is, without a copy."""

from __future__ import annotations

import math

import numpy as np

LINE = 64  # bytes


def untouched(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    """Returns an array of zeros that takes up memory only where it is written.

    Args:
        shape: of the array.
        dtype: of its numbers, by NumPy's name.
    """
    count, size = math.prod(shape), np.dtype(dtype).itemsize
    raw = np.zeros(count * size + LINE, np.uint8)
    start = -raw.ctypes.data % LINE
    return raw[start : start + count * size].view(dtype).reshape(shape)


def settled(array: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Returns an array of the same numbers that lies in one piece and begins where a cache line does."""
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable and not array.ctypes.data % LINE:
        return array
    found = untouched(array.shape, dtype)
    found[...] = array
    return found
