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


# What a model reads. Tasks read texts or images; what reads both, or a text beside the one it writes, comes to scripts.
Modality = Literal["text", "image", "audio", "image_text", "text_to_text"]


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
class Below:
    """The layers that a backbone's makers put below the last one of their own heads.

    Attributes:
        activation: of the dense layer, by Keras' name, or KerasHub's `gelu_approximate`.
        bias: whether the dense layer has one.
        everywhere: whether they stand on whatever a head reads, each token and means too; else on one token of a text only.
        token: which that is, first or last.
        epsilon: of the normalization above the dense layer; None where there is none.
        offset: whether the normalization has one.
    """

    activation: str = "tanh"
    bias: bool = True
    everywhere: bool = False
    token: Literal["first", "last"] = "first"
    epsilon: float | None = None
    offset: bool = False


@dataclass(frozen=True)
class PublishedHead:
    """A head that was published together with a backbone.

    Attributes:
        reads: what it stands on: pooled, first, last, mean, tokens, or spans for those whose first and last token answer a
            question; image, for the mean of an image's features or a vision
            transformer's class token; any, for layers that were published below a head for masked tokens, and go below any
            other.
        labels: the names of its outputs, LABEL_0 and so on where nobody named them; none if its last layer is not read.
        weights: by the layer's name, in Keras' order: `logits`, and `head_dense` and `head_norm` below it where it has them.
    """

    reads: Literal["pooled", "first", "last", "mean", "tokens", "spans", "image", "any"]
    labels: tuple[str, ...]
    weights: dict[str, tuple[np.ndarray, ...]]


@dataclass(frozen=True)
class Backbone:
    """A pretrained model without a head, and what it needs to be used.

    Attributes:
        model: the `keras.Model`.
        modality: what it reads; kft's own tasks take text and image.
        pooling: which part of a text its own makers read off: first, pooled, mean or last; of an image's patches, first or mean.
        tokenizer: for text, and for what a model that hears writes, else None.
        images: for images, else None.
        head: what was published with it, or None.
        below: what its makers put below the last layer of their own heads.
        origin: the handle, folder and digest it came from.
    """

    model: Any
    modality: Modality
    pooling: str
    tokenizer: Tokenizer | None = None
    images: Images | None = None
    head: PublishedHead | None = None
    below: Below = Below()
    origin: dict[str, str | None] = field(default_factory=dict)

    @property
    def preprocessor(self) -> Tokenizer | Images:
        """What its inputs go through: the tokenizer, or the size and scale of images."""
        found = self.tokenizer or self.images
        assert found is not None
        return found

    @property
    def name(self) -> str:
        """What messages call it: its handle, or the architecture where it has none."""
        handle = self.origin.get("handle")
        return f"'{handle}'" if handle else f"the {self.model.name}"

    @property
    def embeddings(self) -> int | None:
        """How many token ids the model has an embedding for, or None where that does not show."""
        layers = (layer for layer in self.model._flatten_layers() if layer.name == "token_embedding")
        return next((int(layer.input_dim) for layer in layers if hasattr(layer, "input_dim")), None)

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have, or None where no table of positions shows, as in a SavedModel's own graph."""
        if not {"token_ids", "padding_mask", "segment_ids"}.issuperset(self.inputs):
            return None
        found = [
            getattr(layer, "sequence_length", None) or getattr(layer, "input_dim", None)
            for layer in self.model._flatten_layers()
            if type(layer).__name__ == "PositionEmbedding" or layer.name.endswith("position_embedding")
        ]
        return min((int(count) for count in found if count), default=None)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the model's inputs."""
        return tuple(self.model.input.keys()) if isinstance(self.model.input, dict) else ("images",)
