"""What an encoder's weights must fit, and what its own configuration decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IDS = np.array([[2, 7, 9, 3, 0, 0], [2, 8, 11, 12, 13, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32)


@pytest.fixture
def folder(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes the folder of a tiny random BERT, given changes to its configuration, and transformers' model of it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    words = len((vocabulary / "vocab.txt").read_text(encoding="utf8").split())

    def make(**changes: Any) -> tuple[Path, Any]:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = transformers.BertConfig(**{"vocab_size": words, "max_position_embeddings": 12, **sizes, **changes})
        model = transformers.BertForSequenceClassification(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)  # so wide that activations tell themselves apart
        model.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        return tmp_path, model

    return make


def states(backbone: Any) -> dict[str, np.ndarray]:
    import keras

    inputs = {"token_ids": IDS, "padding_mask": MASK, "segment_ids": np.zeros_like(IDS)}
    found = backbone.model({name: inputs[name] for name in backbone.inputs}, training=False)
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3},
        {"hidden_act": "relu", "type_vocab_size": 3},
        {"hidden_act": "gelu"},
        {"hidden_act": "silu"},
    ],
    ids=lambda changes: changes["hidden_act"],
)
def test_activation_and_epsilon_are_the_configurations(
    folder: Callable[..., tuple[Path, Any]], changes: dict[str, Any]
) -> None:
    import torch

    place, model = folder(**changes)
    found = states(kft.load_backbone(str(place)))
    with torch.no_grad():
        wanted = model.bert(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK))
    np.testing.assert_allclose(found["pooled_output"], wanted.pooler_output.numpy(), atol=1e-4)
    real = MASK.astype(bool)
    np.testing.assert_allclose(found["sequence_output"][real], wanted.last_hidden_state.numpy()[real], atol=1e-4)


def test_an_unknown_activation_is_refused(folder: Callable[..., tuple[Path, Any]]) -> None:
    place, _ = folder()
    file = place / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf8")) | {"hidden_act": "gelo"}), encoding="utf8")
    with pytest.raises(ModelError, match="Unknown hidden_act in config.json 'gelo'. Did you mean 'gelu'"):
        kft.load_backbone(str(place))


def test_a_tensor_without_a_place_and_a_place_without_a_tensor(folder: Callable[..., tuple[Path, Any]]) -> None:
    place, _ = folder()
    file = place / "model.safetensors"
    weights = load_file(file)
    name = "bert.encoder.layer.1.output.dense.bias"
    save_file({other: array for other, array in weights.items() if other != name}, file)
    with pytest.raises(ModelError, match="has no weights for encoder.layer.1.output.dense.bias"):
        kft.load_backbone(str(place))
    save_file({**weights, "bert.encoder.layer.2.output.dense.bias": weights[name]}, file)
    with pytest.raises(ModelError, match="find no place in a bert encoder: bert.encoder.layer.2.output.dense.bias"):
        kft.load_backbone(str(place))
    save_file({**weights, name: np.zeros(5, np.float32)}, file)
    with pytest.raises(ModelError, match=r"has the shape \(5,\), but config.json asks for \(16,\)"):
        kft.load_backbone(str(place))


def test_the_old_names_of_normalizations(folder: Callable[..., tuple[Path, Any]]) -> None:
    place, _ = folder()
    before = states(kft.load_backbone(str(place)))
    file, old = place / "model.safetensors", {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, array in load_file(file).items():
        end = next((end for end in old if name.endswith(end)), "")
        renamed[name.removesuffix(end) + old.get(end, "")] = array
    save_file(renamed, file)
    after = states(kft.load_backbone(str(place)))
    np.testing.assert_array_equal(after["pooled_output"], before["pooled_output"])


def test_fewer_blocks_and_positions_than_published(folder: Callable[..., tuple[Path, Any]]) -> None:
    place, model = folder()
    import torch

    small = kft.load_backbone(str(place), config={"num_layers": 1, "max_sequence_length": 8})
    model.bert.encoder.layer = model.bert.encoder.layer[:1]
    with torch.no_grad():
        wanted = model.bert(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).pooler_output
    np.testing.assert_allclose(states(small)["pooled_output"], wanted.numpy(), atol=1e-4)
    with pytest.raises(ModelError, match="Unknown model.config 'num_layer'. Did you mean 'num_layers'"):
        kft.load_backbone(str(place), config={"num_layer": 1})


def test_a_model_saved_for_tagging_has_no_pooler(folder: Callable[..., tuple[Path, Any]]) -> None:
    place, _ = folder()
    file = place / "model.safetensors"
    save_file({name: array for name, array in load_file(file).items() if "pooler" not in name}, file)
    backbone = kft.load_backbone(str(place))
    assert set(backbone.model.output) == {"sequence_output"} and backbone.pooling == "first"


def test_the_saved_model_loads_without_kft(folder: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    import keras

    backbone = kft.load_backbone(str(folder()[0]))
    before = states(backbone)
    backbone.model.save(tmp_path / "encoder.keras")
    loaded = keras.saving.load_model(tmp_path / "encoder.keras", safe_mode=True)
    inputs = {"token_ids": IDS, "padding_mask": MASK, "segment_ids": np.zeros_like(IDS)}
    found = keras.ops.convert_to_numpy(loaded(inputs, training=False)["pooled_output"])
    np.testing.assert_allclose(found, before["pooled_output"], atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (("good", "bad"), [1, 0]),  # the published names, in another order
        (("bad", "good"), [0, 1]),
        (("bad", "fine"), None),
        (("bad", "fine", "good"), None),
    ],
)
def test_a_published_head_is_kept_where_its_labels_are_the_tasks(
    folder: Callable[..., tuple[Path, Any]], labels: tuple[str, ...], order: list[int] | None
) -> None:
    import keras
    import torch

    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target

    place, published = folder(id2label={0: "Bad", 1: "Good"}, label2id={"Bad": 0, "Good": 1})
    backbone = kft.load_backbone(str(place))
    task = TASKS.load("text_classification")
    model = heads.build(task, backbone, Target("labels", labels), pooling="pooled")
    inputs = {"token_ids": IDS, "padding_mask": MASK, "segment_ids": np.zeros_like(IDS)}
    found = keras.ops.convert_to_numpy(model(inputs, training=False))
    with torch.no_grad():
        theirs = published(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).logits.numpy()
    if order is None:
        assert np.abs(found).max() < 0.5 < np.abs(theirs).max()  # a fresh head is small
    else:
        np.testing.assert_allclose(found, theirs[:, order], atol=1e-4)
    fresh = heads.build(task, backbone, Target("labels", ("bad", "good")), pooling="mean")
    assert np.abs(keras.ops.convert_to_numpy(fresh.get_layer("logits").kernel)).max() < 0.05  # it reads something else


def test_a_head_that_nobody_named_is_kept_by_its_number(folder: Callable[..., tuple[Path, Any]]) -> None:
    import keras

    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target

    place, published = folder(num_labels=3)
    backbone = kft.load_backbone(str(place))
    model = heads.build(TASKS.load("text_classification"), backbone, Target("labels", ("x", "y", "z")))
    kernel = keras.ops.convert_to_numpy(model.get_layer("logits").kernel)
    np.testing.assert_array_equal(kernel.T, published.classifier.weight.detach().numpy())
