"""Digests of what has to be equal to the last bit: first weights and batches. Import after `backend.activate`."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from kft.comparison.parity_layers import as_array
from kft.data.batches import Batches


def weights(model: Any) -> dict[str, str]:
    """Returns the digest of each weight; random states are left out, as each backend keeps them in its own way."""
    return {f"{place} {weight.path}": _sha256(as_array(weight)) for place, weight in enumerate(model.weights)}


def batches(cut: Batches, count: int) -> dict[str, str]:
    """Returns the digests of inputs, targets and weights of the first batches, padding left out."""
    found: dict[str, str] = {}
    for number, (rows, length) in enumerate(cut.plan(0)[:count], 1):
        inputs, targets, factors = cut.make(rows, length)
        arrays = {**inputs, "targets": targets, "weights": factors}
        found |= {
            f"batch {number} {name}": _sha256(unpadded(np.asarray(array), inputs)) for name, array in arrays.items()
        }
    return found


def unpadded(array: np.ndarray, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Cuts an array to its batch's longest row: how far beyond it a batch is padded is each backend's own affair."""
    mask = inputs.get("padding_mask")
    if mask is None or array.shape[:2] != mask.shape:
        return array
    return np.ascontiguousarray(array[:, : int(mask.sum(axis=1).max())])


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
