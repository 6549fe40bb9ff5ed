"""Optimizer, schedule, loss and gradients, each against its formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import kft
from kft.recipe import Train
from kft.tasks.targets import Target, weights_of_classes

pytestmark = pytest.mark.backend

TWO = Target("labels", ("negative", "positive"), 1)


@pytest.fixture
def model(backend: str, quick: dict) -> Any:
    options = {name: quick["model"][name] for name in ("architecture", "config", "tokenizer")}
    backbone = kft.load_backbone(pretrained=False, **options)
    return kft.build_model(kft.load_data(quick["data"]["source"]), backbone, pooling="mean", dropout=0.0)


@pytest.fixture
def words(backend: str) -> Callable[[], Any]:
    """A model so small that its gradient can be written down: the mean of its words' vectors is the logits."""
    import keras

    def make() -> Any:
        ids = keras.Input((None,), dtype="int32", name="ids")
        table = keras.layers.Embedding(5, 2, embeddings_initializer="zeros", name="table")
        return keras.Model({"ids": ids}, keras.layers.GlobalAveragePooling1D()(table(ids)))

    return make


IDS = np.asarray([[1, 1, 1, 2], [1, 3, 3, 3], [4, 4, 1, 1]], np.int32)
LABELS = np.asarray([0, 1, 1], np.int32)


def gradient_at_zero() -> np.ndarray:
    """Returns the gradient of the mean cross-entropy over `IDS`, all logits being 0."""
    found = np.zeros((5, 2))
    for ids, label in zip(IDS, LABELS, strict=True):
        error = np.full(2, 0.5)
        error[label] -= 1
        for i in ids:
            found[i] += error / len(ids) / len(IDS)
    return found


def arrays(layer: Any) -> dict[str, np.ndarray]:
    import keras

    return {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in layer.trainable_variables}


def compiled(model: Any, steps: int = 100, **train: Any) -> Any:
    from kft.tuning import compiling

    compiling.compile_model(model, Train(**train), TWO, steps)
    return model


# Optimizers


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_decay_leaves_biases_and_normalization_alone(model: Any, optimizer: str) -> None:
    import keras

    for weight in model.trainable_variables:
        weight.assign(np.ones(weight.shape, np.float32))
    compiled(model, optimizer=optimizer, schedule="constant", learning_rate=0.1, weight_decay=0.5)
    model.optimizer.build(model.trainable_variables)
    model.optimizer.apply([keras.ops.zeros(weight.shape) for weight in model.trainable_variables])
    attention_biases = 0
    for path, values in arrays(model).items():
        kept = path.endswith(("bias", "gamma", "beta"))
        attention_biases += path.endswith("bias") and values.ndim > 1
        np.testing.assert_allclose(values, 1.0 if kept else 1 - 0.1 * 0.5, rtol=1e-6, err_msg=path)
    assert attention_biases == 3


def test_the_gradients_of_a_word_that_comes_twice_are_summed_first(words: Callable[[], Any]) -> None:
    gradient = gradient_at_zero()
    model = compiled(words(), optimizer="sgd", learning_rate=1.0, schedule="constant", weight_decay=0, clip_norm=0.1)
    model.train_on_batch({"ids": IDS}, LABELS)
    norm = np.sqrt((gradient**2).sum())
    assert norm > 0.1
    np.testing.assert_allclose(arrays(model)["table/embeddings"], -gradient * 0.1 / norm, rtol=1e-5, atol=1e-7)


def test_adam_squares_the_sum(words: Callable[[], Any]) -> None:
    model = compiled(words(), optimizer="adam", learning_rate=0.1, schedule="constant", epsilon=0.1, clip_norm=None)
    model.train_on_batch({"ids": IDS}, LABELS)
    # Adam's first step: both moments are the gradient's own, after the correction of their bias; Keras has epsilon
    # beside the uncorrected second moment.
    gradient = gradient_at_zero()
    moment, velocity = 0.1 * gradient, 0.001 * gradient**2
    expected = -0.1 * math.sqrt(1 - 0.999) / (1 - 0.9) * moment / (np.sqrt(velocity) + 0.1)
    np.testing.assert_allclose(arrays(model)["table/embeddings"], expected, rtol=1e-4, atol=1e-8)


def test_a_small_gradient_is_not_clipped(words: Callable[[], Any]) -> None:
    model = compiled(words(), optimizer="sgd", learning_rate=1.0, schedule="constant", weight_decay=0, clip_norm=100.0)
    model.train_on_batch({"ids": IDS}, LABELS)
    np.testing.assert_allclose(arrays(model)["table/embeddings"], -gradient_at_zero(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "adafactor"])
