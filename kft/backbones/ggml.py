"""How ggml stores numbers: plain, or quantized in blocks (https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any  # of NumPy's, whose types do not follow what is computed with them
Reads = Callable[[Array], Array]


@dataclass(frozen=True)
class Kind:
    """How ggml stores numbers of a type, in blocks.

    Attributes:
        name: ggml's.
        numbers: of a block.
        size: of a block in bytes.
        read: turns blocks, uint8 of shape (blocks, size), into float32 of shape (blocks, numbers).
    """

    name: str
    numbers: int
    size: int
    read: Reads


def _half(blocks: np.ndarray, start: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, start : start + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """Returns the lower halves of a block's bytes, and then the upper ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _fifths(blocks: np.ndarray, start: int) -> np.ndarray:
    """Returns 32 numbers of 5 bits: the fifth bits stand together, before the others."""
    bits = np.unpackbits(blocks[:, start : start + 4], axis=1, bitorder="little")
    found: np.ndarray = _nibbles(blocks[:, start + 4 : start + 20]) + 16.0 * bits
    return found


def _q4_0(b: Array) -> Array:
    return _half(b, 0) * (_nibbles(b[:, 2:18]) - 8)


def _q4_1(b: Array) -> Array:
    return _half(b, 0) * _nibbles(b[:, 4:20]) + _half(b, 2)


def _q5_0(b: Array) -> Array:
    return _half(b, 0) * (_fifths(b, 2) - 16)


def _q5_1(b: Array) -> Array:
    return _half(b, 0) * _fifths(b, 4) + _half(b, 2)


def _q8_0(b: Array) -> Array:
    return _half(b, 0) * np.ascontiguousarray(b[:, 2:34]).view(np.int8).astype(np.float32)


def _scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the eight scales and eight offsets of 6 bits that 12 bytes hold, float32 of shape (blocks, 8)."""
    low, high, both = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (both & 15) | (low >> 6 << 4)], axis=1)
    offsets = np.concatenate([high & 63, (both >> 4) | (high >> 6 << 4)], axis=1)
    return scales.astype(np.float32), offsets.astype(np.float32)


def _spread(b: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns 256 numbers, eight groups of 32, with the scales and offsets that stand at the block's beginning."""
    scales, offsets = _scales(b[:, 4:16])
    found: np.ndarray = (_half(b, 0) * scales)[:, :, None] * numbers - (_half(b, 2) * offsets)[:, :, None]
    return found.reshape(len(b), 256)


def _groups(packed: np.ndarray) -> np.ndarray:
    """Returns 256 numbers of 4 bits as groups of 32: lower and upper halves of each 32 bytes."""
    wide = packed.reshape(len(packed), 4, 32)
    return np.stack([wide & 15, wide >> 4], axis=2).reshape(len(packed), 8, 32).astype(np.float32)


def _q4_k(b: Array) -> Array:
    return _spread(b, _groups(b[:, 16:144]))


def _q5_k(b: Array) -> Array:
    fifth = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[None, :, None]) & 1
    return _spread(b, _groups(b[:, 48:176]) + 16.0 * fifth)


def _q6_k(b: Array) -> Array:
    low, high = b[:, 0:128].reshape(-1, 2, 2, 32), b[:, 128:192].reshape(-1, 2, 1, 32)
    four = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    two = (high >> np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]) & 3
    numbers = (four | (two << 4)).astype(np.float32) - 32
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return (_half(b, 208)[:, :, None] * scales[:, :, None] * numbers.reshape(-1, 16, 16)).reshape(len(b), 256)


def _plain(kind: str) -> Reads:
    return lambda b: np.ascontiguousarray(b).view(kind).astype(np.float32)


def _bfloat16(b: Array) -> Array:
    return (np.ascontiguousarray(b).view("<u2").astype(np.uint32) << 16).view(np.float32)


KINDS = {
    0: Kind("F32", 1, 4, _plain("<f4")),
    1: Kind("F16", 1, 2, _plain("<f2")),
    2: Kind("Q4_0", 32, 18, _q4_0),
    3: Kind("Q4_1", 32, 20, _q4_1),
    6: Kind("Q5_0", 32, 22, _q5_0),
    7: Kind("Q5_1", 32, 24, _q5_1),
    8: Kind("Q8_0", 32, 34, _q8_0),
    12: Kind("Q4_K", 256, 144, _q4_k),
    13: Kind("Q5_K", 256, 176, _q5_k),
    14: Kind("Q6_K", 256, 210, _q6_k),
    30: Kind("BF16", 1, 2, _bfloat16),
}
