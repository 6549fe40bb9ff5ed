"""Encoder blocks and dropout in TensorFlow's own operations. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kft.backbones.fused.block import MASKED, Drop, Settings, Weights


def value(variable: Any, dtype: Any) -> Any:
    """Returns a Keras weight as a tensor of a dtype."""
    return tf.cast(tf.convert_to_tensor(variable.value), dtype)


def concatenate(tensors: list[Any], axis: int) -> Any:
    """Returns tensors side by side."""
    return tf.concat(tensors, axis)


def activation_of(activation: Any) -> Callable[[Any], Any]:
    """Returns TensorFlow's own kernel for an activation that has one, else the activation."""
    known = {keras.activations.relu: tf.nn.relu}
    found: Callable[[Any], Any] = known.get(activation, activation)
    return found


def block(x: Any, padding_mask: Any, w: Weights, settings: Settings, drop: Drop) -> Any:
    """Returns what a KerasHub TransformerEncoder returns, shape (batch, tokens, width)."""
    shape, width = tf.shape(x), x.shape[-1]
    first = settings.normalize_first
    x = tf.reshape(x, (-1, width))
    hidden = _norm(x, w.norm1, settings.epsilon) if first else x
    attended = _attend(hidden, (shape[0], shape[1]), padding_mask, w, settings, drop)
    x = x + _dropped(attended, drop.hidden[0], drop.layers[1])
    x = x if first else _norm(x, w.norm1, settings.epsilon)
    hidden = _norm(x, w.norm2, settings.epsilon) if first else x
    inner = settings.activation(_dense(hidden, w.up, w.up_bias))
    x = x + _dropped(_dense(inner, w.down, w.down_bias), drop.hidden[1], drop.layers[2])
    x = x if first else _norm(x, w.norm2, settings.epsilon)
    return tf.reshape(x, (shape[0], shape[1], width))


def _dense(x: Any, kernel: Any, bias: Any) -> Any:
    return tf.nn.bias_add(tf.matmul(x, kernel), bias)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _standard(x: Any, epsilon: float) -> Any:
    """Returns rows with mean 0 and deviation 1; its own gradient needs a third of the passes of the derived one."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    factor = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    standard = centred * factor

    def gradient(upstream: Any) -> tuple[Any, None]:
        along = tf.reduce_mean(upstream * standard, -1, keepdims=True)
        mean = tf.reduce_mean(upstream, -1, keepdims=True)
        return (upstream - mean - standard * along) * factor, None

    return standard, gradient


def _norm(x: Any, weights: tuple[Any, Any], epsilon: float) -> Any:
    wide = [tf.cast(tensor, tf.float32) for tensor in (x, *weights)]
    return tf.cast(_standard(wide[0], epsilon) * wide[1] + wide[2], x.dtype)


def _attend(x: Any, shape: tuple[Any, Any], padding_mask: Any, w: Weights, settings: Settings, drop: Drop) -> Any:
    heads, width = settings.heads, x.shape[-1]
    qkv = tf.reshape(_dense(x, w.qkv, w.qkv_bias), (*shape, 3, heads, width // heads))
    q, k, v = tf.unstack(tf.transpose(qkv, (2, 0, 3, 1, 4)), 3)
    scores = tf.matmul(q * (width // heads) ** -0.5, k, transpose_b=True)
    if padding_mask is not None:
        bias = tf.where(tf.cast(padding_mask, tf.bool), 0.0, MASKED)
        scores += tf.cast(bias, scores.dtype)[:, None, None, :]
    weights = _dropped(tf.nn.softmax(scores), drop.attention, drop.layers[0])
    out = tf.transpose(tf.matmul(weights, v), (0, 2, 1, 3))
    return _dense(tf.reshape(out, (-1, width)), w.out, w.out_bias)


def dropout_of(layer: Any) -> Callable[..., Any]:
    """Returns a replacement for the `call` of a Keras Dropout layer."""
    plain = layer.call

    def call(inputs: Any, training: bool = False) -> Any:
        if not training or not layer.rate or layer.noise_shape is not None:
            return plain(inputs, training=training)
        return _dropped(inputs, layer.rate, layer)

    return call


STEPS = 256


def _dropped(x: Any, rate: float, layer: Any) -> Any:
    """Drops by one random byte a number instead of four; the rate is a multiple of 1/256."""
    if not rate:
        return x
    below = min(max(round(rate * STEPS), 1), STEPS - 1)
    seed = tf.cast(tf.convert_to_tensor(layer.seed_generator.next()), tf.int32)
    count = tf.size(x)
    drawn = tf.random.stateless_uniform(((count + 3) // 4,), seed, None, None, tf.int32)
    drawn = tf.reshape(tf.reshape(tf.bitcast(drawn, tf.uint8), (-1,))[:count], tf.shape(x))
    kept = tf.cast(drawn >= tf.constant(below, tf.uint8), x.dtype)
    return x * kept * tf.cast(STEPS / (STEPS - below), x.dtype)
