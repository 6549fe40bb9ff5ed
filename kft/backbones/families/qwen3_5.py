"""The texts' part of Qwen3.5: most of its blocks have linear attention, every fourth one the gated kind that sees all tokens.

KerasHub's class unrolls a loop of 64 steps in each block, which takes JAX minutes to compile for each length of text, and it
cannot train on TensorFlow with texts of several lengths; so the graph is drawn here, of Keras' own layers and operations, and
a saved model loads without kft. The whole, in `qwen3_5_whole`, has the same blocks. As the truth serve transformers'
Qwen3_5TextModel and Qwen3_5MoeTextModel. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kft.backbones import rotary
from kft.backbones.families import decoder, delta, drawn, experts
from kft.backbones.families.family import Family, activation_of, dense, refuse
from kft.backbones.families.turning import Turning, turning
from kft.backbones.hugging_face import NEWER_DECODER
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

LINEAR, FULL = "linear_attention", "full_attention"


def qwen3_5(vocabulary_size: int, hidden_dim: int, turning: Turning, **blocks: Any) -> Any:
    """Builds a decoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of the hidden states.
        turning: how queries and keys are turned.
        **blocks: see `decoded`.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    ids, mask = inputs()
    places = drawn.places_of(ids)
    x = token_embedding(vocabulary_size, hidden_dim)(ids)
    x = decoded(x, mask, places, decoder.waves_of(places, turning), **blocks)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="qwen3_5")


def inputs() -> tuple[Any, Any]:
    """Returns the inputs for tokens' ids and for what of a text is no padding."""
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    return ids, mask


def token_embedding(vocabulary_size: int, hidden_dim: int) -> Any:
    """Returns the table of tokens."""
    return keras.layers.Embedding(
        vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding"
    )


def decoded(
    x: Any,
    mask: Any,
    places: Any,
    waves: tuple[Any, Any],
    layer_types: Sequence[str],
    intermediate_dim: int,
    num_query_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    linear: Mapping[str, int],
    num_experts: int = 0,
    top_k: int = 0,
    shared_expert_intermediate_dim: int = 0,
    attention_bias: bool = False,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation: str = "silu",
    layer_norm_epsilon: float = 1e-6,
) -> Any:
    """Returns what the blocks make of embedded tokens, normalized.

    Args:
        x: the tokens, shape (batch, tokens, width).
        mask: 0 where a token is padding, shape (batch, tokens).
        places: of the tokens, in the order in which they are read, shape (1, tokens).
        waves: of their positions, as `decoder.waves_of` gives them.
        layer_types: for each block `linear_attention` or `full_attention`.
        intermediate_dim: width inside a block, or inside each of its experts.
        num_query_heads: of full attention.
        num_key_value_heads: of full attention.
        head_dim: width of a head of full attention.
        linear: measures of linear attention, by the names in `delta.Measures`.
        num_experts: in each block, beside the one that all tokens share; 0 for blocks without.
        top_k: how many experts count for a token.
        shared_expert_intermediate_dim: width inside the shared one.
        attention_bias: whether the dense layers of full attention have biases.
        dropout: on what each half of a block adds.
        attention_dropout: on full attention's weights.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.
    """
    layers, sizes = keras.layers, delta.Measures(**linear)
    function, seen = drawn.function(activation), drawn.seen(places, mask)

    def norm(x: Any, name: str) -> Any:
        return layers.RMSNormalization(epsilon=layer_norm_epsilon, name=name)(x)

    def more(x: Any, found: Any, name: str) -> Any:
        return layers.Add(name=f"{name}_add")([x, layers.Dropout(dropout, name=f"{name}_dropout")(found)])

    for number, kind in enumerate(layer_types):
        start = f"block_{number}"
        hidden = norm(x, f"{start}_attention_layer_norm")
        if kind == LINEAR:
            found = delta.attention(hidden, mask, places, start, sizes, function, layer_norm_epsilon)
        else:
            heads = (num_query_heads, num_key_value_heads, head_dim)
            found = _attention(hidden, seen, waves, start, heads, attention_bias, attention_dropout, layer_norm_epsilon)
        x = more(x, found, f"{start}_attention")
        hidden = norm(x, f"{start}_layer_norm")
        if num_experts:
            inner = (intermediate_dim, shared_expert_intermediate_dim)
            found = _mixture(hidden, start, num_experts, top_k, inner, activation)
        else:
            found = drawn.gated(hidden, intermediate_dim, start, activation)
        x = more(x, found, start)
    return norm(x, "final_layer_norm")


