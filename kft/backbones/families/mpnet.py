"""MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297), a BERT whose attention also hears how far tokens are apart.

KerasHub has no class of it, so its graph is drawn here, of Keras' own layers and operations: a saved model loads without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones.families.family import Family, dense, norm
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh"}
# Position 0 and 1 of the table are for padding and what stands before it.
SKIPPED = 2
# Half of the buckets are for tokens that follow. A bucket begins at each of these distances: one for each up to 8, then
# eight to each factor of 16 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).
BUCKETS = 32
DISTANCES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)
BOUNDARIES = [1 - distance for distance in reversed(DISTANCES)] + list(DISTANCES)
# The published row of each interval between boundaries, from far before to far behind; the last one is never read.
ROWS = [*range(15, -1, -1), *range(17, 32), 16]


def mpnet(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    intermediate_dim: int,
    max_sequence_length: int,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str = "gelu",
    layer_norm_epsilon: float = 1e-5,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        max_sequence_length: the most tokens a text may have.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        activation: by Keras' name.
        layer_norm_epsilon: of all normalizations.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    layers = keras.layers
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    places = keras.ops.cumsum(keras.ops.ones_like(ids[:1, :]), axis=1) - 1
    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=_normal(), name="token_embedding")
    position = layers.Embedding(
        max_sequence_length, hidden_dim, embeddings_initializer=_normal(), name="position_embedding"
    )
    x = layers.Add(name="embeddings_add")([token(ids), position(places)])
    x = layers.LayerNormalization(epsilon=layer_norm_epsilon, name="embeddings_layer_norm")(x)
    x = layers.Dropout(dropout, name="embeddings_dropout")(x)
    bias = _bias(places, num_heads)
    for number in range(num_layers):
        start = f"block_{number}"
        more = _attention(x, mask[:, None, None, :], bias, start, num_heads, attention_dropout)
        x = _joined(x, more, f"{start}_attention", dropout, layer_norm_epsilon)
        more = layers.Dense(
            intermediate_dim, activation=activation, kernel_initializer=_normal(), name=f"{start}_intermediate"
        )(x)
        more = layers.Dense(hidden_dim, kernel_initializer=_normal(), name=f"{start}_output")(more)
        x = _joined(x, more, start, dropout, layer_norm_epsilon)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="mpnet")


def _bias(places: Any, heads: int) -> Any:
    """Returns what attention's scores get for tokens' distances, shape (1, heads, tokens, tokens), for all blocks."""
    layers = keras.layers
    apart = places[:, None, :] - places[:, :, None]
    buckets = layers.Discretization(BOUNDARIES, dtype="float32", name="relative_position_buckets")(apart)
    table = layers.Embedding(BUCKETS, heads, embeddings_initializer=_normal(), name="relative_position_bias")
    return keras.ops.transpose(table(buckets), (0, 3, 1, 2))


def _attention(x: Any, mask: Any, bias: Any, start: str, heads: int, rate: float) -> Any:
    layers, width = keras.layers, x.shape[-1]
    size = width // heads
    query, key, value = (
        layers.EinsumDense(
            "btw,whd->bthd",
            (None, heads, size),
            bias_axes="hd",
            kernel_initializer=_normal(),
            name=f"{start}_attention_{part}",
        )(x)
        for part in ("query", "key", "value")
    )
    scores = keras.ops.einsum("bqhd,bkhd->bhqk", query * size**-0.5, key) + bias
    weights = layers.Softmax(name=f"{start}_attention_softmax")(scores, mask=mask)
    weights = layers.Dropout(rate, name=f"{start}_attention_weights_dropout")(weights)
    mixed = keras.ops.einsum("bhqk,bkhd->bqhd", weights, value)
    return layers.EinsumDense(
        "bthd,hdw->btw", (None, width), bias_axes="w", kernel_initializer=_normal(), name=f"{start}_attention_output"
    )(mixed)


def _joined(x: Any, more: Any, start: str, rate: float, epsilon: float) -> Any:
    more = keras.layers.Dropout(rate, name=f"{start}_dropout")(more)
    x = keras.layers.Add(name=f"{start}_add")([x, more])
    return keras.layers.LayerNormalization(epsilon=epsilon, name=f"{start}_layer_norm")(x)


def _normal() -> Any:
    """Returns the initializer of BERT and its relatives (Devlin et al. 2019)."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `mpnet`.

    Raises:
        ModelError: if the activation is another than Keras' own, or buckets are counted otherwise than transformers does.
    """
    activation = str(config.get("hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        raise ModelError(unknown("hidden_act in config.json", activation, ACTIVATIONS))
    buckets = config.get("relative_attention_num_buckets", BUCKETS)
    if buckets != BUCKETS:
        raise ModelError(
            f"relative_attention_num_buckets in config.json is {buckets}; MPNet's own code counts distances in {BUCKETS}, "
            "whatever the file says. Take another model of the family."
        )
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "max_sequence_length": config["max_position_embeddings"] - SKIPPED,
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "activation": ACTIVATIONS[activation],
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-12),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    positions = found["position_embedding"].embeddings
    yield Place(found["token_embedding"].embeddings, "embeddings.word_embeddings.weight")
    yield Place(positions, "embeddings.position_embeddings.weight", cut=_after_padding)
    yield from norm(found["embeddings_layer_norm"], "embeddings.LayerNorm")
    yield Place(
        found["relative_position_bias"].embeddings, "encoder.relative_attention_bias.weight", cut=_from_before_to_behind
    )
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            yield from dense(found[f"{block}_attention_{part}"], f"{start}.attention.attn.{part[0]}")
        yield from dense(found[f"{block}_attention_output"], f"{start}.attention.attn.o", inputs=2)
        yield from norm(found[f"{block}_attention_layer_norm"], f"{start}.attention.LayerNorm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.intermediate.dense")
        yield from dense(found[f"{block}_output"], f"{start}.output.dense")
        yield from norm(found[f"{block}_layer_norm"], f"{start}.output.LayerNorm")


def _after_padding(table: np.ndarray) -> np.ndarray:
    return table[SKIPPED:]


def _from_before_to_behind(table: np.ndarray) -> np.ndarray:
    return table[ROWS]


FAMILY = Family(
    backbone=mpnet,
    arguments=arguments,
    places=places,
    prefix="mpnet.",
    # A pooler is published beside encoders alone; neither its makers' heads nor sentence-transformers read it.
    heads=("lm_head.", "classifier.", "qa_outputs.", "pooler."),
    head=Head("classifier.out_proj", "classifier.dense"),
)
