"""FNet (Lee-Thorp et al. 2021, https://arxiv.org/abs/2105.03824), which mixes tokens by a Fourier transform.

It has no padding mask: padding is mixed in with the text, in KerasHub as in transformers. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if activation or epsilon are not the ones that KerasHub's class always has, or the transform is by
            matrices of one length, which are published among the weights.
    """
    refuse(config, "hidden_act", "gelu_new", "gelu_new")
    refuse(config, "layer_norm_eps", 1e-12, 1e-12)
    refuse(config, "use_tpu_fourier_optimizations", False, False)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "max_sequence_length": config["max_position_embeddings"],
        "num_segments": config.get("type_vocab_size", 4),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    yield Place(model.token_embedding.embeddings, "embeddings.word_embeddings.weight")
    yield Place(model.position_embedding.position_embeddings, "embeddings.position_embeddings.weight")
    yield Place(model.segment_embedding.embeddings, "embeddings.token_type_embeddings.weight")
    yield from norm(model.embeddings_layer_norm, "embeddings.LayerNorm")
    yield from dense(model.embedding_projection, "embeddings.projection")
    for number, block in enumerate(model.transformer_layers):
        start = f"encoder.layer.{number}"
        yield from norm(block._mixing_layer_norm, f"{start}.fourier.output.LayerNorm")
        yield from dense(block._intermediate_dense, f"{start}.intermediate.dense")
        yield from dense(block._output_dense, f"{start}.output.dense")
        yield from norm(block._output_layer_norm, f"{start}.output.LayerNorm")
    yield from dense(model.pooled_dense, "pooler.dense")


FAMILY = Family(
    backbone="FNetBackbone",
    arguments=arguments,
    places=places,
    prefix="fnet.",
    heads=("cls.", "classifier.", "qa_outputs."),
    head=Head(),
    pooling="pooled",
)