def _attention(
    x: Any,
    seen: Any,
    waves: tuple[Any, Any],
    start: str,
    sizes: tuple[int, int, int],
    biased: bool,
    rate: float,
    epsilon: float,
) -> Any:
    """Returns what full attention gives, after its last dense layer; a gate of each query's own is on what it reads.

    Args:
        x: hidden states, shape (batch, tokens, width).
        seen: which tokens a token sees, from `drawn.seen`.
        waves: of the positions, from `decoder.waves_of`.
        start: of its layers' names.
        sizes: heads of queries, heads of keys and values, and the width of a head.
        biased: whether its dense layers have biases.
        rate: of dropout on its weights.
        epsilon: of the normalizations of queries and keys.
    """
    layers, (heads, fewer, size) = keras.layers, sizes

    def made(count: int, width: int, part: str) -> Any:
        return decoder.of_heads(x, f"{start}_attention_{part}", count, width, biased)

    def norm(found: Any, part: str) -> Any:
        return layers.RMSNormalization(epsilon=epsilon, name=f"{start}_attention_{part}_norm")(found)

    both = made(heads, 2 * size, "query")
    found = decoder.mixed(
        decoder.turned(norm(both[..., :size], "query"), waves),
        decoder.turned(norm(made(fewer, size, "key"), "key"), waves),
        made(fewer, size, "value"),
        seen,
        layers.Dropout(rate, name=f"{start}_attention_weights_dropout"),
        None,
    )
    return layers.EinsumDense(
        "bthd,hdw->btw",
        (None, x.shape[-1]),
        bias_axes="w" if biased else None,
        kernel_initializer=drawn.normal(),
        name=f"{start}_attention_output",
    )(found * keras.ops.sigmoid(both[..., size:]))


def _mixture(x: Any, start: str, count: int, chosen: int, inner: tuple[int, int], activation: str) -> Any:
    """Returns what each token's chosen experts give, and what the one gives that all tokens share, as far as it is open.

    Args:
        x: hidden states, shape (batch, tokens, width).
        start: of its layers' names.
        count: of experts beside the shared one.
        chosen: how many of them read a token.
        inner: width inside one of them, and inside the shared one.
        activation: of all gates.
    """
    own, shared = inner

    def between(x: Any) -> Any:
        gate = keras.layers.Activation(drawn.function(activation), name=f"{start}_experts_gate")(x[..., :own])
        return gate * x[..., own:]

    found = experts.routed(x, start, count, chosen, 2 * own, between, biased=False)
    opened = keras.layers.Dense(1, "sigmoid", False, kernel_initializer=drawn.normal(), name=f"{start}_shared_open")(x)
    return found + drawn.gated(x, shared, f"{start}_shared", activation) * opened


# Besides heads, the blocks that foretell several tokens at once.
HEADS = ("lm_head.", "mtp.", "score.", "classifier.", "qa_outputs.")

