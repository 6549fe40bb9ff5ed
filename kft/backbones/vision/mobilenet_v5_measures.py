"""The measures of MobileNetV5's networks, and what timm's folders may change of them; no backend is needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kft.errors import ModelError

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
