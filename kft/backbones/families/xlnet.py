"""XLNet (Yang et al. 2019, https://arxiv.org/abs/1906.08237), as it reads a whole text: no memory, no order of prediction.

KerasHub's class shifts its scores by another rule than XLNet's own code, so the graph is drawn here, of Keras' own layers and
operations: a saved model loads without kft. Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, activation_of, dense, norm, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place


def xlnet(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    head_dim: int,
    intermediate_dim: int,
    farthest: int = 0,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str = "gelu",
    layer_norm_epsilon: float = 1e-12,
    pooler: bool = False,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        hidden_dim: width of the hidden states.
        head_dim: width of a head.
        intermediate_dim: width inside a block.
        farthest: tokens farther away than this count as this far; 0 for no limit.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.
        pooler: whether a dense layer stands on the last real token, which is the one for the whole text.

    Returns:
        A `keras.Model` from `token_ids`, `padding_mask` and `segment_ids`, each of shape (batch, tokens), to a dict of
        `sequence_output`, shape (batch, tokens, hidden_dim), and, where it has a pooler, `pooled_output`, shape (batch,
        hidden_dim). Only whether two tokens' segments are the same is read.
    """
    layers = keras.layers
    names = ("token_ids", "padding_mask", "segment_ids")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    function = drawn.function(activation)

    def made(units: int, x: Any, name: str, act: Any = None) -> Any:
        return layers.Dense(units, activation=act, kernel_initializer=drawn.normal(), name=name)(x)

    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    x = layers.Dropout(dropout, name="embeddings_dropout")(token(inputs["token_ids"]))
    places, segments = drawn.places_of(inputs["token_ids"]), inputs["segment_ids"]
    beside = functools.partial(
        _scores,
        waves=layers.Dropout(dropout, name="distances_dropout")(_waves(places, hidden_dim, farthest)),
        columns=_columns(places),
        both=keras.ops.concatenate([places[:, :1], places[:, :1] + 1], axis=1),
        other=keras.ops.cast(segments[:, None, :, None] != segments[:, None, None, :], x.dtype),
    )
    mask = inputs["padding_mask"]
    for number in range(num_layers):
        start = f"block_{number}"
        more = drawn.attention(
            (x, x, x),
            mask[:, None, None, :],
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            inner=num_heads * head_dim,
            biased=False,
            scores=functools.partial(beside, start=start),
        )
        x = drawn.joined(x, more, f"{start}_attention", dropout, layer_norm_epsilon)
        more = made(intermediate_dim, x, f"{start}_intermediate", function)
        more = layers.Dropout(dropout, name=f"{start}_inner_dropout")(more)
        x = drawn.joined(x, made(hidden_dim, more, f"{start}_output"), start, dropout, layer_norm_epsilon)
    x = layers.Dropout(dropout, name="final_dropout")(x)
    outputs = {"sequence_output": x}
    if pooler:
        last = keras.ops.max(places * mask, axis=1, keepdims=True)[:, :, None]
        outputs["pooled_output"] = made(
            hidden_dim, keras.ops.take_along_axis(x, last, axis=1)[:, 0], "pooled_dense", "tanh"
        )
    return keras.Model(inputs, outputs, name="xlnet")


def _waves(places: Any, width: int, farthest: int) -> Any:
    """Returns sines and cosines of all distances, those to tokens that follow first, shape (1, 2 * tokens - 1, width)."""
    behind = places - keras.ops.max(places, axis=1, keepdims=True)
    apart = keras.ops.cast(keras.ops.concatenate([behind, places[:, 1:]], axis=1), "float32")
    if farthest > 0:
        apart = keras.ops.clip(apart, -farthest, farthest)
    angles = apart[:, :, None] * (10000 ** -(np.arange(0, width, 2) / width)).astype(np.float32)
    return keras.ops.concatenate([keras.ops.sin(angles), keras.ops.cos(angles)], axis=-1)


def _columns(places: Any) -> Any:
    """Returns where each pair's distance stands among all distances, shape (1, 1, tokens, tokens)."""
    farthest = keras.ops.max(places, axis=1, keepdims=True)
    return (places[:, :, None] - places[:, None, :] + farthest[:, :, None])[:, None]


