"""MobileBERT (Sun et al. 2020, https://arxiv.org/abs/2004.02984): narrow blocks between wide hidden states.

KerasHub has no class of it, so its graph is drawn here, of Keras' own layers and operations: a saved model loads without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, refuse
from kft.backbones.hugging_face import ACTIVATIONS, Head
from kft.backbones.places import Place
from kft.errors import ModelError, unknown


def mobilebert(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    embedding_dim: int,
    hidden_dim: int,
    narrow_dim: int,
    intermediate_dim: int,
    max_sequence_length: int,
    num_segments: int = 2,
    num_feedforward: int = 4,
    dropout: float = 0.0,
    attention_dropout: float = 0.1,
    activation: str = "relu",
    pooler: bool = False,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        embedding_dim: width of a token's embedding, three of which make a hidden state.
        hidden_dim: width of the hidden states.
        narrow_dim: width inside a block, between its bottlenecks.
        intermediate_dim: width inside its dense layers.
        max_sequence_length: the most tokens a text may have.
        num_segments: rows of the table of segments.
        num_feedforward: pairs of dense layers in a block.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        activation: by Keras' name.
        pooler: whether a dense layer stands on the first token; its state is taken as it is where there is none.

    Returns:
        A `keras.Model` from `token_ids`, `padding_mask` and `segment_ids`, each of shape (batch, tokens), to a dict of
        `sequence_output`, shape (batch, tokens, hidden_dim), and `pooled_output`, shape (batch, hidden_dim).
    """
    layers = keras.layers
    names = ("token_ids", "padding_mask", "segment_ids")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}

    def made(units: int, x: Any, name: str, function: str | None = None) -> Any:
        return layers.Dense(units, activation=function, kernel_initializer=drawn.normal(), name=name)(x)

    def table(rows: int, width: int, x: Any, name: str) -> Any:
        return layers.Embedding(rows, width, embeddings_initializer=drawn.normal(), name=name)(x)

    token = table(vocabulary_size, embedding_dim, inputs["token_ids"], "token_embedding")
    after = keras.ops.pad(token[:, 1:], [[0, 0], [0, 1], [0, 0]])
    before = keras.ops.pad(token[:, :-1], [[0, 0], [1, 0], [0, 0]])
    # Padding is nothing, as what follows the longest text is: transformers takes its embedding where there is some.
    real = keras.ops.pad(inputs["padding_mask"][:, 1:], [[0, 0], [0, 1]])
    after = layers.Multiply(name="embeddings_after")([after, keras.ops.cast(real, after.dtype)[:, :, None]])
    three = layers.Concatenate(name="embeddings_three")([after, token, before])
    parts = [
        made(hidden_dim, three, "embeddings_projection"),
        table(max_sequence_length, hidden_dim, drawn.places_of(inputs["token_ids"]), "position_embedding"),
        table(num_segments, hidden_dim, inputs["segment_ids"], "segment_embedding"),
    ]
    x = _scaled(layers.Add(name="embeddings_add")(parts), "embeddings_norm")
    x = layers.Dropout(dropout, name="embeddings_dropout")(x)
    mask = inputs["padding_mask"][:, None, None, :]
    for number in range(num_layers):
        start = f"block_{number}"
        narrow = _scaled(made(narrow_dim, x, f"{start}_input"), f"{start}_input_norm")
        shared = _scaled(made(narrow_dim, x, f"{start}_shared"), f"{start}_shared_norm")
        more = drawn.attention((shared, shared, x), mask, start, num_heads, narrow_dim, attention_dropout)
        hidden = _joined(more, narrow, f"{start}_attention")
        for pair in range(num_feedforward):
            name = f"{start}_feedforward_{pair}"
            up = made(intermediate_dim, hidden, f"{name}_intermediate", activation)
            hidden = _joined(made(narrow_dim, up, f"{name}_output"), hidden, name)
        more = layers.Dropout(dropout, name=f"{start}_dropout")(made(hidden_dim, hidden, f"{start}_wide"))
        x = _joined(more, x, start)
    first = x[:, 0, :]
    pooled = made(hidden_dim, first, "pooled_dense", "tanh") if pooler else first
    return keras.Model(inputs, {"sequence_output": x, "pooled_output": pooled}, name="mobilebert")


