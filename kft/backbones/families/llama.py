"""Llama and its relatives Mistral, Qwen2 and Qwen3, where KerasHub's classes leave out what `config.json` says.

As positions scaled by YaRN, windows in some blocks, biases, or a head of another width. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kft.backbones import rotary
from kft.backbones.families.decoder import decoder, places
from kft.backbones.families.family import Family, activation_of, computes, refuse
from kft.backbones.families.turning import turning
from kft.backbones.hub import kinds
from kft.backbones.hub.types import TYPES
from kft.backbones.hugging_face import NEWER_DECODER

# The field that says whether layers have biases; True where they always have them.
BIASES: dict[str, dict[str, Any]] = {
    "llama": {"inputs": "attention_bias", "output": "attention_bias", "dense": "mlp_bias"},
    "mistral": {},
    "qwen2": {"inputs": True},
    "qwen3": {"inputs": "attention_bias", "output": "attention_bias"},
}


def of(config: Mapping[str, Any]) -> Family | None:
    """Returns how the family's models are read here, or None where KerasHub's class computes what `config.json` says."""
    known = TYPES[str(config["model_type"])]
    return None if computes(lambda said: kinds.arguments(said, known), config) else FAMILY


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `decoder`.

    Raises:
        ModelError: if the activation is unknown, or rotary frequencies are scaled in another way.
    """
    kind, heads = str(config["model_type"]), config["num_attention_heads"]
    turned = rotary.read(config, "rope_theta", "partial_rotary_factor", 1.0)
    refuse({**config, "partial_rotary_factor": turned.share}, "partial_rotary_factor", 1.0)
    usual = 128 if kind == "qwen3" else config["hidden_size"] // heads
    head_dim = config.get("head_dim") or usual
    return {
        "vocabulary_size": config["vocab_size"],
        "windows": _windows(config, kind),
        "num_query_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "turning": turning(config, turned, head_dim),
        "name": kind,
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "attention_dropout": config.get("attention_dropout") or 0.0,
        "activation": activation_of(config, "hidden_act", "silu"),
        "biases": {part: field is True or bool(config.get(field)) for part, field in BIASES[kind].items()},
        "normed_heads": kind == "qwen3",
    }


def _windows(config: Mapping[str, Any], kind: str) -> list[int | None]:
    """Returns for each block how many tokens a token sees: Mistral's blocks are all alike, Qwen's upper ones may see fewer."""
    count, window = config["num_hidden_layers"], config.get("sliding_window", 4096)
    if kind == "mistral":
        return [window] * count
    if kind == "llama" or not config.get("use_sliding_window"):
        return [None] * count
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [WINDOW if number >= first else "full_attention" for number in range(count)]
    return [window if one == WINDOW else None for one in kinds]


WINDOW = "sliding_attention"
FAMILY = Family(
    backbone=decoder,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=("lm_head.", "score.", "classifier.", "qa_outputs."),
    head=NEWER_DECODER,
    pooling="last",
)
