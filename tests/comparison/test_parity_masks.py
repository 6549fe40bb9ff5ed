"""Dropout with masks from a hash: the numbers NumPy gives, counted on in compiled steps, and no other randomness."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kft.errors import ModelError

pytestmark = pytest.mark.backend


def murmur(value: np.ndarray) -> np.ndarray:
    """The finalizer of MurmurHash3, as its author published it, on unsigned numbers."""
    value = value ^ (value >> np.uint32(16))
    value = value * np.uint32(0x85EBCA6B)
    value = value ^ (value >> np.uint32(13))
    value = value * np.uint32(0xC2B2AE35)
    return value ^ (value >> np.uint32(16))


def expected(shape: tuple[int, ...], key: int, count: int) -> np.ndarray:
    golden = np.uint32(2654435761)
    start = murmur(np.array([count], np.uint32) * golden + np.uint32(key))
    places = np.zeros(shape, np.uint32)
    for axis in np.indices(shape, np.uint32):
        places = places * golden + axis
    return murmur(murmur(places) ^ start) & np.uint32(2**24 - 1)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("key", "count"), [(0, 0), (1, 0), (2**31 - 1, 7), (123456789, 100_000)])
def test_the_hash_is_murmurs(key: int, count: int) -> None:
    from keras import ops

    from kft.comparison.parity_masks import hashed

    found = ops.convert_to_numpy(hashed((3, 5, 7), *(ops.convert_to_tensor(value, "int32") for value in (key, count))))
    np.testing.assert_array_equal(found, expected((3, 5, 7), key, count))
    longer = ops.convert_to_numpy(hashed((3, 9, 7), *(ops.convert_to_tensor(value, "int32") for value in (key, count))))
    np.testing.assert_array_equal(found, longer[:, :5])


def model() -> Any:
    """Plain, attention's and spatial dropout, over a varying length."""
    import keras

    keras.utils.clear_session()  # layers without a name are numbered from 1 again
    inputs = keras.Input((None, 8))
    x = keras.layers.Dropout(0.25, name="plain")(inputs)
    x = keras.layers.MultiHeadAttention(2, 4, dropout=0.5, name="attention")(x, x)
    x = keras.layers.SpatialDropout1D(0.5, name="spatial")(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


@pytest.mark.usefixtures("backend")
def test_every_dropout_is_fed() -> None:
    from keras import ops

    from kft.comparison.parity_masks import Masks

    masks = Masks(model(), 3)
    assert list(masks.layers) == ["plain", "attention/dropout", "spatial"]
    samples = masks.samples()
    assert len({sample.tobytes() for sample in samples.values()}) == 6
    plain, spatial = samples["plain call 0"], samples["spatial call 0"]
    assert set(np.unique(plain)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (spatial == spatial[:, :1, :]).all()  # one number for all places of a channel
    many = ops.convert_to_numpy(masks.layers["plain"].call(ops.ones((200, 50, 8)), training=True))
    assert (many == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert masks.counts()[0] == 1


@pytest.mark.usefixtures("backend")
def test_compiled_steps_count_on() -> None:
    from kft.comparison.parity_masks import Masks

    made = model()
    masks = Masks(made, 3)
    made.compile(optimizer="sgd", loss="mse")
    for length in (3, 5, 3):
        made.train_on_batch(np.ones((2, length, 8), "float32"), np.ones((2, length, 1), "float32"))
    if hasattr(made, "jax_state_sync"):
        made.jax_state_sync()
    assert masks.counts() == [3, 3, 3]
    made.predict_on_batch(np.ones((2, 3, 8), "float32"))
    assert masks.counts() == [3, 3, 3]


@pytest.mark.usefixtures("backend")
def test_randomness_that_cannot_be_fed_is_refused() -> None:
    import keras

    from kft.comparison.parity_masks import Masks

    inputs = keras.Input((8, 8, 3))
    flipped = keras.layers.RandomFlip("horizontal", name="flip")(inputs)
    with pytest.raises(ModelError, match="'flip' .RandomFlip. draws random numbers .* train.augmentation.flip=none"):
        Masks(keras.Model(inputs, flipped), 0)
