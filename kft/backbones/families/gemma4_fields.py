"""What `config.json` says of Gemma 4's part for texts, as it was published and as transformers writes it since 5.24."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kft.backbones.families.family import refuse
from kft.errors import ModelError

FULL, NEAR = "full_attention", "sliding_attention"
# What transformers takes where config.json says nothing.
ROPES: dict[str, dict[str, Any]] = {
    NEAR: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
EVERY, GLOBAL_HEAD_DIM = 6, 512
EACH = {"head_dim": 256, "num_key_value_heads": 4}
EACH_BLOCK, ITS_WORDS = 256, 262_144


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `gemma4`.

    Raises:
        ModelError: if the configuration asks for what KerasHub's blocks do not compute.
    """
    if config.get("model_type") == "gemma4_assistant":
        raise ModelError(
            "A gemma4_assistant drafts tokens from the keys and values of another model's layers, and makes no states of a "
            "text by itself. Give the folder of the model that it drafts for."
        )
    refuse(config, "hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    refuse(config, "attention_bias", False, False)
    refuse(config, "attention_dropout", 0.0, 0.0)
    if config.get("use_bidirectional_attention") == "all":
        refuse(config, "use_bidirectional_attention", None)
    types, shared = layer_types(config), config.get("num_kv_shared_layers", 0)
    sources(types, shared)
    each = _each_kind(config, types)
    return {
        "vocabulary_size": config["vocab_size"],
        "hidden_dim": config["hidden_size"],
        "layer_types": types,
        "kinds": {kind: {**numbers, **_turned(config, kind, numbers["head_dim"])} for kind, numbers in each.items()},
        "block": {
            "num_query_heads": config["num_attention_heads"],
            "intermediate_dim": config["intermediate_size"],
            "sliding_window_size": config.get("sliding_window", 512),
            "use_double_wide_mlp": config.get("use_double_wide_mlp", False),
            "use_vision_bidirectional_attention": config.get("use_bidirectional_attention") == "vision",
            **_experts(config),
        },
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": config.get("hidden_size_per_layer_input", EACH_BLOCK) or 0,
        "vocab_size_per_layer_input": config.get("vocab_size_per_layer_input", ITS_WORDS),
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "dropout": 0.0,
    }


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """Returns the kind of each block; the last one sees the whole text whatever is said of it."""
    count = config["num_hidden_layers"]
    usual = [NEAR if (number + 1) % EVERY else FULL for number in range(count)]
    found = list(config.get("layer_types") or usual)
    if len(found) != count or set(found) - {FULL, NEAR}:
        raise ModelError(
            f"layer_types in config.json is {found}; wanted: {count} of {FULL} or {NEAR}. Get the file again."
        )
    return [*found[:-1], FULL]


def _each_kind(config: Mapping[str, Any], types: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the heads that blocks of either kind have, from the field of either time.

    Raises:
        ModelError: if blocks of one kind differ.
    """
    twice = bool(config.get("attention_k_eq_v", False))
    written = config.get("per_layer_config")
    if written is None:
        whole = {"head_dim": config.get("global_head_dim", GLOBAL_HEAD_DIM)}
        if twice and config.get("num_global_key_value_heads") is not None:
            whole["num_key_value_heads"] = config["num_global_key_value_heads"]
        written = {str(number): whole for number, kind in enumerate(types) if kind == FULL}
    usual = {name: config.get(name, value) for name, value in EACH.items()}
    found: dict[str, dict[str, Any]] = {}
    for number, kind in enumerate(types):
        numbers = {**usual, **written.get(str(number), {})}
        if found.setdefault(kind, numbers) != numbers or set(numbers) != set(usual):
            raise ModelError(
                f"per_layer_config in config.json has {written.get(str(number))} for layer {number}; of gemma4 kft computes "
                f"only head_dim and num_key_value_heads that all layers of a kind have alike. Take another model of the family."
            )
    return {kind: {**numbers, "attention_k_eq_v": twice and kind == FULL} for kind, numbers in found.items()}


def _turned(config: Mapping[str, Any], kind: str, size: int) -> dict[str, Any]:
    """Returns how positions turn queries and keys.

    Raises:
        ModelError: if frequencies are scaled in another way, or no number of a head is turned.
    """
    rope = (config.get("rope_parameters") or ROPES)[kind]
    how, share = rope.get("rope_type", "default"), rope.get("partial_rotary_factor", 1.0)
    allowed = ("default", "linear", "proportional")
    if how not in allowed:
        raise ModelError(
            f"rope_type of {kind} in config.json is {how!r}; of gemma4 kft computes only {', '.join(allowed)}. "
            "Take another model of the family."
        )
    share = share if how == "proportional" else 1.0
    if int(share * size // 2) < 1:
        raise ModelError(
            f"partial_rotary_factor of {kind} in config.json is {share}, which turns no number of heads that are {size} wide; "
            "KerasHub's gemma4 turns some. Take another model of the family."
        )
    return {
        "rope_wavelength": float(rope.get("rope_theta", 10_000.0)),
        "rope_scaling_factor": 1.0 if how == "default" else float(rope.get("factor", 1.0)),
        "rope_partial_rotary_factor": share,
    }


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    if not config.get("enable_moe_block", False):
        return {}
    return {
        "enable_moe_block": True,
        "num_experts": config["num_experts"],
        "expert_intermediate_dim": config["moe_intermediate_size"],
        "num_experts_per_token": config["top_k_experts"],
    }


def sources(layer_types: Sequence[str], shared: int) -> dict[int, int]:
    """Returns for each block that has no keys and values of its own the one it takes them from.

    Raises:
        ModelError: if there is none of its kind.
    """
    first = len(layer_types) - shared
    last = {kind: number for number, kind in enumerate(layer_types[:first])}
    if missing := sorted(set(layer_types[first:]) - set(last)):
        raise ModelError(
            f"num_kv_shared_layers in config.json is {shared}: none of the first {first} of {len(layer_types)} layers is a "
            f"{missing[0]}, whose keys and values the last ones would read. Take another model of the family."
        )
    return {number: last[layer_types[number]] for number in range(first, len(layer_types))}


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns how names of tensors begin that no state depends on: heads', and what blocks have that take another's instead."""
    parts = ("k_proj", "v_proj", "k_norm", "v_norm")
    shared = sources(layer_types(config), config.get("num_kv_shared_layers", 0))
    return (
        "lm_head.",
        "score.",
        *(f"layers.{number}.self_attn.{part}." for number in shared for part in parts),
    )
