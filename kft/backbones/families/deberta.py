"""DeBERTa-v3 (He et al. 2021, https://arxiv.org/abs/2111.09543), published as `deberta-v2`. Import after `backend.activate`.

Models of DeBERTa-v2's own kind, which have the same name, are drawn in `disentangled`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from kft.backbones.families import disentangled
from kft.backbones.families.family import Family, dense, norm
from kft.backbones.places import Place

# What KerasHub's class computes, and what a file means that does not say it.
COMPUTED: dict[str, tuple[Any, Any]] = {
    "share_att_key": (True, False),
    "norm_rel_ebd": ("layer_norm", "none"),
    "position_biased_input": (False, True),
    "type_vocab_size": (0, 0),
    "hidden_act": ("gelu", "gelu"),
    "conv_kernel_size": (0, 0),
    "layer_norm_eps": (1e-7, 1e-7),
}


def of(config: Mapping[str, Any]) -> Family:
    """Returns how a model is read: into KerasHub's class where it computes what `config.json` says, else drawn."""
    same = all(config.get(field, default) == wanted for field, (wanted, default) in COMPUTED.items())
    both = disentangled.ways(config) == sorted((disentangled.THERE, disentangled.BACK))
    width = config.get("hidden_size")
    as_wide = config.get("embedding_size", width) == width
    return FAMILY if same and both and as_wide and config.get("position_buckets", -1) >= 1 else disentangled.FAMILY


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class."""
    found = disentangled.arguments(config)
    names = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim", "dropout")
    return {name: found[name] for name in names} | {
        "max_sequence_length": found["farthest"],
        "bucket_size": found["buckets"],
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    yield Place(model.token_embedding.embeddings, "embeddings.word_embeddings.weight")
    yield from norm(model.embeddings_layer_norm, "embeddings.LayerNorm")
    yield Place(model.relative_embeddings.rel_embeddings, "encoder.rel_embeddings.weight")
    yield from norm(model.relative_embeddings.layer_norm, "encoder.LayerNorm")
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"encoder.layer.{number}", block._self_attention_layer
        yield from dense(attention._query_dense, f"{start}.attention.self.query_proj")
        yield from dense(attention._key_dense, f"{start}.attention.self.key_proj")
        yield from dense(attention._value_dense, f"{start}.attention.self.value_proj")
        yield from dense(attention._output_dense, f"{start}.attention.output.dense")
        yield from norm(block._self_attention_layer_norm, f"{start}.attention.output.LayerNorm")
        yield from dense(block._feedforward_intermediate_dense, f"{start}.intermediate.dense")
        yield from dense(block._feedforward_output_dense, f"{start}.output.dense")
        yield from norm(block._feedforward_layer_norm, f"{start}.output.LayerNorm")


FAMILY = dataclasses.replace(
    disentangled.FAMILY,
    backbone="DebertaV3Backbone",
    arguments=arguments,
    places=places,
)
