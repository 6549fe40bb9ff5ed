"""Models of Hugging Face's that KerasHub's converters read: their numbers are transformers' own, or they are refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = [
    pytest.mark.backend,
    # KerasHub's Swin gives its attention a mask that Keras takes for one of padding.
    pytest.mark.filterwarnings(
        "ignore:Layer 'attn' .of type WindowAttention. was passed an input with a mask:UserWarning"
    ),
]

IDS = np.array([[2, 7, 9, 3, 0, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3, 5]], np.int32)
MASK = np.array([[1] * 4 + [0] * 4, [1] * 8], np.int32)
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def rope(kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 50.0, **more}}


LINEAR = rope("linear", factor=2.0)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=1.0, beta_slow=0.2)
LLAMA3 = rope("llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
GEMMA3 = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
}
WINDOWED = ["sliding_attention", "full_attention"]
COMMON = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    **dict.fromkeys(("bos_token_id", "eos_token_id")),
    "pad_token_id": 0,
}
DECODER = {**COMMON, "num_key_value_heads": 1, "rms_norm_eps": 1e-3, **rope()}
MIXTRAL = {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN2_MOE = {
    **DECODER,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
QWEN3 = {**DECODER, "head_dim": 4, "rms_norm_eps": 1e-5}
QWEN3_MOE = {
    **{**QWEN3, "rms_norm_eps": 1e-6},
    "moe_intermediate_size": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
GEMMA = {**COMMON, "num_key_value_heads": 1, "head_dim": 4}
GEMMA2 = {**GEMMA, "query_pre_attn_scalar": 4, "sliding_window": 3, "attn_logit_softcapping": 0.5}
GEMMA3_TEXT = {**GEMMA, "query_pre_attn_scalar": 4, "sliding_window": 3, "num_hidden_layers": 6}
ESM = {
    **COMMON,
    "position_embedding_type": "rotary",
    "mask_token_id": 32,
    "layer_norm_eps": 1e-3,
    "token_dropout": True,
}
RESIDUES = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
GPT2 = {"vocab_size": 80, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
DINO = {**VIT, "mlp_ratio": 2, "layerscale_value": 0.5}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
# Where the first token, or the class token of an image, is read.
FIRST = ("esm", "vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit")
TYPES = {
    "llama": DECODER,
    "mistral": {**DECODER, "sliding_window": 3, "head_dim": 4},
    "mixtral": {**MIXTRAL, "sliding_window": 3},
    "qwen2": DECODER,
    "qwen2_moe": QWEN2_MOE,
    "qwen3": {**QWEN3, "rms_norm_eps": 1e-6},
    "qwen3_moe": QWEN3_MOE,
    "smollm3": {**DECODER, "no_rope_layers": [1, 0]},
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": {**GEMMA3_TEXT, "rope_parameters": GEMMA3},
    "gpt2": {**GPT2, "n_inner": 20},
    "esm": ESM,
    "vit": {**VIT, "layer_norm_eps": 1e-3},
    "deit": {**VIT, "layer_norm_eps": 1e-3},
    "dinov2": DINO,
    "dinov2_with_registers": {**DINO, "num_register_tokens": 3},
    "dinov3_vit": {**VIT, "num_register_tokens": 3, "layer_norm_eps": 1e-3, "rope_theta": 50.0},
    "swin": SWIN,
}
# What a field changes, each seen to be computed.
VARIANTS = [
    ("llama", {**DECODER, **YARN}),
    ("llama", {**DECODER, **LINEAR, "head_dim": 4, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    ("mistral", {**DECODER, **rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=0.5), "sliding_window": 3}),
    ("qwen2", {**DECODER, **YARN, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("qwen3", {**QWEN3, **rope("yarn", factor=4.0, attention_factor=1.5, truncate=False), "rms_norm_eps": 1e-3}),
    (
        "qwen3",
        {**QWEN3, "attention_bias": True, "use_sliding_window": True, "layer_types": WINDOWED, "sliding_window": 3},
    ),
    ("llama", {**DECODER, **LLAMA3}),
    ("llama", {**DECODER, **LLAMA3, "head_dim": 4}),
    ("mistral", {**DECODER, **LINEAR, "tie_word_embeddings": True, "sliding_window": None}),
    ("mixtral", {**MIXTRAL, **LINEAR, "tie_word_embeddings": True, "num_experts_per_tok": 1}),
    ("qwen2", {**DECODER, **LINEAR, "tie_word_embeddings": True}),
    ("qwen2_moe", {**QWEN2_MOE, "norm_topk_prob": True}),
    ("qwen3", {**QWEN3, **LINEAR, "tie_word_embeddings": True}),
    ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": True}),
    ("gemma2", {**GEMMA2, "query_pre_attn_scalar": 9, "attn_logit_softcapping": None}),
    ("gemma3_text", {**GEMMA3_TEXT, "query_pre_attn_scalar": 9}),
    ("gemma3_text", {**GEMMA3_TEXT, "use_bidirectional_attention": True, "sliding_window": 4}),
    ("esm", {**ESM, "token_dropout": False, "emb_layer_norm_before": True, "rope_theta": 50.0}),
    ("dinov2", {**DINO, "use_swiglu_ffn": True, "use_mask_token": False}),
    ("dinov3_vit", {**VIT, "use_gated_mlp": True, "hidden_act": "silu"}),
    ("dinov3_vit", {**VIT, "key_bias": True, "mlp_bias": False, "hidden_act": "relu"}),
    ("swin", {**SWIN, "window_size": 4, "qkv_bias": False}),
]


def classes(kind: str) -> tuple[str, str]:
    """Returns what transformers calls a model without a head and one with it."""
    if kind == "dinov3_vit":
        return "AutoModel", "AutoModel"
    heads = {"esm": "AutoModelForMaskedLM", **dict.fromkeys(("vit", "deit", "swin"), "AutoModelForImageClassification")}
    return "AutoModel", "AutoModelForImageClassification" if "dino" in kind else heads.get(kind, "AutoModelForCausalLM")


def published(kind: str, values: dict[str, Any], place: Path, vocabulary: Path, head: bool = True, **how: Any) -> Any:
    """Saves a random model as transformers does, and returns it without its head; a test without torch is skipped."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **values)
    config.architectures, config._attn_implementation = [], "eager"
    model = getattr(transformers, classes(kind)[head]).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        # Fresh biases and norms are 0 and 1, which would hide that two of them were mixed up.
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(place, **how)
    finished(place, vocabulary)
    return model.base_model if classes(kind)[head] != "AutoModel" else model


