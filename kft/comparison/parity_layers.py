"""What each layer of a model gives, in the order it is computed. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops


def named(model: Any) -> dict[str, Any]:
    """Returns all layers of a model, those inside layers too, by a path such as `backbone/block_0/attention`."""
    found: dict[str, Any] = {}
    seen: set[int] = set()

    def walk(layer: Any, path: str) -> None:
        for inner in layer._layers:
            if id(inner) not in seen:
                seen.add(id(inner))
                place = path + inner.name
                found[place] = inner
                walk(inner, place + "/")

    walk(model, "")
    return found


def outputs(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what each layer gives in inference, by path, inner layers before those that hold them.

    A layer that is called several times has an entry for each call, a layer with several outputs one for each output.

    Args:
        model: a built model.
        inputs: a batch.
    """
    found: dict[str, np.ndarray] = {}

    def keep(path: str, value: Any) -> None:
        for number, tensor in enumerate(keras.tree.flatten(value)):
            if tensor is not None:
                name = path if number == 0 else f"{path}[{number}]"
                calls = sum(other.partition(" call ")[0] == name for other in found)
                found[name if not calls else f"{name} call {calls + 1}"] = as_array(tensor)

    layers = {path: layer for path, layer in named(model).items() if not isinstance(layer, keras.layers.InputLayer)}
    with _heard(layers, keep), without_gradients():
        model(inputs, training=False)
    return found


@contextlib.contextmanager
def _heard(layers: dict[str, Any], keep: Callable[[str, Any], None]) -> Iterator[None]:
    before = {path: layer.__dict__.get("call") for path, layer in layers.items()}
    for path, layer in layers.items():
        layer.call = _telling(layer.call, path, keep)
    try:
        yield
    finally:
        for path, layer in layers.items():
            del layer.call
            if before[path] is not None:
                layer.call = before[path]


def _telling(call: Callable[..., Any], path: str, keep: Callable[[str, Any], None]) -> Callable[..., Any]:
    def told(*arguments: Any, **options: Any) -> Any:
        value = call(*arguments, **options)
        keep(path, value)
        return value

    return told


@contextlib.contextmanager
def without_gradients() -> Iterator[None]:
    """Keeps torch from recording what is computed in the block; the other backends record only when asked to."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.no_grad():
        yield


def as_array(tensor: Any) -> np.ndarray:
    """Returns a tensor's values; unlike `ascontiguousarray` it keeps scalars."""
    return np.array(ops.convert_to_numpy(tensor), order="C")
