"""The fast blocks against Keras' own computation: same outputs, same steps, dropout of the same strength."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.backend

WIDTH, TOKENS, ROWS = 24, 11, 6


def layer(dropout: float = 0.0, normalize_first: bool = False, activation: str = "gelu") -> Any:
    import keras
    import keras_hub

    known = keras.saving.get_registered_object(activation) if ">" in activation else activation
    made = keras_hub.layers.TransformerEncoder(
        48, 4, dropout=dropout, activation=known, normalize_first=normalize_first, layer_norm_epsilon=1e-6
    )
    inputs = {"x": keras.Input((None, WIDTH), name="x"), "mask": keras.Input((None,), dtype="int32", name="mask")}
    outputs = keras.layers.Dense(3)(made(inputs["x"], padding_mask=inputs["mask"]))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.3, weight.shape).astype("float32") for weight in model.get_weights()])
    return model


def batch(tokens: int = TOKENS) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = (np.arange(tokens) < rng.integers(2, tokens + 1, ROWS)[:, None]).astype("int32")
    x = rng.normal(size=(ROWS, tokens, WIDTH)).astype("float32")
    return {"x": x, "mask": mask}, rng.normal(size=(ROWS, tokens, 3)).astype("float32"), mask.astype("float32")


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "keras_hub>gelu_approximate", "relu", "tanh"])
def test_outputs_are_those_of_keras(backend: str, normalize_first: bool, activation: str) -> None:
    from kft.backbones import fused

    plain = layer(normalize_first=normalize_first, activation=activation)
    fast = layer(normalize_first=normalize_first, activation=activation)
    assert fused.install(fast) == 1
    inputs, _, weights = batch()
    first, second = (model.predict_on_batch(inputs)[weights > 0] for model in (plain, fast))
    assert first.std() > 0.1
    np.testing.assert_allclose(second, first, atol=1e-5)


def test_without_a_padding_mask_too(backend: str) -> None:
    import keras
    import keras_hub

    from kft.backbones import fused

    made = keras_hub.layers.TransformerEncoder(48, 4)
    model = keras.Model(inputs := keras.Input((None, WIDTH)), made(inputs))
    x = batch()[0]["x"]
    before = model.predict_on_batch(x)
    assert fused.install(model) == 1
    np.testing.assert_allclose(model.predict_on_batch(x), before, atol=1e-5)


@pytest.mark.parametrize(
    ("normalize_first", "activation"), [(False, "gelu"), (True, "keras_hub>gelu_approximate"), (True, "tanh")]
)
def test_training_takes_the_same_steps(backend: str, normalize_first: bool, activation: str) -> None:
    import keras

    from kft.backbones import fused

    found = []
    for fast in (False, True):
        model = layer(normalize_first=normalize_first, activation=activation)
        if fast:
            fused.install(model)
        model.compile(keras.optimizers.SGD(0.05), "mse")
        losses = [float(model.train_on_batch(*batch(tokens))) for tokens in (11, 7, 11)]
        found.append((losses, model.get_weights()))
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
    for fast_weight, weight in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_allclose(fast_weight, weight, atol=1e-4)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(backend: str, rate: float) -> None:
    import keras

    from kft.backbones import fused

    dropout = keras.layers.Dropout(rate, seed=3)
    model = keras.Model(inputs := keras.Input((200,)), dropout(inputs))
    fused.install(model)
    ones = np.ones((300, 200), "float32")
    first, second = (keras.ops.convert_to_numpy(model(ones, training=True)) for _ in range(2))
    assert abs((first == 0).mean() - rate) < 0.006
    assert first.max() == pytest.approx(1 / (1 - rate), rel=0.005)
    assert abs(first.mean() - 1) < 0.01
    both = ((first == 0) & (second == 0)).mean()  # masks of two steps have nothing to do with each other
    assert abs(both - rate**2) < 0.006
    assert abs(((first[:, 1:] == 0) & (first[:, :-1] == 0)).mean() - rate**2) < 0.006
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(ones, training=False)), ones)


def test_dropout_in_a_block_changes_training_only(backend: str) -> None:
    import keras

    from kft.backbones import fused

    fast, plain = layer(dropout=0.3), layer()
    fused.install(fast)
    inputs, _, weights = batch()
    np.testing.assert_allclose(
        fast.predict_on_batch(inputs)[weights > 0], plain.predict_on_batch(inputs)[weights > 0], atol=1e-5
    )
    first, second = (keras.ops.convert_to_numpy(fast(inputs, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 0.05
    many = np.mean([keras.ops.convert_to_numpy(fast(inputs, training=True)) for _ in range(60)], axis=0)
    calm = keras.ops.convert_to_numpy(plain(inputs, training=False))
    error = np.abs(many - calm)[weights > 0].mean()
    assert error < 0.5 * np.abs(first - calm)[weights > 0].mean()


def test_the_gradient_goes_through_the_masks_that_the_output_was_made_with(backend: str) -> None:
    import keras

    from kft.backbones import fused

    keras.utils.set_random_seed(5)
    model = layer(dropout=0.3)
    fused.install(model)
    rate = 0.01
    model.compile(keras.optimizers.SGD(rate), keras.losses.MeanSquaredError())
    before, seeds = model.get_weights(), [variable.numpy() for variable in model.non_trainable_variables]
    x, y, weights = batch()

    def loss(values: list[np.ndarray]) -> float:
        model.set_weights(values)
        for variable, seed in zip(model.non_trainable_variables, seeds, strict=True):
            variable.assign(seed)
        if backend == "torch":
            import torch

            torch.manual_seed(7)
        return float(model.train_on_batch(x, y, weights))

    loss(before)
    steps = [new - old for new, old in zip(model.get_weights(), before, strict=True)]
    steepness = sum(float((step.astype(np.float64) ** 2).sum()) for step in steps) / rate
    ahead, behind = (loss([w + sign * 0.2 * step for w, step in zip(before, steps, strict=True)]) for sign in (1, -1))
    assert steepness > 0
    assert (behind - ahead) / 0.4 == pytest.approx(steepness, rel=2e-3)


def test_a_frozen_block_does_not_drop_out(backend: str) -> None:
    import keras

    from kft.backbones import fused
    from kft.tuning import trainable

    model = layer(dropout=0.3)
    fused.install(model)
    for part in model.layers:
        trainable._set(part, False)
    inputs, _, _ = batch()
    first, second = (keras.ops.convert_to_numpy(model(inputs, training=True)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_saved_model_knows_nothing_of_it(backend: str, tmp_path: Any) -> None:
    import keras

    from kft.backbones import fused

    model = layer(dropout=0.1)
    fused.install(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    inputs, _, weights = batch()
    np.testing.assert_allclose(
        loaded.predict_on_batch(inputs)[weights > 0], model.predict_on_batch(inputs)[weights > 0], atol=1e-5
    )


def test_blocks_built_in_a_disabled_section_stay_keras_own(backend: str) -> None:
    from kft.backbones import fused

    model = layer()
    with fused.disabled():
        assert fused.install(model) == 0
    assert fused.install(model) == 1
