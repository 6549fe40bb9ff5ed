"""Encoder blocks and dropout in TensorFlow's own operations. Import after `backend.activate`."""

from __future__ import annotations

import math
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
    approximate = keras.saving.get_registered_object("keras_hub>gelu_approximate")
    known = {keras.activations.relu: tf.nn.relu, keras.activations.gelu: _gelu, approximate: _gelu_tanh}
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
    inner = _down(_dense(hidden, w.up, w.up_bias), w, settings.activation)
    x = x + _dropped(inner, drop.hidden[1], drop.layers[2])
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
    bias = tf.zeros((), x.dtype)
    if padding_mask is not None:
        bias = tf.where(tf.cast(padding_mask, tf.bool), 0.0, MASKED)[:, None, None, :]
    out = _attention(q, k, v, tf.cast(bias, x.dtype), drop.attention, drop.layers[0])
    return _dense(tf.reshape(tf.transpose(out, (0, 2, 1, 3)), (-1, width)), w.out, w.out_bias)


def _attention(q: Any, k: Any, v: Any, bias: Any, rate: float, layer: Any) -> Any:
    """Softmax attention with dropout on its weights; keeps the weights and a byte each for the gradient."""
    batch, heads, tokens, _ = tf.unstack(tf.shape(q))
    drawn = _drawn((batch, heads, tokens, tokens), layer) if rate else None

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def attention(q: Any, k: Any, v: Any) -> Any:
        scale = q.shape[-1] ** -0.5
        weights = tf.nn.softmax(tf.matmul(q * scale, k, transpose_b=True) + bias)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            with tf.control_dependencies([upstream]):
                dropped = _masked(weights, drawn, rate)
            of_v = tf.matmul(dropped, upstream, transpose_a=True)
            of_weights = _masked(tf.matmul(upstream, v, transpose_b=True), drawn, rate)
            along = tf.reduce_sum(of_weights * weights, -1, keepdims=True)
            of_scores = (of_weights - along) * weights
            return tf.matmul(of_scores, k) * scale, tf.matmul(of_scores, q, transpose_a=True) * scale, of_v

        return tf.matmul(_masked(weights, drawn, rate), v), gradient

    return attention(q, k, v)


# sqrt(2 / pi) and the cube's share in GELU's tanh form, D. Hendrycks and K. Gimpel, arXiv:1606.08415.
ROOT = math.sqrt(2 / math.pi)
CUBE = 0.044715 * ROOT


def _gelu_tanh(x: Any) -> Any:
    return tf.nn.gelu(x, approximate=True)


def _gelu(x: Any) -> Any:
    return tf.nn.gelu(x, approximate=False)


def _gelu_tanh_parts(x: Any) -> tuple[Any, Any]:
    """Returns what x is multiplied with, and the slope."""
    square = tf.square(x)
    tanh = tf.tanh(x * (ROOT + CUBE * square))
    share = 0.5 * (1 + tanh)
    return share, share + 0.5 * x * (ROOT + 3 * CUBE * square) * (1 - tf.square(tanh))


def _gelu_parts(x: Any) -> tuple[Any, Any]:
    share = 0.5 * (1 + tf.math.erf(x * math.sqrt(0.5)))
    return share, share + x * tf.exp(-0.5 * tf.square(x)) * math.sqrt(0.5 / math.pi)


PARTS = {_gelu_tanh: _gelu_tanh_parts, _gelu: _gelu_parts}


def _down(x: Any, w: Weights, activation: Callable[[Any], Any]) -> Any:
    """Returns the second dense layer of the activation of x; of GELU only x is kept for the gradient.

    The derived gradient keeps eight arrays of its size, the widest of a block.
    """
    if activation not in PARTS:
        return _dense(activation(x), w.down, w.down_bias)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def down(x: Any, kernel: Any, bias: Any) -> Any:
        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            # Else they would be computed as soon as x is there, and kept as long as the derived gradient keeps its arrays.
            with tf.control_dependencies([upstream]):
                share, slope = PARTS[activation](x)
            of_kernel = tf.matmul(x * share, upstream, transpose_a=True)
            return tf.matmul(upstream, kernel, transpose_b=True) * slope, of_kernel, tf.reduce_sum(upstream, 0)

        return _dense(activation(x), kernel, bias), gradient

    return down(x, w.down, w.down_bias)


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
    if not rate:
        return x
    drawn = _drawn(tf.shape(x), layer)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def drop(x: Any) -> Any:
        return _masked(x, drawn, rate), lambda upstream: _masked(upstream, drawn, rate)

    return drop(x)


def _drawn(shape: Any, layer: Any) -> Any:
    """Returns random bytes: a fourth of what one number each would cost."""
    seed = tf.cast(tf.convert_to_tensor(layer.seed_generator.next()), tf.int32)
    count = tf.reduce_prod(shape)
    drawn = tf.random.stateless_uniform(((count + 3) // 4,), seed, None, None, tf.int32)
    return tf.reshape(tf.reshape(tf.bitcast(drawn, tf.uint8), (-1,))[:count], shape)


def _masked(x: Any, drawn: Any, rate: float) -> Any:
    """Drops where a byte is low; the rate is a multiple of 1/256."""
    if not rate:
        return x
    below = min(max(round(rate * STEPS), 1), STEPS - 1)
    kept = tf.cast(drawn >= tf.constant(below, tf.uint8), x.dtype)
    return x * kept * tf.cast(STEPS / (STEPS - below), x.dtype)
