"""ConvNeXt and ConvNeXt V2 as timm names them. Import after `backend.activate`.

Z. Liu et al., arXiv:2201.03545; S. Woo et al., arXiv:2301.00808.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kft.backbones.families.family import norm
from kft.backbones.places import Place

KERNEL, EXPANSION, SCALE = 7, 4, 1e-6
CONVOLUTION, DEPTHWISE = (2, 3, 1, 0), (2, 3, 0, 1)  # torch's axes in Keras' order


@dataclass(frozen=True)
class ConvNeXt:
    """The measures of a network.

    Attributes:
        depths: blocks in each of the four stages.
        width: channels of the first stage; each further one has twice as many.
        epsilon: of the normalizations.
        second: whether it is of version 2, which has a response normalization in its blocks and no scale at their end.
        first_normed: whether features are normalized before their mean is taken, not after.
        hidden: width of a dense layer between the features and the head, 0 for none.
    """

    depths: tuple[int, int, int, int]
    width: int
    epsilon: float = 1e-6
    second: bool = False
    first_normed: bool = False
    hidden: int = 0

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Stage and place of each block, lowest first."""
        return [(stage, place) for stage, depth in enumerate(self.depths) for place in range(depth)]


SHALLOW, MIDDLE, DEEP = (2, 2, 6, 2), (3, 3, 9, 3), (3, 3, 27, 3)
# Depths and width: section 3 of either paper; atto to nano of the first version are timm's own.
MEASURES: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "atto": (SHALLOW, 40),
    "femto": (SHALLOW, 48),
    "pico": (SHALLOW, 64),
    "nano": ((2, 2, 8, 2), 80),
    "tiny": (MIDDLE, 96),
    "small": (DEEP, 96),
    "base": (DEEP, 128),
    "large": (DEEP, 192),
}
VARIANTS = {
    **{f"convnext_{size}": ConvNeXt(*measures) for size, measures in MEASURES.items()},
    "convnext_tiny_hnf": ConvNeXt(MIDDLE, 96, first_normed=True),
    "convnext_large_mlp": ConvNeXt(DEEP, 192, hidden=1536),
    "convnext_xlarge": ConvNeXt(DEEP, 256),
    "convnext_xxlarge": ConvNeXt((3, 4, 30, 3), 384, epsilon=1e-5),
    **{f"convnextv2_{size}": ConvNeXt(*measures, second=True) for size, measures in MEASURES.items()},
    "convnextv2_huge": ConvNeXt(DEEP, 352, second=True),
}


def build(shape: ConvNeXt, channels: int = 3, dropout: float = 0.0) -> Any:
    """Builds a backbone from scaled images to features.

    Args:
        shape: its measures.
        channels: of the images.
        dropout: rate at which the last block is left out of an example; it falls to 0 at the first.

    Returns:
        A `keras.Model` from float32 images of shape (batch, height, width, channels) to features of shape (batch, width):
        their mean is taken, and then normalized. Where the norm comes first, (batch, height / 32, width / 32, width).
    """
    layers = keras.layers
    images = keras.Input((None, None, channels), name="images")
    x = _convolution(shape.width, 4, "stem_conv")(images)
    x = _norm(shape, "stem_norm")(x)
    for number, (stage, place) in enumerate(shape.blocks):
        width = shape.width * 2**stage
        if stage and not place:
            x = _norm(shape, f"downsample_{stage}_norm")(x)
            x = _convolution(width, 2, f"downsample_{stage}_conv")(x)
        x = _block(x, shape, width, f"block_{number}", dropout * number / (len(shape.blocks) - 1))
    if not shape.first_normed:
        x = layers.GlobalAveragePooling2D(name="mean_of_features")(x)
    x = _norm(shape, "head_norm")(x)
    if shape.hidden:
        x = _dense(shape.hidden, "head_hidden", "gelu")(x)
    return keras.Model(images, x, name="convnext_v2" if shape.second else "convnext")


