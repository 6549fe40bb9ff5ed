"""Completes `config.json` with what transformers takes where it says nothing, and puts fields where KerasHub looks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kft.backbones import rotary
from kft.backbones.hub.kinds import Config, kind_of
from kft.errors import ModelError

# What transformers takes where an older config.json says nothing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 10000.0, "tie_word_embeddings": False},
    "mistral": {"rope_theta": 10000.0, "sliding_window": 4096},
    "vit": {"qkv_bias": True},
    "deit": {"qkv_bias": True},
    "gemma": {"head_dim": 256},
    "gemma2": {
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
    },
    "gemma3_text": {
        "vocab_size": 262208,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
}
# The parts of a model, and what they are where they do not say so themselves.
INNER = {
    "gemma3": {"text_config": "gemma3_text", "vision_config": "siglip_vision_model"},
    "paligemma": {"text_config": "gemma", "vision_config": "siglip_vision_model"},
}


def completed(config: Config) -> dict[str, Any]:
    """Returns `config.json` with what transformers takes for fields that it leaves out, those of its parts too.

    Raises:
        ModelError: if it has no such part.
    """
    whole = str(config["model_type"])
    found = {**DEFAULTS.get(whole, {}), **config}
    for part, kind in INNER.get(whole, {}).items():
        if not isinstance(config.get(part), Mapping):
            raise ModelError(f"config.json has no {part}, which a {whole} has. Get the file again.")
        found[part] = completed({"model_type": kind, **config[part]})
    return found


def adapted(config: Config) -> dict[str, Any]:
    """Returns `config.json` with fields where KerasHub's converters look for them."""
    kind, rope, changed = config["model_type"], rotary.fields_of(config), completed(config)
    if kind in DEFAULTS and "num_attention_heads" in config:
        changed.setdefault("num_key_value_heads", config["num_attention_heads"])
    if "num_local_experts" in config:
        changed.setdefault("num_experts", config["num_local_experts"])
    if kind == "t5gemma2":
        text = {**config["encoder"]["text_config"], "rope_parameters": ropes_of(config["encoder"]["text_config"])}
        changed["encoder"] = {**config["encoder"], "text_config": text}
        changed["decoder"] = {**config["decoder"], "rope_parameters": ropes_of(config["decoder"])}
        changed["eoi_token_index"] = config["encoder"].get("eoi_token_index", 256_000)
    if kind == "llama":
        changed["rope_parameters"], changed["rope_scaling"] = rope, rope if kind_of(rope) == "llama3" else None
    return changed


def ropes_of(part: Config) -> dict[str, dict[str, Any]]:
    """Returns how Gemma 3's two kinds of layers turn queries and keys, from fields of either time."""
    own = part.get("rope_parameters") or {}
    whole = own.get("full_attention") or part.get("rope_scaling") or {}
    return {
        "full_attention": {"rope_theta": part.get("rope_theta", 1e6), **whole},
        "sliding_attention": {
            "rope_theta": part.get("rope_local_base_freq", 1e4),
            **(own.get("sliding_attention") or {}),
        },
    }
