"""Gemma 3n's part for texts: each field counts, it is read out of the whole, and it is trained."""

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

# The last id is beyond those that have an embedding for each block.
IDS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 8, 11, 12, 13, 3, 94]], np.int32)
MASK = np.array([[1] * 4 + [0] * 3, [1] * 7], np.int32)
NEAR, FULL = "sliding_attention", "full_attention"
SIZES = {
    "vocab_size": 96,
    "vocab_size_per_layer_input": 80,
    "hidden_size": 16,
    "hidden_size_per_layer_input": 5,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": [24, 20, 24, 20],
    "layer_types": [NEAR, FULL, FULL, NEAR],
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.7, 0.3, 0.0, 0.6],
    "sliding_window": 3,
    "laurel_rank": 3,
    "altup_num_inputs": 3,
    "altup_active_idx": 1,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {
        NEAR: {"rope_type": "default", "rope_theta": 20.0},
        FULL: {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
    },
}
FEW = {
    "num_hidden_layers": 2,
    "intermediate_size": 20,
    "layer_types": [NEAR, NEAR],
    "num_kv_shared_layers": 1,
    "activation_sparsity_pattern": [0.7, 0.6],
    "altup_num_inputs": 2,
}
Published = Callable[..., tuple[Path, Any]]


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> Published:
    """Saves a tiny random model as transformers does, and returns its folder and the model without its head."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")

    def make(head: bool = True, **changes: Any) -> tuple[Path, Any]:
        torch.manual_seed(0)
        config = transformers.Gemma3nTextConfig(**{**SIZES, **changes})
        model = (transformers.Gemma3nForCausalLM if head else transformers.Gemma3nTextModel)(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
        model.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        return tmp_path, model.base_model if head else model

    return make


def wanted(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        states = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).last_hidden_state
    return np.asarray(states)[MASK == 1]


def found(model: Any) -> np.ndarray:
    import keras

    states = model({"token_ids": IDS, "padding_mask": MASK}, training=False)["sequence_output"]
    return np.asarray(keras.ops.convert_to_numpy(states))[MASK == 1]


def change(place: Path, **values: Any) -> None:
    file = place / "config.json"
    config = {**json.loads(file.read_text(encoding="utf8")), **values}
    kept = {name: value for name, value in config.items() if value is not None}
    file.write_text(json.dumps(kept), encoding="utf8")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attention_bias": True, "altup_correct_scale": False},
        {
            "num_kv_shared_layers": 0,
            "layer_types": None,
            "num_hidden_layers": 5,
            "intermediate_size": 12,
            "activation_sparsity_pattern": [0.5] * 5,
        },
        {"altup_active_idx": 0, "altup_num_inputs": 4, "activation_sparsity_pattern": None, "rope_parameters": None},
        {"hidden_activation": "silu", "altup_num_inputs": 1, "altup_active_idx": 0, "num_key_value_heads": 4},
    ],
    ids=["all", "biases", "unshared", "usual", "one-stream"],
)
def test_each_field_counts(published: Published, same: Callable[..., None], changes: dict[str, Any]) -> None:
    place, model = published(**changes)
    backbone = kft.load_backbone(str(place))
    assert backbone.pooling == "last" and backbone.inputs == ("token_ids", "padding_mask")
    same("Hugging Face", "gemma3n_text", found(backbone.model), wanted(model))


def test_a_model_without_a_head_is_read(published: Published, same: Callable[..., None]) -> None:
    place, model = published(head=False)
    same("Hugging Face", "gemma3n_text", found(kft.load_backbone(str(place)).model), wanted(model))


def test_older_files_say_how_positions_turn_in_other_fields(published: Published) -> None:
    place, model = published()
    scaling = {"rope_type": "linear", "factor": 2.0}
    change(place, rope_parameters=None, rope_theta=50.0, rope_local_base_freq=20.0, rope_scaling=scaling)
    np.testing.assert_allclose(found(kft.load_backbone(str(place)).model), wanted(model), atol=1e-4)


def test_the_part_for_texts_is_read_out_of_the_whole(published: Published, same: Callable[..., None]) -> None:
    place, model = published()
    text = json.loads((place / "config.json").read_text(encoding="utf8"))
    (place / "config.json").write_text(json.dumps({"model_type": "gemma3n", "text_config": text}), encoding="utf8")
    file = place / "model.safetensors"
    weights = {
        f"model.language_{name}" if name.startswith("model.") else name: array
        for name, array in load_file(file).items()
    }
    # Upper blocks bring keys and values in published files, which nothing reads.
    unread = [f"model.language_model.layers.3.self_attn.{name}.weight" for name in ("k_proj", "v_proj", "k_norm")]
    others = ["model.vision_tower.timm_model.conv_stem.conv.weight", "model.audio_tower.conformer.0.norm.weight"]
    save_file({**weights, **dict.fromkeys([*unread, *others], np.ones(2, np.float32))}, file)
    backbone = kft.load_backbone(str(place), part="text")
    same("Hugging Face", "gemma3n, text", found(backbone.model), wanted(model))


def test_no_state_is_too_small_or_too_large_for_half_precision(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **FEW, "model_type": "gemma3n_text"}), encoding="utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    own = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = kft.load_backbone(str(tmp_path), pretrained=False).model
        table = np.array(model.get_layer("token_embedding").get_weights()[0])
        table[2], table[7] = 0.0, 300.0
        model.get_layer("token_embedding").set_weights([table])
        states = model({"token_ids": IDS, "padding_mask": MASK}, training=False)["sequence_output"]
        assert keras.backend.standardize_dtype(states.dtype) == "float16"
        assert np.isfinite(found(model).astype(np.float32)).all()
        softmax = model.get_layer("block_0_attention_softmax")
        assert softmax.compute_dtype == "float32"
    finally:
        keras.config.set_dtype_policy(own)


def with_head(backbone: Any, task: str, kind: Any) -> Any:
    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target

    return heads.build(TASKS.load(task), backbone, Target(kind, ("bad", "good")))


def test_upper_blocks_can_be_trained_alone(published: Published) -> None:
    from kft.tuning import trainable

    place, _ = published(**FEW)
    backbone = kft.load_backbone(str(place))
    assert backbone.embeddings == SIZES["vocab_size"]
    model = with_head(backbone, "token_classification", "tags")
    assert model({"token_ids": IDS, "padding_mask": MASK}, training=False).shape == (2, 7, 2)
    trainable.apply(model, backbone, "top:1")
    trained = {layer.name for layer in backbone.model.layers if layer.trainable_variables}
    own = {layer.name for layer in backbone.model.layers if layer.weights and layer.name.startswith("block_1")}
    assert trained == own | {"stream_1_out", "final_layer_norm"}


def test_it_is_trained_and_saved(published: Published, tmp_path: Path) -> None:
    """Embeddings of padding are zeros in files of transformers' own making: they have no size to divide by."""
    import keras

    place, _ = published(**FEW)
    file = place / "model.safetensors"
    weights = load_file(file)
    for name in ("model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"):
        weights[name][0] = 0.0
    save_file(weights, file)
    backbone = kft.load_backbone(str(place))
    model = with_head(backbone, "text_classification", "labels")
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, longer = {"token_ids": IDS, "padding_mask": MASK}, {"token_ids": IDS + (1 - MASK), "padding_mask": MASK}
    before = np.asarray(model.predict_on_batch(inputs))
    np.testing.assert_allclose(np.asarray(model.predict_on_batch(longer)), before, atol=1e-5)
    model.train_on_batch(inputs, np.asarray([0, 1]))
    assert np.abs(np.asarray(model.predict_on_batch(inputs)) - before).max() > 1e-4
    assert all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in model.weights)
    backbone.model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(found(again), found(backbone.model), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"altup_coef_clip": 1.0}, "altup_coef_clip in config.json is 1.0; of gemma3n_text kft computes only 120.0"),
        ({"hidden_activation": "gelo"}, "Unknown hidden_activation in config.json 'gelo'. Did you mean 'gelu'"),
        ({"intermediate_size": [24]}, "intermediate_size in config.json is for 1 blocks, but there are 4"),
        ({"layer_types": [NEAR, NEAR, FULL, NEAR]}, "below the last 2 of 4 blocks none is of the kind full_attention"),
        ({"layer_types": ["chunked_attention"] * 4}, "Unknown layer_types in config.json 'chunked_attention'"),
        (
            {"rope_scaling": {"rope_type": "yarn"}},
            "rope_type in config.json is 'yarn'; of gemma3n_text kft computes only",
        ),
    ],
)
def test_what_is_not_computed_is_refused(
    values: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    config = {"model_type": "gemma3n_text", **SIZES, **values}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path), pretrained=False)
