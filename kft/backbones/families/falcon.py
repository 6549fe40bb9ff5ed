"""Falcon's first kind, falcon-rw (Penedo et al. 2023, https://arxiv.org/abs/2306.01116). Import after `backend.activate`.

transformers rounds the slopes of ALiBi to bfloat16, KerasHub does not: with more than 8 heads states differ by about 1e-3.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from kft.backbones.families.bloom import of_each_head
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import DECODER
from kft.backbones.places import Place


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if the model is of a later kind, as falcon-7b, or has another epsilon, which KerasHub's blocks do not take.
    """
    refuse(config, "alibi", True, False)
    refuse(config, "multi_query", False, True)
    refuse(config, "parallel_attn", False, True)
    refuse(config, "new_decoder_architecture", False, False)
    refuse(config, "bias", True, False)
    refuse(config, "activation", "gelu", "gelu")
    refuse(config, "layer_norm_epsilon", 1e-5, 1e-5)
    width = config["hidden_size"]
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "hidden_dim": width,
        "intermediate_dim": config.get("ffn_hidden_size") or 4 * width,
        "attention_dropout_rate": config.get("attention_dropout", 0.0),
        "feedforward_dropout_rate": config.get("hidden_dropout", 0.0),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    yield Place(model.token_embedding.embeddings, "word_embeddings.weight")
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"h.{number}", block.attention_layer
        yield from norm(block.input_layernorm, f"{start}.input_layernorm")
        fused = f"{start}.self_attention.query_key_value"
        for part, layer in enumerate((attention.query_dense, attention.key_dense, attention.value_dense)):
            cut = functools.partial(of_each_head, part=part, heads=model.num_attention_heads)
            yield Place(layer.kernel, f"{fused}.weight", 1, cut)
            yield Place(layer.bias, f"{fused}.bias", cut=cut)
        yield from dense(attention.output_dense, f"{start}.self_attention.dense")
        yield from norm(block.post_attention_layernorm, f"{start}.post_attention_layernorm")
        yield from dense(block.dense_h_to_4h, f"{start}.mlp.dense_h_to_4h")
        yield from dense(block.dense_4h_to_h, f"{start}.mlp.dense_4h_to_h")
    yield from norm(model.final_layernorm, "ln_f")


FAMILY = Family(
    backbone="FalconBackbone",
    arguments=arguments,
    places=places,
    prefix="transformer.",
    heads=("lm_head.", "score.", "classifier.", "qa_outputs."),
    head=DECODER,
    pooling="last",
)
