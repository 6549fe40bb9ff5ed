"""What an encoder block consists of, and when the fast way computes the same. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras

MASKED = -1e9  # added to the scores of padding before the softmax


class Weights(NamedTuple):
    """The tensors of one encoder block, in the block's compute dtype.

    Attributes:
        qkv: kernels of query, key and value side by side, shape (width, 3 * width).
        qkv_bias: shape (3 * width,).
        out: kernel after attention, shape (width, width).
        out_bias: shape (width,).
        up: first dense kernel, shape (width, inner).
        up_bias: shape (inner,).
        down: second dense kernel, shape (inner, width).
        down_bias: shape (width,).
        norm1: scale and shift of the normalization beside attention, each (width,).
        norm2: scale and shift of the other one.
    """

    qkv: Any
    qkv_bias: Any
    out: Any
    out_bias: Any
    up: Any
    up_bias: Any
    down: Any
    down_bias: Any
    norm1: tuple[Any, Any]
    norm2: tuple[Any, Any]


class Settings(NamedTuple):
    """What does not change from step to step.

    Attributes:
        heads: number of attention heads.
        epsilon: of both normalizations.
        activation: between the two dense layers.
        normalize_first: whether normalization stands before attention and dense layers, not after.
    """

    heads: int
    epsilon: float
    activation: Callable[[Any], Any]
    normalize_first: bool


class Drop(NamedTuple):
    """Dropout in a block: a rate of 0 means none.

    Attributes:
        attention: rate on attention's weights.
        hidden: rate after attention and after the dense layers, each.
        layers: Keras' dropout layers, whose seed generators jax and tensorflow draw from: attention, first, second.
    """

    attention: float
    hidden: tuple[float, float]
    layers: tuple[Any, Any, Any]


def call_of(layer: Any, backend: Any) -> Callable[..., Any]:
    """Returns a replacement for the `call` of a KerasHub TransformerEncoder.

    Args:
        layer: the built layer.
        backend: the module of the active backend, with `block`.
    """
    plain = layer.call
    # Known activations have a kernel of their own; Keras' names are looked up once.
    settings = Settings(
        layer.num_heads, layer.layer_norm_epsilon, backend.activation_of(layer.activation), layer.normalize_first
    )
    attention = layer._self_attention_layer
    layers = (attention._dropout_layer, layer._self_attention_dropout, layer._feedforward_dropout)

    def call(
        inputs: Any,
        padding_mask: Any = None,
        attention_mask: Any = None,
        training: Any = None,
        return_attention_scores: bool = False,
    ) -> Any:
        implied = getattr(inputs, "_keras_mask", None)
        if attention_mask is not None or return_attention_scores or implied is not None:
            return plain(inputs, padding_mask, attention_mask, training, return_attention_scores)
        rates = [float(one.rate) if training else 0.0 for one in layers]
        drop = Drop(rates[0], (rates[1], rates[2]), layers)
        return backend.block(inputs, padding_mask, _weights(layer, attention, backend, inputs.dtype), settings, drop)

    return call


def _weights(layer: Any, attention: Any, backend: Any, dtype: Any) -> Weights:
    def value(variable: Any) -> Any:
        return backend.value(variable, dtype)

    width = layer._feedforward_output_dense.kernel.shape[-1]
    parts = (attention._query_dense, attention._key_dense, attention._value_dense)
    kernels = [keras.ops.reshape(value(part.kernel), (width, -1)) for part in parts]
    biases = [keras.ops.reshape(value(part.bias), (-1,)) for part in parts]
    norms = (layer._self_attention_layer_norm, layer._feedforward_layer_norm)
    up, down, out = layer._feedforward_intermediate_dense, layer._feedforward_output_dense, attention._output_dense
    return Weights(
        backend.concatenate(kernels, 1),
        backend.concatenate(biases, 0),
        keras.ops.reshape(value(out.kernel), (-1, width)),
        value(out.bias),
        value(up.kernel),
        value(up.bias),
        value(down.kernel),
        value(down.bias),
        *((value(norm.gamma), value(norm.beta)) for norm in norms),
    )
