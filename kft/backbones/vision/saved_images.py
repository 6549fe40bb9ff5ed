"""A SavedModel of images as `config.json` and weights: its layers, how it wants its images, and its head."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from kft.backbones.saved_graph import Files, Scope, Shape, calls
from kft.backbones.vision.operations import UnknownOperationError
from kft.backbones.vision.saved_layers import Layers

FORMAT = "layers"
# What a graph may raise that is put together as none before it: it goes over the bridge, as all that is not known.
UNFORESEEN = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)
# What the last layer of TF-Hub's classifiers is called: MobilenetV2/Logits, resnet_v2_50/logits, resnet/head, predictions.
HEAD = re.compile(r"(^|[/_])(logits|head|predictions|classifier)([/_\d]|$)", re.IGNORECASE)


def read(found: Files) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns `config.json` and the weights of a SavedModel that computes something of images, or None for any other.

    It has the interface of TF-Hub's reusable models (https://www.tensorflow.org/hub/reusable_saved_models) and gives one
    tensor. Every way to call it must come to the same.
    """
    try:
        every = [_read(found, scope, shape) for scope, shape in calls(found)]
    except (UnknownOperationError, *UNFORESEEN):
        return None
    if not every or any(_unnamed(config) != _unnamed(every[0][0]) for config, _ in every[1:]):
        return None
    return every[0]


def _unnamed(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "layers": [{**layer, "name": ""} for layer in config["layers"]]}


def _read(found: Files, scope: Scope, shape: Shape) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    layers = Layers(found, shape)
    if shape[3] not in (1, 3) or len(scope.results) != 1:
        raise UnknownOperationError("other channels than 1 or 3, or several results")
    result = layers.value(scope.source(scope.results[0]))
    last = layers.settled(result)
    if not last or len(result.shape) not in (1, 3):
        raise UnknownOperationError("a result that is no vector and no map of features")
    return _finished(layers, last, shape)


def _finished(layers: Layers, last: int, shape: Shape) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    last, head = _cut(layers.drawn, last)
    kept = _reached(layers.drawn, last)
    numbers = {0: 0, **{old: new for new, old in enumerate(kept, 1)}}
    listed = [layers.drawn[old - 1] for old in kept]
    listed = [{**layer, "inputs": [numbers[place] for place in layer["inputs"]]} for layer in listed]
    names = {name for layer in listed for name in layer["weights"].values()} | set((head or {}).values())
    config = {
        "format": FORMAT,
        "size": None if None in shape[1:3] else list(shape[1:3]),
        "channels": shape[3],
        "layers": listed,
        "head": head,
    }
    return config, {name: array for name, array in layers.weights.items() if name in names}


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
