"""ESM-2 (Lin et al. 2023, https://doi.org/10.1126/science.ade2574): a language model of proteins, a token for each residue.

KerasHub's class takes padding for text on jax and tensorflow, so its graph is drawn here, of Keras' and KerasHub's own layers:
a saved model loads without kft. Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place

# In pretraining 0.8 of 15 % of the tokens were masked, and the others' embeddings shrink by as much ever after.
SEEN = 1 - 0.15 * 0.8


def esm(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    intermediate_dim: int,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    rope_max_wavelength: float = 10000.0,
    layer_norm_epsilon: float = 1e-5,
    first_norm: bool = False,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        rope_max_wavelength: base of the rotary frequencies.
        layer_norm_epsilon: of all normalizations.
        first_norm: whether embeddings are normalized.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    layers = keras.layers
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))

    def normed(x: Any, name: str) -> Any:
        return layers.LayerNormalization(epsilon=layer_norm_epsilon, name=name)(x)

    def added(x: Any, more: Any, name: str) -> Any:
        more = layers.Dropout(dropout, name=f"{name}_dropout")(more)
        return layers.Add(name=f"{name}_add")([x, more])

    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    x = normed(token(ids), "embeddings_layer_norm") if first_norm else token(ids)
    for number in range(num_layers):
        start = f"block_{number}"
        hidden = normed(x, f"{start}_attention_layer_norm")
        more = drawn.attention(
            (hidden, hidden, hidden),
            mask[:, None, None, :],
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            turn=keras_hub.layers.RotaryEmbedding(rope_max_wavelength, name=f"{start}_rotary_embedding"),
        )
        x = added(x, more, f"{start}_attention")
        more = normed(x, f"{start}_layer_norm")
        for units, function, part in ((intermediate_dim, "gelu", "intermediate"), (hidden_dim, None, "output")):
            more = layers.Dense(units, activation=function, kernel_initializer=drawn.normal(), name=f"{start}_{part}")(
                more
            )
        x = added(x, more, start)
    x = normed(x, "final_layer_norm")
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="esm")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `esm`.

    Raises:
        ModelError: if positions are embedded, as in ESM-1b, the activation is another, or it is a decoder.
    """
    refuse(config, "position_embedding_type", "rotary", "absolute")
    refuse(config, "hidden_act", "gelu", "gelu")
    refuse(config, "is_decoder", False, False)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "rope_max_wavelength": (config.get("rope_parameters") or {}).get(
            "rope_theta", config.get("rope_theta", 10000.0)
        ),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "first_norm": bool(config.get("emb_layer_norm_before")),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    token = Place(found["token_embedding"].embeddings, "embeddings.word_embeddings.weight")
    yield dataclasses.replace(token, cut=_shrunk) if config.get("token_dropout") else token
    if "embeddings_layer_norm" in found:
        yield from norm(found["embeddings_layer_norm"], "embeddings.layer_norm")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"encoder.layer.{number}"
        yield from norm(found[f"{block}_attention_layer_norm"], f"{start}.attention.LayerNorm")
        for part in ("query", "key", "value"):
            yield from dense(found[f"{block}_attention_{part}"], f"{start}.attention.self.{part}")
        yield from dense(found[f"{block}_attention_output"], f"{start}.attention.output.dense", inputs=2)
        yield from norm(found[f"{block}_layer_norm"], f"{start}.LayerNorm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.intermediate.dense")
        yield from dense(found[f"{block}_output"], f"{start}.output.dense")
    yield from norm(found["final_layer_norm"], "encoder.emb_layer_norm_after")


def _shrunk(table: np.ndarray) -> np.ndarray:
    found: np.ndarray = table * np.float32(SEEN)
    return found


FAMILY = Family(
    backbone=esm,
    arguments=arguments,
    places=places,
    prefix="esm.",
    # A table of positions is there in older files, whose models do not read it.
    heads=("embeddings.position_embeddings.", "contact_head.", "pooler.", "lm_head.", "classifier."),
    head=Head("classifier.out_proj", "classifier.dense"),
)
