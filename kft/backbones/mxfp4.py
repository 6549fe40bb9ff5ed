"""Numbers of four bits that share scales: MXFP4, of the OCP Microscaling Formats Specification, version 1.0.

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from __future__ import annotations

import functools

import numpy as np

from kft.backbones import buffers
from kft.backbones.tensors import Tensors
from kft.errors import ModelError

# Of E2M1, by its lower three bits; the fourth is the sign.
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
SIGNED = np.concatenate([VALUES, -VALUES])
# The two numbers of each byte.
LOWER, UPPER = SIGNED[np.arange(256) & 15], SIGNED[np.arange(256) >> 4]
# Of E8M0, which says a power of two; its largest number is none.
BIAS, NONE = 127, 255
BLOCKS, SCALES = "_blocks", "_scales"


def decode(blocks: np.ndarray, scales: np.ndarray, into: np.ndarray) -> None:
    """Writes a packed kernel, which lies output first, as float32 numbers that lie input first.

    Args:
        blocks: uint8 of shape (outputs, blocks, bytes); the lower half of a byte is the first of two numbers.
        scales: uint8 of shape (outputs, blocks).
        into: where the numbers go, in one piece, of shape (blocks * bytes * 2, outputs).
    """
    outputs, count, size = blocks.shape
    turned = np.ascontiguousarray(blocks.transpose(1, 2, 0))  # which is an eighth of what the numbers would be
    numbers = into.reshape(count, size, 2, outputs)
    numbers[:, :, 0], numbers[:, :, 1] = LOWER[turned], UPPER[turned]
    numbers *= np.ldexp(np.float32(1), scales.T.astype(np.int32) - BIAS)[:, None, None]


def decoded(tensors: Tensors) -> Tensors:
    """Returns tensors in which each pair of `NAME_blocks` and `NAME_scales` is one tensor `NAME`, decoded when it is read.

    A kernel of each expert is packed output first; it is returned input first, as transformers lays out experts.
    """
    packed = [
        name.removesuffix(BLOCKS)
        for name in tensors
        if name.endswith(BLOCKS) and name.removesuffix(BLOCKS) + SCALES in tensors
    ]
    own = {name + end for name in packed for end in (BLOCKS, SCALES)}
    readers = {name: functools.partial(tensors.__getitem__, name) for name in tensors if name not in own}
    return Tensors(readers | {name: functools.partial(_kernels, tensors, name) for name in packed}, tensors.place)


def _kernels(tensors: Tensors, name: str) -> np.ndarray:
    """Decodes an expert after the other into the array that is returned, so that no second one is in memory."""
    blocks, scales = tensors[name + BLOCKS], tensors[name + SCALES]
    if blocks.dtype != np.uint8 or scales.dtype != np.uint8 or blocks.ndim != 4 or blocks.shape[:-1] != scales.shape:
        raise ModelError(
            f"'{tensors.place}': {name}{BLOCKS} is {blocks.dtype} of shape {blocks.shape} and {name}{SCALES} {scales.dtype} of "
            f"shape {scales.shape}; MXFP4 has uint8, (experts, outputs, blocks, bytes) and the same without bytes."
        )
    if scales.size and scales.max() == NONE:
        raise ModelError(
            f"'{tensors.place}': {name}{SCALES} has the scale {NONE}, which is no number. Get the file again."
        )
    experts, outputs, count, size = blocks.shape
    found = buffers.untouched((experts, count * size * 2, outputs))
    for number in range(experts):
        decode(blocks[number], scales[number], found[number])
    return found
