"""EfficientNet and EfficientNet-Lite as TensorFlow pads them, which KerasHub does not have. Import after `backend.activate`.

M. Tan and Q. Le, arXiv:1905.11946; Lite leaves out squeeze-and-excitation, takes ReLU6, and does not scale the first and the
last layers (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras

from kft.backbones.places import Place
from kft.backbones.vision.measures import Block, EfficientNet, blocks

EPSILON, MOMENTUM = 1e-3, 0.99
CONVOLUTION, DEPTHWISE = (2, 3, 1, 0), (2, 3, 0, 1)  # torch's axes in Keras' order


def build(shape: EfficientNet, dropout: float = 0.0) -> Any:
    """Builds a backbone from scaled images to features.

    Args:
        shape: its measures.
        dropout: rate at which the last block is left out of an example; it falls towards the first.

    Returns:
        A `keras.Model` from float32 images of shape (batch, height, width, 3) to features, (batch, height / 32, width / 32,
        channels).
    """
    images = keras.Input((None, None, 3), name="images")
    activation = "relu6" if shape.lite else "silu"
    x = keras.layers.Conv2D(shape.stem, 3, 2, "same", use_bias=False, name="stem_conv")(images)
    x = _activated(_norm(x, "stem_norm"), activation, "stem_activation")
    found = blocks(shape)
    for number, block in enumerate(found):
        x = _block(x, block, f"block_{number}", activation, dropout * number / len(found))
    x = keras.layers.Conv2D(shape.top, 1, padding="same", use_bias=False, name="top_conv")(x)
    x = _activated(_norm(x, "top_norm"), activation, "top_activation")
    return keras.Model(images, x, name="efficientnet_lite" if shape.lite else "efficientnet")


def _block(inputs: Any, block: Block, name: str, activation: str, dropout: float) -> Any:
    x, layers = inputs, keras.layers
    if block.expanded != block.inputs:
        x = layers.Conv2D(block.expanded, 1, padding="same", use_bias=False, name=f"{name}_expand_conv")(x)
        x = _activated(_norm(x, f"{name}_expand_norm"), activation, f"{name}_expand_activation")
    x = layers.DepthwiseConv2D(block.kernel, block.stride, "same", use_bias=False, name=f"{name}_depthwise_conv")(x)
    x = _activated(_norm(x, f"{name}_depthwise_norm"), activation, f"{name}_depthwise_activation")
    if block.squeezed:
        gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
        gate = layers.Conv2D(block.squeezed, 1, activation=activation, name=f"{name}_squeeze_reduce")(gate)
        gate = layers.Conv2D(block.expanded, 1, activation="sigmoid", name=f"{name}_squeeze_expand")(gate)
        x = layers.Multiply(name=f"{name}_excite")([x, gate])
    x = layers.Conv2D(block.outputs, 1, padding="same", use_bias=False, name=f"{name}_project_conv")(x)
    x = _norm(x, f"{name}_project_norm")
    if block.stride != 1 or block.inputs != block.outputs:
        return x
    if dropout:
        x = layers.Dropout(dropout, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
    return layers.Add(name=f"{name}_add")([x, inputs])


def _norm(x: Any, name: str) -> Any:
    return keras.layers.BatchNormalization(epsilon=EPSILON, momentum=MOMENTUM, name=name)(x)


def _activated(x: Any, activation: str, name: str) -> Any:
    return keras.layers.Activation(activation, name=name)(x)


def places(model: Any, shape: EfficientNet) -> Iterator[Place]:
    """Gives every weight of a backbone with the name that timm has for it.

    Args:
        model: what `build` made of `shape`.
        shape: its measures.
    """
    layer = model.get_layer
    yield from _convolved(layer, "stem_conv", "stem_norm", "conv_stem", "bn1")
    for number, block in enumerate(blocks(shape)):
        own, theirs, norm = f"block_{number}", f"blocks.{block.stage}.{block.place}", 1
        expands = block.expanded != block.inputs
        if expands:
            yield from _convolved(
                layer, f"{own}_expand_conv", f"{own}_expand_norm", f"{theirs}.conv_pw", f"{theirs}.bn1"
            )
            norm = 2
        depthwise = layer(f"{own}_depthwise_conv").kernel
        yield Place(depthwise, f"{theirs}.conv_dw.weight", axes=DEPTHWISE)
        yield from normalized(layer(f"{own}_depthwise_norm"), f"{theirs}.bn{norm}")
        if block.squeezed:
            for part in ("reduce", "expand"):
                gate = layer(f"{own}_squeeze_{part}")
                yield Place(gate.kernel, f"{theirs}.se.conv_{part}.weight", axes=CONVOLUTION)
                yield Place(gate.bias, f"{theirs}.se.conv_{part}.bias")
        last = f"{theirs}.conv_pwl" if expands else f"{theirs}.conv_pw"
        yield from _convolved(layer, f"{own}_project_conv", f"{own}_project_norm", last, f"{theirs}.bn{norm + 1}")
    yield from _convolved(layer, "top_conv", "top_norm", "conv_head", "bn2")


def _convolved(layer: Callable[[str], Any], own: str, own_norm: str, theirs: str, their_norm: str) -> Iterator[Place]:
    yield Place(layer(own).kernel, f"{theirs}.weight", axes=CONVOLUTION)
    yield from normalized(layer(own_norm), their_norm)


def normalized(layer: Any, name: str) -> Iterator[Place]:
    """Gives the weights of a batch normalization."""
    yield Place(layer.gamma, f"{name}.weight")
    yield Place(layer.beta, f"{name}.bias")
    yield Place(layer.moving_mean, f"{name}.running_mean")
    yield Place(layer.moving_variance, f"{name}.running_var")
