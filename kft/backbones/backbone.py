"""The value that a loaded pretrained model is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kft.backbones.tokenizer import Tokenizer


@dataclass(frozen=True)
class Images:
    """How a backbone wants its images.

    Attributes:
        size: height and width in pixels, or None if it takes any.
        channels: 3, or 1 for grey images.
        mean: of each channel, on the scale 0 to 255, taken off.
        deviation: of each channel, on the scale 0 to 255, divided by.
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (255.0,)


@dataclass(frozen=True)
class PublishedHead:
    """A head that was published together with a backbone.

    Attributes:
        reads: what it stands on: pooled, first or tokens.
        labels: the names of its outputs, LABEL_0 and so on where nobody named them.
        weights: kernel and bias by the layer's name: `logits`, and `head_dense` below it where it reads the first token.
    """

    reads: Literal["pooled", "first", "tokens"]
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