def finished(place: Path, vocabulary: Path) -> str:
    """Adds the files that say how inputs are made."""
    if json.loads((place / "config.json").read_text(encoding="utf8"))["model_type"] == "esm":
        (place / "vocab.txt").write_text("\n".join(RESIDUES), encoding="utf8")
    else:
        (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    scales = {"image_mean": MEAN, "image_std": DEVIATION, "do_normalize": True}
    (place / "preprocessor_config.json").write_text(json.dumps(scales), encoding="utf8")
    return str(place)


def wanted(model: Any) -> np.ndarray:
    """Returns transformers' states: of all patches, or of the tokens that are no padding."""
    import torch

    with torch.no_grad():
        if hasattr(model.config, "image_size"):
            images = torch.from_numpy(np.ascontiguousarray(scaled(pixels()).transpose(0, 3, 1, 2)))
            return np.asarray(model(images).last_hidden_state)
        states = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).last_hidden_state
    return np.asarray(states)[MASK == 1]


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)


def scaled(images: np.ndarray) -> np.ndarray:
    return ((images / 255 - MEAN) / DEVIATION).astype(np.float32)


def found(backbone: Any) -> np.ndarray:
    """Returns the states of a backbone, of the same inputs."""
    return states(backbone.model, backbone)


def states(model: Any, backbone: Any) -> np.ndarray:
    import keras

    from kft.tasks.heads import _normalization

    if backbone.modality == "image":
        images = _normalization(backbone.images)(pixels())
        return np.asarray(keras.ops.convert_to_numpy(model(images, training=False)))
    inputs = {"token_ids": IDS, "padding_mask": MASK}
    output = model({name: inputs[name] for name in backbone.inputs}, training=False)
    output = output["sequence_output"] if isinstance(output, dict) else output
    return np.asarray(keras.ops.convert_to_numpy(output))[MASK == 1]


