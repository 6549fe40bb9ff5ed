"""Gemma 3n's part for texts: what `config.json` says of it and where its weights stand. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kft.backbones.families.family import Family, activation_of, dense, refuse
from kft.backbones.families.gemma3n_graph import FULL, NEAR, gemma3n_text
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

# The older fields of the base of rotary frequencies, by kind of block, and what it is where none says it.
ROPES = {FULL: ("rope_theta", 1e6), NEAR: ("rope_local_base_freq", 1e4)}
# What transformers takes where config.json says nothing.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
    "attention_dropout": 0.0,
    "attention_bias": False,
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `gemma3n_text`.

    Raises:
        ModelError: if the activation is unknown, rotary frequencies are scaled in another way than by one factor, AltUp's
            coefficients are kept within another limit, or fields do not fit each other.
    """
    refuse(config, "altup_coef_clip", 120.0, 120.0)
    said = {**DEFAULTS, **config}
    kinds = _kinds(said)
    ropes = {kind: _rope(config, kind) for kind in ROPES}
    return {
        "vocabulary_size": said["vocab_size"],
        "layer_types": kinds,
        "num_shared": said["num_kv_shared_layers"],
        "num_heads": said["num_attention_heads"],
        "num_key_value_heads": said["num_key_value_heads"],
        "head_dim": said["head_dim"],
        "hidden_dim": said["hidden_size"],
        "intermediate_dims": _each(said, "intermediate_size", said["intermediate_size"], len(kinds)),
        "sparsities": _each(said, "activation_sparsity_pattern", _sparsities(said), len(kinds)),
        "window": said["sliding_window"],
        "wavelengths": {kind: base for kind, (base, _) in ropes.items()},
        "stretches": {kind: factor for kind, (_, factor) in ropes.items()},
        "block_vocabulary_size": said["vocab_size_per_layer_input"],
        "block_embedding_dim": said["hidden_size_per_layer_input"],
        "streams": said["altup_num_inputs"],
        "active": said["altup_active_idx"],
        "laurel_rank": said["laurel_rank"],
        "attention_dropout": said["attention_dropout"] or 0.0,
        "activation": activation_of(said, "hidden_activation"),
        "layer_norm_epsilon": said["rms_norm_eps"],
        "biased": bool(said["attention_bias"]),
        "scaled": bool(said["altup_correct_scale"]),
    }


def _kinds(said: Mapping[str, Any]) -> list[str]:
    count, shared = said["num_hidden_layers"], said["num_kv_shared_layers"]
    usual = [NEAR if (number + 1) % 5 else FULL for number in range(count)]
    kinds = _each(said, "layer_types", said.get("layer_types") or usual, count)
    if strange := sorted({*kinds} - {*ROPES}):
        raise ModelError(unknown("layer_types in config.json", strange[0], ROPES))
    if without := sorted({*kinds[count - shared :]} - {*kinds[: count - shared]}) if shared else []:
        raise ModelError(
            f"num_kv_shared_layers in config.json is {shared}, but below the last {shared} of {count} blocks none is of the "
            f"kind {without[0]}, whose keys and values they would take. Get the file again."
        )
    return kinds


def _sparsities(said: Mapping[str, Any]) -> Any:
    sparse = 10 if said["num_hidden_layers"] > 10 else 0
    usual = [0.95] * sparse + [0.0] * (said["num_hidden_layers"] - sparse)
    found = said.get("activation_sparsity_pattern")
    return usual if found is None else found


def _each(said: Mapping[str, Any], field: str, value: Any, count: int) -> list[Any]:
    """Returns a value for each block."""
    found = list(value) if isinstance(value, Sequence) else [value] * count
    if len(found) != count:
        raise ModelError(
            f"{field} in config.json is for {len(found)} blocks, but there are {count}. Get the file again."
        )
    return found


def _rope(config: Mapping[str, Any], kind: str) -> tuple[float, float]:
    """Returns base and factor of a kind's rotary frequencies."""
    name, usual = ROPES[kind]
    old = (config.get("rope_scaling") or {}) if kind == FULL else {}
    fields = {**((config.get("rope_parameters") or {}).get(kind) or {}), **old}
    way = fields.get("rope_type", fields.get("type", "default"))
    if way not in ("default", "linear"):
        raise ModelError(
            f"rope_type in config.json is {way!r}; of gemma3n_text kft computes only default, linear. Take another model of "
            "the family."
        )
    base = float(fields.get("rope_theta", config.get(name, usual)))
    return base, float(fields["factor"]) if way == "linear" else 1.0


# A block's layers and their tensors, in torch's order but for axes that are parted here.
DENSE = {
    "attention_query": "self_attn.q_proj",
    "attention_key": "self_attn.k_proj",
    "attention_value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "intermediate": "mlp.up_proj",
    "output": "mlp.down_proj",
    "laurel_in": "laurel.linear_left",
    "laurel_out": "laurel.linear_right",
    "router": "altup.modality_router",
    "prediction": "altup.prediction_coefs",
    "correction": "altup.correction_coefs",
    "own_gate": "per_layer_input_gate",
    "own_output": "per_layer_projection",
}
NORMS = {
    "attention_layer_norm": "input_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_output_norm": "post_attention_layernorm",
    "layer_norm": "pre_feedforward_layernorm",
    "output_norm": "post_feedforward_layernorm",
    "laurel_norm": "laurel.post_laurel_norm",
    "router_norm": "altup.router_norm",
    "own_norm": "post_per_layer_input_norm",
}


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    yield Place(found["own_embedding"].embeddings, "embed_tokens_per_layer.weight")
    yield from dense(found["own_projection"], "per_layer_model_projection")
    yield Place(found["own_projection_norm"].scale, "per_layer_projection_norm.weight")
    for number in range(1, sum(name.endswith("_out") and name.startswith("stream_") for name in found) + 1):
        yield from dense(found[f"stream_{number}_in"], f"altup_projections.{number - 1}")
        yield from dense(found[f"stream_{number}_out"], f"altup_unembed_projections.{number - 1}")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"layers.{number}"
        for ours, theirs in DENSE.items():
            if (layer := found.get(f"{block}_{ours}")) is not None:
                yield from dense(layer, f"{start}.{theirs}", 3 if ours == "attention_output" else 1)
        for ours, theirs in NORMS.items():
            if (layer := found.get(f"{block}_{ours}")) is not None:
                yield Place(layer.scale, f"{start}.{theirs}.weight")
        if (layer := found.get(f"{block}_own_scale")) is not None:
            yield Place(layer.kernel, f"{start}.altup.correct_output_scale")
    yield Place(found["final_layer_norm"].scale, "norm.weight")


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns how the names of weights begin that are published and not read: of keys and values that a block is given."""
    said = {**DEFAULTS, **config}
    count, shared = said["num_hidden_layers"], said["num_kv_shared_layers"]
    found = [f"layers.{number}.self_attn.{kind}_" for number in range(count - shared, count) for kind in "kv"]
    scales = () if said["altup_correct_scale"] else [f"layers.{n}.altup.correct_output_scale" for n in range(count)]
    return (*found, *scales)


FAMILY = Family(
    backbone=gemma3n_text,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=lambda config: ("lm_head.", "score.", *unread(config)),
    pooling="last",
)
