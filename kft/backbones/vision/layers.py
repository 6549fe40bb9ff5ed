"""Backbones for images that are a list of Keras' own layers, as SavedModels are read. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones import filling, initial
from kft.backbones.backbone import Images, PublishedHead
from kft.backbones.folders import ModelFolder
from kft.backbones.places import Place
from kft.backbones.tensors import Tensors
from kft.errors import ModelError, unknown
from kft.recipe import Model

# What a folder may name: layers that compute, and load nothing.
KINDS = (
    "Activation",
    "Add",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "GlobalAveragePooling2D",
    "GroupNormalization",
    "MaxPooling2D",
    "Multiply",
    "Rescaling",
    "Reshape",
    "Subtract",
    "ZeroPadding2D",
)


def load(folder: ModelFolder, config: Model) -> tuple[Any, Images, PublishedHead | None]:
    """Builds a backbone of the layers that its configuration lists, with the folder's weights or random ones.

    Dropout and penalties of weights, which a SavedModel has in training only, are not among the layers; a kernel that is
    standardized each time it is used, as in Big Transfer (arXiv:1912.11370), is so once, and trained as it is then.

    Returns:
        The backbone, from images as the SavedModel takes them to what it gives, (batch, channels) or (batch, height, width,
        channels); how it wants its images; and the classifier that was published above it, if there was one.

    Raises:
        ModelError: if weights and places do not fit, or the recipe changes what cannot be changed here.
    """
    if config.config or config.dropout is not None or config.attention_dropout is not None:
        raise ModelError(
            f"'{folder.handle}' was read off a SavedModel's graph: model.config, model.dropout and model.attention_dropout do "
            "not change it. Leave them out."
        )
    try:
        return _loaded(folder, config.pretrained)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"Keras cannot draw the layers that config.json lists in '{folder.handle}': {type(error).__name__}: {reason}. Get it "
            "again, or set model.bridge=true for a SavedModel, which then runs its own graph."
        ) from None


def _loaded(folder: ModelFolder, pretrained: bool) -> tuple[Any, Images, PublishedHead | None]:
    size, head = folder.config["size"], folder.config["head"]
    # By TF-Hub's convention numbers between 0 and 1 (https://www.tensorflow.org/hub/common_signatures/images).
    images = Images(tuple(size) if size else None, folder.config["channels"])
    with initial.undrawn() if pretrained else contextlib.nullcontext():
        model = _drawn(folder, images.channels)
    if not pretrained:
        return model, images, None
    places = [
        Place(getattr(model.get_layer(layer["name"]), part), name)
        for layer in folder.config["layers"]
        for part, name in layer["weights"].items()
    ]
    tensors = folder.tensors()
    filling.fill(places, tensors, "", set((head or {}).values()).__contains__, "SavedModel")
    return model, images, _published(tensors, head) if head else None


def _drawn(folder: ModelFolder, channels: int) -> Any:
    tensors = [keras.Input((None, None, channels), name="images")]
    for layer in folder.config["layers"]:
        if layer["layer"] not in KINDS:
            raise ModelError(unknown("layer in config.json", str(layer["layer"]), KINDS))
        if any(isinstance(value, dict) for value in layer["options"].values()):
            raise ModelError(
                f"'{folder.handle}': the options of {layer['name']} in config.json are to be numbers, words and lists. Get "
                "the folder again."
            )
        inputs = [tensors[number] for number in layer["inputs"]]
        made = getattr(keras.layers, layer["layer"])(**layer["options"], name=layer["name"])
        tensors.append(made(inputs if len(inputs) > 1 else inputs[0]))
    return keras.Model(tensors[0], tensors[-1], name="saved_model_layers")


def _published(tensors: Tensors, head: Mapping[str, str]) -> PublishedHead:
    bias = np.asarray(tensors[head["bias"]], np.float32)
    kernel = np.asarray(tensors[head["kernel"]], np.float32).reshape(-1, len(bias))
    return PublishedHead("image", tuple(f"LABEL_{number}" for number in range(len(bias))), {"logits": (kernel, bias)})
