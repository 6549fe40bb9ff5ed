"""One encoder for BERT and its relatives, of Keras' and KerasHub's own layers. Import after `backend.activate`.

KerasHub has a class for each relative, with the activation and epsilon of the first published model; here they are what a
model's own configuration says. The model is a plain graph, so it loads without kft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import keras_hub


@dataclass(frozen=True)
class Encoder:
    """The measures of an encoder.

    Attributes:
        name: the family, as in the model's name.
        vocabulary_size: number of token ids.
        width: of the hidden states.
        layers: number of blocks, each time it is passed.
        heads: of attention.
        inner: width of the dense layer inside a block.
        positions: the most tokens a text may have.
        segments: number of segment ids; 0 if the model does not tell segments apart.
        embedding_width: of the embeddings, where they are projected to `width`, else 0.
        groups: number of blocks with weights of their own, all of them if 0; the others share theirs.
        repeated: blocks that a group consists of.
        epsilon: of all normalizations.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        pooler: whether a dense layer with tanh reads the first token.
    """

    name: str
    vocabulary_size: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    segments: int = 0
    embedding_width: int = 0
    groups: int = 0
    repeated: int = 1
    epsilon: float = 1e-12
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    pooler: bool = False


def build(shape: Encoder) -> Any:
    """Builds an encoder with random weights.

    Returns:
        A `keras.Model` from `token_ids`, `padding_mask` and, where it has segments, `segment_ids`, each of shape (batch,
        tokens), to a dict of `sequence_output`, shape (batch, tokens, width), and, where it has a pooler, `pooled_output`,
        shape (batch, width).
    """
    layers, width = keras.layers, shape.embedding_width or shape.width
    names = ("token_ids", "segment_ids", "padding_mask") if shape.segments else ("token_ids", "padding_mask")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    x = keras_hub.layers.ReversibleEmbedding(
        shape.vocabulary_size, width, embeddings_initializer=_normal(), name="token_embedding"
    )(inputs["token_ids"])
    places = keras_hub.layers.PositionEmbedding(shape.positions, initializer=_normal(), name="position_embedding")(x)
    parts = [x, places]
    if shape.segments:
        segment = layers.Embedding(shape.segments, width, embeddings_initializer=_normal(), name="segment_embedding")
        parts.append(segment(inputs["segment_ids"]))
    x = layers.Add(name="embeddings_add")(parts)
    x = layers.LayerNormalization(epsilon=shape.epsilon, name="embeddings_layer_norm")(x)
    x = layers.Dropout(shape.dropout, name="embeddings_dropout")(x)
    if shape.embedding_width:
        x = layers.Dense(shape.width, kernel_initializer=_normal(), name="embeddings_projection")(x)
    for block in _order(shape):
        x = block(x, padding_mask=inputs["padding_mask"])
    outputs = {"sequence_output": x}
    if shape.pooler:
        pooler = layers.Dense(shape.width, activation="tanh", kernel_initializer=_normal(), name="pooled_dense")
        outputs["pooled_output"] = pooler(x[:, 0, :])
    return keras.Model(inputs, outputs, name=shape.name)


def blocks(shape: Encoder) -> list[str]:
    """Returns the names of the blocks that have weights of their own, lowest first."""
    if not shape.groups:
        return [f"transformer_layer_{number}" for number in range(shape.layers)]
    return [f"group_{group}_layer_{number}" for group in range(shape.groups) for number in range(shape.repeated)]


def _order(shape: Encoder) -> list[Any]:
    """Returns the blocks in the order a text passes them, those that are passed more than once as often."""
    made = [_block(shape, name) for name in blocks(shape)]
    if not shape.groups:
        return made
    times = shape.layers // shape.groups
    groups = [made[start : start + shape.repeated] for start in range(0, len(made), shape.repeated)]
    return [block for group in groups for _ in range(times) for block in group]


def _block(shape: Encoder, name: str) -> Any:
    activation = (
        keras.saving.get_registered_object(f"keras_hub>{shape.activation}")
        if shape.activation == "gelu_approximate"
        else shape.activation
    )
    block = keras_hub.layers.TransformerEncoder(
        shape.inner,
        shape.heads,
        dropout=shape.dropout,
        activation=activation,
        layer_norm_epsilon=shape.epsilon,
        kernel_initializer=_normal(),
        name=name,
    )
    return block


def _normal() -> Any:
    """Returns the initializer of BERT and its relatives (Devlin et al. 2019)."""
    return keras.initializers.TruncatedNormal(stddev=0.02)


def measures(model: Any) -> Encoder | None:
    """Returns the measures of an encoder that `build` made or a run folder gave back, or None for any other model.

    Args:
        model: the `keras.Model`; one of KerasHub's that has the same layers will do.
    """
    layers = {layer.name: layer for layer in model.layers}
    found = [layer for layer in model.layers if isinstance(layer, keras_hub.layers.TransformerEncoder)]
    norm = layers.get("embeddings_layer_norm")
    if "token_embedding" not in layers or "position_embedding" not in layers or norm is None or not found:
        return None
    block, width = found[0], found[0]._feedforward_output_dense.kernel.shape[-1]
    table = layers["token_embedding"].embeddings.shape
    segments = layers.get("segment_embedding")
    groups = len({layer.name.split("_layer_")[0] for layer in found}) if found[0].name.startswith("group_") else 0
    shape = Encoder(
        name=model.name,
        vocabulary_size=table[0],
        width=width,
        layers=sum(len(layer._inbound_nodes) for layer in found),
        heads=block.num_heads,
        inner=block.intermediate_dim,
        positions=layers["position_embedding"].position_embeddings.shape[0],
        segments=0 if segments is None else segments.embeddings.shape[0],
        embedding_width=table[1] if "embeddings_projection" in layers else 0,
        groups=groups,
        repeated=len(found) // groups if groups else 1,
        epsilon=block.layer_norm_epsilon,
        activation=activation_name(block.activation),
        dropout=layers["embeddings_dropout"].rate,
        attention_dropout=block._self_attention_layer._dropout_layer.rate,
        pooler="pooled_dense" in layers,
    )
    return shape if [layer.name for layer in found] == blocks(shape) else None


def activation_name(activation: Any) -> str:
    """Returns an activation's name in an `Encoder`, given the function that a layer has."""
    found = keras.activations.serialize(activation)
    return str(found if isinstance(found, str) else found["config"]).rpartition(">")[2]
