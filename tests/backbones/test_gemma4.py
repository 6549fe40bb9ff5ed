"""Gemma 4's part for texts, of every kind that is published."""

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

IDS = np.array([[2, 7, 9, 3, 0, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3, 5]], np.int32)
MASK = np.array([[1] * 4 + [0] * 4, [1] * 8], np.int32)
NEAR, FULL = "sliding_attention", "full_attention"
TEXT: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 4,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 80,
    "sliding_window": 3,
    "layer_types": [NEAR, FULL] * 2,
}
BARE = {**TEXT, "hidden_size_per_layer_input": 0}
HALF = {"num_hidden_layers": 2, "layer_types": [NEAR, FULL]}
# As the smaller ones, E2B, are published, the larger one, 31B, and the one of experts, 26B-A4B.
SHARED = {**TEXT, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "final_logit_softcapping": 30.0}
ALIKE = {
    **BARE,
    **HALF,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision",
}
EXPERTS = {**ALIKE, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 12}


def ropes(near: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {NEAR: {"rope_theta": 50.0, **near}, FULL: {"rope_theta": 30.0, **full}}}


VARIANTS = {
    "shared": SHARED,
    "alike": ALIKE,
    "experts": EXPERTS,
    "each-its-own": {
        **TEXT,
        **HALF,
        "rms_norm_eps": 1e-2,
        "num_global_key_value_heads": 1,
        "vocab_size_per_layer_input": 90,
    },
    "proportional": {
        **BARE,
        **HALF,
        **ropes({"rope_type": "linear", "factor": 2.0}, {"rope_type": "proportional", "partial_rotary_factor": 0.5}),
    },
    "whole-heads": {
        **BARE,
        **HALF,
        **ropes({"rope_type": "default"}, {"rope_type": "default", "partial_rotary_factor": 0.5}),
        **{"global_head_dim": 4, "attention_k_eq_v": True, "tie_word_embeddings": False},
    },
    # The last layer sees the whole text, whatever is said of it.
    "types": {**BARE, "layer_types": [FULL, NEAR, NEAR, NEAR]},
}


