"""Encoder blocks and dropout in jax's own operations, for XLA to fuse. Import after `backend.activate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from kft.backbones.fused.block import MASKED, Drop, Settings, Weights


def value(variable: Any, dtype: Any) -> Any:
    """Returns a Keras weight as an array of a dtype."""
    return jnp.asarray(variable.value, dtype)


def concatenate(arrays: list[Any], axis: int) -> Any:
    """Returns arrays side by side."""
    return jnp.concatenate(arrays, axis)


def activation_of(activation: Any) -> Callable[[Any], Any]:
    """Returns the activation, which XLA fuses; the exact GELU by erf, which it computes faster than Keras' erfc."""
    found: Callable[[Any], Any] = {keras.activations.gelu: _gelu}.get(activation, activation)
    return found


def _gelu(x: Any) -> Any:
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def block(x: Any, padding_mask: Any, w: Weights, settings: Settings, drop: Drop) -> Any:
    """Returns what a KerasHub TransformerEncoder returns, shape (batch, tokens, width)."""
    batch, tokens, width = x.shape
    first = settings.normalize_first
    x = x.reshape(-1, width)
    hidden = _norm(x, w.norm1, settings.epsilon) if first else x
    attended = _attend(hidden, (batch, tokens), padding_mask, w, settings, drop)
    x = x + _dropped(attended, drop.hidden[0], drop.layers[1])
    x = x if first else _norm(x, w.norm1, settings.epsilon)
    hidden = _norm(x, w.norm2, settings.epsilon) if first else x
    inner = _activated(hidden @ w.up + w.up_bias, settings.activation)
    x = x + _dropped(inner @ w.down + w.down_bias, drop.hidden[1], drop.layers[2])
    x = x if first else _norm(x, w.norm2, settings.epsilon)
    return x.reshape(batch, tokens, width)


def _activated(x: Any, activation: Callable[[Any], Any]) -> Any:
    """Its gradient computes the activation again instead of keeping all that comes between."""
    return jax.checkpoint(activation)(x)


def _norm(x: Any, weights: tuple[Any, Any], epsilon: float) -> Any:
    gamma, beta = weights
    return (_standard(x.astype(jnp.float32), epsilon) * gamma + beta).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standard(x: Any, epsilon: float) -> Any:
    """Returns rows with mean 0 and deviation 1."""
    return _standard_forward(x, epsilon)[0]


def _standard_forward(x: Any, epsilon: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    standard = centred * factor
    return standard, (standard, factor)


def _standard_backward(epsilon: float, kept: Any, upstream: Any) -> Any:
    standard, factor = kept
    along = (upstream * standard).mean(-1, keepdims=True)
    return ((upstream - upstream.mean(-1, keepdims=True) - standard * along) * factor,)


_standard.defvjp(_standard_forward, _standard_backward)


def _attend(x: Any, shape: tuple[int, int], padding_mask: Any, w: Weights, settings: Settings, drop: Drop) -> Any:
    qkv = (x @ w.qkv + w.qkv_bias).reshape(*shape, 3, settings.heads, -1).transpose(2, 0, 3, 1, 4)
    bias = jnp.zeros(())
    if padding_mask is not None:
        bias = jnp.where(padding_mask.astype(bool), 0.0, MASKED)[:, None, None, :].astype(x.dtype)
    keys = _keys(drop.layers[0]) if drop.attention else None
    out = _attention(qkv[0], qkv[1], qkv[2], bias, keys, drop.attention)
    return out.transpose(0, 2, 1, 3).reshape(x.shape) @ w.out + w.out_bias


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q: Any, k: Any, v: Any, bias: Any, keys: Any, rate: float) -> Any:
    """Softmax attention with dropout on its weights; keeps the weights, and draws the mask again."""
    return _attention_forward(q, k, v, bias, keys, rate)[0]


def _attention_forward(q: Any, k: Any, v: Any, bias: Any, keys: Any, rate: float) -> Any:
    scores = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k)
    weights = jax.nn.softmax(scores + bias, axis=-1)
    out = jnp.einsum("bhts,bhsd->bhtd", _masked(weights, keys, rate), v)
    return out, (q, k, v, weights, keys)


def _attention_backward(rate: float, kept: Any, upstream: Any) -> Any:
    q, k, v, weights, keys = kept
    scale = q.shape[-1] ** -0.5
    of_v = jnp.einsum("bhts,bhtd->bhsd", _masked(weights, keys, rate), upstream)
    of_weights = _masked(jnp.einsum("bhtd,bhsd->bhts", upstream, v), keys, rate)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True)) * scale
    of_q = jnp.einsum("bhts,bhsd->bhtd", of_scores, k)
    of_k = jnp.einsum("bhts,bhtd->bhsd", of_scores, q)
    return of_q, of_k, of_v, None, None


_attention.defvjp(_attention_forward, _attention_backward)


def dropout_of(layer: Any) -> Callable[..., Any]:
    """Returns a replacement for the `call` of a Keras Dropout layer."""
    plain = layer.call

    def call(inputs: Any, training: bool = False) -> Any:
        if not training or not layer.rate or layer.noise_shape is not None:
            return plain(inputs, training=training)
        return _dropped(inputs, layer.rate, layer)

    return call


def _dropped(x: Any, rate: float, layer: Any) -> Any:
    return _drop(x, _keys(layer), rate) if rate else x


def _keys(layer: Any) -> Any:
    """Returns two numbers that decide a mask, shape (2,), from a layer's seed generator."""
    seed = jnp.asarray(layer.seed_generator.next(), jnp.uint32)
    return _mixed(jnp.stack([_mixed(seed[0]) ^ seed[1], _mixed(seed[1] ^ jnp.uint32(0x9E3779B9)) + seed[0]]))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _drop(x: Any, keys: Any, rate: float) -> Any:
    """Keeps no mask for the gradient, and draws it again."""
    return _masked(x, keys, rate)


_drop.defvjp(
    lambda x, keys, rate: (_masked(x, keys, rate), keys),
    lambda rate, keys, upstream: (_masked(upstream, keys, rate), None),
)


def _masked(x: Any, keys: Any, rate: float) -> Any:
    """Drops by a hash of place and keys: threefry takes as long as the matrix products beside it on a CPU."""
    if not rate:
        return x
    place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    drawn = _mixed(_mixed(place ^ keys[0]) ^ keys[1])
    kept = drawn >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(kept, x * jnp.asarray(1 / (1 - rate), x.dtype), jnp.zeros((), x.dtype))


def _mixed(x: Any) -> Any:
    """Spreads each bit over all 32, a permutation of 32-bit integers.

    Source: the constants of `lowbias32`, C. Wellons, Prospecting for Hash Functions (2018).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
