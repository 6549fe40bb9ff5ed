"""The graph of Gemma 3n's part for texts (Gemma team 2025, https://ai.google.dev/gemma/docs/gemma-3n), as transformers computes it.

A token has several states at once, streams here, of which blocks read one and correct all (AltUp, Baykal et al. 2023,
https://arxiv.org/abs/2301.13310), a narrow layer beside attention (LAuReL, Menghani et al. 2024,
https://arxiv.org/abs/2411.07501), an embedding for each block, and upper blocks that take keys and values of a lower one.

KerasHub's class holds all blocks in one layer together with the embeddings, so that its upper blocks cannot be trained alone,
and gives blocks that share keys and values weights which published files need not have. So the graph is drawn here, of Keras'
and KerasHub's own layers: a saved model loads without kft. While transformers trains, it keeps AltUp's coefficients within
120; nothing is cut off here, which is the same as long as they are. Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import keras
import keras_hub

from kft.backbones.families import drawn

FULL, NEAR = "full_attention", "sliding_attention"
# A stream's size is no less than the root of this.
LEAST = 1e-5
# What is above a root; so a token whose embedding is nothing has a gradient.
TINY = 1e-12
HALF = 1 / math.sqrt(2)


@dataclass(frozen=True)
class _Drawn:
    """Draws layers whose names begin alike.

    Attributes:
        start: of their names.
        epsilon: of normalizations.
        width: of a stream.
        streams: how many a token has.
        active: the one that blocks read.
        function: what gates are sent through.
    """

    start: str
    epsilon: float
    width: int
    streams: int
    active: int
    function: Any

    def norm(self, x: Any, name: str) -> Any:
        return keras.layers.RMSNormalization(epsilon=self.epsilon, name=self.start + name)(x)

    def dense(self, x: Any, units: int, name: str) -> Any:
        layer = keras.layers.Dense(units, use_bias=False, kernel_initializer=drawn.normal(), name=self.start + name)
        return layer(x)

    def parted(self, x: Any, rule: str, shape: tuple[int, ...], name: str, bias: str | None = None) -> Any:
        layer = keras.layers.EinsumDense(
            rule, (None, *shape), bias_axes=bias, kernel_initializer=drawn.normal(), name=self.start + name
        )
        return layer(x)


def gemma3n_text(vocabulary_size: int, hidden_dim: int, **blocks: Any) -> Any:
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
    x = decoded(embedded(ids, vocabulary_size, hidden_dim), ids, mask, hidden_dim=hidden_dim, **blocks)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="gemma3n_text")


def embedded(ids: Any, vocabulary_size: int, hidden_dim: int) -> Any:
    """Returns the embeddings of tokens, shape (batch, tokens, hidden_dim)."""
    return _embedding(vocabulary_size, hidden_dim, "token_embedding")(ids) * hidden_dim**0.5


def decoded(
    x: Any,
    ids: Any,
    mask: Any,
    layer_types: Sequence[str],
    num_shared: int,
    num_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    hidden_dim: int,
    intermediate_dims: Sequence[int],
    sparsities: Sequence[float],
    window: int,
    wavelengths: Mapping[str, float],
    stretches: Mapping[str, float],
    block_vocabulary_size: int,
    block_embedding_dim: int,
    streams: int,
    active: int,
    laurel_rank: int,
    attention_dropout: float = 0.0,
    activation: str = "gelu_approximate",
    layer_norm_epsilon: float = 1e-6,
    biased: bool = False,
    scaled: bool = True,
) -> Any:
    """Returns the states of tokens after the last normalization, shape (batch, tokens, hidden_dim).

    Args:
        x: what stands for each token, shape (batch, tokens, hidden_dim).
        ids: the tokens, shape (batch, tokens).
        mask: nonzero for tokens of the text, shape (batch, tokens).
        layer_types: for each block whether it sees the whole text, `full_attention`, or near tokens, `sliding_attention`.
        num_shared: how many of the upper blocks take keys and values of the last block of their kind below these.
        num_heads: of queries.
        num_key_value_heads: of keys and values.
        head_dim: width of a head.
        hidden_dim: width of the hidden states.
        intermediate_dims: width inside each block.
        sparsities: for each block the share of its gates that is shut, were they normally distributed; 0 for none.
        window: how many tokens, its own among them, a token sees in a block that sees near ones.
        wavelengths: base of the rotary frequencies, by kind of block.
        stretches: what places are divided by, by kind of block.
        block_vocabulary_size: number of token ids that have embeddings for blocks; others have that of id 0.
        block_embedding_dim: width of a token's embedding for one block.
        streams: how many states a token has.
        active: the number of the one that blocks read.
        laurel_rank: width inside the layer beside attention.
        attention_dropout: on attention's weights.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.
        biased: whether attention's dense layers have biases.
        scaled: whether the state that a block's embedding gates has a scale for each channel.
    """
    whole = _Drawn("", layer_norm_epsilon, hidden_dim, streams, active, drawn.function(activation))
    own = _of_blocks(whole, x, ids, len(layer_types), block_vocabulary_size, block_embedding_dim)
    masks, x, seen = _masks(ids, mask, window), _spread(whole, x), {}
    for number, kind in enumerate(layer_types):
        block = dataclasses.replace(whole, start=f"block_{number}_")
        turn = keras_hub.layers.RotaryEmbedding(wavelengths[kind], stretches[kind], name=f"{block.start}rotary_{kind}")
        norm = keras.layers.RMSNormalization(epsilon=layer_norm_epsilon, name=f"{block.start}router_norm")
        router = keras.layers.Dense(streams, "tanh", use_bias=False, name=f"{block.start}router")
        x = _predicted(block, x, router(norm(x[:, :, active]) / hidden_dim))
        hidden = block.norm(x[:, :, active], "attention_layer_norm")
        if number < len(layer_types) - num_shared:
            seen[kind] = _keys_and_values(block, hidden, turn, num_key_value_heads, head_dim, biased)
        more = _attention(block, hidden, turn, *seen[kind], masks[kind], num_heads, attention_dropout, biased)
        low = block.parted(hidden, "btw,wr->btr", (laurel_rank,), "laurel_in")
        low = hidden + block.norm(block.dense(low, hidden_dim, "laurel_out"), "laurel_norm")
        state = (x[:, :, active] + block.norm(more, "attention_output_norm") + low) * HALF
        state = state + _gated(block, state, intermediate_dims[number], sparsities[number])
        x = _corrected(block, x, state, router(norm(state) / hidden_dim))
        x = _with_own(block, x, own[:, :, number], scaled)
    return whole.norm(_joined(whole, x), "final_layer_norm")


def _embedding(size: int, width: int, name: str) -> Any:
    return keras.layers.Embedding(size, width, embeddings_initializer=drawn.normal(), name=name)


def _of_blocks(whole: _Drawn, x: Any, ids: Any, blocks: int, size: int, width: int) -> Any:
    """Returns what each block is given of each token besides its state, shape (batch, tokens, blocks, width)."""
    own = _embedding(size, blocks * width, "own_embedding")(keras.ops.where(ids < size, ids, 0)) * width**0.5
    own = keras.layers.Reshape((-1, blocks, width), name="own_embedding_parted")(own)
    more = whole.parted(x, "btw,wnp->btnp", (blocks, width), "own_projection") * whole.width**-0.5
    return (whole.norm(more, "own_projection_norm") + own) * HALF


def _masks(ids: Any, mask: Any, window: int) -> dict[str, Any]:
    """Returns which tokens each sees in a block of either kind, shape (batch, 1, 1, tokens, tokens)."""
    places = drawn.places_of(ids)
    behind = (places[:, :, None] - places[:, None, :])[:, None, None]
    seen = keras.ops.logical_and(mask[:, None, None, None, :] > 0, behind >= 0)
    return {FULL: seen, NEAR: keras.ops.logical_and(seen, behind < window)}


def _keys_and_values(block: _Drawn, x: Any, turn: Any, heads: int, size: int, biased: bool) -> tuple[Any, Any]:
    key, value = (
        block.parted(x, "btw,wkd->btkd", (heads, size), f"attention_{part}", "kd" if biased else None)
        for part in ("key", "value")
    )
    return turn(block.norm(key, "key_norm")), keras.ops.rms_normalization(value, epsilon=block.epsilon)


def _attention(
    block: _Drawn, x: Any, turn: Any, key: Any, value: Any, mask: Any, heads: int, rate: float, biased: bool
) -> Any:
    """Returns what attention gives, after its last dense layer; several heads of queries share one of keys."""
    shape = (key.shape[2], heads // key.shape[2], key.shape[3])
    query = block.parted(x, "btw,wkgd->btkgd", shape, "attention_query", "kgd" if biased else None)
    query = turn(block.norm(query, "query_norm"))
    scores = keras.ops.einsum("bqkgd,bskd->bkgqs", query, key)
    weights = keras.layers.Softmax(dtype="float32", name=f"{block.start}attention_softmax")(scores, mask=mask)
    weights = keras.layers.Dropout(rate, name=f"{block.start}attention_weights_dropout")(
        keras.ops.cast(weights, value.dtype)
    )
    mixed = keras.ops.einsum("bkgqs,bskd->bqkgd", weights, value)
    return block.parted(mixed, "btkgd,kgdw->btw", (block.width,), "attention_output", "w" if biased else None)


def _gated(block: _Drawn, x: Any, inner: int, sparsity: float) -> Any:
    """Returns what a block's dense layers give; of sparse gates those below a share of a normal distribution are shut."""
    x = block.norm(x, "layer_norm")
    gate = block.dense(x, inner, "gate")
    if sparsity > 0:
        mean = keras.ops.mean(gate, axis=-1, keepdims=True)
        least = mean + keras.ops.cast(_size(gate - mean) * NormalDist().inv_cdf(sparsity), gate.dtype)
        gate = keras.ops.relu(gate - least)
    gate = keras.layers.Activation(block.function, name=f"{block.start}gate_activation")(gate)
    more = block.dense(gate * block.dense(x, inner, "intermediate"), block.width, "output")
    return block.norm(more, "output_norm")


