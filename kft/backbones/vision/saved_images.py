"""A SavedModel of images as `config.json` and weights: its layers, how it wants its images, and its head."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from kft.backbones.saved_graph import Files, Scope, Shape, calls
from kft.backbones.vision.operations import UnknownOperationError
from kft.backbones.vision.saved_layers import Layers

FORMAT = "layers"
# What the last layer of TF-Hub's classifiers is called: MobilenetV2/Logits, resnet_v2_50/logits, resnet/head, predictions.
HEAD = re.compile(r"(^|[/_])(logits|head|predictions|classifier)([/_\d]|$)", re.IGNORECASE)


def read(found: Files) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns `config.json` and the weights of a SavedModel that computes something of images, or None for any other.

    It has the interface of TF-Hub's reusable models (https://www.tensorflow.org/hub/reusable_saved_models) and gives one
    tensor. Every way to call it must come to the same.
    """
    every = [_read(found, scope, shape) for scope, shape in calls(found)]
    known = [one for one in every if one is not None]
    if not known or len(known) != len(every):
        return None
    if any(_unnamed(config) != _unnamed(known[0][0]) for config, _ in known[1:]):
        return None
    return known[0]


def _unnamed(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "layers": [{**layer, "name": ""} for layer in config["layers"]]}


def _read(found: Files, scope: Scope, shape: Shape) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    if shape[3] not in (1, 3) or len(scope.results) != 1:
        return None
    layers = Layers(found, shape)
    try:
        result = layers.value(scope.source(scope.results[0]))
        last = layers.settled(result)
    except UnknownOperationError:
        return None
    if not last or len(result.shape) not in (1, 3):
        return None
    return _finished(layers, last, shape)


def _finished(layers: Layers, last: int, shape: Shape) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    drawn = layers.drawn
    last, head = _cut(drawn, last)
    kept = _reached(drawn, last)
    images, taken = _images(drawn, kept, shape)
    numbers = {0: 0, **{old: new for new, old in enumerate((n for n in kept if n != taken), 1)}}
    if taken:
        numbers[taken] = 0
    if not last or not numbers[last]:
        return None
    listed = [
        {**drawn[old - 1], "inputs": [numbers[place] for place in drawn[old - 1]["inputs"]]}
        for old in kept
        if old != taken
    ]
    names = {name for layer in listed for name in layer["weights"].values()} | set((head or {}).values())
    config = {"format": FORMAT, "images": images, "layers": listed, "output": numbers[last], "head": head}
    return config, {name: layers.weights[name] for name in layers.weights if name in names}


def _cut(drawn: list[dict[str, Any]], last: int) -> tuple[int, dict[str, str] | None]:
    """Returns the layer below a classifier that a model ends with, and the classifier's weights."""
    place = last
    while place and _shapes(drawn[place - 1]):
        place = drawn[place - 1]["inputs"][0]
    if not place or not _is_classifier(layer := drawn[place - 1]):
        return last, None
    # A classifier of single pixels is none: it stands on a pooling, or on what makes a vector of one.
    below = layer["inputs"][0]
    pooled = below and drawn[below - 1]["layer"] in ("GlobalAveragePooling2D", "Reshape", "Activation")
    return (below, layer["weights"]) if pooled else (last, None)


def _shapes(layer: dict[str, Any]) -> bool:
    return bool(layer["layer"] == "Reshape" or layer["options"].get("activation") == "softmax")


def _is_classifier(layer: dict[str, Any]) -> bool:
    options = layer["options"]
    if layer["layer"] == "Conv2D":
        dense = options["kernel_size"] == options["strides"] == [1, 1]
    else:
        dense = layer["layer"] == "Dense"
    return bool(dense and set(layer["weights"]) == {"kernel", "bias"} and HEAD.search(layer["weights"]["kernel"]))


def _reached(drawn: list[dict[str, Any]], last: int) -> list[int]:
    waiting, seen = [last], set[int]()
    while waiting:
        number = waiting.pop()
        if number and number not in seen:
            seen.add(number)
            waiting += drawn[number - 1]["inputs"]
    return sorted(seen)


def _images(drawn: list[dict[str, Any]], kept: list[int], shape: Shape) -> tuple[dict[str, Any], int]:
    """Returns how images are wanted, on the scale 0 to 255, and the number of the layer that this stands for.

    By TF-Hub's convention a SavedModel takes numbers between 0 and 1
    (https://www.tensorflow.org/hub/common_signatures/images); what it makes of them first is a scale, too.
    """
    first = [number for number in kept if 0 in drawn[number - 1]["inputs"]]
    scale, offset, taken = np.ones(1), np.zeros(1), 0
    if len(first) == 1 and drawn[first[0] - 1]["layer"] == "Rescaling":
        options, taken = drawn[first[0] - 1]["options"], first[0]
        scale, offset = (np.atleast_1d(np.asarray(options[name], np.float64)) for name in ("scale", "offset"))
    if not (scale > 0).all():
        scale, offset, taken = np.ones(1), np.zeros(1), 0
    mean, deviation = -offset / scale * 255, np.broadcast_to(255 / scale, np.broadcast(scale, offset).shape)
    size = None if None in shape[1:3] else list(shape[1:3])
    images = {"size": size, "channels": shape[3], "mean": (mean + 0.0).tolist(), "deviation": deviation.tolist()}
    return images, taken
