"""Qwen3.5's texts' part: states, padding, training, names of weights, a saved model, and what is refused."""

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

# Transformers works through a text in chunks of 64 tokens.
LENGTH, SHORT = 70, 5
ROPE = {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}
TEXT = {
    "vocab_size": 120,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 3,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "rope_parameters": ROPE,
}
EXPERTS = {
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
KINDS = {"qwen3_5": TEXT, "qwen3_5_moe": {**TEXT, **EXPERTS}}
VISION = {
    "depth": 1,
    "hidden_size": 8,
    "num_heads": 2,
    "intermediate_size": 12,
    "patch_size": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 4,
}
# What a field changes, each seen to be computed.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("qwen3_5", {"layer_types": ["full_attention", "linear_attention"], "attention_bias": True}),
    ("qwen3_5", {"linear_num_key_heads": 4, "linear_conv_kernel_dim": 5, "hidden_act": "gelu_pytorch_tanh"}),
    ("qwen3_5", {"rope_parameters": {"rope_type": "linear", "rope_theta": 9.0, "factor": 2.0}}),
    ("qwen3_5_moe", {"num_experts_per_tok": 1, "tie_word_embeddings": True}),
]


def published(kind: str, place: Path, vocabulary: Path, *, whole: bool, head: bool, **changes: Any) -> Any:
    """Saves a random model as transformers does, and returns the part of it that reads texts.

    Args:
        kind: model_type of the whole.
        place: where to.
        vocabulary: the folder of its tokens.
        whole: whether it reads images too.
        head: whether it has its head.
        changes: of its configuration.
    """
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {**KINDS[kind], **changes}
    own, values = (kind, {"text_config": text, "vision_config": VISION}) if whole else (f"{kind}_text", text)
    config = transformers.AutoConfig.for_model(own, **values)
    config._attn_implementation = "eager"
    auto = ("AutoModelForImageTextToText" if whole else "AutoModelForCausalLM") if head else "AutoModel"
    model = getattr(transformers, auto).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        # Fresh biases and norms are 0 and 1, which would hide that two of them were mixed up.
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(place)
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    inner = model.model if head else model
    return inner.language_model if whole else inner