def _size(x: Any, least: float = TINY) -> Any:
    """Returns the root of the mean of squares, in float32: half precision has neither large squares nor tiny numbers."""
    x = keras.ops.cast(x, "float32")
    return keras.ops.sqrt(keras.ops.maximum(keras.ops.mean(x * x, axis=-1, keepdims=True), least))


def _as_large(x: Any, other: Any) -> Any:
    """Returns a stream made as large as another."""
    return keras.ops.cast(keras.ops.cast(x, "float32") * (_size(other) / _size(x, LEAST)), x.dtype)


def _spread(whole: _Drawn, x: Any) -> Any:
    """Returns the streams of embeddings, each as large as the first, shape (batch, tokens, streams, width)."""
    found = [x]
    for number in range(1, whole.streams):
        more = whole.dense(x, whole.width, f"stream_{number}_in")
        found.append(_as_large(more, x))
    return keras.ops.stack(found, axis=2)


def _joined(whole: _Drawn, x: Any) -> Any:
    """Returns the mean of the streams, each made as large as the first."""
    found = [x[:, :, 0]]
    for number in range(1, whole.streams):
        more = whole.dense(x[:, :, number], whole.width, f"stream_{number}_out")
        found.append(_as_large(more, found[0]))
    return keras.ops.mean(keras.ops.stack(found, axis=2), axis=2)