@pytest.mark.parametrize("head", [True, False], ids=["head", "bare"])
@pytest.mark.parametrize("kind", TYPES)
def test_states_are_those_of_transformers(
    kind: str, head: bool, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    model = published(kind, TYPES[kind], tmp_path, vocabulary, head)
    backbone = kft.load_backbone(str(tmp_path))
    same("Hugging Face", kind, found(backbone), wanted(model))
    assert backbone.pooling == ("first" if kind in FIRST else "mean" if kind == "swin" else "last")
    if backbone.modality == "image":
        assert backbone.images.size == (16, 16)


@pytest.mark.parametrize(("kind", "values"), VARIANTS)
def test_fields_that_converters_leave_out_count(
    kind: str, values: dict[str, Any], backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    model = published(kind, values, tmp_path, vocabulary)
    same("Hugging Face", kind, found(kft.load_backbone(str(tmp_path))), wanted(model))


@pytest.mark.parametrize("kind", ["dinov2", "esm", "gemma2", "qwen3", "qwen3_moe"])
def test_a_saved_model_has_the_same_states(kind: str, backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    published(kind, TYPES[kind], tmp_path, vocabulary)
    backbone = kft.load_backbone(str(tmp_path))
    backbone.model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(states(again, backbone), found(backbone), atol=1e-6)


@pytest.mark.parametrize("kind", ["mistral", "qwen2_moe"])
def test_parts_of_half_precision_are_read(kind: str, backend: str, vocabulary: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = published(kind, TYPES[kind], tmp_path, vocabulary, head=False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16))
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="4KB")
    (tmp_path / "model.safetensors").unlink()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    np.testing.assert_allclose(found(kft.load_backbone(str(tmp_path))), wanted(model), atol=1e-4)


def test_fields_that_older_files_lack_are_what_transformers_takes(
    backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    model = published("llama", {**COMMON, "rms_norm_eps": 1e-6}, tmp_path, vocabulary)
    left_out = (
        "rope_parameters",
        "num_key_value_heads",
        "tie_word_embeddings",
        "head_dim",
        "attention_bias",
        "mlp_bias",
    )
    change(tmp_path, {}, left_out)
    np.testing.assert_allclose(found(kft.load_backbone(str(tmp_path))), wanted(model), atol=1e-4)


def change(place: Path, values: dict[str, Any], left_out: tuple[str, ...] = ()) -> None:
    config = {**json.loads((place / "config.json").read_text(encoding="utf8")), **values}
    kept = {name: value for name, value in config.items() if name not in left_out}
    (place / "config.json").write_text(json.dumps(kept), encoding="utf8")


# What is refused


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {"hidden_act": "gelu_2"}, "Unknown hidden_act in config.json 'gelu_2'"),
        ("llama", rope("dynamic"), "rope_type in config.json is 'dynamic'; of llama kft computes only default, linear"),
        ("llama", rope("yarn"), "says rope_type 'yarn' and no 'factor'"),
        (
            "qwen3",
            rope("linear", partial_rotary_factor=0.5) | {"head_dim": 6, "attention_bias": True},
            "is 0.5; of qwen3",
        ),
        (
            "qwen2_moe",
            YARN,
            "rope_type in config.json is 'yarn'; for qwen2_moe KerasHub computes 'default' or 'linear'",
        ),
        ("mixtral", {"head_dim": 4}, "head_dim in config.json is 4"),
        (
            "qwen2_moe",
            {"use_sliding_window": True, "max_window_layers": 1},
            r"is \['full_attention', 'sliding_attention'\]",
        ),
        ("qwen2_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers in config.json is \[0\]"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step in config.json is 2"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window in config.json is True"),
        ("gemma", {"rms_norm_eps": 1e-3}, "rms_norm_eps in config.json is 0.001"),
        ("gemma", rope(), "rope_theta in config.json is 50.0"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types in config.json is"),
        ("gemma", {"hidden_act": "relu"}, "hidden_act in config.json is 'relu'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention in config.json is True"),
        ("gemma3_text", {"rms_norm_eps": 1e-3}, "rms_norm_eps in config.json is 0.001"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "sliding_window_pattern in config.json is 3"),
        ("gemma3_text", {"rope_local_base_freq": 50.0, "rope_parameters": None}, "rope_theta of sliding_attention"),
        ("gpt2", {"activation_function": "relu"}, "activation_function in config.json is 'relu'"),
        ("gpt2", {"layer_norm_epsilon": 1e-2}, "layer_norm_epsilon in config.json is 0.01"),
        ("esm", {"position_embedding_type": "absolute"}, "position_embedding_type in config.json is 'absolute'"),
        ("vit", {"hidden_act": "relu"}, "hidden_act in config.json is 'relu'"),
        ("deit", {"qkv_bias": False}, "qkv_bias in config.json is False"),
        ("dinov2", {"layer_norm_eps": 1e-3}, "layer_norm_eps in config.json is 0.001"),
        ("swin", {"window_size": 3}, "window_size in config.json is 3; at stage 1 of 2 the image has 8 patches a side"),
    ],
)
def test_what_kerashub_computes_otherwise_is_refused(
    kind: str, changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    config = {**CONFIGS.get(kind, {}), **TYPES[kind], "model_type": kind, **changes}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(finished(tmp_path, vocabulary), pretrained=False)


# What transformers writes besides, and KerasHub's converters ask for.
CONFIGS = {
    "gpt2": {"resid_pdrop": 0.0},
}


@pytest.mark.parametrize("kind", ["pix2struct", "sam2"])
def test_other_types_end_in_one_line_that_names_what_is_read(
    kind: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf8")
    with pytest.raises(ModelError, match=f"is a {kind}, which kft does not read.*model_type: deit, .*vit") as caught:
        kft.load_backbone(finished(tmp_path, vocabulary))
    assert "\n" not in str(caught.value)


def test_an_encoder_that_is_a_decoder_is_not_read_as_one(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**COMMON, "model_type": "bert", "is_decoder": True}), "utf8")
    with pytest.raises(ModelError, match="is a bert with is_decoder True, which kft does not read"):
        kft.load_backbone(finished(tmp_path, vocabulary))


LAYER, LAST = "model.layers.1.", "encoder.layer.1."


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.norm.weight"),
        ("llama", f"{LAYER}self_attn.k_proj.weight"),
        ("qwen3_moe", f"{LAYER}mlp.experts.3.down_proj.weight"),
        ("swin", "swin.encoder.layers.1.blocks.1.attention.self.key.bias"),
        ("dinov2", f"dinov2.{LAST}layer_scale2.lambda1"),
    ],
)
def test_a_tensor_that_is_not_there_is_named(
    kind: str, name: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    published(kind, TYPES[kind], tmp_path, vocabulary)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(name)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=f"has no weights for .*{name.split('.', 1)[1]}"):
        kft.load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "model.layers.2.mlp.up_proj.weight"),
        ("qwen2", f"{LAYER}self_attn.o_proj.bias"),
        ("gpt2", "transformer.h.1.crossattention.c_attn.weight"),
        ("vit", "vit.encoder.layer.2.output.dense.bias"),
    ],
)
def test_a_tensor_that_finds_no_place_is_named(
    kind: str, name: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    published(kind, TYPES[kind], tmp_path, vocabulary)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), name: np.ones((2, 2), np.float32)}, file)
    with pytest.raises(ModelError, match=f"find no place in a {kind} backbone: {name}"):
        kft.load_backbone(str(tmp_path))


