"""A SavedModel in Keras gives what TensorFlow gives: outputs, gradients, and the weights after training."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError
from kft.rundir import read_history

pytestmark = pytest.mark.backend
Loads = Callable[[Path], Any]


def made(folder: Path, **options: Any) -> Any:
    from kft.backbones.bridge.layer import SavedModelLayer

    return SavedModelLayer(folder, **options)


def array(tensor: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(tensor))


def drawn(rows: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, 6)).astype(np.float32)


def texts(rows: int = 3, tokens: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(tokens) < rng.integers(3, tokens + 1, rows)[:, None]).astype(np.int32)
    ids = rng.integers(5, 40, (rows, tokens)).astype(np.int32) * mask
    return {"input_word_ids": ids, "input_mask": mask, "input_type_ids": np.zeros_like(ids)}


def slopes(layer: Any, inputs: Any, loss: Callable[[Any], Any], wrt_inputs: bool) -> tuple[list[np.ndarray], Any]:
    """Returns the gradients of a layer's trained variables, and of its input, by the backend's own means; compiled on jax."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        def of(trained: Any, x: Any) -> Any:
            outputs, _ = layer.stateless_call(trained, [v.value for v in layer.non_trainable_variables], x)
            return loss(outputs)

        where = (0, 1) if wrt_inputs else 0
        found = jax.jit(jax.grad(of, argnums=where))([v.value for v in layer.trainable_variables], inputs)
        weights, given = found if wrt_inputs else (found, None)
        return [np.asarray(slope) for slope in weights], None if given is None else np.asarray(given)
    if keras.backend.backend() == "torch":
        x = keras.ops.convert_to_tensor(inputs) if wrt_inputs else inputs
        x = x.requires_grad_() if wrt_inputs else x
        layer.zero_grad()
        loss(layer(x)).backward()
        return [array(v.value.grad) for v in layer.trainable_variables], array(x.grad) if wrt_inputs else None
    import tensorflow as tf

    x = tf.constant(inputs) if wrt_inputs else inputs
    with tf.GradientTape() as tape:
        if wrt_inputs:
            tape.watch(x)
        value = loss(layer(x))
    found = tape.gradient(value, [v.value for v in layer.trainable_variables] + ([x] if wrt_inputs else []))
    every = [array(tf.convert_to_tensor(slope)) for slope in found]
    return (every[:-1], every[-1]) if wrt_inputs else (every, None)


def test_outputs_and_gradients_are_tensorflows(hub_features: Path, theirs: Loads, same: Callable[..., None]) -> None:
    import keras
    import tensorflow as tf

    layer, model, x = made(hub_features), theirs(hub_features), drawn()
    same("TF-Hub, bridge", "any SavedModel", array(layer(x)), model(x, False).numpy(), atol=1e-5)
    with tf.GradientTape() as tape:
        given = tf.constant(x)
        tape.watch(given)
        value = tf.reduce_sum(model(given, False) ** 2)
    expected = tape.gradient(value, [*model.trainable_variables, given])
    weights, of_x = slopes(layer, x, lambda outputs: keras.ops.sum(outputs**2), wrt_inputs=True)
    assert len(weights) == 2
    for found, slope in zip([*weights, of_x], expected, strict=True):
        np.testing.assert_allclose(found, slope.numpy(), rtol=1e-4, atol=1e-5)


def test_outputs_and_gradients_of_an_encoder_are_tensorflows(
    hub_bert: Path, theirs: Loads, same: Callable[..., None]
) -> None:
    import keras
    import tensorflow as tf

    layer, model, x = made(hub_bert), theirs(hub_bert), texts()
    expected = model({name: tf.constant(value) for name, value in x.items()}, False)
    found = layer(x)
    assert set(found) == {"sequence_output", "pooled_output", "default", "encoder_outputs"}
    mine, other = array(found["sequence_output"]), expected["sequence_output"].numpy()
    same("TF-Hub, bridge", "text encoder", mine, other, atol=1e-5)
    np.testing.assert_allclose(array(found["encoder_outputs"][0]), expected["encoder_outputs"][0].numpy(), atol=1e-5)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model({k: tf.constant(v) for k, v in x.items()}, False)["pooled_output"] ** 2)
    truth = [tf.convert_to_tensor(slope) for slope in tape.gradient(value, model.trainable_variables)]
    weights, _ = slopes(layer, x, lambda outputs: keras.ops.sum(outputs["pooled_output"] ** 2), wrt_inputs=False)
    assert len(weights) == len(truth) == 39
    for one, other in zip(weights, truth, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5 * max(1.0, abs(other.numpy()).max()))


