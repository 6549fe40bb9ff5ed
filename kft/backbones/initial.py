"""Random weights that are equal on every backend. Import after `backend.activate`.

Keras' initializers draw with each backend's own generator, so the same seed gives other numbers on another backend. Here
the distributions are Keras', the numbers NumPy's.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from kft.backbones import buffers

CUT = 0.87962566103423978  # deviation of a standard normal cut at two deviations


def draw(layers: Iterable[Any], seed: int) -> None:
    """Draws the random weights of some layers anew, from the seed alone.

    Weights whose initializer is not random (zeros, ones, constants) are left as they are.

    Args:
        layers: built layers; those inside them are found.
        seed: with a weight's place in the list it decides its numbers.
    """
    for number, (variable, initializer) in enumerate(_random_variables(layers)):
        rng = np.random.default_rng([seed, number])
        values = sample(initializer, tuple(variable.shape), rng)
        variable.assign(values.astype("float32"))


def sample(initializer: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns an array from a Keras initializer's distribution, drawn by NumPy.

    Args:
        initializer: RandomNormal, TruncatedNormal, RandomUniform, a VarianceScaling (Glorot, He, LeCun) or Orthogonal.
        shape: of the array.
        rng: where the numbers come from.
    """
    config = initializer.get_config()
    if isinstance(initializer, keras.initializers.TruncatedNormal):
        return np.asarray(config["mean"] + config["stddev"] * _truncated(shape, rng))
    if isinstance(initializer, keras.initializers.RandomNormal):
        return rng.normal(config["mean"], config["stddev"], shape)
    if isinstance(initializer, keras.initializers.RandomUniform):
        return rng.uniform(config["minval"], config["maxval"], shape)
    if isinstance(initializer, keras.initializers.VarianceScaling):
        return _scaled(initializer, shape, rng)
    if isinstance(initializer, keras.initializers.Orthogonal):
        rows = math.prod(shape[:-1])
        q, r = np.linalg.qr(rng.normal(size=(max(rows, shape[-1]), min(rows, shape[-1]))))
        q = q * np.sign(np.diag(r))
        return np.asarray(config["gain"] * (q if rows >= shape[-1] else q.T).reshape(shape))
    return 0.02 * _truncated(shape, rng)


def _scaled(initializer: Any, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Variance scaling (Glorot and Bengio 2010, He et al. 2015), with the fans Keras computes."""
    field = math.prod(shape[:-2]) if len(shape) > 1 else 1
    fan_in, fan_out = (shape[-2] * field, shape[-1] * field) if len(shape) > 1 else (shape[0], shape[0])
    fans = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}
    variance = initializer.scale / max(1.0, fans[initializer.mode])
    if initializer.distribution == "uniform":
        return rng.uniform(-math.sqrt(3 * variance), math.sqrt(3 * variance), shape)
    if initializer.distribution == "untruncated_normal":
        return rng.normal(0, math.sqrt(variance), shape)
    return math.sqrt(variance) / CUT * _truncated(shape, rng)


def _truncated(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.standard_normal(shape)
    while (far := np.abs(values) > 2).any():
        values[far] = rng.standard_normal(int(far.sum()))
    return values


def _random_variables(layers: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    seen: set[int] = set()
    for layer in layers:
        for inner in layer._flatten_layers():
            for variable in inner._trainable_variables:
                if id(variable) in seen:
                    continue
                seen.add(id(variable))
                initializer = _initializer(inner, variable)
                if not isinstance(initializer, FIXED):
                    yield variable, initializer


FIXED = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant, keras.initializers.Identity)


def _initializer(layer: Any, variable: Any) -> Any:
    """Finds the initializer a layer gave a weight, by Keras' habit of naming it `WEIGHT_initializer`."""
    for name in (f"{variable.name}_initializer", f"_{variable.name}_initializer", "initializer", "_initializer"):
        if (found := getattr(layer, name, None)) is not None:
            return keras.initializers.get(found)
    values = keras.ops.convert_to_numpy(variable)
    return (
        keras.initializers.Constant(0.0)
        if values.min() == values.max()
        else keras.initializers.TruncatedNormal(stddev=0.02)
    )


def tensor(array: np.ndarray, dtype: Any = None) -> Any:
    """Returns an array as the backend's tensor, on a CPU in the same memory; the array is not to be written any more.

    Args:
        array: of `buffers`, whose memory a backend can take.
        dtype: of the tensor; the array's where it is left out.
    """
    name, found = keras.backend.backend(), array
    if name == "torch":
        import torch

        found = torch.from_numpy(array)
    elif name == "tensorflow" and array.size:
        import tensorflow

        # Keras' own way copies twice.
        found = tensorflow.experimental.dlpack.from_dlpack(array.__dlpack__())
    return keras.ops.convert_to_tensor(found, dtype)


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Has layers that are made within begin at zero, not at random, which takes longer than reading what replaces it.

    On a CPU the zeros take no memory before they are written. Only for models all of whose weights are filled then.
    """
    kinds = (
        keras.initializers.VarianceScaling,
        keras.initializers.RandomNormal,
        keras.initializers.RandomUniform,
        keras.initializers.TruncatedNormal,
    )
    drawing = {kind: kind.__call__ for kind in kinds}

    def call(self: Any, shape: Any, dtype: Any = None, **kwargs: Any) -> Any:
        return tensor(buffers.untouched(tuple(shape)), dtype)

    try:
        for kind in kinds:
            kind.__call__ = call
        yield
    finally:
        for kind, own in drawing.items():
            kind.__call__ = own