def test_published_layers_beyond_those_of_the_configuration_are_an_error(
    backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    model = published("qwen2", TYPES["qwen2"], tmp_path, vocabulary)
    first = kft.load_backbone(str(tmp_path), config={"num_layers": 1})  # which a recipe may ask for
    assert first.model.num_layers == 1 and model.config.num_hidden_layers == 2
    change(tmp_path, {"num_hidden_layers": 1, "layer_types": ["full_attention"]})
    with pytest.raises(ModelError, match=r"find no place in a qwen2 backbone: model.layers.1\..* and 8 more"):
        kft.load_backbone(str(tmp_path))


def test_weights_of_another_shape_name_the_tensor(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    published("llama", TYPES["llama"], tmp_path, vocabulary)
    change(tmp_path, {"intermediate_size": 20})
    with pytest.raises(
        ModelError, match=r"gate_proj.weight has the shape \(24, 16\), but config.json asks for \(16, 20\)"
    ):
        kft.load_backbone(str(tmp_path))


def test_no_place_is_left_as_it_was_drawn(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    """A converter that leaves a weight of its model out, which KerasHub's own reading says nothing of."""
    from types import SimpleNamespace

    import keras

    from kft.backbones import converted
    from kft.backbones.tensors import opened

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="last")])
    save_file({"w": np.eye(2, dtype=np.float32)}, tmp_path / "model.safetensors")
    only = SimpleNamespace(
        convert_weights=lambda model, loader, config: loader.port_weight(model.layers[0].kernel, "w")
    )
    reader = converted.Reader(opened(tmp_path), "", {})
    with pytest.raises(ModelError, match="has no weights for .*last/bias"):
        converted.fill(model, only, {"model_type": "bert"}, reader)
