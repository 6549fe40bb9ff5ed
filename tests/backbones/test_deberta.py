"""DeBERTa's first and second kind: fields that v3 does not have, far tokens, published heads, saved models, and training."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

TOKENS, REAL = 40, 23
COMMON = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 48,
    "relative_attention": True,
}
FIRST = {**COMMON, "position_biased_input": False, "pos_att_type": "c2p|p2c"}
SECOND = {
    **FIRST,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 8,
    "conv_kernel_size": 3,
    "conv_act": "gelu",
}
EMBEDDED = {"position_biased_input": True, "type_vocab_size": 2, "embedding_size": 12, "layer_norm_eps": 1e-2}
# For each case transformers' class and the fields.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "second": ("DebertaV2Model", {**SECOND, "conv_kernel_size": 5, "hidden_act": "gelu_new"}),
    "second-apart": (
        "DebertaV2ForTokenClassification",
        {
            **SECOND,
            **EMBEDDED,
            "share_att_key": False,
            "norm_rel_ebd": "none",
            "position_buckets": -1,
            "max_relative_positions": 6,
            "conv_act": "tanh",
        },
    ),
    "second-there": ("DebertaV2Model", {**SECOND, "conv_kernel_size": 0, "pos_att_type": ["c2p"]}),
    "second-back": ("DebertaV2Model", {**SECOND, "pos_att_type": ["p2c"], "position_buckets": 7}),
    "first": ("DebertaForMaskedLM", {**FIRST, **EMBEDDED, "max_relative_positions": 5}),
    "first-there": ("DebertaModel", {**FIRST, "pos_att_type": ["c2p"], "hidden_act": "relu"}),
    "first-back": ("DebertaModel", {**FIRST, "pos_att_type": ["p2c"]}),
}


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes the folder of a tiny random model, and transformers' model of it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")

    def make(name: str, fields: dict[str, Any]) -> tuple[Path, Any]:
        torch.manual_seed(0)
        cls = getattr(transformers, name)
        model = cls(cls.config_class(**fields)).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
        folder = tmp_path / "published"
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf8")
        return folder, model

    return make


def inputs() -> dict[str, np.ndarray]:
    mask = np.ones((2, TOKENS), np.int32)
    mask[0, REAL:] = 0
    ids = np.random.default_rng(0).integers(5, 60, mask.shape).astype(np.int32) * mask
    return {"token_ids": ids, "padding_mask": mask, "segment_ids": (np.arange(TOKENS) > 9).astype(np.int32) * mask}


def of_transformers(model: Any, segments: bool) -> Any:
    """What a model of transformers' gives for `inputs`."""
    import torch

    given = {name: torch.tensor(array) for name, array in inputs().items()}
    kinds = {"token_type_ids": given["segment_ids"]} if segments else {}
    with torch.no_grad():
        return model(given["token_ids"], attention_mask=given["padding_mask"], **kinds)


@pytest.mark.parametrize("case", CASES)
def test_the_states_are_those_of_transformers_and_a_saved_models_too(
    published: Callable[..., tuple[Path, Any]], same: Callable[..., None], case: str, tmp_path: Path
) -> None:
    import keras

    name, fields = CASES[case]
    folder, model = published(name, fields)
    segments = fields.get("type_vocab_size", 0) > 0
    backbone = kft.load_backbone(str(folder))
    assert ("segment_ids" in backbone.inputs) == segments
    backbone.model.save(tmp_path / "encoder.keras")
    again = keras.saving.load_model(tmp_path / "encoder.keras", compile=False)
    found = again.predict_on_batch({name: inputs()[name] for name in backbone.inputs})["sequence_output"]
    wanted = of_transformers(getattr(model, "deberta", model), segments).last_hidden_state.numpy()
    real = inputs()["padding_mask"].astype(bool)
    same("Hugging Face", f"deberta-{case}", found[real], wanted[real])
    with zipfile.ZipFile(tmp_path / "encoder.keras") as file:
        assert b"kft" not in file.read("config.json")


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (256, 1024), (320, 512), (7, 20), (8, 6)])
def test_every_distance_is_in_the_bucket_of_transformers(backend: str, buckets: int, farthest: int) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    theirs = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    from kft.backbones.families import disentangled

    found = disentangled.rows_of_distances(buckets, farthest)
    reach = len(found) // 2
    apart = np.arange(-2 * reach, 2 * reach + 1)
    wanted = theirs.make_log_bucket_position(torch.tensor(apart), buckets, farthest).long().numpy()
    wanted = np.clip(wanted + buckets, 0, 2 * buckets - 1)
    assert found[np.clip(apart, -reach, reach) + reach].tolist() == wanted.tolist()


