"""A SavedModel as a backbone: kft's inputs go in, what a head reads comes out. Import after `backend.activate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from kft.backbones.backbone import Images
from kft.backbones.bridge.layer import SavedModelLayer
from kft.errors import ModelError

# TF-Hub's names (https://www.tensorflow.org/hub/common_saved_model_apis/text) and ours.
TEXT = {"input_word_ids": "token_ids", "input_mask": "padding_mask", "input_type_ids": "segment_ids"}
READ = ("sequence_output", "pooled_output")


def built(folder: Path) -> tuple[Any, Images | None]:
    """Builds a backbone of a SavedModel, and says how it wants its images, None being for text.

    Raises:
        ModelError: if it takes neither token ids nor images, or gives nothing a head could read.
    """
    layer = SavedModelLayer(folder, name="saved_model")
    takes = layer.takes
    if isinstance(takes, dict) and set(takes) <= set(TEXT) and "input_word_ids" in takes:
        return _text(layer), None
    specs = keras.tree.flatten(takes)
    if len(specs) == 1 and specs[0].shape.rank == 4 and specs[0].dtype.is_floating:
        return _image(layer, specs[0])
    wanted = ", ".join(f"{spec.name} {tuple(spec.shape)}" for spec in specs)
    raise ModelError(
        f"The SavedModel '{folder}' takes {wanted}. kft trains those that take input_word_ids, input_mask and "
        "input_type_ids, or one image of shape (batch, height, width, channels)."
    )


def _text(layer: SavedModelLayer) -> Any:
    inputs = {TEXT[name]: keras.Input((None,), dtype="int32", name=TEXT[name]) for name in layer.takes}
    found = layer({name: inputs[TEXT[name]] for name in layer.takes})
    outputs = {name: found[name] for name in READ if isinstance(found, dict) and name in found}
    if "sequence_output" not in outputs:
        there = ", ".join(found) if isinstance(found, dict) else "one tensor"
        raise ModelError(f"The SavedModel '{layer.folder}' gives {there}; a head reads sequence_output.")
    return keras.Model(inputs, outputs, name="saved_model_text")


def _image(layer: SavedModelLayer, spec: Any) -> tuple[Any, Images]:
    height, width, channels = (spec.shape[side] for side in (1, 2, 3))
    images = keras.Input((height, width, channels or 3), name="images")
    found = layer(keras.tree.pack_sequence_as(layer.takes, [images]))
    outputs = keras.tree.flatten(found)
    if len(outputs) != 1 or len(outputs[0].shape) not in (2, 4):
        raise ModelError(f"The SavedModel '{layer.folder}' gives no vector or map of features for an image.")
    # By TF-Hub's convention numbers between 0 and 1 (https://www.tensorflow.org/hub/common_signatures/images).
    return keras.Model(images, outputs[0], name="saved_model_image"), Images(
        (height, width) if height and width else None, channels or 3
    )
