"""Dropout masks that are the same numbers on every backend. Import after `backend.activate`.

Each backend draws random numbers with a generator of its own. Here a mask is a hash of the seed, the dropout's number in
the model, the count of its calls and each element's coordinates: integer arithmetic only, so that it is exact everywhere,
and part of the compiled step. A token's mask is the same whatever length its batch is padded to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kft.comparison.parity_layers import as_array, named
from kft.errors import ModelError

BITS = 24  # of the hash that are compared with the rate
GOLDEN = -1640531535  # 2654435761 (Knuth's multiplicative hash) as a signed 32-bit integer
MULTIPLIERS = (-2048144789, -1028477387)  # 0x85ebca6b and 0xc2b2ae35, signed


class Masks:
    """The dropouts of a model, fed with masks that seed, number, call and place decide.

    The state of a dropout's own seed generator holds its key and the count of its calls, so that compiled steps carry it
    along and checkpoints keep it.

    Args:
        model: a built model; its dropouts are changed in place.
        seed: decides all masks.

    Raises:
        ModelError: if a layer draws random numbers that are no dropout.
    """

    def __init__(self, model: Any, seed: int) -> None:
        self.layers: dict[str, Any] = {}
        for path, layer in named(model).items():
            if not layer._seed_generators:
                continue
            if type(layer).call not in _calls():
                raise ModelError(
                    f"The layer '{path}' ({type(layer).__name__}) draws random numbers that cannot be fed; parity "
                    "feeds dropout only. Turn it off, as with train.augmentation.flip=none."
                )
            layer.call = _fed(layer)
            self.layers[path] = layer
        self._keys = [int(np.random.default_rng([seed, number]).integers(2**31)) for number in range(len(self.layers))]
        self.set([0] * len(self.layers))

    def set(self, counts: Sequence[int]) -> None:
        """Says how often each dropout has been called."""
        for layer, key, count in zip(self.layers.values(), self._keys, counts, strict=True):
            state = layer.seed_generator.state
            state.assign(np.asarray([key, count], keras.backend.standardize_dtype(state.dtype)))

    def counts(self) -> list[int]:
        """Returns how often each dropout has been called."""
        return [int(ops.convert_to_numpy(layer.seed_generator.state)[1]) for layer in self.layers.values()]

    def samples(self) -> dict[str, np.ndarray]:
        """Returns what each dropout makes of ones, shape (4, 6, 8), in its first two calls; counts are left as they were."""
        before = self.counts()
        self.set([0] * len(self.layers))
        ones = ops.ones((4, 6, 8))
        found = {
            f"{path} call {call}": as_array(layer.call(ones, training=True))
            for path, layer in self.layers.items()
            for call in range(2)
        }
        self.set(before)
        return found


def _calls() -> tuple[Any, ...]:
    layers = keras.layers
    spatial = (layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D)
    return tuple(kind.call for kind in (layers.Dropout, *spatial))


def _fed(layer: Any) -> Callable[..., Any]:
    def call(inputs: Any, training: bool = False) -> Any:
        if not training or not layer.rate:
            return inputs
        state = ops.cast(layer.seed_generator.next(), "int32")
        shape = _noise_shape(layer, inputs)
        keep = hashed(shape, state[0], state[1]) >= round(layer.rate * 2**BITS)
        return inputs * ops.cast(keep, inputs.dtype) / (1 - layer.rate)

    return call


def hashed(shape: Sequence[Any], key: Any, count: Any) -> Any:
    """Returns int32 from 0 to 2**24 - 1 for each place of a shape, by the finalizer of MurmurHash3 (Appleby 2011).

    The coordinates alone decide, not the shape.

    Args:
        shape: whole numbers, or tensors of them where a dimension varies.
        key: int32 scalar.
        count: int32 scalar.
    """
    place = ops.arange(shape[0], dtype="int32")
    for size in shape[1:]:
        place = ops.expand_dims(place * GOLDEN, -1) + ops.arange(size, dtype="int32")
    start = _mixed(count * GOLDEN + key)
    return ops.bitwise_and(_mixed(ops.bitwise_xor(_mixed(place), start)), 2**BITS - 1)


def _mixed(value: Any) -> Any:
    value = ops.bitwise_xor(value, _shifted(value, 16)) * MULTIPLIERS[0]
    value = ops.bitwise_xor(value, _shifted(value, 13)) * MULTIPLIERS[1]
    return ops.bitwise_xor(value, _shifted(value, 16))


def _shifted(value: Any, bits: int) -> Any:
    """Shifts right and fills up with zeros; on signed integers the backends fill up with the sign."""
    return ops.bitwise_and(ops.right_shift(value, bits), 2 ** (32 - bits) - 1)


def _noise_shape(layer: Any, inputs: Any) -> tuple[Any, ...]:
    """Returns the shape of a mask; a dimension of 1 is one number for all."""
    whole = tuple(ops.shape(inputs))
    spatial = getattr(layer, "_get_noise_shape", None)
    wanted = spatial(inputs) if spatial else layer.noise_shape
    if wanted is None:
        return whole
    return tuple(size if own is None else own for own, size in zip(wanted, whole, strict=True))