def _block(inputs: Any, shape: ConvNeXt, width: int, name: str, dropout: float) -> Any:
    layers, normal = keras.layers, keras.initializers.TruncatedNormal(stddev=0.02)
    x = layers.DepthwiseConv2D(KERNEL, padding="same", depthwise_initializer=normal, name=f"{name}_depthwise")(inputs)
    x = _norm(shape, f"{name}_norm")(x)
    x = _dense(EXPANSION * width, f"{name}_up", "gelu")(x)
    if shape.second:
        x = _responded(x, f"{name}_response")
    x = _dense(width, f"{name}_down")(x)
    if not shape.second:
        x = x * of_channels(x, f"{name}_scale", keras.initializers.Constant(SCALE))
    if dropout:
        x = layers.Dropout(dropout, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
    return layers.Add(name=f"{name}_add")([x, inputs])


def _responded(x: Any, name: str) -> Any:
    """Global response normalization, section 3.2 of arXiv:2301.00808."""
    ops = keras.ops
    # Half precision has neither such sums nor such small numbers. A channel that is zero everywhere would have no gradient.
    squares = ops.sum(ops.square(ops.cast(x, "float32")), axis=(1, 2), keepdims=True)
    response = ops.sqrt(ops.maximum(squares, 1e-24))
    share = ops.cast(response / (ops.mean(response, axis=-1, keepdims=True) + 1e-6), x.dtype)
    return x + (x * share * of_channels(x, f"{name}_factor", "zeros") + of_channels(x, f"{name}_offset", "zeros"))


def of_channels(x: Any, name: str, initializer: Any) -> Any:
    """Returns a trained number for each channel, shape (batch, 1, 1, width), which Keras has no layer of its own for.

    It is multiplied with ones, one an example: TensorFlow's einsum over all the features takes a hundred times as long.
    """
    ones = keras.ops.ones_like(x[:, 0, 0, 0])
    layer = keras.layers.EinsumDense("a,c->ac", x.shape[-1], kernel_initializer=initializer, name=name)
    return layer(ones)[:, None, None, :]


def _norm(shape: ConvNeXt, name: str) -> Any:
    return keras.layers.LayerNormalization(epsilon=shape.epsilon, name=name)


def _convolution(width: int, size: int, name: str) -> Any:
    normal = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Conv2D(width, size, size, kernel_initializer=normal, name=name)


def _dense(width: int, name: str, activation: str | None = None) -> Any:
    normal = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(width, activation=activation, kernel_initializer=normal, name=name)


def places(model: Any, shape: ConvNeXt) -> Iterator[Place]:
    """Gives every weight of a backbone with the name that timm has for it.

    Args:
        model: what `build` made of `shape`.
        shape: its measures.
    """
    layer = model.get_layer
    yield from _convolved(layer("stem_conv"), "stem.0")
    yield from norm(layer("stem_norm"), "stem.1")
    for stage in range(1, len(shape.depths)):
        yield from norm(layer(f"downsample_{stage}_norm"), f"stages.{stage}.downsample.0")
        yield from _convolved(layer(f"downsample_{stage}_conv"), f"stages.{stage}.downsample.1")
    for number, (stage, place) in enumerate(shape.blocks):
        yield from _placed(model, shape, f"block_{number}", f"stages.{stage}.blocks.{place}")
    yield from norm(layer("head_norm"), "norm_pre" if shape.first_normed else "head.norm")
    if shape.hidden:
        yield from pointwise(layer("head_hidden"), "head.pre_logits.fc")


def _placed(model: Any, shape: ConvNeXt, own: str, theirs: str) -> Iterator[Place]:
    layer = model.get_layer
    yield from _convolved(layer(f"{own}_depthwise"), f"{theirs}.conv_dw", DEPTHWISE)
    yield from norm(layer(f"{own}_norm"), f"{theirs}.norm")
    yield from pointwise(layer(f"{own}_up"), f"{theirs}.mlp.fc1")
    yield from pointwise(layer(f"{own}_down"), f"{theirs}.mlp.fc2")
    if shape.second:
        yield Place(layer(f"{own}_response_factor").kernel, f"{theirs}.mlp.grn.weight")
        yield Place(layer(f"{own}_response_offset").kernel, f"{theirs}.mlp.grn.bias")
    else:
        yield Place(layer(f"{own}_scale").kernel, f"{theirs}.gamma")


def _convolved(layer: Any, name: str, axes: tuple[int, ...] = CONVOLUTION) -> Iterator[Place]:
    yield Place(layer.kernel, f"{name}.weight", axes=axes)
    yield Place(layer.bias, f"{name}.bias")


def pointwise(layer: Any, name: str) -> Iterator[Place]:
    """Gives kernel and bias of a dense layer that may be published as a convolution of one pixel."""
    yield Place(layer.kernel, f"{name}.weight", 1, of_one_pixel)
    yield Place(layer.bias, f"{name}.bias")


def of_one_pixel(array: np.ndarray) -> np.ndarray:
    """Returns the kernel of a dense layer, which may be published as a convolution of one pixel."""
    return array[:, :, 0, 0] if array.shape[2:] == (1, 1) else array
