"""BLOOM (Le Scao et al. 2022, https://arxiv.org/abs/2211.05100). Import after `backend.activate`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import DECODER
from kft.backbones.places import Place


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if what is added after a block is what its normalization gave.
    """
    refuse(config, "apply_residual_connection_post_layernorm", False, False)
    width = _either(config, "n_embed", "hidden_size")
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": _either(config, "n_layer", "num_hidden_layers"),
        "num_heads": _either(config, "n_head", "num_attention_heads"),
        "hidden_dim": width,
        "intermediate_dim": 4 * width,
        "dropout": config.get("hidden_dropout", 0.0),
        "layer_norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    }


def _either(config: Mapping[str, Any], *names: str) -> Any:
    """Returns the first of the names a field has had.

    Raises:
        KeyError: if none is there.
    """
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise KeyError(names[-1])


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    yield Place(model.token_embedding.embeddings, "word_embeddings.weight")
    yield from norm(model.embeddings_layer_norm, "word_embeddings_layernorm")
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"h.{number}", block._self_attention_layer
        yield from norm(block._pre_attention_layernorm, f"{start}.input_layernorm")
        fused = f"{start}.self_attention.query_key_value"
        for part, layer in enumerate((attention._query_dense, attention._key_dense, attention._value_dense)):
            cut = functools.partial(of_each_head, part=part, heads=model.num_heads)
            yield Place(layer.kernel, f"{fused}.weight", 1, cut)
            yield Place(layer.bias, f"{fused}.bias", cut=cut)
        yield from dense(attention._output_dense, f"{start}.self_attention.dense")
        yield from norm(block._post_attention_layernorm, f"{start}.post_attention_layernorm")
        yield from dense(block._mlp_intermediate_dense, f"{start}.mlp.dense_h_to_4h")
        yield from dense(block._mlp_output_dense, f"{start}.mlp.dense_4h_to_h")
    yield from norm(model.layer_norm, "ln_f")


def of_each_head(array: np.ndarray, part: int, heads: int) -> np.ndarray:
    """Takes query, key or value out of rows that lie head by head, these three in each."""
    if len(array) % (3 * heads):
        return array  # of another model, which its shape will tell
    rest = array.shape[1:]
    return array.reshape(heads, 3, -1, *rest)[:, part].reshape(-1, *rest)


FAMILY = Family(
    backbone="BloomBackbone",
    arguments=arguments,
    places=places,
    prefix="transformer.",
    heads=("lm_head.", "score.", "classifier.", "qa_outputs."),
    head=DECODER,
    pooling="last",
)
