"""MPNet (Song et al. 2020, https://arxiv.org/abs/2004.09297), a BERT whose attention also hears how far tokens are apart.

KerasHub has no class of it, so its graph is drawn here, of Keras' own layers and operations: a saved model loads without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, norm
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh"}
# Position 0 and 1 of the table are for padding and what stands before it.
SKIPPED = 2


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
    places = drawn.places_of(ids)
    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    position = layers.Embedding(
        max_sequence_length, hidden_dim, embeddings_initializer=drawn.normal(), name="position_embedding"
    )
    x = layers.Add(name="embeddings_add")([token(ids), position(places)])
    x = layers.LayerNormalization(epsilon=layer_norm_epsilon, name="embeddings_layer_norm")(x)
    x = layers.Dropout(dropout, name="embeddings_dropout")(x)
    bias = drawn.distances(places, num_heads)
    for number in range(num_layers):
        start = f"block_{number}"
        more = drawn.attention(
            (x, x, x), mask[:, None, None, :], start, num_heads, hidden_dim, attention_dropout, scores=bias
        )
        x = drawn.joined(x, more, f"{start}_attention", dropout, layer_norm_epsilon)
        more = layers.Dense(
            intermediate_dim, activation=activation, kernel_initializer=drawn.normal(), name=f"{start}_intermediate"
        )(x)
        more = layers.Dense(hidden_dim, kernel_initializer=drawn.normal(), name=f"{start}_output")(more)
        x = drawn.joined(x, more, start, dropout, layer_norm_epsilon)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="mpnet")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `mpnet`.

    Raises:
        ModelError: if the activation is another than Keras' own, or buckets are counted otherwise than transformers does.
    """
    activation = str(config.get("hidden_act", "gelu"))
    if activation not in ACTIVATIONS:
        raise ModelError(unknown("hidden_act in config.json", activation, ACTIVATIONS))
    buckets = config.get("relative_attention_num_buckets", drawn.BUCKETS)
    if buckets != drawn.BUCKETS:
        raise ModelError(
            f"relative_attention_num_buckets in config.json is {buckets}; MPNet's own code counts distances in {drawn.BUCKETS}, "
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
        found["relative_position_bias"].embeddings,
        "encoder.relative_attention_bias.weight",
        cut=drawn.from_before_to_behind,
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


FAMILY = Family(
    backbone=mpnet,
    arguments=arguments,
    places=places,
    prefix="mpnet.",
    # A pooler is published beside encoders alone; neither its makers' heads nor sentence-transformers read it.
    heads=("lm_head.", "classifier.", "qa_outputs.", "pooler."),
    head=Head("classifier.out_proj", "classifier.dense"),
)