@pytest.mark.parametrize(("name", "fields"), [("DebertaV2", SECOND), ("Deberta", FIRST)], ids=["second", "first"])
def test_the_published_head_is_kept(
    published: Callable[..., tuple[Path, Any]], name: str, fields: dict[str, Any]
) -> None:
    folder, model = published(f"{name}ForSequenceClassification", {**fields, "pooler_hidden_act": "tanh"})
    backbone = kft.load_backbone(str(folder))
    found = kft.published_classifier(backbone).predict_on_batch({part: inputs()[part] for part in backbone.inputs})
    np.testing.assert_allclose(found, of_transformers(model, False).logits.numpy(), atol=1e-4)


def test_all_weights_can_be_trained_or_those_of_the_top(
    published: Callable[..., tuple[Path, Any]], quick: dict
) -> None:
    import keras

    backbone = kft.load_backbone(
        str(published("DebertaV2Model", {**SECOND, "share_att_key": False, "num_hidden_layers": 2})[0])
    )
    data = kft.load_data(quick["data"]["source"])
    kft.build_model(data, backbone, trainable="top:1")
    moved = {layer.name for layer in backbone.model.layers if layer.trainable_variables}
    assert moved and all(name.startswith("block_1_") for name in moved)
    model = kft.build_model(data, backbone)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_variables]
    model.train_on_batch({part: inputs()[part] for part in backbone.inputs}, np.array([0, 1]))
    for weight, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(weight) - old).max() > 0, weight.path


def test_a_table_of_positions_that_is_not_read_is_left_alone(published: Callable[..., tuple[Path, Any]]) -> None:
    folder, _ = published("DebertaForMaskedLM", FIRST)
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({**weights, "deberta.embeddings.position_embeddings.weight": np.zeros((48, 16), np.float32)}, file)
    assert kft.load_backbone(str(folder)).model.name == "deberta"


V3 = {**SECOND, "model_type": "deberta-v2", "conv_kernel_size": 0, "layer_norm_eps": 1e-7}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "DebertaV3Backbone"),
        ({"layer_norm_eps": 1e-5}, "Functional"),
        ({"hidden_act": "relu"}, "Functional"),
        ({"embedding_size": 8}, "Functional"),
        ({"type_vocab_size": 1}, "Functional"),
        ({"position_buckets": 0}, "Functional"),
    ],
)
def test_kerashubs_class_reads_what_it_computes(
    backend: str, vocabulary: Path, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**V3, **change}), encoding="utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    assert type(kft.load_backbone(str(tmp_path), pretrained=False).model).__name__ == name


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("deberta", {"relative_attention": False}, "relative_attention in config.json is False"),
        ("deberta-v2", {"relative_attention": False}, "relative_attention in config.json is False"),
        ("deberta", {"pos_att_type": "c2p|p2p"}, "pos_att_type in config.json is .*c2p and p2c, or one of them"),
        ("deberta-v2", {"pos_att_type": None}, "pos_att_type in config.json is"),
        ("deberta", {"talking_head": True}, "talking_head in config.json is True"),
        ("deberta-v2", {"hidden_act": "mish"}, "Unknown hidden_act in config.json 'mish'"),
        ("deberta-v2", {"conv_kernel_size": 4}, "conv_kernel_size in config.json is 4"),
        ("deberta-v2", {"conv_groups": 2}, "conv_groups in config.json is 2"),
        ("deberta-v2", {"attention_head_size": 4}, "attention_head_size in config.json is 4"),
        ("deberta-v2", {"position_buckets": 2}, "position_buckets in config.json is 2"),
        ("deberta-v2", {"position_buckets": 100}, "position_buckets in config.json is 100"),
    ],
)
def test_other_variants_are_refused(backend: str, tmp_path: Path, kind: str, change: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SECOND, "model_type": kind, **change}), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))
