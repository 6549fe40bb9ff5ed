"""MobileNetV5, the encoder of images in Gemma 3n, as timm names it. Import after `backend.activate`.

There is no paper of it: its blocks are those of MobileNetV4 (D. Qin et al., arXiv:2404.10518), and what is above them brings
the states of several stages together; measures and order are those of timm's model. KerasHub's class of it has no bias in the
first convolution and another GELU, so it is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras

from kft.backbones.families import drawn
from kft.backbones.places import Place
from kft.backbones.vision.convnext import CONVOLUTION, DEPTHWISE, of_channels, of_one_pixel
from kft.backbones.vision.measures import channels
from kft.backbones.vision.mobilenet_v5_measures import Attention, Block, Edge, Inverted, MobileNetV5

EPSILON, SCALE = 1e-6, 1e-5


def build(shape: MobileNetV5, size: tuple[int, int], colours: int = 3, dropout: float = 0.0) -> Any:
    """Builds a backbone from scaled images to features.

    Args:
        shape: its measures.
        size: height and width of images in pixels.
        colours: channels of the images.
        dropout: rate at which the last block is left out of an example; it falls to 0 at the first.

    Returns:
        A `keras.Model` from float32 images of shape (batch, height, width, colours) to features of shape (batch,
        resolution, resolution, outputs).
    """
    images = keras.Input((*size, colours), name="images")
    x = _gelu(_norm(_convolved(images, shape, "stem_conv", shape.stem, 3, 2, biased=True), "stem_norm"))
    seen, blocks = {0: x}, shape.blocks
    for number, (stage, _, block) in enumerate(blocks):
        x = _block(x, shape, block, f"block_{number}", dropout * number / len(blocks))
        seen[stage + 1] = x
    x = _fused([seen[stage] for stage in shape.taken], shape)
    return keras.Model(images, x, name="mobilenet_v5")


def _block(inputs: Any, shape: MobileNetV5, block: Block, name: str, dropout: float) -> Any:
    layers, width = keras.layers, inputs.shape[-1]
    if isinstance(block, Attention):
        x = _attended(_norm(inputs, f"{name}_norm"), shape, block, name)
    elif isinstance(block, Edge):
        x = _convolved(inputs, shape, f"{name}_expand", channels(width * block.expansion), 3, block.stride)
        x = _gelu(_norm(x, f"{name}_expand_norm"))
        x = _norm(_dense(x, block.outputs, f"{name}_project"), f"{name}_project_norm")
    else:
        x = _inverted(inputs, shape, block, name)
    if not isinstance(block, Edge):
        x = x * of_channels(x, f"{name}_scale", keras.initializers.Constant(SCALE))
    if block.stride != 1 or width != block.outputs:
        return x
    if dropout:
        x = layers.Dropout(dropout, noise_shape=(None, 1, 1, 1), name=f"{name}_drop")(x)
    return layers.Add(name=f"{name}_add")([x, inputs])


def _inverted(x: Any, shape: MobileNetV5, block: Inverted, name: str) -> Any:
    """Returns what a bottleneck gives, without its scale."""
    inner = channels(x.shape[-1] * block.expansion)
    if block.start:
        stride = 1 if block.middle else block.stride
        x = _norm(_depthwise(x, shape, f"{name}_start", block.start, stride), f"{name}_start_norm")
    x = _gelu(_norm(_dense(x, inner, f"{name}_expand"), f"{name}_expand_norm"))
    if block.middle:
        x = _gelu(_norm(_depthwise(x, shape, f"{name}_middle", block.middle, block.stride), f"{name}_middle_norm"))
    return _norm(_dense(x, block.outputs, f"{name}_project"), f"{name}_project_norm")


def _attended(x: Any, shape: MobileNetV5, block: Attention, name: str) -> Any:
    """Returns what attention gives; a pixel is a token of it."""
    height, width = x.shape[1:3]

    def tokens(x: Any, part: str) -> Any:
        return keras.layers.Reshape((-1, x.shape[-1]), name=f"{name}_{part}_tokens")(x)

    def fewer(part: str) -> Any:
        if block.reach == 1:
            return tokens(x, part)
        less = _depthwise(x, shape, f"{name}_{part}_fewer", 3, block.reach)
        return tokens(_norm(less, f"{name}_{part}_fewer_norm"), part)

    inputs = tokens(x, "query"), fewer("key"), fewer("value")
    inner = block.heads * block.size
    found = drawn.attention(inputs, None, name, block.heads, block.outputs, 0.0, inner=inner, biased=False, groups=1)
    return keras.layers.Reshape((height, width, block.outputs), name=f"{name}_pixels")(found)


def _fused(seen: list[Any], shape: MobileNetV5) -> Any:
    """Returns the states of several stages brought together, as large as those of the first of them and then as wanted."""
    size, wanted = tuple(seen[0].shape[1:3]), (shape.resolution, shape.resolution)
    x = keras.layers.Concatenate(name="fusion")([seen[0], *(_as_large(x, size) for x in seen[1:])])
    x = _inverted(x, shape, Inverted(shape.outputs), "fusion")
    if size == wanted:
        return _norm(x, "fusion_norm")
    if all(side % shape.resolution == 0 for side in size):
        pool = tuple(side // shape.resolution for side in size)
        x = keras.layers.AveragePooling2D(pool, pool, name="fusion_pooled")(x)
    else:
        x = keras.ops.image.resize(x, wanted, "bilinear", data_format="channels_last")
    return _norm(x, "fusion_norm")


def _as_large(x: Any, size: tuple[int, int]) -> Any:
    """Returns states with each pixel as often as it takes to be of a size; larger ones are left."""
    own = x.shape[1:3]
    if own[0] >= size[0] and own[1] >= size[1]:
        return x
    for axis, side in enumerate(size):
        x = keras.ops.take(x, [number * own[axis] // side for number in range(side)], axis=axis + 1)
    return x


def _norm(x: Any, name: str) -> Any:
    return keras.layers.RMSNormalization(epsilon=EPSILON, name=name)(x)


def _gelu(x: Any) -> Any:
    return keras.ops.gelu(x, approximate=True)


def _dense(x: Any, width: int, name: str) -> Any:
    return keras.layers.Dense(width, use_bias=False, kernel_initializer=drawn.normal(), name=name)(x)


def _convolved(
    x: Any, shape: MobileNetV5, name: str, width: int, kernel: int, stride: int, *, biased: bool = False
) -> Any:
    x, padding = _padded(x, shape, name, kernel, stride)
    return keras.layers.Conv2D(width, kernel, stride, padding, use_bias=biased, name=name)(x)


def _depthwise(x: Any, shape: MobileNetV5, name: str, kernel: int, stride: int) -> Any:
    x, padding = _padded(x, shape, name, kernel, stride)
    return keras.layers.DepthwiseConv2D(kernel, stride, padding, use_bias=False, name=name)(x)


def _padded(x: Any, shape: MobileNetV5, name: str, kernel: int, stride: int) -> tuple[Any, str]:
    """Returns an image padded for a convolution, and what padding is left to that."""
    if shape.same or stride == 1:
        return x, "same"
    return keras.layers.ZeroPadding2D((stride + kernel - 2) // 2, name=f"{name}_padded")(x), "valid"


def places(model: Any, shape: MobileNetV5) -> Iterator[Place]:
    """Gives every weight of a backbone with the name that timm has for it.

    Args:
        model: what `build` made of `shape`, or a model that has its layers.
        shape: its measures.
    """
    layer = model.get_layer
    yield Place(layer("stem_conv").kernel, "conv_stem.conv.weight", axes=CONVOLUTION)
    yield Place(layer("stem_conv").bias, "conv_stem.conv.bias")
    yield Place(layer("stem_norm").scale, "conv_stem.bn.weight")
    for number, (stage, place, block) in enumerate(shape.blocks):
        own, theirs = f"block_{number}", f"blocks.{stage}.{place}"
        if isinstance(block, Edge):
            yield Place(layer(f"{own}_expand").kernel, f"{theirs}.conv_exp.weight", axes=CONVOLUTION)
            yield Place(layer(f"{own}_expand_norm").scale, f"{theirs}.bn1.weight")
            yield _of_dense(layer(f"{own}_project"), f"{theirs}.conv_pwl")
            yield Place(layer(f"{own}_project_norm").scale, f"{theirs}.bn2.weight")
            continue
        yield Place(layer(f"{own}_scale").kernel, f"{theirs}.layer_scale.gamma")
        yield from (
            _of_attention(model, block, own, theirs)
            if isinstance(block, Attention)
            else _of_inverted(model, block, own, theirs)
        )
    yield from _of_inverted(model, Inverted(shape.outputs), "fusion", "msfa.ffn")
    yield Place(layer("fusion_norm").scale, "msfa.norm.weight")


def _of_inverted(model: Any, block: Inverted, own: str, theirs: str) -> Iterator[Place]:
    for ours, name, there in (("start", "dw_start", block.start), ("middle", "dw_mid", block.middle)):
        if there:
            yield Place(model.get_layer(f"{own}_{ours}").kernel, f"{theirs}.{name}.conv.weight", axes=DEPTHWISE)
            yield Place(model.get_layer(f"{own}_{ours}_norm").scale, f"{theirs}.{name}.bn.weight")
    for ours, name in (("expand", "pw_exp"), ("project", "pw_proj")):
        yield _of_dense(model.get_layer(f"{own}_{ours}"), f"{theirs}.{name}.conv")
        yield Place(model.get_layer(f"{own}_{ours}_norm").scale, f"{theirs}.{name}.bn.weight")


def _of_attention(model: Any, block: Attention, own: str, theirs: str) -> Iterator[Place]:
    layer = model.get_layer
    yield Place(layer(f"{own}_norm").scale, f"{theirs}.norm.weight")
    for part in ("query", "key", "value"):
        name = f"{theirs}.attn.{part}"
        yield _of_dense(layer(f"{own}_attention_{part}"), f"{name}.proj")
        if block.reach > 1 and part != "query":
            yield Place(layer(f"{own}_{part}_fewer").kernel, f"{name}.down_conv.weight", axes=DEPTHWISE)
            yield Place(layer(f"{own}_{part}_fewer_norm").scale, f"{name}.norm.weight")
    yield _of_dense(layer(f"{own}_attention_output"), f"{theirs}.attn.output.proj", 3)


def _of_dense(layer: Any, name: str, inputs: int = 1) -> Place:
    """Returns the place of a dense layer's kernel, which is published as a convolution of one pixel."""
    return Place(layer.kernel, f"{name}.weight", inputs, of_one_pixel)