def _scores(query: Any, key: Any, *, start: str, waves: Any, columns: Any, both: Any, other: Any) -> Any:
    """Returns what attention's scores have beside the product of query and key: distances, segments and three biases.

    A bias is published as a vector added to all queries before a product with keys, distances or segments; here it is
    multiplied with these at once, so that it can be a layer's kernel.

    Args:
        query: shape (batch, tokens, heads, size of a head).
        key: of the same shape.
        start: of the layers' names.
        waves: from `_waves`.
        columns: from `_columns`.
        both: the rows for the own segment and for another, shape (1, 2).
        other: 1 where two tokens are of different segments, else 0, shape (batch, 1, tokens, tokens).
    """
    layers, (heads, size) = keras.layers, query.shape[-2:]
    begin = f"{start}_attention"

    def made(x: Any, equation: str, shape: tuple[int | None, ...], name: str) -> Any:
        return layers.EinsumDense(equation, shape, kernel_initializer=drawn.normal(), name=f"{begin}_{name}")(x)

    def bias(x: Any, name: str) -> Any:
        return made(x, "bkhd,hd->bhk", (heads, None), f"{name}_bias")[:, :, None, :]

    distance = made(waves, "bkw,whd->bkhd", (None, heads, size), "distance")
    far = keras.ops.einsum("bqhd,khd->bhqk", query, distance[0]) + bias(distance, "distance")
    far = keras.ops.take_along_axis(far, columns, axis=3)
    table = layers.Embedding(2, heads * size, embeddings_initializer=drawn.normal(), name=f"{begin}_segments")(both)
    table = layers.Reshape((2, heads, size), name=f"{begin}_segments_parted")(table)
    # Softmax sees no number that all keys get: only what another segment has more than one's own counts.
    segment = table[:, 1:] - table[:, :1]
    apart = keras.ops.einsum("bqhd,khd->bhqk", query, segment[0]) + bias(segment, "segment")
    return (bias(key, "key") + far + apart * other) * size**-0.5


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `xlnet`.

    Raises:
        ModelError: if the activation is unknown, the model reads from left to right, or its head is of another kind than XLNet's
            makers gave it.
    """
    heads, width, pooler = config["n_head"], config["d_model"], _has_pooler(config)
    for field, wanted in (READ | SUMMARY if pooler else READ).items():
        refuse(config, field, wanted, wanted)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["n_layer"],
        "num_heads": heads,
        "hidden_dim": width,
        "head_dim": config.get("d_head") or width // heads,
        "intermediate_dim": config["d_inner"],
        "farthest": max(config.get("clamp_len", -1), 0),
        "dropout": config.get("dropout", 0.1),
        "attention_dropout": config.get("dropout", 0.1),
        "activation": activation_of(config, "ff_activation"),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "pooler": pooler,
    }


READ: dict[str, Any] = {"attn_type": "bi", "bi_data": False}
SUMMARY: dict[str, Any] = {"summary_type": "last", "summary_use_proj": True, "summary_activation": "tanh"}
# Heads that are published with a dense layer on the last token.
WITH_POOLER = ("ForSequenceClassification", "ForMultipleChoice")


def _has_pooler(config: Mapping[str, Any]) -> bool:
    return str((config.get("architectures") or [""])[0]).endswith(WITH_POOLER)


PARTS = {
    "query": "q",
    "key": "k",
    "value": "v",
    "distance": "r",
    "key_bias": "r_w_bias",
    "distance_bias": "r_r_bias",
    "segment_bias": "r_s_bias",
}


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "word_embedding.weight")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"layer.{number}"
        for part, name in PARTS.items():
            yield Place(found[f"{block}_attention_{part}"].kernel, f"{start}.rel_attn.{name}")
        yield Place(found[f"{block}_attention_segments"].embeddings, f"{start}.rel_attn.seg_embed", cut=_flat)
        yield Place(found[f"{block}_attention_output"].kernel, f"{start}.rel_attn.o", axes=(1, 2, 0))
        yield from norm(found[f"{block}_attention_layer_norm"], f"{start}.rel_attn.layer_norm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.ff.layer_1")
        yield from dense(found[f"{block}_output"], f"{start}.ff.layer_2")
        yield from norm(found[f"{block}_layer_norm"], f"{start}.ff.layer_norm")
    if "pooled_dense" in found:
        for place in dense(found["pooled_dense"], "sequence_summary.summary"):
            yield dataclasses.replace(place, outside=True)


def _flat(table: np.ndarray) -> np.ndarray:
    return table.reshape(len(table), -1)


def _pooling(config: Mapping[str, Any]) -> str:
    return "pooled" if _has_pooler(config) else "last"


FAMILY = Family(
    backbone=xlnet,
    arguments=arguments,
    places=places,
    prefix="transformer.",
    # What stands in for tokens that are to be predicted, and heads.
    heads=(
        "mask_emb",
        "lm_loss.",
        "sequence_summary.",
        "logits_proj.",
        "classifier.",
        "qa_outputs.",
        "start_logits.",
        "end_logits.",
        "answer_class.",
    ),
    head=Head("logits_proj"),
    pooling=_pooling,
)
