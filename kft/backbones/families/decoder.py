"""Decoders with rotary positions, drawn of Keras' own layers and operations: a saved model loads without kft.

For what KerasHub's classes leave out. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras

from kft.backbones.families import drawn
from kft.backbones.families.family import dense
from kft.backbones.families.turning import Turning
from kft.backbones.places import Place


def decoder(
    vocabulary_size: int,
    windows: Sequence[int | None],
    num_query_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    hidden_dim: int,
    intermediate_dim: int,
    turning: Turning,
    name: str = "decoder",
    layer_norm_epsilon: float = 1e-6,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation: str = "silu",
    biases: Mapping[str, bool] | None = None,
    normed_heads: bool = False,
    sinks: bool = False,
    norms: Any = keras.layers.RMSNormalization,
    parallel: bool = False,
    embedding_dropout: float = 0.0,
    feedforward: Callable[[Any, str], Any] | None = None,
) -> Any:
    """Builds a decoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        windows: for each block how many tokens a token sees, itself included, or None where it sees all before it.
        num_query_heads: of attention.
        num_key_value_heads: of attention; several queries share one.
        head_dim: width of a head.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        turning: how queries and keys are turned.
        name: of the model.
        layer_norm_epsilon: of all normalizations.
        dropout: on what the parts of a block add.
        attention_dropout: on attention's weights.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        biases: whether `inputs` and `output` of attention and `dense` layers have them; none where left out.
        normed_heads: whether queries and keys are normalized.
        sinks: whether attention has for each head a score that goes to no token.
        norms: the class of normalizations.
        parallel: whether what follows attention in a block reads what attention reads, not what it gives.
        embedding_dropout: on embeddings.
        feedforward: draws what follows attention in a block, of its input and the beginning of names; a gated layer where it
            is left out.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    layers, has = keras.layers, {"inputs": False, "output": False, "dense": False, **(biases or {})}
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))

    def norm(x: Any, name: str) -> Any:
        return norms(epsilon=layer_norm_epsilon, name=name)(x)

    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    x, places = layers.Dropout(embedding_dropout, name="embeddings_dropout")(token(ids)), drawn.places_of(ids)
    waves, seen = waves_of(places, turning), {window: drawn.seen(places, mask, window) for window in set(windows)}
    for number, window in enumerate(windows):
        start = f"block_{number}"
        hidden = norm(x, f"{start}_attention_norm")
        query, key, value = (
            of_heads(hidden, f"{start}_attention_{part}", heads, head_dim, has["inputs"])
            for part, heads in (
                ("query", num_query_heads),
                ("key", num_key_value_heads),
                ("value", num_key_value_heads),
            )
        )
        if normed_heads:
            query, key = norm(query, f"{start}_attention_query_norm"), norm(key, f"{start}_attention_key_norm")
        more = mixed(
            turned(query, waves),
            turned(key, waves),
            value,
            seen[window],
            layers.Dropout(attention_dropout, name=f"{start}_attention_weights_dropout"),
            _sinks(ids, num_query_heads, f"{start}_attention_sinks") if sinks else None,
        )
        more = layers.EinsumDense(
            "bthd,hdw->btw",
            (None, hidden_dim),
            bias_axes="w" if has["output"] else None,
            kernel_initializer=drawn.normal(),
            name=f"{start}_attention_output",
        )(more)
        more = layers.Dropout(dropout, name=f"{start}_attention_dropout")(more)
        after = layers.Add(name=f"{start}_attention_add")([x, more])
        hidden = norm(x if parallel else after, f"{start}_norm")
        more = (
            feedforward(hidden, start)
            if feedforward
            else drawn.gated(hidden, intermediate_dim, start, activation, biased=has["dense"])
        )
        x = layers.Add(name=f"{start}_add")([after, layers.Dropout(dropout, name=f"{start}_dropout")(more)])
    outputs = {"sequence_output": norm(x, "final_norm")}
    return keras.Model({"token_ids": ids, "padding_mask": mask}, outputs, name=name)


