"""Faster ways to compute what KerasHub's layers compute: the same weights, the same numbers, fewer passes over memory.

The layers stay KerasHub's: only how an instance computes is exchanged, so a saved model knows nothing of it.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_enabled = True


def install(model: Any) -> int:
    """Makes a model's encoder blocks and dropouts compute the fast way of the active backend.

    Args:
        model: a built `keras.Model`; layers inside layers are found.

    Returns:
        The number of encoder blocks that were changed.
    """
    if not _enabled:
        return 0
    import keras
    import keras_hub

    from kft.backbones.fused import block

    backend = importlib.import_module(f"kft.backbones.fused.{keras.backend.backend()}")
    changed = 0
    for layer in model._flatten_layers():
        if type(layer) is keras_hub.layers.TransformerEncoder:
            layer.call = block.call_of(layer, backend)
            changed += 1
        elif type(layer) is keras.layers.Dropout:
            layer.call = backend.dropout_of(layer)
    return changed


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Leaves models that are built in the block as Keras computes them, for comparisons."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before