def test_each_optimizer_lowers_the_loss(words: Callable[[], Any], optimizer: str) -> None:
    model = compiled(words(), optimizer=optimizer, learning_rate=0.05, schedule="constant")
    found = [float(model.train_on_batch({"ids": IDS}, LABELS)) for _ in range(20)]
    assert found[0] == pytest.approx(math.log(2), rel=1e-5)
    assert found[-1] < found[0] - 1e-4
    assert found == sorted(found, reverse=True)


def test_two_small_batches_accumulated_are_one_large_batch(words: Callable[[], Any]) -> None:
    rng = np.random.default_rng(0)
    ids, labels = rng.integers(0, 5, (32, 4)).astype(np.int32), rng.integers(0, 2, 32).astype(np.int32)
    found = []
    for size, accumulation in ((16, 1), (8, 2)):
        model = compiled(
            words(),
            optimizer="sgd",
            learning_rate=0.5,
            schedule="constant",
            clip_norm=None,
            gradient_accumulation=accumulation,
        )
        model.fit({"ids": ids}, labels, batch_size=size, epochs=2, shuffle=False, verbose=0)
        found.append(arrays(model)["table/embeddings"])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    assert np.abs(found[0]).max() > 0.01


# The schedule


def rates(**options: Any) -> np.ndarray:
    from kft.tuning.compiling import warmup_steps
    from kft.tuning.schedule import WarmupDecay

    steps = options["steps"]
    schedule = WarmupDecay(options["peak"], steps, warmup_steps(options["warmup"], steps), options["decay"])
    return np.asarray([float(schedule(step)) for step in range(steps + 1)])


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.2, 4])
def test_the_schedule_is_its_formula(backend: str, decay: str, warmup: float) -> None:
    found = rates(peak=2.0, steps=20, warmup=warmup, decay=decay)
    rising = 4 if warmup else 0
    # A rise that begins above zero, so that the first step is not lost; the peak is the last step of it.
    expected = [2.0 * (step + 1) / 4 for step in range(rising)]
    for step in range(rising, 21):
        past = (step - rising) / (20 - rising)
        expected.append(
            2.0 * {"linear": 1 - past, "cosine": (1 + math.cos(math.pi * past)) / 2, "constant": 1.0}[decay]
        )
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_after_the_rise_the_schedule_is_that_of_transformers(backend: str, decay: str) -> None:
    if backend != "torch":
        pytest.skip("transformers' schedules are torch's")
    import torch
    from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

    make = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}[decay]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer, 5, 30)
    theirs = []
    for _ in range(31):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = rates(peak=2.0, steps=30, warmup=5, decay=decay)
    np.testing.assert_allclose(ours[5:], theirs[5:], atol=1e-6)
    np.testing.assert_allclose(ours[:5], theirs[1:6], atol=1e-6)  # one step ahead: theirs begins at a rate of 0


# Losses


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    found: np.ndarray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return found


def value(loss: Any, *parts: Any) -> float:
    import keras

    return float(keras.ops.convert_to_numpy(loss(*parts)))


LOGITS = np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)
CLASSES = np.asarray([0, 2, 1, 1, 0, 2])


def test_label_smoothing_is_its_formula(backend: str) -> None:
    from kft.tuning.compiling import loss

    target = Target("labels", ("a", "b", "c"))
    smooth = np.eye(3)[CLASSES] * 0.8 + 0.2 / 3
    expected = -(smooth * log_softmax(LOGITS)).sum(-1).mean()
    found = value(loss(target, 0.2), np.eye(3, dtype=np.float32)[CLASSES], LOGITS)
    assert found == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_of_several_labels_is_its_formula(backend: str) -> None:
    from kft.tuning.compiling import loss

    flags = (LOGITS[::-1] > 0).astype(np.float32)
    smooth = flags * 0.8 + 0.1
    share = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    expected = -(smooth * np.log(share) + (1 - smooth) * np.log(1 - share)).mean()
    assert value(loss(Target("multi_label", ("a", "b", "c")), 0.2), flags, LOGITS) == pytest.approx(expected, rel=1e-5)


def test_rows_of_no_weight_do_not_count(backend: str) -> None:
    from kft.tuning.compiling import loss

    weights = np.asarray([1, 1, 1, 1, 0, 0], np.float32)
    expected = -log_softmax(LOGITS)[np.arange(4), CLASSES[:4]].mean()
    found = value(loss(Target("labels", ("a", "b", "c"))), CLASSES.astype(np.int32), LOGITS, weights)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("wanted", ["balanced", {"positive": 3.0}])
