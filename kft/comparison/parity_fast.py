"""The fast way in which `kft run` computes encoder blocks, against Keras' own. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kft.backbones import fused
from kft.comparison import parity_gradients
from kft.comparison.parity_verdict import FLOOR, furthest
from kft.data.batches import Batch


def differences(model: Any, dropouts: Iterable[Any], batch: Batch) -> list[tuple[str, float]]:
    """Returns how far loss and gradients of the fast way are from those of the plain way, dropout being off.

    Args:
        model: compiled, and built in the plain way.
        dropouts: all dropouts of it; the fast way draws its masks inside the blocks, so none is drawn here.
        batch: inputs, targets and weights.

    Returns:
        Pairs of a name and a difference, relative as in the verdict: the loss, then each weight from the head backwards;
        nothing where the model has no block that is computed in a fast way.
    """
    with _off(dropouts):
        loss, slopes = parity_gradients.gradients(model, batch)
        with _installed(model) as changed:
            if not changed:
                return []
            fast_loss, fast_slopes = parity_gradients.gradients(model, batch)
    floor = FLOOR * max(float(np.abs(slope).max()) for slope in slopes)
    found = [
        (weight.path, furthest(slope, fast, max(float(np.abs(slope).max()), floor)))
        for weight, slope, fast in zip(model.trainable_variables, slopes, fast_slopes, strict=True)
    ]
    return [("loss", abs(loss - fast_loss) / abs(loss) if loss else abs(fast_loss)), *reversed(found)]


@contextlib.contextmanager
def _off(dropouts: Iterable[Any]) -> Iterator[None]:
    before = [(layer, layer.rate) for layer in dropouts]
    for layer, _ in before:
        layer.rate = 0.0
    try:
        yield
    finally:
        for layer, rate in before:
            layer.rate = rate


@contextlib.contextmanager
def _installed(model: Any) -> Iterator[int]:
    """Computes the fast way in the block; gives the number of encoder blocks that do."""
    before = [(layer, layer.__dict__.get("call")) for layer in model._flatten_layers()]
    try:
        yield fused.install(model)
    finally:
        for layer, call in before:
            if "call" in layer.__dict__:
                del layer.call
            if call is not None:
                layer.call = call
