"""MobileNetV5, the encoder of images in Gemma 3n, as timm names it. Import after `backend.activate`.

There is no paper of it: its blocks are those of MobileNetV4 (D. Qin et al., arXiv:2404.10518), and what is above them brings
the states of several stages together; measures and order are those of timm's model. KerasHub's class of it has no bias in the
first convolution and another GELU, so it is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras

from kft.backbones.families import drawn
from kft.backbones.places import Place
from kft.backbones.vision.convnext import CONVOLUTION, DEPTHWISE, of_channels, of_one_pixel
from kft.backbones.vision.measures import channels
from kft.errors import ModelError

EPSILON, SCALE = 1e-6, 1e-5
HEIGHT = 768  # of images in pixels, and their width, as Gemma 3n takes them


@dataclass(frozen=True)
class Edge:
    """A block that is widened by a convolution of 3 by 3 pixels.

    Attributes:
        outputs: channels out.
        stride: of the convolution.
        expansion: how much wider it is inside.
    """

    outputs: int
    stride: int = 1
    expansion: int = 4


@dataclass(frozen=True)
class Inverted:
    """A universal inverted bottleneck.

    Attributes:
        outputs: channels out.
        expansion: how much wider it is inside.
        start: height and width of a depthwise convolution before it is widened, 0 for none.
        middle: those of one after that.
        stride: of the last of the two.
    """

    outputs: int
    expansion: int = 2
    start: int = 0
    middle: int = 0
    stride: int = 1


@dataclass(frozen=True)
class Attention:
    """Attention of all pixels to all, whose heads share keys and values.

    Attributes:
        outputs: channels in and out.
        heads: of queries.
        size: numbers of a head.
        reach: the stride of a convolution that keys and values are made fewer by, 1 for none.
    """

    outputs: int
    heads: int
    size: int
    reach: int = 1
    stride: int = 1


Block = Edge | Inverted | Attention


@dataclass(frozen=True)
class MobileNetV5:
    """The measures of a network.

    Attributes:
        stages: the blocks of each; the first of a stage halves height and width.
        stem: channels of the first convolution.
        outputs: channels of the features.
        taken: the stages, from 1, that features are made of; 0 is the first convolution.
        resolution: height and width of the features.
        same: whether images are padded as TensorFlow does, else alike on both sides.
    """

    stages: tuple[tuple[Block, ...], ...]
    stem: int = 64
    outputs: int = 2048
    taken: tuple[int, ...] = (3, 4)
    resolution: int = 16
    same: bool = False

    @property
    def blocks(self) -> list[tuple[int, int, Block]]:
        """Stage and place of each block, and its measures, lowest first."""
        return [(stage, place, block) for stage, found in enumerate(self.stages) for place, block in enumerate(found)]


def _attending(times: int, block: Attention) -> tuple[Block, ...]:
    return (block, Inverted(block.outputs)) * times


LOWER: tuple[tuple[Block, ...], ...] = (
    (Edge(128, 2), Edge(128), Edge(128)),
    (Inverted(256, 6, 3, 5, 2), *(Inverted(256, 4, kernel) for kernel in (5, 3, 5, 3))),
)
LARGE = MobileNetV5(
    (
        *LOWER,
        (
            Inverted(640, 6, 5, 5, 2),
            *(Inverted(640, 4, 5) for _ in range(7)),
            Inverted(640, 1),
            *_attending(14, Attention(640, 12, 64, 2)),
        ),
        (Inverted(1280, 6, 5, 5, 2), *_attending(19, Attention(1280, 16, 96))),
    )
)
BASE = MobileNetV5(
    (
        *LOWER,
        (
            Inverted(512, 6, 5, 5, 2),
            Inverted(512, 4, 5),
            Inverted(512, 4, 5),
            Inverted(512, 1),
            *_attending(6, Attention(512, 8, 64)),
        ),
        (Inverted(1024, 6, 5, 5, 2), *_attending(7, Attention(1024, 16, 64))),
    )
)
# By timm's names; that for Gemma 3n differs from the next by its padding, and has no head.
VARIANTS = {
    "mobilenetv5_300m_enc": replace(LARGE, same=True),
    "mobilenetv5_300m": LARGE,
    "mobilenetv5_base": BASE,
}
# What config.json may change of these, by timm's names of it.
CHANGES = ("msfa_indices", "msfa_output_resolution", "pad_type")


def changed(shape: MobileNetV5, said: Mapping[str, Any]) -> MobileNetV5:
    """Returns a network as `model_args` in `config.json` have it, of which `CHANGES` are looked at.

    Raises:
        ModelError: if there are no such stages, or a way of padding is unknown.
    """
    levels = len(shape.stages) + 1
    asked = said.get("msfa_indices", shape.taken)
    numbers = list(range(-asked, 0) if isinstance(asked, int) else asked)
    if not numbers or any(not -levels <= number < levels for number in numbers):
        raise ModelError(
            f"msfa_indices in config.json is {asked!r}, but there are {levels} stages with the first convolution. Get the file "
            "again."
        )
    padding = said.get("pad_type", "same" if shape.same else "")
    if padding not in ("", "same"):
        raise ModelError(
            f"pad_type in config.json is {padding!r}; kft knows only '' and 'same'. Take a folder with that."
        )
    resolution = said.get("msfa_output_resolution", shape.resolution)
    taken = tuple(sorted({number % levels for number in numbers}))
    return replace(shape, taken=taken, same=padding == "same", resolution=resolution)


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