def texts(left: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns a long text and a short one, which is padded, and what of both is text."""
    ids = np.random.default_rng(0).integers(1, 99, (2, LENGTH)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, slice(0, -SHORT) if left else slice(SHORT, None)] = 0
    return ids, mask


def wanted(model: Any, left: bool = False) -> np.ndarray:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    ids, mask = texts(left)
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask)}
        states = model(**inputs, use_cache=False).last_hidden_state
    return np.asarray(states)[mask == 1]


def found(model: Any, left: bool = False) -> np.ndarray:
    import keras

    ids, mask = texts(left)
    states = model({"token_ids": ids, "padding_mask": mask}, training=False)["sequence_output"]
    return np.asarray(keras.ops.convert_to_numpy(states))[mask == 1]


@pytest.mark.parametrize(
    ("kind", "whole", "head"),
    [
        ("qwen3_5", True, True),
        ("qwen3_5", True, False),
        ("qwen3_5", False, True),
        ("qwen3_5_moe", True, True),
        ("qwen3_5_moe", False, False),
    ],
)
def test_states_are_those_of_transformers(
    kind: str, whole: bool, head: bool, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    theirs = published(kind, tmp_path, vocabulary, whole=whole, head=head)
    backbone = kft.load_backbone(str(tmp_path), part="text")
    same("Hugging Face", f"{kind}, text", found(backbone.model), wanted(theirs))
    assert (backbone.modality, backbone.pooling, backbone.inputs) == ("text", "last", ("token_ids", "padding_mask"))


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_fields_of_the_configuration_count(
    kind: str, changes: dict[str, Any], backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    theirs = published(kind, tmp_path, vocabulary, whole=True, head=True, **changes)
    same("Hugging Face", f"{kind}, text", found(kft.load_backbone(str(tmp_path), part="text").model), wanted(theirs))


def test_padding_before_a_text_is_neither_read_nor_written(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    # With linear attention alone, since positions are counted from the first token, padding or not.
    changes = {"layer_types": ["linear_attention"] * 2}
    theirs = published("qwen3_5", tmp_path, vocabulary, whole=False, head=False, **changes)
    np.testing.assert_allclose(
        found(kft.load_backbone(str(tmp_path)).model, left=True), wanted(theirs, True), atol=1e-4
    )


def test_a_step_of_training_is_transformers_own(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    """Gradients of all weights count, the way back through the whole length of a text too."""
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    theirs = published("qwen3_5", tmp_path, vocabulary, whole=True, head=True)
    mine = kft.load_backbone(str(tmp_path), part="text").model
    before, (ids, _) = found(mine), texts()
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    targets = np.random.default_rng(1).normal(size=(2, LENGTH, 16)).astype(np.float32)
    mine.compile(keras.optimizers.SGD(1.0), {"sequence_output": "mse"})
    loss = mine.train_on_batch(inputs, {"sequence_output": targets})
    step = torch.optim.SGD(theirs.parameters(), 1.0)
    own = ((theirs(input_ids=torch.tensor(ids).long()).last_hidden_state - torch.tensor(targets)) ** 2).mean()
    own.backward()
    step.step()
    np.testing.assert_allclose(loss, own.item(), rtol=1e-5)
    after = wanted(theirs)
    assert np.abs(after - before).max() > 0.05
    np.testing.assert_allclose(found(mine), after, atol=1e-4)


def test_a_task_trains_the_text_of_the_whole_in_batches_of_several_lengths(
    quick: dict, vocabulary: Path, backend: str, tmp_path: Path
) -> None:
    alone = {"layer_types": ["linear_attention"], "num_hidden_layers": 1}
    published("qwen3_5", tmp_path, vocabulary, whole=True, head=True, **alone)
    backbone = kft.load_backbone(str(tmp_path), part="text")
    model = kft.build_model(kft.load_data(quick["data"]["source"]), backbone)
    model.compile("adam", "mse")
    (ids, _), last = texts(), None
    # A second length has TensorFlow trace a graph in which it is not known; JAX would compile for a long time.
    for length in (6, 9) if backend == "tensorflow" else (6,):
        inputs = {"token_ids": ids[:, :length], "padding_mask": np.ones((2, length), np.int32)}
        last, before = model.train_on_batch(inputs, np.eye(2, dtype=np.float32)), last
        assert np.isfinite(last) and last != before


def test_every_fourth_block_sees_all_tokens_where_a_configuration_says_nothing(backend: str) -> None:
    from kft.backbones.families.qwen3_5 import FULL, LINEAR, arguments

    config = {"model_type": "qwen3_5_text", **TEXT, "layer_types": None, "num_hidden_layers": 5}
    assert arguments(config)["layer_types"] == [LINEAR, LINEAR, LINEAR, FULL, LINEAR]
    assert arguments({**config, "full_attention_interval": 2})["layer_types"] == [LINEAR, FULL, LINEAR, FULL, LINEAR]


def test_a_saved_model_gives_the_same_and_has_nothing_of_kft(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    published("qwen3_5", tmp_path, vocabulary, whole=False, head=True)
    model = kft.load_backbone(str(tmp_path)).model
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(found(again), found(model), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert not any(name in file.read("config.json") for name in (b"kft", b"keras_hub"))


def test_experts_in_one_tensor_and_blocks_that_foretell_more_tokens(
    backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    """As Qwen's own files have them; transformers parts the experts where it saves."""
    theirs = published("qwen3_5_moe", tmp_path, vocabulary, whole=True, head=True)
    file = tmp_path / "model.safetensors"
    tensors = {name: array for name, array in load_file(file).items() if ".experts." not in name}
    for number, layer in enumerate(theirs.layers):
        for part in ("gate_up_proj", "down_proj"):
            name = f"model.language_model.layers.{number}.mlp.experts.{part}"
            tensors[name] = getattr(layer.mlp.experts, part).detach().numpy()
    tensors["mtp.layers.0.input_layernorm.weight"] = np.ones(16, np.float32)
    save_file(tensors, file)
    np.testing.assert_allclose(found(kft.load_backbone(str(tmp_path), part="text").model), wanted(theirs), atol=1e-4)


# What is refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "mish"}, "Unknown hidden_act in config.json 'mish'"),
        ({"layer_types": ["linear_attention", "sliding_attention"]}, "layer_types in config.json 'sliding_attention'"),
        ({"attn_output_gate": False}, "attn_output_gate in config.json is False"),
        ({"rope_parameters": {**ROPE, "rope_type": "dynamic"}}, "rope_type in config.json is 'dynamic'"),
    ],
)
def test_other_variants_are_refused(
    changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_5_text", **TEXT, **changes}), "utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path), pretrained=False)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layers.0.linear_attn.dt_bias", "has no weights for layers.0.linear_attn.dt_bias"),
        ("layers.1.self_attn.q_norm.weight", "has no weights for layers.1.self_attn.q_norm.weight"),
        ("layers.1.mlp.experts.2.up_proj.weight", "has no weights for layers.1.mlp.experts.gate_up_proj"),
        ("layers.2.mlp.gate.weight", "find no place in a qwen3_5_moe_text model: layers.2.mlp.gate.weight"),
    ],
)
def test_tensors_and_places_that_do_not_fit_are_named(
    name: str, said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    published("qwen3_5_moe", tmp_path, vocabulary, whole=True, head=True)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if tensors.pop(f"model.language_model.{name}", None) is None:
        tensors[f"model.language_model.{name}"] = np.ones((4, 16), np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path), part="text")
