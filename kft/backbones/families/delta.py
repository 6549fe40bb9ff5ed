"""The gated delta rule (Yang et al. 2024, https://arxiv.org/abs/2412.06464), drawn for a whole text at once.

A token's value is written into a memory at its key; before that the memory fades and forgets part of what it had at that key.
What is read at a query is, written out, a sum over all tokens up to there of what each has written, and what each has
written solves a triangular system. No loop over tokens or chunks is left, so that texts of any length share one graph; the
cost grows with the square of the length, as that of attention does. Import after `backend.activate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kft.backbones.families import drawn

EPSILON = 1e-6  # below queries' and keys' lengths, whatever config.json says of norms


@dataclass(frozen=True)
class Measures:
    """The measures of linear attention.

    Attributes:
        key_heads: heads of queries and keys.
        value_heads: heads of values, a multiple of these.
        key_dim: width of a head of queries and keys.
        value_dim: width of a head of values.
        reach: tokens that the convolution sees, the last of them the token itself.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    reach: int


def attention(x: Any, mask: Any, places: Any, start: str, sizes: Measures, activation: Any, epsilon: float) -> Any:
    """Returns what linear attention gives, after its last dense layer.

    Args:
        x: hidden states, shape (batch, tokens, width).
        mask: 0 where a token is padding, which neither reads nor writes, shape (batch, tokens).
        places: of the tokens, shape (1, tokens).
        start: of its layers' names.
        sizes: its measures.
        activation: of queries, keys and values.
        epsilon: of the normalization of what is read.
    """
    layers, width, heads = keras.layers, x.shape[-1], sizes.value_heads
    x = x * keras.ops.cast(mask, x.dtype)[:, :, None]

    def dense(units: int, part: str, *, bias: bool = False) -> Any:
        begin = keras.initializers.Ones() if bias else None
        name = f"{start}_attention_{part}"
        return layers.Dense(units, use_bias=bias, kernel_initializer=drawn.normal(), bias_initializer=begin, name=name)

    keys, values = sizes.key_heads * sizes.key_dim, heads * sizes.value_dim
    mixed = _convolved(dense(2 * keys + values, "mixed")(x), places, start, sizes.reach)
    mixed = layers.Activation(activation, name=f"{start}_attention_activation")(mixed)
    query, key = (
        _of_length_one(layers.Reshape((-1, sizes.key_heads, sizes.key_dim), name=f"{start}_attention_{part}")(some))
        for part, some in (("query", mixed[:, :, :keys]), ("key", mixed[:, :, keys : 2 * keys]))
    )
    value = layers.Reshape((-1, heads, sizes.value_dim), name=f"{start}_attention_value")(mixed[:, :, 2 * keys :])
    rate = keras.ops.sigmoid(dense(heads, "rate")(x))
    # A weight for each head; the layer is given a one, and keeps its precision.
    one = keras.ops.cast(keras.ops.ones_like(places[:, :1]), "float32")[:, :, None]
    speed = layers.EinsumDense(
        "bti,h->bth", (None, heads), kernel_initializer="zeros", dtype="float32", name=f"{start}_attention_speed"
    )(one)
    step = keras.ops.cast(dense(heads, "step", bias=True)(x), "float32")
    decay = -keras.ops.exp(speed) * keras.ops.softplus(step)
    found = keras.ops.cast(rule(query * sizes.key_dim**-0.5, key, value, rate, decay, places), x.dtype)
    found = layers.RMSNormalization(epsilon=epsilon, name=f"{start}_attention_read_norm")(found)
    gate = layers.EinsumDense(
        "btw,whd->bthd",
        (None, heads, sizes.value_dim),
        kernel_initializer=drawn.normal(),
        activation="silu",
        name=f"{start}_attention_gate",
    )(x)
    return layers.EinsumDense(
        "bthd,hdw->btw", (None, width), kernel_initializer=drawn.normal(), name=f"{start}_attention_output"
    )(layers.Multiply(name=f"{start}_attention_gated")([found, gate]))


def rule(query: Any, key: Any, value: Any, rate: Any, decay: Any, places: Any) -> Any:
    """Returns what each token reads, in single precision, shape (batch, tokens, heads of values, width).

    Args:
        query: shape (batch, tokens, heads, width); each head serves as many heads of values as follow one another.
        key: of the same shape, each of length 1.
        value: shape (batch, tokens, heads of values, width).
        rate: how much of what is at its key a token replaces, shape (batch, tokens, heads of values).
        decay: the logarithm of what is left of the memory when a token comes, of the same shape.
        places: of the tokens, shape (1, tokens).
    """
    ops, times = keras.ops, value.shape[2] // key.shape[2]
    query, key, value, rate, decay = (ops.cast(one, "float32") for one in (query, key, value, rate, decay))
    before = places[:, None, :, None] > places[:, None, None, :]
    itself = ops.equal(places[:, None, :, None], places[:, None, None, :])
    rate, decay = (ops.transpose(one, (0, 2, 1))[:, :, :, None] for one in (rate, decay))
    # The sum of all decays after one token up to another; a difference of two sums from the beginning would lose digits.
    left = ops.exp(ops.cumsum(ops.where(before, decay, 0.0), axis=2))
    met = ops.repeat(ops.einsum("bikd,bjkd->bkij", key, key), times, axis=1) * left
    read = ops.repeat(ops.einsum("bikd,bjkd->bkij", query, key), times, axis=1) * left
    system = ops.where(before, rate * met, ops.cast(itself, "float32"))
    written = ops.solve_triangular(system, rate * ops.transpose(value, (0, 2, 1, 3)), lower=True)
    read = ops.where(ops.logical_or(before, itself), read, 0.0)
    return ops.einsum("bhij,bhjd->bihd", read, written)


def _convolved(x: Any, places: Any, start: str, reach: int) -> Any:
    """Returns a weighted sum of each token and those just before it, with weights of each channel's own.

    Keras' own layer for this takes many times as long on JAX and a CPU.
    """
    layers, ops = keras.layers, keras.ops
    numbers = ops.zeros_like(places[:, :1]) + np.arange(reach, dtype=np.int32)
    weights = layers.Embedding(
        reach, x.shape[-1], embeddings_initializer=drawn.normal(), name=f"{start}_attention_near"
    )(numbers)
    padded = layers.ZeroPadding1D((reach - 1, 0), name=f"{start}_attention_padded")(x)
    found = x * weights[:, reach - 1 :]
    for number in range(reach - 1):
        found = found + padded[:, number : number + 1 - reach] * weights[:, number : number + 1]
    return found


def _of_length_one(x: Any) -> Any:
    x = keras.ops.cast(x, "float32")
    return x * keras.ops.rsqrt(keras.ops.sum(x * x, axis=-1, keepdims=True) + EPSILON)
