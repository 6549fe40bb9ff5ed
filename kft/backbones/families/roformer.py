"""RoFormer (Su et al. 2021, https://arxiv.org/abs/2104.09864): BERT whose queries and keys are turned by their positions.

KerasHub has no class of it, so its graph is drawn here, of Keras' and KerasHub's own layers: a saved model loads without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from kft.backbones.backbone import Below
from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import ACTIVATIONS, Head
from kft.backbones.places import Place
from kft.errors import ModelError, unknown


def roformer(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    embedding_dim: int,
    hidden_dim: int,
    intermediate_dim: int,
    num_segments: int = 2,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str = "gelu",
    layer_norm_epsilon: float = 1e-12,
    turned_values: bool = False,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        embedding_dim: width of the embeddings, which are projected where it is another than that of the hidden states.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        num_segments: rows of the table of segments.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        activation: by Keras' name.
        layer_norm_epsilon: of all normalizations.
        turned_values: whether values are turned by their positions too.

    Returns:
        A `keras.Model` from `token_ids`, `padding_mask` and `segment_ids`, each of shape (batch, tokens), to a dict of
        `sequence_output`, shape (batch, tokens, hidden_dim).
    """
    layers = keras.layers
    names = ("token_ids", "padding_mask", "segment_ids")
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}

    def made(units: int, x: Any, name: str, function: str | None = None) -> Any:
        return layers.Dense(units, activation=function, kernel_initializer=drawn.normal(), name=name)(x)

    def table(rows: int, x: Any, name: str) -> Any:
        return layers.Embedding(rows, embedding_dim, embeddings_initializer=drawn.normal(), name=name)(x)

    parts = [
        table(vocabulary_size, inputs["token_ids"], "token_embedding"),
        table(num_segments, inputs["segment_ids"], "segment_embedding"),
    ]
    x = layers.Add(name="embeddings_add")(parts)
    x = layers.LayerNormalization(epsilon=layer_norm_epsilon, name="embeddings_layer_norm")(x)
    x = layers.Dropout(dropout, name="embeddings_dropout")(x)
    x = x if embedding_dim == hidden_dim else made(hidden_dim, x, "embeddings_projection")
    for number in range(num_layers):
        start = f"block_{number}"
        more = drawn.attention(
            (x, x, x),
            inputs["padding_mask"][:, None, None, :],
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            turn=keras_hub.layers.RotaryEmbedding(name=f"{start}_rotary_embedding"),
            turned_values=turned_values,
        )
        x = drawn.joined(x, more, f"{start}_attention", dropout, layer_norm_epsilon)
        more = made(hidden_dim, made(intermediate_dim, x, f"{start}_intermediate", activation), f"{start}_output")
        x = drawn.joined(x, more, start, dropout, layer_norm_epsilon)
    return keras.Model(inputs, {"sequence_output": x}, name="roformer")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `roformer`.

    Raises:
        ModelError: if the activation is another than Keras' own, or it is a decoder.
    """
    refuse(config, "is_decoder", False, False)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "embedding_dim": config.get("embedding_size") or config["hidden_size"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "num_segments": config.get("type_vocab_size", 2),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "activation": _activation(config),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "turned_values": bool(config.get("rotary_value")),
    }


def _activation(config: Mapping[str, Any]) -> str:
    name = str(config.get("hidden_act", "gelu"))
    if ACTIVATIONS.get(name, "gelu_approximate") == "gelu_approximate":
        raise ModelError(unknown("hidden_act in config.json", name, ["gelu", "relu", "silu", "tanh"]))
    return ACTIVATIONS[name]


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    for own, name in (("token", "word"), ("segment", "token_type")):
        yield Place(found[f"{own}_embedding"].embeddings, f"embeddings.{name}_embeddings.weight")
    yield from norm(found["embeddings_layer_norm"], "embeddings.LayerNorm")
    if "embeddings_projection" in found:
        yield from dense(found["embeddings_projection"], "embeddings_project")
    turned = ("query", "key", "value") if config.get("rotary_value") else ("query", "key")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            layer = found[f"{block}_attention_{part}"]
            cut = functools.partial(_parted, heads=layer.kernel.shape[1]) if part in turned else None
            for place in dense(layer, f"{start}.attention.self.{part}"):
                yield dataclasses.replace(place, cut=cut)
        kernel, bias = dense(found[f"{block}_attention_output"], f"{start}.attention.output.dense", inputs=2)
        yield dataclasses.replace(kernel, cut=_columns_parted(kernel)) if "value" in turned else kernel
        yield bias
        yield from norm(found[f"{block}_attention_layer_norm"], f"{start}.attention.output.LayerNorm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.intermediate.dense")
        yield from dense(found[f"{block}_output"], f"{start}.output.dense")
        yield from norm(found[f"{block}_layer_norm"], f"{start}.output.LayerNorm")


def _parted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Puts in each head the even rows before the odd ones: RoFormer turns neighbours, KerasHub's layer one half with the other."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _columns_parted(place: Place) -> Callable[[np.ndarray], np.ndarray]:
    heads = place.variable.shape[0]
    return lambda array: _parted(array.T, heads).T


FAMILY = Family(
    backbone=roformer,
    arguments=arguments,
    places=places,
    prefix="roformer.",
    # Sines and cosines of positions, which the layer computes, and a pooler, which its makers' heads do not read.
    heads=("encoder.embed_positions.", "pooler.", "cls.", "classifier.", "qa_outputs.", "sequence_summary."),
    head=lambda config: Head("classifier.out_proj", "classifier.dense", below=Below(_activation(config))),
)