def _scaled(x: Any, name: str) -> Any:
    """MobileBERT's stand-in for a normalization: a factor and a shift for each channel."""
    width = x.shape[-1]
    return keras.layers.EinsumDense("btw,w->btw", (None, width), bias_axes="w", kernel_initializer="ones", name=name)(x)


def _joined(more: Any, x: Any, name: str) -> Any:
    return _scaled(keras.layers.Add(name=f"{name}_add")([more, x]), f"{name}_norm")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `mobilebert`.

    Raises:
        ModelError: if the activation is unknown, or it is of a variant that its makers tried and did not publish.
    """
    activation = str(config.get("hidden_act", "relu"))
    architecture = str((config.get("architectures") or [""])[0])
    if activation not in ACTIVATIONS or ACTIVATIONS[activation] == "gelu_approximate":
        raise ModelError(unknown("hidden_act in config.json", activation, ["relu", "gelu", "silu", "tanh"]))
    for field, wanted in PUBLISHED.items():
        refuse(config, field, wanted, wanted)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "embedding_dim": config.get("embedding_size", 128),
        "hidden_dim": config["hidden_size"],
        "narrow_dim": config.get("intra_bottleneck_size", 128),
        "intermediate_dim": config["intermediate_size"],
        "max_sequence_length": config["max_position_embeddings"],
        "num_segments": config.get("type_vocab_size", 2),
        "num_feedforward": config.get("num_feedforward_networks", 4),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "activation": ACTIVATIONS[activation],
        "pooler": bool(config.get("classifier_activation", True)) and not architecture.endswith(WITHOUT_POOLER),
    }


# Heads that are published without it.
WITHOUT_POOLER = ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering")
PUBLISHED = {
    "trigram_input": True,
    "use_bottleneck": True,
    "use_bottleneck_attention": False,
    "key_query_shared_bottleneck": True,
    "normalization_type": "no_norm",
}


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    for own, name in (("token", "word"), ("position", "position"), ("segment", "token_type")):
        yield Place(found[f"{own}_embedding"].embeddings, f"embeddings.{name}_embeddings.weight")
    yield from dense(found["embeddings_projection"], "embeddings.embedding_transformation")
    yield from _scale(found["embeddings_norm"], "embeddings.LayerNorm")
    for number in range(sum(name.endswith("_wide") for name in found)):
        block, start = f"block_{number}", f"encoder.layer.{number}"
        for own, name in (("input", "input"), ("shared", "attention")):
            yield from _pair(found, f"{block}_{own}", f"{block}_{own}_norm", f"{start}.bottleneck.{name}")
        for part in ("query", "key", "value"):
            yield from dense(found[f"{block}_attention_{part}"], f"{start}.attention.self.{part}")
        yield from dense(found[f"{block}_attention_output"], f"{start}.attention.output.dense", inputs=2)
        yield from _scale(found[f"{block}_attention_norm"], f"{start}.attention.output.LayerNorm")
        pairs = sum(name.startswith(f"{block}_feedforward_") and name.endswith("_output") for name in found)
        for pair in range(pairs):
            own, within = f"{block}_feedforward_{pair}", f"{start}.ffn.{pair}." if pair < pairs - 1 else f"{start}."
            yield from dense(found[f"{own}_intermediate"], f"{within}intermediate.dense")
            yield from _pair(found, f"{own}_output", f"{own}_norm", f"{within}output")
        yield from _pair(found, f"{block}_wide", f"{block}_norm", f"{start}.output.bottleneck")
    if "pooled_dense" in found:
        yield from dense(found["pooled_dense"], "pooler.dense")


def _pair(found: Mapping[str, Any], layer: str, norm: str, name: str) -> Iterator[Place]:
    yield from dense(found[layer], f"{name}.dense")
    yield from _scale(found[norm], f"{name}.LayerNorm")


def _scale(layer: Any, name: str) -> Iterator[Place]:
    yield Place(layer.kernel, f"{name}.weight")
    yield Place(layer.bias, f"{name}.bias")


FAMILY = Family(
    backbone=mobilebert,
    arguments=arguments,
    places=places,
    prefix="mobilebert.",
    heads=("cls.", "classifier.", "qa_outputs."),
    head=Head(),
    pooling="pooled",
)
