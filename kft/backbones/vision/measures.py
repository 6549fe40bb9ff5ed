"""The measures of EfficientNets, and how their makers name them; no backend is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Kernel, stride, expansion, output channels and repeats of each stage of B0, table 1 of arXiv:1905.11946.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, TOP, DIVISOR, SQUEEZE = 32, 1280, 8, 0.25


@dataclass(frozen=True)
class EfficientNet:
    """How much wider and deeper than B0 a network is.

    Attributes:
        width: factor of the channels.
        depth: factor of the repeats.
        size: height and width in pixels it was trained with.
        lite: whether it is of the Lite kind.
    """

    width: float
    depth: float
    size: int
    lite: bool = False

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return STEM if self.lite else channels(STEM * self.width)

    @property
    def top(self) -> int:
        """Channels of the last one."""
        return TOP if self.lite else channels(TOP * self.width)


@dataclass(frozen=True)
class Block:
    """One inverted bottleneck.

    Attributes:
        stage: its stage's number.
        place: its place in it.
        kernel: height and width of the depthwise convolution.
        stride: of the same.
        inputs: channels in.
        expanded: channels of the depthwise convolution.
        outputs: channels out.
        squeezed: channels of squeeze-and-excitation, 0 for none.
    """

    stage: int
    place: int
    kernel: int
    stride: int
    inputs: int
    expanded: int
    outputs: int
    squeezed: int


VARIANTS = {
    "b0": EfficientNet(1.0, 1.0, 224),
    "b1": EfficientNet(1.0, 1.1, 240),
    "b2": EfficientNet(1.1, 1.2, 260),
    "b3": EfficientNet(1.2, 1.4, 300),
    "b4": EfficientNet(1.4, 1.8, 380),
    "b5": EfficientNet(1.6, 2.2, 456),
    "b6": EfficientNet(1.8, 2.6, 528),
    "b7": EfficientNet(2.0, 3.1, 600),
    "lite0": EfficientNet(1.0, 1.0, 224, lite=True),
    "lite1": EfficientNet(1.0, 1.1, 240, lite=True),
    "lite2": EfficientNet(1.1, 1.2, 260, lite=True),
    "lite3": EfficientNet(1.2, 1.4, 280, lite=True),
    "lite4": EfficientNet(1.4, 1.8, 300, lite=True),
}


def channels(wanted: float) -> int:
    """Returns a number of channels as the makers round it: to a multiple of 8, and never down by more than a tenth."""
    found = max(DIVISOR, int(wanted + DIVISOR / 2) // DIVISOR * DIVISOR)
    return found + DIVISOR if found < 0.9 * wanted else found


def blocks(shape: EfficientNet) -> list[Block]:
    """Returns the blocks of a network, lowest first."""
    found: list[Block] = []
    inputs = shape.stem
    for stage, (kernel, stride, expansion, outputs, repeats) in enumerate(STAGES):
        fixed = shape.lite and stage in (0, len(STAGES) - 1)
        for place in range(repeats if fixed else math.ceil(repeats * shape.depth)):
            wide = channels(outputs * shape.width)
            squeezed = 0 if shape.lite else max(1, int(inputs * SQUEEZE))
            found.append(
                Block(stage, place, kernel, 1 if place else stride, inputs, inputs * expansion, wide, squeezed)
            )
            inputs = wide
    return found