def test_three_steps_train_what_tensorflow_trains(hub_features: Path, theirs: Loads) -> None:
    import keras
    import tensorflow as tf

    x = np.stack([drawn(seed=seed) for seed in range(3)]).reshape(21, 6)
    y = np.random.default_rng(9).normal(size=(21, 3)).astype(np.float32)
    layer = made(hub_features)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layer(inputs))
    assert model.count_params() == 30 + 15 + 5 + 5
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, batch_size=7, shuffle=False, verbose=0)

    reference = theirs(hub_features)
    for start in range(0, 21, 7):
        with tf.GradientTape() as tape:
            off = tf.reduce_mean((reference(x[start : start + 7], True) - y[start : start + 7]) ** 2)
            off += sum(loss() for loss in reference.regularization_losses)
        for variable, slope in zip(
            reference.trainable_variables, tape.gradient(off, reference.trainable_variables), strict=True
        ):
            variable.assign_sub(0.05 * slope)
    for mine, other in zip(layer.trained, reference.trainable_variables, strict=True):
        np.testing.assert_allclose(array(mine), other.numpy(), rtol=1e-4, atol=1e-5)
    average = next(v for v in layer.kept if v.name == "moving_mean")
    np.testing.assert_allclose(array(average), reference.variables[3].numpy(), rtol=1e-4, atol=1e-5)
    assert abs(array(average)).max() > 0.01


def test_a_frozen_layer_stays_as_it_is(hub_features: Path) -> None:
    import keras

    layer = made(hub_features)
    layer.trainable = False
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(2)(layer(inputs)))
    before = [array(variable).copy() for variable in layer.variables]
    model.compile("sgd", "mse")
    model.fit(drawn(), np.ones((7, 2)), verbose=0)
    assert len(model.trainable_variables) == 2
    for variable, old in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(array(variable), old)