def test_class_weights_are_those_of_scikit_learn(backend: str, quick: dict, wanted: Any) -> None:
    from sklearn.metrics import log_loss
    from sklearn.utils.class_weight import compute_sample_weight

    from kft.tuning.compiling import loss

    data = kft.load_data(quick["data"]["source"], limit=50)
    rows = data.splits.train
    names = rows.column("label")
    factors = weights_of_classes(wanted, rows, data.target, data.config)
    assert factors is not None
    truth = np.asarray([data.labels.index(name) for name in names], np.int32)
    assert 0 < truth.sum() < 25 or 25 < truth.sum() < 50, "the classes have to differ in size"
    logits = np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32)
    ours = value(loss(data.target), truth, logits, np.asarray(factors, np.float32)[truth])
    weights = compute_sample_weight(wanted if wanted == "balanced" else {"negative": 1.0, **wanted}, names)
    theirs = log_loss(truth, np.exp(log_softmax(logits)), sample_weight=weights)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_batches_carry_the_weights_of_their_classes(backend: str, quick: dict) -> None:
    from kft.data.batches import Batches
    from kft.data.encoded import Encoded

    encoded = Encoded(inputs={"x": np.zeros((5, 1), np.float32)}, targets=np.asarray([0, 1, 1, 0, 1]))
    batches = Batches(encoded, 8, shuffle=False, class_weights=(0.5, 2.0))
    _, _, weights = batches.make(*batches.plan(0)[0])
    np.testing.assert_array_equal(weights, [0.5, 2, 2, 0.5, 2, 0, 0, 0])


# Precision and evaluation


@pytest.fixture
def policy(backend: str) -> Iterator[None]:
    import keras

    before = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "bfloat16"])
def test_low_precision_trains_and_its_logits_are_float32(
    policy: None, quick: dict, backend: str, variant: Callable[..., dict], tmp_path: Any, precision: str
) -> None:
    changes = {
        "backend": backend,
        "output.directory": str(tmp_path / "run"),
        "train.precision": precision,
        "train.epochs": 2,
    }
    report = kft.run(variant(quick, changes))
    run = kft.load_run(report.run)
    assert run.model.output.dtype == "float32"
    inner = next(layer for layer in run.model.layers if "backbone" in layer.name)
    assert inner.compute_dtype == "bfloat16"
    assert inner.variable_dtype == ("float32" if precision == "mixed_bfloat16" else "bfloat16")
    found = [line["loss"] for line in run.history if "loss" in line]
    assert all(map(math.isfinite, found))
    assert run.evaluate().metrics["test"]["loss"] == pytest.approx(report.metrics["test"]["loss"], rel=0.02)


def test_the_size_of_evaluation_batches_changes_their_shape_and_no_number(finished_run: Any) -> None:
    from dataclasses import replace

    run = kft.load_run(finished_run)
    seen: list[int] = []
    whole = run.model.predict_on_batch

    def watch(inputs: dict[str, np.ndarray]) -> Any:
        seen.append(len(inputs["token_ids"]))
        return whole(inputs)

    found = {}
    for size in (4, 32):
        train = run.recipe.train.model_copy(update={"evaluation_batch_size": size})
        changed = replace(run, recipe=run.recipe.model_copy(update={"train": train}))
        changed.__dict__["model"] = run.model
        run.model.predict_on_batch = watch
        found[size] = changed.evaluate().metrics["test"]
        assert set(seen) == {size}
        seen.clear()
    assert found[4] == pytest.approx(found[32], abs=1e-6)


def test_the_step_in_two_parts_is_keras_own(backend: str) -> None:
    if backend != "jax":
        pytest.skip("only jax compiles the step for each shape")
    import keras

    from kft.tuning import jax_step

    def trained(parted: bool) -> tuple[list[float], list[np.ndarray], Any]:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((None, 4))
        pooled = keras.layers.GlobalAveragePooling1D()(keras.layers.Dropout(0.2, seed=1)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.BatchNormalization()(pooled)))
        optimizer = keras.optimizers.AdamW(0.01, global_clipnorm=0.1)
        model.compile(
            optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), weighted_metrics=["accuracy"]
        )
        if parted:
            jax_step.part(model)
        losses = []
        for tokens in (3, 5, 3, 5):
            rng = np.random.default_rng(tokens)
            x, y = rng.normal(size=(16, tokens, 4)).astype("float32"), rng.integers(0, 2, 16)
            found = model.fit(x, y, batch_size=8, epochs=2, sample_weight=rng.random(16), shuffle=False, verbose=0)
            losses += found.history["loss"] + found.history["accuracy"]
        return losses, model.get_weights(), model.train_function

    losses, weights, function = trained(True)
    wanted, other, _ = trained(False)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    for weight, same in zip(weights, other, strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-6)
    slopes, update = function.parts
    assert (slopes._cache_size(), update._cache_size()) == (2, 1)