def _predicted(block: _Drawn, x: Any, routed: Any) -> Any:
    """Returns the streams as they would be after a block: each a sum of all, weighted by what the active one says."""
    shape = (block.streams, block.streams)
    return x + keras.ops.matmul(block.parted(routed, "btr,rki->btki", shape, "prediction"), x)


def _corrected(block: _Drawn, x: Any, state: Any, routed: Any) -> Any:
    """Returns the predicted streams, each with a part of what the active one was wrong by."""
    part = block.dense(routed, block.streams, "correction") + 1.0
    return x + part[:, :, :, None] * (state - x[:, :, block.active])[:, :, None, :]


def _with_own(block: _Drawn, x: Any, own: Any, scaled: bool) -> Any:
    """Returns the streams, all but the first with what a token's embedding for the block makes of the active one."""
    state = x[:, :, block.active]
    if scaled:
        scale = keras.layers.EinsumDense(
            "btw,w->btw", (None, block.width), kernel_initializer="zeros", name=f"{block.start}own_scale"
        )
        state = scale(state)
    gate = keras.layers.Activation(block.function, name=f"{block.start}own_activation")
    more = gate(block.dense(state, own.shape[-1], "own_gate")) * own
    more = block.norm(block.dense(more, block.width, "own_output"), "own_norm")
    return keras.ops.concatenate([x[:, :, :1], x[:, :, 1:] + more[:, :, None, :]], axis=2)