# What transformers takes where a file leaves it out.
DEFAULTS = {
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `qwen3_5`.

    Raises:
        ModelError: if the activation or a kind of block is unknown, rotary frequencies are scaled in another way, or
            attention has no gate.
    """
    config = {**DEFAULTS, **config}
    kinds = _kinds(config)
    for kind in kinds:
        if kind not in (LINEAR, FULL):
            raise ModelError(unknown("layer_types in config.json", str(kind), (LINEAR, FULL)))
    refuse(config, "attn_output_gate", True, True)
    turned = rotary.read(config, "rope_theta", "partial_rotary_factor", 0.25)
    size = config["head_dim"]
    return {
        "vocabulary_size": config["vocab_size"],
        "layer_types": kinds,
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["moe_intermediate_size" if _has_experts(config) else "intermediate_size"],
        "num_query_heads": config["num_attention_heads"],
        "num_key_value_heads": config["num_key_value_heads"],
        "head_dim": size,
        "turning": turning(config, turned, size),
        "linear": {
            "key_heads": config["linear_num_key_heads"],
            "value_heads": config["linear_num_value_heads"],
            "key_dim": config["linear_key_head_dim"],
            "value_dim": config["linear_value_head_dim"],
            "reach": config["linear_conv_kernel_dim"],
        },
        **(_experts(config) if _has_experts(config) else {}),
        "attention_bias": bool(config.get("attention_bias")),
        "dropout": 0.0,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation": activation_of(config, "hidden_act", "silu"),
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
    }


def _kinds(config: Mapping[str, Any]) -> list[str]:
    every = config.get("full_attention_interval", 4)
    usual = [LINEAR if number % every else FULL for number in range(1, config["num_hidden_layers"] + 1)]
    return list(config.get("layer_types") or usual)


def _has_experts(config: Mapping[str, Any]) -> bool:
    return bool(config["model_type"] == "qwen3_5_moe_text")


def _experts(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": config["num_experts"],
        "top_k": config["num_experts_per_tok"],
        "shared_expert_intermediate_dim": config["shared_expert_intermediate_size"],
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    for number in range(sum(name.endswith("_attention_layer_norm") for name in found)):
        block = {
            name.removeprefix(f"block_{number}_"): layer
            for name, layer in found.items()
            if name.startswith(f"block_{number}_")
        }
        start = f"layers.{number}"
        yield _norm(block["attention_layer_norm"], f"{start}.input_layernorm")
        yield from (_linear if "attention_mixed" in block else _full)(block, start)
        yield _norm(block["layer_norm"], f"{start}.post_attention_layernorm")
        if "router" in block:
            yield from dense(block["router"], f"{start}.mlp.gate")
            for part, name in (("inner", "gate_up_proj"), ("outer", "down_proj")):
                table = block[f"experts_{part}_kernel"].embeddings
                yield Place(table, f"{start}.mlp.experts.{name}", cut=_rows)
            yield from dense(block["shared_open"], f"{start}.mlp.shared_expert_gate")
            yield from _gated_places(block, "shared_", f"{start}.mlp.shared_expert")
        else:
            yield from _gated_places(block, "", f"{start}.mlp")
    yield _norm(found["final_layer_norm"], "norm")


def _gated_places(block: Mapping[str, Any], begin: str, start: str) -> Iterator[Place]:
    for layer, name in (("gate", "gate_proj"), ("intermediate", "up_proj"), ("output", "down_proj")):
        yield from dense(block[f"{begin}{layer}"], f"{start}.{name}")


def _full(block: Mapping[str, Any], start: str) -> Iterator[Place]:
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")):
        layer, inputs = block[f"attention_{part}"], 2 if part == "output" else 1
        yield from dense(layer, f"{start}.self_attn.{name}", inputs)
    yield _norm(block["attention_query_norm"], f"{start}.self_attn.q_norm")
    yield _norm(block["attention_key_norm"], f"{start}.self_attn.k_norm")


def _linear(block: Mapping[str, Any], start: str) -> Iterator[Place]:
    begin = f"{start}.linear_attn"
    for part, name in (("mixed", "in_proj_qkv"), ("gate", "in_proj_z"), ("rate", "in_proj_b"), ("step", "in_proj_a")):
        yield Place(block[f"attention_{part}"].kernel, f"{begin}.{name}.weight", 1)
    yield Place(block["attention_step"].bias, f"{begin}.dt_bias")
    yield Place(block["attention_speed"].kernel, f"{begin}.A_log")
    yield Place(block["attention_near"].embeddings, f"{begin}.conv1d.weight", cut=_of_each_token)
    yield Place(block["attention_read_norm"].scale, f"{begin}.norm.weight")
    yield from dense(block["attention_output"], f"{begin}.out_proj", 2)


def _norm(layer: Any, name: str) -> Place:
    """Gives the scale of a normalization, which is published as what it has more than 1."""
    return Place(layer.scale, f"{name}.weight", cut=_and_one)


def _and_one(array: np.ndarray) -> np.ndarray:
    return array + np.float32(1)


def _rows(array: np.ndarray) -> np.ndarray:
    """Returns a table with a row for each expert: its kernel, inputs first."""
    return array.transpose(0, 2, 1).reshape(len(array), -1)


def _of_each_token(array: np.ndarray) -> np.ndarray:
    return array[:, 0].T


FAMILY = Family(
    backbone=qwen3_5,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=HEADS,
    head=NEWER_DECODER,
    pooling="last",
    read=experts.together,
)
