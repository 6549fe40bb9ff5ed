"""Gemma 4's part for texts (https://ai.google.dev/gemma/docs/core), drawn of KerasHub's blocks.

KerasHub's class wants the positions of tokens beside the tokens, and its converter does not know where transformers writes the
heads of the blocks that see the whole text since 5.24. A saved model loads where KerasHub is imported, without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras_hub.src.models.gemma4.gemma4_decoder_block import Gemma4TextDecoderBlock

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense
from kft.backbones.families.gemma4_fields import FULL, ITS_WORDS, NEAR, arguments, sources, unread
from kft.backbones.families.phi3 import rows
from kft.backbones.places import Place


def gemma4(vocabulary_size: int, hidden_dim: int, **blocks: Any) -> Any:
    """Builds a decoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of the hidden states.
        **blocks: see `decoded`.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    x = token_embedding(vocabulary_size, hidden_dim)(ids) * hidden_dim**0.5
    x = decoded(x, ids, mask, hidden_dim=hidden_dim, **blocks)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="gemma4")


def token_embedding(vocabulary_size: int, hidden_dim: int) -> Any:
    """Returns the table of tokens, whose rows are multiplied by the root of their width afterwards."""
    return keras.layers.Embedding(
        vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding"
    )


def decoded(
    x: Any,
    ids: Any,
    mask: Any,
    *,
    hidden_dim: int,
    layer_types: Sequence[str],
    kinds: Mapping[str, Mapping[str, Any]],
    block: Mapping[str, Any],
    num_kv_shared_layers: int = 0,
    hidden_size_per_layer_input: int = 0,
    vocab_size_per_layer_input: int = ITS_WORDS,
    layer_norm_epsilon: float = 1e-6,
    dropout: float = 0.0,
    images: Any = None,
) -> Any:
    """Returns the states that blocks make of embedded tokens.

    Args:
        x: the tokens, embedded.
        ids: of the tokens, which each block looks up in a table of its own.
        mask: nonzero where a token is none of padding.
        hidden_dim: width of the hidden states.
        layer_types: for each block whether it sees the whole text, `full_attention`, or near tokens, `sliding_attention`.
        kinds: what KerasHub's blocks of either kind are made with.
        block: what all of them are made with.
        num_kv_shared_layers: how many of the last blocks read keys and values of the last block of their kind before them.
        hidden_size_per_layer_input: width of the rows of a block's own table; 0 for none.
        vocab_size_per_layer_input: number of these rows.
        layer_norm_epsilon: of all normalizations.
        dropout: inside a block.
        images: nonzero where a token is of an image.
    """
    own = None
    if hidden_size_per_layer_input:
        measures = (len(layer_types), hidden_size_per_layer_input)
        own = _own_rows(x, ids, hidden_dim, measures, vocab_size_per_layer_input, layer_norm_epsilon)
    source = sources(layer_types, num_kv_shared_layers)
    kept: dict[int, Any] = {}
    for number, kind in enumerate(layer_types):
        layer = Gemma4TextDecoderBlock(
            hidden_dim=hidden_dim,
            layer_norm_epsilon=layer_norm_epsilon,
            dropout=dropout,
            hidden_size_per_layer_input=hidden_size_per_layer_input,
            is_global_attention=kind == FULL,
            use_sliding_window_attention=kind == NEAR,
            is_kv_shared_layer=number in source,
            kv_shared_layer_index=source.get(number),
            name=f"decoder_block_{number}",
            **{**block, **kinds[kind]},
        )
        more = {} if own is None else {"per_layer_input": own[:, :, number]}
        if number in source:
            more["shared_kv"] = kept[source[number]]
        x, kept[number] = layer(x, padding_mask=mask, vision_mask=images, **more)
    # KerasHub's own norm forgets its epsilon when it is saved by itself.
    return keras.layers.RMSNormalization(epsilon=layer_norm_epsilon, name="final_normalization")(x)


