"""Encoder blocks and dropout in jax's own operations, for XLA to fuse. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kft.backbones.fused.block import MASKED, Drop, Settings, Weights


def value(variable: Any, dtype: Any) -> Any:
    """Returns a Keras weight as an array of a dtype."""
    return jnp.asarray(variable.value, dtype)


def concatenate(arrays: list[Any], axis: int) -> Any:
    """Returns arrays side by side."""
    return jnp.concatenate(arrays, axis)


def activation_of(activation: Any) -> Callable[[Any], Any]:
    """Returns the activation; XLA fuses Keras' own."""
    found: Callable[[Any], Any] = activation
    return found


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
    inner = settings.activation(hidden @ w.up + w.up_bias)
    x = x + _dropped(inner @ w.down + w.down_bias, drop.hidden[1], drop.layers[2])
    x = x if first else _norm(x, w.norm2, settings.epsilon)
    return x.reshape(batch, tokens, width)


def _norm(x: Any, weights: tuple[Any, Any], epsilon: float) -> Any:
    gamma, beta = weights
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon) * gamma + beta).astype(x.dtype)


def _attend(x: Any, shape: tuple[int, int], padding_mask: Any, w: Weights, settings: Settings, drop: Drop) -> Any:
    qkv = (x @ w.qkv + w.qkv_bias).reshape(*shape, 3, settings.heads, -1).transpose(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    scores = jnp.einsum("bhtd,bhsd->bhts", q * q.shape[-1] ** -0.5, k)
    if padding_mask is not None:
        scores = scores + jnp.where(padding_mask.astype(bool), 0.0, MASKED)[:, None, None, :].astype(scores.dtype)
    weights = _dropped(jax.nn.softmax(scores, axis=-1), drop.attention, drop.layers[0])
    out = jnp.einsum("bhts,bhsd->bthd", weights, v)
    return out.reshape(x.shape) @ w.out + w.out_bias


def dropout_of(layer: Any) -> Callable[..., Any]:
    """Returns a replacement for the `call` of a Keras Dropout layer."""
    plain = layer.call

    def call(inputs: Any, training: bool = False) -> Any:
        if not training or not layer.rate or layer.noise_shape is not None:
            return plain(inputs, training=training)
        return _dropped(inputs, layer.rate, layer)

    return call


def _dropped(x: Any, rate: float, layer: Any) -> Any:
    """Drops by a hash of place and seed: threefry takes as long as the matrix products beside it on a CPU."""
    if not rate:
        return x
    seed = jnp.asarray(layer.seed_generator.next(), jnp.uint32)
    keys = _mixed(jnp.stack([_mixed(seed[0]) ^ seed[1], _mixed(seed[1] ^ jnp.uint32(0x9E3779B9)) + seed[0]]))
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
