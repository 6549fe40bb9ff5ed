"""The value that a loaded pretrained model is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kft.backbones.tokenizer import Tokenizer

# Mean and deviation on the scale 0 to 255, and whether blue comes first, as keras.applications.imagenet_utils has them.
SCALINGS: dict[str, tuple[tuple[float, ...], tuple[float, ...], bool]] = {
    "none": ((0.0,), (1.0,), False),
    "0..1": ((0.0,), (255.0,), False),
    "-1..1": ((127.5,), (127.5,), False),
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    "caffe": ((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), True),
}


@dataclass(frozen=True)
class Images:
    """How a backbone wants its images.

    Attributes:
        size: height and width in pixels, or None if it takes any.
        channels: 3, or 1 for grey images.
        mean: of each channel, on the scale 0 to 255, taken off.
        deviation: of each channel, on the scale 0 to 255, divided by.
        bgr: whether blue comes first; mean and deviation are in that order then.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (255.0,)
    bgr: bool = False

    @classmethod
    def scaled(cls, way: str, size: tuple[int, int] | None = None, channels: int = 3) -> Images:
        """Returns images scaled in a way that a recipe can name.

        Args:
            way: none, 0..1, -1..1, imagenet (mean and deviation of its channels) or caffe (blue first, ImageNet's means off).
            size: height and width in pixels.
            channels: 3 or 1; the last two ways are for 3.
        """
        mean, deviation, bgr = SCALINGS[way]
        return cls(size, channels, mean, deviation, bgr)


@dataclass(frozen=True)
class PublishedHead:
    """A head that was published together with a backbone.

    Attributes:
        reads: what it stands on: pooled, first or tokens; image, for the mean of an image's features, or a
            vision transformer's class token.
        labels: the names of its outputs, LABEL_0 and so on where nobody named them.
        weights: kernel and bias by the layer's name: `logits`, and `head_dense` below it where it reads the first token.
    """

    reads: Literal["pooled", "first", "tokens", "image"]
    labels: tuple[str, ...]
    weights: dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Backbone:
    """A pretrained model without a head, and what it needs to be used.

    Attributes:
        model: the `keras.Model`.
        modality: text or image.
        pooling: which part of a text its own makers read off: first, pooled, mean or last.
        tokenizer: for text, else None.
        images: for images, else None.
        head: what was published with it, or None.
        first_activation: of the dense layer on the first token in its makers' own head.
        origin: the handle, folder and digest it came from.
    """

    model: Any
    modality: Literal["text", "image"]
    pooling: str
    tokenizer: Tokenizer | None = None
    images: Images | None = None
    head: PublishedHead | None = None
    first_activation: str = "tanh"
    origin: dict[str, str | None] = field(default_factory=dict)

    @property
    def preprocessor(self) -> Tokenizer | Images:
        """What its inputs go through: the tokenizer, or the size and scale of images."""
        found = self.tokenizer or self.images
        assert found is not None
        return found

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the model's inputs."""
        return tuple(self.model.input.keys()) if isinstance(self.model.input, dict) else ("images",)