def _own_rows(
    x: Any, ids: Any, hidden_dim: int, measures: tuple[int, int], vocabulary_size: int, epsilon: float
) -> Any:
    """Returns what each block gets of each token beside the states, shape (batch, tokens, blocks, width)."""
    layers, (count, width) = keras.layers, measures
    table = layers.Embedding(
        vocabulary_size, count * width, embeddings_initializer=drawn.normal(), name="per_layer_token_embedding"
    )
    looked_up = layers.Reshape((-1, count, width), name="per_layer_tokens")(table(ids) * width**0.5)
    made = layers.Dense(count * width, use_bias=False, name="per_layer_model_projection")(x) * hidden_dim**-0.5
    made = layers.Reshape((-1, count, width), name="per_layer_projections")(made)
    made = layers.RMSNormalization(epsilon=epsilon, name="per_layer_projection_norm")(made)
    return (made + looked_up) * 2.0**-0.5


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    if "per_layer_token_embedding" in found:
        yield Place(found["per_layer_token_embedding"].embeddings, "embed_tokens_per_layer.weight")
        yield from dense(found["per_layer_model_projection"], "per_layer_model_projection")
        yield Place(found["per_layer_projection_norm"].scale, "per_layer_projection_norm.weight")
    for number in range(sum(name.startswith("decoder_block_") for name in found)):
        yield from _block(found[f"decoder_block_{number}"], f"layers.{number}")
    yield Place(found["final_normalization"].scale, "norm.weight")


def _block(block: Any, start: str) -> Iterator[Place]:
    yield from _attention(block.attention, f"{start}.self_attn")
    yield from dense(block.gating_ffw, f"{start}.mlp.gate_proj")
    yield from dense(block.gating_ffw_2, f"{start}.mlp.up_proj")
    yield from dense(block.ffw_linear, f"{start}.mlp.down_proj")
    norms = {
        "pre_attention_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "pre_ffw_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "post_per_layer_input_norm": "post_per_layer_input_norm",
        "post_ffw_norm_dense": "post_feedforward_layernorm_1",
        "pre_ffw_norm_moe": "pre_feedforward_layernorm_2",
        "post_ffw_norm_moe_path": "post_feedforward_layernorm_2",
    }
    for ours, theirs in norms.items():
        if hasattr(block, ours):
            yield Place(getattr(block, ours).scale, f"{start}.{theirs}.weight")
    if block.hidden_size_per_layer_input:
        yield from dense(block.per_layer_input_gate, f"{start}.per_layer_input_gate")
        yield from dense(block.per_layer_up_proj, f"{start}.per_layer_projection")
    if block.enable_moe_block:
        yield from _bank(block, start)
    yield Place(block.layer_scalar, f"{start}.layer_scalar", cut=np.squeeze)


def _attention(attention: Any, start: str) -> Iterator[Place]:
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        # Those that a block takes from another one are None.
        if (layer := getattr(attention, f"{ours}_dense")) is not None:
            cut = functools.partial(of_heads, heads=layer.kernel.shape[0])
            yield Place(layer.kernel, f"{start}.{theirs}_proj.weight", cut=cut, axes=(0, 2, 1))
        if ours != "value" and (layer := getattr(attention, f"{ours}_norm")) is not None:
            yield Place(layer.scale, f"{start}.{theirs}_norm.weight")
    yield from dense(attention.output_dense, f"{start}.o_proj", inputs=2)


def of_heads(array: np.ndarray, heads: int) -> np.ndarray:
    """Returns a kernel with an axis for its heads; one that cannot be parted so is returned as it is."""
    return array if len(array) % heads else array.reshape(heads, -1, array.shape[-1])


def _bank(block: Any, start: str) -> Iterator[Place]:
    router, bank = block.moe_router, block.moe_expert_bank
    yield Place(router.per_dim_scale, f"{start}.router.scale")
    yield from dense(router.proj, f"{start}.router.proj")
    yield Place(bank.per_expert_scale, f"{start}.router.per_expert_scale")
    fused, inner = f"{start}.experts.gate_up_proj", block.expert_intermediate_dim
    yield Place(bank.gate_proj, fused, cut=functools.partial(_of_each, cut=rows(0, inner)), axes=(0, 2, 1))
    yield Place(bank.up_proj, fused, cut=functools.partial(_of_each, cut=rows(inner)), axes=(0, 2, 1))
    yield Place(bank.down_proj, f"{start}.experts.down_proj", axes=(0, 2, 1))


def _of_each(array: np.ndarray, cut: Any) -> np.ndarray:
    """Returns what is cut out of each expert's tensor."""
    return np.stack([cut(one) for one in array])


FAMILY = Family(
    backbone=gemma4,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=unread,
    pooling="last",
)
