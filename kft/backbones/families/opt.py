"""OPT (Zhang et al. 2022, https://arxiv.org/abs/2205.01068). Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import DECODER
from kft.backbones.places import Place

# Rows at the beginning of the table of positions that no token ever has.
SKIPPED = 2
# What transformers takes where a file says nothing, as those do in which this is a part of another model.
DEFAULTS = {
    "vocab_size": 50272,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if the model normalizes after attention, as opt-350m does, projects its embeddings, or lacks biases.
    """
    config = {**DEFAULTS, **config}
    refuse(config, "do_layer_norm_before", True, True)
    refuse(config, "_remove_final_layer_norm", False, False)
    refuse(config, "layer_norm_elementwise_affine", True, True)
    refuse(config, "enable_bias", True, True)
    refuse(config, "activation_function", "relu", "relu")
    if config.get("word_embed_proj_dim") is not None:
        refuse(config, "word_embed_proj_dim", config["hidden_size"])
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["ffn_dim"],
        "dropout": config.get("dropout", 0.1),
        "max_sequence_length": config["max_position_embeddings"],
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    yield Place(model.token_embedding.embeddings, "decoder.embed_tokens.weight")
    table = model.embeddings.position_embedding.position_embeddings
    yield Place(table, "decoder.embed_positions.weight", cut=_positions)
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"decoder.layers.{number}", block._self_attention_layer
        yield from dense(attention._query_dense, f"{start}.self_attn.q_proj")
        yield from dense(attention._key_dense, f"{start}.self_attn.k_proj")
        yield from dense(attention._value_dense, f"{start}.self_attn.v_proj")
        yield from dense(attention._output_dense, f"{start}.self_attn.out_proj", inputs=2)
        yield from norm(block._self_attention_layer_norm, f"{start}.self_attn_layer_norm")
        yield from dense(block._feedforward_intermediate_dense, f"{start}.fc1")
        yield from dense(block._feedforward_output_dense, f"{start}.fc2")
        yield from norm(block._feedforward_layer_norm, f"{start}.final_layer_norm")
    yield from norm(model.layer_norm, "decoder.final_layer_norm")


def _positions(array: np.ndarray) -> np.ndarray:
    return array[SKIPPED:]


FAMILY = Family(
    backbone="OPTBackbone",
    arguments=arguments,
    places=places,
    prefix="model.",
    # The version is a mark that its makers' own files have, no weight.
    heads=("lm_head.", "score.", "qa_outputs.", "decoder.version"),
    head=DECODER,
    pooling="last",
)