def waves_of(places: Any, turning: Turning) -> tuple[Any, Any]:
    """Returns cosines and sines of all places, float32 of shape (1, tokens, 1, pairs)."""
    frequencies: Any = turning.frequencies
    if turning.beyond is not None:
        longer = keras.ops.max(places, axis=1, keepdims=True) >= turning.trained
        frequencies = keras.ops.where(longer[:, :, None, None], turning.beyond, turning.frequencies)
    angles = keras.ops.cast(places, "float32")[:, :, None, None] * frequencies
    return keras.ops.cos(angles) * turning.scale, keras.ops.sin(angles) * turning.scale


def turned(x: Any, waves: tuple[Any, Any]) -> Any:
    """Turns pairs of numbers, each of the first half with one of the second; what follows the pairs is left as it is."""
    cosines, sines = (keras.ops.cast(wave, x.dtype) for wave in waves)
    half = cosines.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    both = [first * cosines - second * sines, second * cosines + first * sines]
    return keras.ops.concatenate([*both, rest] if rest.shape[-1] else both, axis=-1)


def of_heads(x: Any, name: str, heads: int, size: int, biased: bool) -> Any:
    """Returns what a dense layer gives, parted by heads, shape (batch, tokens, heads, size)."""
    return keras.layers.EinsumDense(
        "btw,whd->bthd",
        (None, heads, size),
        bias_axes="hd" if biased else None,
        kernel_initializer=drawn.normal(),
        name=name,
    )(x)


def _sinks(ids: Any, heads: int, name: str) -> Any:
    """Returns a score for each head that goes to no token, shape (1, heads, 1, 1)."""
    table = keras.layers.Embedding(1, heads, embeddings_initializer=drawn.normal(), name=name)
    return keras.ops.transpose(table(keras.ops.zeros_like(ids[:1, :1])), (0, 2, 1))[..., None]


def mixed(query: Any, key: Any, value: Any, seen: Any, dropout: Any, sinks: Any) -> Any:
    """Returns the values that are seen, mixed for each query, shape (batch, tokens, heads, size); scores are float32."""
    ops, shared = keras.ops, query.shape[2] // key.shape[2]
    key, value = (ops.repeat(x, shared, axis=2) if shared > 1 else x for x in (key, value))
    scores = ops.cast(ops.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key), "float32")
    scores = ops.where(seen, scores, -1e9)
    if sinks is not None:
        own = ops.cast(sinks, "float32") + ops.zeros_like(scores[..., :1])
        scores = ops.concatenate([scores, own], axis=-1)
    weights = dropout(ops.softmax(scores, axis=-1))
    weights = ops.cast(weights if sinks is None else weights[..., :-1], value.dtype)
    return ops.einsum("bhqk,bkhd->bqhd", weights, value)


def attention_places(found: Mapping[str, Any], block: str, start: str) -> Iterator[Place]:
    """Gives the weights of a block's attention that lie each in a tensor of its own.

    Args:
        found: the model's layers by name.
        block: the beginning of their names.
        start: the beginning of the tensors' names.
    """
    yield from norm_place(found[f"{block}_attention_norm"], f"{start}.input_layernorm")
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")):
        yield from dense(found[f"{block}_attention_{part}"], f"{start}.self_attn.{name}", 2 if name == "o_proj" else 1)
    for part, name in (("query", "q_norm"), ("key", "k_norm")):
        if f"{block}_attention_{part}_norm" in found:
            yield from norm_place(found[f"{block}_attention_{part}_norm"], f"{start}.self_attn.{name}")
    yield from norm_place(found[f"{block}_norm"], f"{start}.post_attention_layernorm")


def norm_place(layer: Any, name: str) -> Iterator[Place]:
    """Gives the scale of a normalization."""
    yield Place(layer.scale, f"{name}.weight")


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of a decoder with gated layers with the name that Llama and its relatives have for its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    for number in range(blocks(found)):
        block, start = f"block_{number}", f"layers.{number}"
        yield from attention_places(found, block, start)
        for part, name in (("gate", "gate_proj"), ("intermediate", "up_proj"), ("output", "down_proj")):
            yield from dense(found[f"{block}_{part}"], f"{start}.mlp.{name}")
    yield from norm_place(found["final_norm"], "norm")


def blocks(found: Mapping[str, Any]) -> int:
    """Returns how many blocks a model's layers are."""
    return sum(name.endswith("_attention_query") for name in found)