def test_a_model_with_it_is_saved_and_loaded(hub_features: Path, tmp_path: Path) -> None:
    import keras

    from kft.backbones.bridge.layer import lying_in

    layer = made(hub_features)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    model.fit(drawn(), np.ones((7, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    moved = tmp_path / "moved"
    moved.symlink_to(hub_features)
    with lying_in(moved):
        again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(array(again(drawn())), array(model(drawn())), atol=1e-6)
    assert again.layers[1].folder == moved


def test_a_signature_is_called_where_there_is_nothing_else(signature_only: Path, theirs: Loads) -> None:
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    layer = made(signature_only)
    assert [v.name for v in layer.trained] == ["kernel"]
    found = layer({"x": x})
    expected = theirs(signature_only).signatures["serving_default"](x=tf.constant(x))["y"]
    np.testing.assert_allclose(array(found["y"]), expected.numpy(), rtol=1e-5)
    assert int(array(found["number"])) == 5


def test_refusals(hub_strings: Path, signature_only: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="takes strings"):
        made(hub_strings)
    with pytest.raises(ModelError, match=r"no signature 'other'.*Its signatures: serving_default"):
        made(signature_only, signature="other")
    (tmp_path / "saved_model.pb").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="cannot load the SavedModel"):
        made(tmp_path)


# Whole runs


@pytest.fixture
def recipe(
    tiny: dict, variant: Callable[..., dict], hub_bert: Path, backend: str, tmp_path: Path
) -> Callable[..., dict]:
    def make(changes: dict[str, Any]) -> dict:
        fixed = {
            "backend": backend,
            "model": {"preset": str(hub_bert), "sequence_length": 24, "head_dropout": 0.0},
            "output.directory": str(tmp_path / "run"),
        }
        return variant(tiny, {**fixed, **changes})

    return make


def test_a_run_trains_an_encoder_of_tf_hubs(recipe: Callable[..., dict], hub_bert: Path, theirs: Loads) -> None:
    report = kft.run(recipe({"model.bridge": True}))
    assert (report.run / "saved_model" / "saved_model.pb").is_file()
    run = kft.load_run(report.run)
    assert run.evaluate().metrics["test"] == pytest.approx(report.metrics["test"], abs=1e-5)
    assert run.predict(["a good film"])[0]["label"] in run.labels
    layer = next(part for part in run.model._flatten_layers() if type(part).__name__ == "SavedModelLayer")
    assert layer.folder == report.run / "saved_model"
    for mine, old in zip(layer.trained, theirs(hub_bert).trainable_variables, strict=True):
        if not mine.path.endswith("key/bias"):  # it moves all scores of a query alike, which changes nothing
            assert abs(array(mine) - old.numpy()).max() > 1e-4, mine.path


def test_both_ways_train_the_same(recipe: Callable[..., dict], variant: Callable[..., dict], tmp_path: Path) -> None:
    """The SavedModel's own graph, and the Keras model with the same weights, dropout being none in either."""
    found = []
    for bridge in (True, False):
        changes: dict[str, Any] = {"model.bridge": bridge, "output.directory": str(tmp_path / str(bridge))}
        report = kft.run(recipe({**changes, "train.epochs": 1, **({} if bridge else {"model.dropout": 0.0})}))
        assert (report.run / "saved_model").is_dir() == bridge
        found.append([line["loss"] for line in read_history(report.run / "history.jsonl") if "loss" in line])
    assert len(found[0]) > 8
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_its_frozen_part_is_computed_once(recipe: Callable[..., dict], tmp_path: Path) -> None:
    report = kft.run(recipe({"model.bridge": True, "model.trainable": "head", "train.epochs": 3}))
    assert report.seconds["frozen part"] > 0
    assert kft.load_run(report.run).evaluate().metrics["test"] == pytest.approx(report.metrics["test"], abs=1e-5)


def test_a_run_trains_on_images(hub_images: Path, backend: str, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 180)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(16):
            values = rng.normal(level, 30, (8, 8, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(values).save(tmp_path / "pictures" / label / f"{number}.png")
    report = kft.run(
        {
            "task": "image_classification",
            "backend": backend,
            "model": {"preset": str(hub_images), "bridge": True},
            "data": {"source": str(tmp_path / "pictures"), "validation": 0.25},
            "train": {"epochs": 6, "batch_size": 8, "learning_rate": 0.05},
            "output": {"directory": str(tmp_path / "run")},
        }
    )
    assert report.metrics["validation"]["accuracy"] > 0.9


@pytest.mark.parametrize(
    "change", [{"model.dropout": 0.1}, {"model.pretrained": False}, {"model.config": {"num_layers": 1}}]
)
def test_what_cannot_change_a_graph_is_refused(recipe: Callable[..., dict], change: dict) -> None:
    with pytest.raises(ModelError, match="runs its own graph"):
        kft.run(recipe({"model.bridge": True, **change}))


def test_a_bridge_to_no_saved_model_is_refused(recipe: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf8")
    with pytest.raises(ModelError, match="model.bridge is for TensorFlow SavedModels"):
        kft.run(recipe({"model.bridge": True, "model.preset": str(tmp_path)}))


def test_a_published_model_that_was_saved_with_its_optimizer(
    same: Callable[..., None], wheel: Callable[[str], Path]
) -> None:
    """Basic Pitch (Bittner et al. 2022), against its makers' own TFLite file; TensorFlow alone cannot load the first."""
    import keras
    import tensorflow as tf

    folder = wheel("pypi://basic-pitch==0.4.0/basic_pitch/saved_models/icassp_2022")
    layer = made(folder / "nmp")
    assert (len(layer.trained), layer.count_params()) == (18, 16_864)
    x = np.random.default_rng(0).normal(0, 0.1, (1, 43_844, 1)).astype(np.float32)
    found = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to a package of its own
        interpreter = tf.lite.Interpreter(str(folder / "nmp.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    outputs = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    for name in ("note", "onset", "contour"):
        mine = array(found[name])
        nearest = min((o for o in outputs if o.shape == mine.shape), key=lambda o: abs(o - mine).max())
        same("TF-Hub, bridge", "Basic Pitch", mine, nearest, atol=1e-3)
    weights, _ = slopes(layer, x, lambda o: sum(keras.ops.sum(o[name]) for name in sorted(o)), wrt_inputs=False)
    assert len(weights) == 18 and sum(bool(np.abs(slope).max() > 0) for slope in weights) >= 16
