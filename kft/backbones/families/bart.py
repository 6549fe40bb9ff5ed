"""BART (Lewis et al. 2019, https://arxiv.org/abs/1910.13461), as it reads a text for a label.

The same tokens go through the encoder and, one place later, through the decoder, whose state at the last of them stands for the
text: it has seen all others. KerasHub's class takes both texts from outside, and one size for both halves, so the graph is
drawn here, of Keras' own layers and operations: a saved model loads without kft. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones.backbone import Below
from kft.backbones.families import drawn
from kft.backbones.families.family import Family, activation_of, dense, norm, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place

# Rows at the beginning of both tables of positions that no token ever has.
SKIPPED = 2
EPSILON = 1e-5


def bart(
    vocabulary_size: int,
    num_layers: int,
    num_decoder_layers: int,
    num_heads: int,
    num_decoder_heads: int,
    hidden_dim: int,
    intermediate_dim: int,
    decoder_intermediate_dim: int,
    max_sequence_length: int,
    start_id: int = 2,
    dropout: float = 0.1,
    attention_dropout: float = 0.0,
    activation_dropout: float = 0.0,
    activation: str = "gelu",
    embedding_scale: float = 1.0,
) -> Any:
    """Builds an encoder and a decoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of the encoder's blocks.
        num_decoder_layers: of the decoder's.
        num_heads: of the encoder's attention.
        num_decoder_heads: of the decoder's.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside an encoder's block.
        decoder_intermediate_dim: width inside a decoder's block.
        max_sequence_length: the most tokens a text may have.
        start_id: the token before the decoder's first.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        activation_dropout: inside a block.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        embedding_scale: what token embeddings are multiplied with.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`, the
        decoder's states, shape (batch, tokens, hidden_dim). Padding stands on the right.
    """
    layers = keras.layers
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    function = drawn.function(activation)
    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    places = drawn.places_of(ids)

    def embedded(tokens: Any, half: str) -> Any:
        position = layers.Embedding(
            max_sequence_length, hidden_dim, embeddings_initializer=drawn.normal(), name=f"{half}_position_embedding"
        )
        found = token(tokens) if embedding_scale == 1 else token(tokens) * embedding_scale
        x = layers.Add(name=f"{half}_embeddings_add")([found, position(places)])
        x = layers.LayerNormalization(epsilon=EPSILON, name=f"{half}_embeddings_layer_norm")(x)
        return layers.Dropout(dropout, name=f"{half}_embeddings_dropout")(x)

    def attended(x: Any, other: Any, seen: Any, start: str, heads: int) -> Any:
        more = drawn.attention((x, other, other), seen, start, heads, hidden_dim, attention_dropout)
        return drawn.joined(x, more, f"{start}_attention", dropout, EPSILON)

    def widened(x: Any, start: str, width: int) -> Any:
        initializer = drawn.normal()
        more = layers.Dense(width, activation=function, kernel_initializer=initializer, name=f"{start}_intermediate")(x)
        more = layers.Dropout(activation_dropout, name=f"{start}_inner_dropout")(more)
        more = layers.Dense(hidden_dim, kernel_initializer=drawn.normal(), name=f"{start}_output")(more)
        return drawn.joined(x, more, start, dropout, EPSILON)

    real, earlier = mask[:, None, None, :], places[:, None, None, :] <= places[:, None, :, None]
    x = embedded(ids, "encoder")
    for number in range(num_layers):
        start = f"encoder_block_{number}"
        x = widened(attended(x, x, real, start, num_heads), start, intermediate_dim)
    read = x
    before = keras.ops.full_like(ids[:, :1], start_id)
    x = embedded(keras.ops.concatenate([before, ids[:, :-1]], axis=1), "decoder")
    for number in range(num_decoder_layers):
        start = f"decoder_block_{number}"
        x = attended(x, x, earlier, start, num_decoder_heads)
        x = attended(x, read, real, f"{start}_cross", num_decoder_heads)
        x = widened(x, start, decoder_intermediate_dim)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="bart")


# What BART's first files say besides; transformers computes these values, whatever a file says.
FIXED = {
    "normalize_before": False,
    "add_final_layer_norm": False,
    "normalize_embedding": True,
    "static_position_embeddings": False,
    "extra_pos_embeddings": SKIPPED,
    "tie_word_embeddings": True,
    "is_encoder_decoder": True,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `bart`.

    Raises:
        ModelError: if the activation is unknown, blocks are left out at random, or embeddings are not one table for both halves.
    """
    for field, wanted in FIXED.items():
        refuse(config, field, wanted, wanted)
    if config.get("decoder_start_token_id", 2) is None:
        refuse(config, "decoder_start_token_id", 2)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["encoder_layers"],
        "num_decoder_layers": config["decoder_layers"],
        "num_heads": config["encoder_attention_heads"],
        "num_decoder_heads": config["decoder_attention_heads"],
        "hidden_dim": config["d_model"],
        "intermediate_dim": config["encoder_ffn_dim"],
        "decoder_intermediate_dim": config["decoder_ffn_dim"],
        "max_sequence_length": config["max_position_embeddings"],
        "start_id": config.get("decoder_start_token_id", 2),
        "dropout": config.get("dropout", 0.1),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation_dropout": config.get("activation_dropout", 0.0),
        "activation": activation_of(config, "activation_function"),
        "embedding_scale": float(config["d_model"]) ** 0.5 if config.get("scale_embedding", False) else 1.0,
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "shared.weight")
    for half in ("encoder", "decoder"):
        positions = found[f"{half}_position_embedding"].embeddings
        yield Place(positions, f"{half}.embed_positions.weight", cut=_after_padding)
        yield from norm(found[f"{half}_embeddings_layer_norm"], f"{half}.layernorm_embedding")
        blocks = [name.removesuffix("_intermediate") for name in found if name.endswith("_intermediate")]
        for block in (name for name in blocks if name.startswith(half)):
            yield from _block(found, block, f"{half}.layers.{block.rpartition('_')[2]}")


def _block(found: Mapping[str, Any], block: str, start: str) -> Iterator[Place]:
    for own, name in (("", "self"), ("_cross", "encoder")):
        if f"{block}{own}_attention_query" in found:
            for part in ("query", "key", "value"):
                yield from dense(found[f"{block}{own}_attention_{part}"], f"{start}.{name}_attn.{part[0]}_proj")
            yield from dense(found[f"{block}{own}_attention_output"], f"{start}.{name}_attn.out_proj", inputs=2)
            yield from norm(found[f"{block}{own}_attention_layer_norm"], f"{start}.{name}_attn_layer_norm")
    yield from dense(found[f"{block}_intermediate"], f"{start}.fc1")
    yield from dense(found[f"{block}_output"], f"{start}.fc2")
    yield from norm(found[f"{block}_layer_norm"], f"{start}.final_layer_norm")


def _after_padding(table: np.ndarray) -> np.ndarray:
    return table[SKIPPED:]


FAMILY = Family(
    backbone=bart,
    arguments=arguments,
    places=places,
    prefix="model.",
    # The embeddings once more and marks of versions, as some files have them, and heads.
    heads=(
        "encoder.embed_tokens.",
        "decoder.embed_tokens.",
        "encoder.version",
        "decoder.version",
        "lm_head.",
        "final_logits_bias",
        "classification_head.",
        "qa_outputs.",
    ),
    head=Head("classification_head.out_proj", "classification_head.dense", below=Below(token="last")),
    pooling="last",
)
