"""Decoders with a table of kft's own: what is refused, older layouts, and that they can be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError
from kft.tasks import TASKS
from kft.tasks.targets import Target

pytestmark = pytest.mark.backend

IDS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7], np.int32)
SIZES = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
OPT = {**SIZES, "model_type": "opt", "ffn_dim": 24}
BLOOM = {**SIZES, "model_type": "bloom", "n_layer": 2, "n_head": 2}
NEOX = {**SIZES, "model_type": "gpt_neox", "hidden_act": "gelu_new"}
PHI3 = {**SIZES, "model_type": "phi3"}
NEOX_EXACT = {**NEOX, "hidden_act": "gelu"}
PHI3_NEAR = {**PHI3, "sliding_window": 4}
LLAMA_YARN = {**SIZES, "model_type": "llama", "rope_scaling": {"type": "yarn", "factor": 4.0}}
OSS = {**SIZES, "model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1}
FALCON = {**SIZES, "model_type": "falcon"}
LONG = {"type": "su", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def written(place: Path, config: dict[str, Any], vocabulary: Path) -> str:
    """Makes a folder that has no weights."""
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return str(place)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**OPT, "do_layer_norm_before": False}, "do_layer_norm_before in config.json is False"),
        ({**OPT, "word_embed_proj_dim": 8}, "word_embed_proj_dim in config.json is 8"),
        ({**OPT, "activation_function": "gelu"}, "activation_function in config.json is 'gelu'"),
        ({**OPT, "enable_bias": False}, "enable_bias in config.json is False"),
        ({**BLOOM, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ({**BLOOM, "n_layer": None, "num_hidden_layers": None}, "lacks 'num_hidden_layers'"),
        ({**NEOX, "hidden_act": "gelu_2"}, "Unknown hidden_act in config.json 'gelu_2'"),
        ({**NEOX, "rotary_pct": 0.4}, "turns 3 numbers of a head"),
        ({**NEOX, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type in config.json is 'dynamic'"),
        ({**PHI3, "hidden_act": "gelu_2"}, "Unknown hidden_act in config.json 'gelu_2'"),
        ({**PHI3, "rope_scaling": {"type": "dynamic"}}, "rope_type in config.json is 'dynamic'"),
        ({**PHI3, "rope_scaling": {"type": "su"}}, "lacks 'short_factor'"),
        ({**OSS, "hidden_act": "gelu"}, "hidden_act in config.json is 'gelu'"),
        ({**OSS, "rope_scaling": {"rope_type": "dynamic"}}, "rope_type in config.json is 'dynamic'; of gpt_oss kft"),
        ({**OSS, "layer_types": ["full_attention"]}, "layer_types in config.json has 1 entries, of 2 blocks"),
        ({**OSS, "quantization_config": {"quant_method": "bitsandbytes"}}, "quant_method in config.json is 'bitsand"),
        ({**FALCON, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type in config.json is 'dynamic'"),
        ({**FALCON, "new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn in config.json is False"),
        ({**FALCON, "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn in config.json is 2"),
        ({**FALCON, "multi_query": False, "num_kv_heads": 1}, "num_kv_heads in config.json is 1"),
        ({**FALCON, "new_decoder_architecture": True, "num_kv_heads": 3}, "num_kv_heads in config.json is 3"),
        ({**FALCON, "activation": "gelu10"}, "Unknown activation in config.json 'gelu10'"),
    ],
)
def test_what_kerashub_computes_otherwise_is_refused(
    config: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(written(tmp_path, config, vocabulary), pretrained=False)


def test_longrope_of_older_files_takes_both_lengths(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    from kft.backbones.families import phi3

    found = phi3.arguments({**PHI3, "original_max_position_embeddings": 16, "rope_scaling": {**LONG, "factor": 2}})
    assert (found["rope_scaling_type"], found["pretraining_sequence_length"]) == ("su", 16)
    assert (found["max_sequence_length"], found["rope_max_wavelength"]) == (32, 10000.0)


def test_bloom_of_older_files_has_other_names(backend: str) -> None:
    from kft.backbones.families import bloom

    old = {"vocab_size": 80, "n_embed": 16, "n_layer": 2, "num_attention_heads": 2}
    assert bloom.arguments(old) == bloom.arguments(BLOOM)


def test_gpt_neox_of_older_files_brings_buffers_and_its_head(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5}
    config = transformers.GPTNeoXConfig(**{**NEOX, "rope_parameters": rope})
    model = transformers.GPTNeoXForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    weights = {name.replace("lm_head.", "embed_out."): array for name, array in load_file(place_of(tmp_path)).items()}
    start = "gpt_neox.layers.1.attention"
    weights[f"{start}.bias"] = np.tril(np.ones((1, 1, 32, 32), bool))
    weights[f"{start}.masked_bias"] = np.asarray(-1e9, np.float32)
    weights[f"{start}.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    save_file(weights, place_of(tmp_path))
    written(tmp_path, {**NEOX, "rotary_emb_base": 50, "rotary_pct": 0.5}, vocabulary)
    with torch.no_grad():
        wanted = model.gpt_neox(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()
    backbone = kft.load_backbone(str(tmp_path))
    found = keras.ops.convert_to_numpy(backbone.model({"token_ids": IDS, "padding_mask": MASK}, training=False))
    np.testing.assert_allclose(found[MASK == 1], wanted[MASK == 1], atol=1e-4)


def place_of(folder: Path) -> Path:
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "config",
    [OPT, BLOOM, NEOX, NEOX_EXACT, PHI3, PHI3_NEAR, LLAMA_YARN, OSS, FALCON],
    ids=lambda config: config["model_type"],
)
def test_a_decoder_is_read_off_its_last_token_and_trained(
    config: dict[str, Any], backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    import keras

    from kft.tasks import heads
    from kft.tuning import trainable

    backbone = kft.load_backbone(written(tmp_path, config, vocabulary), pretrained=False, dropout=0.0)
    assert backbone.pooling == "last"
    assert len(trainable.blocks(backbone.model)) == 2
    model = heads.build(TASKS.load("text_classification"), backbone, Target("labels", ("no", "yes")))
    trainable.apply(model, backbone, "all")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inputs, longer = {"token_ids": IDS, "padding_mask": MASK}, {"token_ids": IDS + (1 - MASK), "padding_mask": MASK}
    before = np.asarray(model.predict_on_batch(inputs))
    np.testing.assert_allclose(np.asarray(model.predict_on_batch(longer)), before, atol=1e-5)
    model.train_on_batch(inputs, np.asarray([0, 1]))
    assert np.abs(np.asarray(model.predict_on_batch(inputs)) - before).max() > 0