def published(values: dict[str, Any], place: Path, vocabulary: Path, head: bool = True) -> Any:
    """Saves a random model as transformers does, and returns it without its head; a test without torch is skipped."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = (transformers.Gemma4ForCausalLM if head else transformers.Gemma4TextModel)(
        transformers.Gemma4TextConfig(**values)
    )
    with torch.no_grad():
        # Fresh norms are 1, which would hide that two of them were mixed up; what scales a layer is no parameter.
        scalars = [buffer for name, buffer in model.named_buffers() if name.endswith("layer_scalar")]
        for weight in [*model.parameters(), *scalars]:
            weight.add_(torch.randn_like(weight) * 0.1)
    model.eval().save_pretrained(place)
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return model.model if head else model


def wanted(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        states = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).last_hidden_state
    return np.asarray(states)[MASK == 1]


def found(model: Any) -> np.ndarray:
    import keras

    states = model({"token_ids": IDS, "padding_mask": MASK}, training=False)["sequence_output"]
    return np.asarray(keras.ops.convert_to_numpy(states))[MASK == 1]


def change(place: Path, values: dict[str, Any], left_out: tuple[str, ...] = ()) -> None:
    config = {**json.loads((place / "config.json").read_text(encoding="utf8")), **values}
    kept = {name: value for name, value in config.items() if name not in left_out}
    (place / "config.json").write_text(json.dumps(kept), encoding="utf8")


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_states_are_those_of_transformers(
    values: dict[str, Any], backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    model = published(values, tmp_path, vocabulary)
    backbone = kft.load_backbone(str(tmp_path))
    same("Hugging Face", "gemma4_text", found(backbone.model), wanted(model))
    assert (backbone.modality, backbone.pooling, backbone.inputs) == ("text", "last", ("token_ids", "padding_mask"))


def test_a_model_without_its_head_is_read(
    backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    model = published(TEXT, tmp_path, vocabulary, head=False)
    same("Hugging Face", "gemma4_text", found(kft.load_backbone(str(tmp_path)).model), wanted(model))


def test_layers_that_read_others_keys_and_values_may_have_some_of_their_own(
    backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    """As those of the smaller models have that were published."""
    model = published(SHARED, tmp_path, vocabulary)
    file, parts = tmp_path / "model.safetensors", ("k_proj", "v_proj", "k_norm")
    own = {f"model.layers.3.self_attn.{part}.weight": np.ones((2, 2), np.float32) for part in parts}
    save_file({**load_file(file), **own}, file)
    np.testing.assert_allclose(found(kft.load_backbone(str(tmp_path)).model), wanted(model), atol=1e-4)


@pytest.mark.parametrize("values", [TEXT, EXPERTS, {**ALIKE, "global_head_dim": 4}])
def test_fields_of_either_time_say_the_same(values: dict[str, Any], backend: str) -> None:
    from kft.backbones.families import gemma4_fields

    full = {"head_dim": values["global_head_dim"], "num_key_value_heads": values.get("num_global_key_value_heads", 2)}
    now = {**values, "per_layer_config": {str(number): full for number in range(1, values["num_hidden_layers"], 2)}}
    for older in ("global_head_dim", "num_global_key_value_heads"):
        now.pop(older, None)
    rope = ropes({}, {})
    assert gemma4_fields.arguments({**now, **rope}) == gemma4_fields.arguments({**values, **rope})


def test_a_saved_model_has_the_same_states_and_nothing_of_kft(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    published({**EXPERTS, **SHARED, "hidden_size_per_layer_input": 4, "rms_norm_eps": 1e-2}, tmp_path, vocabulary)
    model = kft.load_backbone(str(tmp_path)).model
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(found(again), found(model), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert b"kft" not in file.read("config.json")


def test_its_upper_half_is_trained(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target
    from kft.tuning import trainable

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma4_text", **TEXT, **HALF}), "utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    backbone = kft.load_backbone(str(tmp_path), pretrained=False, dropout=0.1)
    model = heads.build(TASKS.load("token_classification"), backbone, Target("labels", ("no", "yes")))
    trainable.apply(model, backbone, "top:1")
    trained = {layer.name for layer in backbone.model.layers if layer.trainable_variables}
    assert trained == {"decoder_block_1", "final_normalization"}
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = found(backbone.model)
    model.train_on_batch({"token_ids": IDS, "padding_mask": MASK}, MASK)
    assert np.abs(found(backbone.model) - before).max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention in config.json is 'all'"),
        ({"hidden_activation": "silu"}, "hidden_activation in config.json is 'silu'"),
        ({"attention_bias": True}, "attention_bias in config.json is True"),
        ({"attention_dropout": 0.1}, "attention_dropout in config.json is 0.1"),
        (
            {"num_kv_shared_layers": 3},
            "num_kv_shared_layers in config.json is 3: none of the first 1 of 4 layers is a full",
        ),
        ({"num_kv_shared_layers": 4}, "num_kv_shared_layers in config.json is 4"),
        ({"layer_types": [FULL] * 3}, "layer_types in config.json"),
        ({"per_layer_config": {"1": {"head_dim": 8}}}, "per_layer_config in config.json has None for layer 3"),
        (
            {"per_layer_config": {"0": {"sliding_window": 5}}},
            "per_layer_config in config.json has {'sliding_window': 5}",
        ),
        (ropes({}, {"rope_type": "yarn"}), "rope_type of full_attention in config.json is 'yarn'"),
        (ropes({}, {"rope_type": "proportional", "partial_rotary_factor": 0.1}), "turns no number of heads that are 8"),
        ({"model_type": "gemma4_assistant"}, "A gemma4_assistant drafts tokens from the keys and values of another"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_is_computed_otherwise_is_refused(
    changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    config = {
        name: value for name, value in {"model_type": "gemma4_text", **TEXT, **changes}.items() if value is not None
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    with pytest.raises(ModelError, match=said) as caught:
        kft.load_backbone(str(tmp_path), pretrained=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layers.1.layer_scalar", "has no weights for layers.1.layer_scalar"),
        ("layers.1.self_attn.q_norm.weight", "has no weights for layers.1.self_attn.q_norm.weight"),
        ("layers.1.experts.down_proj", "has no weights for layers.1.experts.down_proj"),
        (
            "layers.1.self_attn.v_proj.weight",
            "find no place in a gemma4_text model: model.layers.1.self_attn.v_proj.weight",
        ),
    ],
)
def test_tensors_and_places_match_one_to_one(
    name: str, said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    published(EXPERTS, tmp_path, vocabulary)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if tensors.pop(f"model.{name}", None) is None:
        tensors[f"model.{name}"] = np.ones((8, 16), np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))


def test_a_recipe_may_ask_for_the_first_blocks_only(
    backend: str, vocabulary: Path, tmp_path: Path, same: Callable[..., None]
) -> None:
    model = published(SHARED, tmp_path, vocabulary)
    import transformers

    first = transformers.Gemma4TextModel(transformers.Gemma4TextConfig(**{**SHARED, **HALF, "num_kv_shared_layers": 0}))
    own, whole = first.state_dict(), model.state_dict()
    # The embeddings for all blocks lie in one tensor, those of the first one first.
    first.load_state_dict({name: whole[name][tuple(slice(size) for size in own[name].shape)] for name in own})
    backbone = kft.load_backbone(str(tmp_path), config={"num_layers": 2})
    same("Hugging Face", "gemma4_text, first blocks", found(backbone.model), wanted(first.eval()))
