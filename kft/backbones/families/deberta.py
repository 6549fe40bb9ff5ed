"""DeBERTa-v3 (He et al. 2021, https://arxiv.org/abs/2111.09543), published as `deberta-v2`. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kft.backbones.backbone import Below
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place
from kft.errors import ModelError


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if the model is of DeBERTa-v2's own kind, with a convolution or keys apart for positions.
    """
    refuse(config, "relative_attention", True, False)
    refuse(config, "share_att_key", True, False)
    refuse(config, "norm_rel_ebd", "layer_norm", "none")
    refuse(config, "position_biased_input", False, True)
    refuse(config, "type_vocab_size", 0, 0)
    refuse(config, "hidden_act", "gelu", "gelu")
    kinds = config.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    if sorted(kinds) != ["c2p", "p2c"] or config.get("conv_kernel_size", 0):
        raise ModelError(
            f"pos_att_type in config.json is {kinds}, conv_kernel_size {config.get('conv_kernel_size', 0)}; KerasHub computes "
            "DeBERTa-v3: c2p and p2c, and no convolution. Take a deberta-v3 model."
        )
    if abs(config.get("layer_norm_eps", 1e-7) - 1e-7) > 1e-9 or config.get("position_buckets", -1) < 1:
        raise ModelError(
            f"layer_norm_eps in config.json is {config.get('layer_norm_eps')}, position_buckets "
            f"{config.get('position_buckets', -1)}; KerasHub's DeBERTa-v3 has 1e-7, and at least one bucket."
        )
    reach = config.get("max_relative_positions", -1)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "max_sequence_length": reach if reach >= 1 else config["max_position_embeddings"],
        "bucket_size": config["position_buckets"],
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


FAMILY = Family(
    backbone="DebertaV3Backbone",
    arguments=arguments,
    places=places,
    prefix="deberta.",
    heads=("pooler.", "classifier.", "qa_outputs.", "cls.", "lm_predictions.", "mask_predictions."),
    # The pooler that its makers' classification reads: a dense layer with GELU on the first token.
    head=Head(dense="pooler.dense", below=Below("gelu")),
)
