"""Keras' own model files as backbones for images: `.keras`, `.h5`, and the `.hdf5` of Keras 2. Import after `backend.activate`."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from typing import Any

import keras

from kft import backend
from kft.backbones.backbone import SCALINGS, Images, PublishedHead
from kft.backbones.folders import ModelFolder
from kft.errors import ModelError
from kft.progress import Progress
from kft.recipe import Model

POOLINGS = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D, keras.layers.Flatten)
SCALING = (keras.layers.Rescaling, keras.layers.Normalization)
CODE = ("Lambda", "__lambda__", "TFOpLambda", "SlicingOpLambda", "ClassMethod")
# What the models of keras.applications want, by the beginning of their own names.
PUBLISHED = {
    "mobilenet": "-1..1",
    "xception": "-1..1",
    "inception": "-1..1",
    "nasnet": "-1..1",
    "resnet50v2": "-1..1",
    "resnet101v2": "-1..1",
    "resnet152v2": "-1..1",
    "densenet": "imagenet",
    "resnet": "caffe",
    "vgg": "caffe",
}


def load(folder: ModelFolder, config: Model, progress: Progress | None) -> tuple[Any, Images, PublishedHead | None]:
    """Loads a model and cuts its classification off.

    Returns:
        The backbone, from images to features of shape (batch, height, width, channels); how it wants its images; and the
        dense layer on the mean of the features, where it had one.

    Raises:
        ModelError: if the file holds code, is broken, or is no model of images.
    """
    if config.config or config.attention_dropout is not None:
        raise ModelError("model.config and model.attention_dropout do not change a Keras model file. Leave them out.")
    _refuse_code(folder)
    try:
        with backend.without_tensorflow():
            whole = keras.saving.load_model(str(folder.path), compile=False, safe_mode=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"Keras cannot load '{folder.handle}': {reason}") from None
    if not config.pretrained:
        whole = keras.models.clone_model(whole)
    model, head = _parted(whole, folder)
    if config.dropout is not None:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = config.dropout
    return model, _images(whole, model, folder, config, progress), head if config.pretrained else None


def _refuse_code(folder: ModelFolder) -> None:
    """Refuses a file whose layers are programs: Keras' safe mode does, but not in every format and version."""
    for part in _parts(_configuration(folder)):
        name, module = part.get("class_name"), part.get("module")
        if name in CODE:
            raise ModelError(
                f"'{folder.handle}' has a {str(name).strip('_')} layer, which is a program and not weights: kft does not run it. "
                "Save the model with layers of Keras' own in its place."
            )
        if isinstance(module, str) and module.partition(".")[0] not in ("keras", "keras_hub", "builtins"):
            raise ModelError(
                f"'{folder.handle}' asks for {module}.{name}, code that is not Keras' own: kft does not import it. "
                "Save the model with layers of Keras' own in its place."
            )


def _configuration(folder: ModelFolder) -> Any:
    path = folder.path
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        import h5py

        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
        if text is None:
            raise ModelError(
                f"'{folder.handle}' holds weights without a model. Save the whole model: model.save('model.keras')."
            )
        return json.loads(text)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"'{folder.handle}' is no Keras model file, or is broken: {error}. Get it again.") from None


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Gives every mapping in a configuration, however deep."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def _parted(whole: Any, folder: ModelFolder) -> tuple[Any, PublishedHead | None]:
    """Returns a model's features as a model, and its head."""
    inputs, outputs = keras.tree.flatten(whole.inputs), keras.tree.flatten(whole.outputs)
    if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4:
        raise ModelError(
            f"'{folder.handle}' takes {', '.join(str(tuple(i.shape)) for i in inputs)}; kft reads Keras model files with one "
            "input of images, (batch, height, width, channels), and one output."
        )
    if inputs[0].shape[-1] not in (1, 3):
        raise ModelError(f"'{folder.handle}' takes images with {inputs[0].shape[-1]} channels. Allowed: 1, 3.")
    if len(outputs[0].shape) == 4:
        return _alone(whole, outputs[0]), None
    layers = list(whole.layers)
    cut = max((n for n, layer in enumerate(layers) if isinstance(layer, POOLINGS)), default=None)
    if cut is None or len(layers[cut].input.shape) != 4:
        raise ModelError(
            f"'{folder.handle}' pools its features in no way kft knows ({', '.join(kind.__name__ for kind in POOLINGS)}). Save "
            "the part below its classification: keras.Model(model.input, features).save('features.keras')."
        )
    features, above = layers[cut].input, layers[cut + 1 :]
    if not any(layer.weights for layer in above) and _normalizes(layers[-1]):
        # Its last convolution has a channel for each class, and is its classifier.
        found = next(layer for layer in reversed(layers[:cut]) if layer.weights)
        return _alone(whole, found.input), None
    return _alone(whole, features), _head(layers[cut], above)


def _alone(whole: Any, features: Any) -> Any:
    """Returns the model from a model's input to some features, and the one inside it where that is all."""
    model = keras.Model(keras.tree.flatten(whole.inputs)[0], features, name=whole.name)
    inner = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if len(inner) == 1 and isinstance(inner[0], keras.Model) and not isinstance(inner[0].input, (list, dict)):
        return inner[0]
    return model


def _normalizes(layer: Any) -> bool:
    """Says whether a layer makes probabilities."""
    activation = getattr(layer, "activation", None)
    return isinstance(layer, keras.layers.Softmax) or activation in (
        keras.activations.softmax,
        keras.activations.sigmoid,
    )


def _head(pooling: Any, above: list[Any]) -> PublishedHead | None:
    dense = [layer for layer in above if layer.weights]
    rest = [layer for layer in above if not layer.weights]
    plain = (keras.layers.Dropout, keras.layers.Softmax, keras.layers.Activation)
    if not isinstance(pooling, keras.layers.GlobalAveragePooling2D) or not all(isinstance(r, plain) for r in rest):
        return None
    if len(dense) != 1 or type(dense[0]) is not keras.layers.Dense or len(dense[0].weights) != 2:
        return None
    kernel, bias = (keras.ops.convert_to_numpy(weight) for weight in (dense[0].kernel, dense[0].bias))
    if len(bias) < 2:
        return None  # a sigmoid for two classes
    return PublishedHead("image", tuple(f"LABEL_{number}" for number in range(len(bias))), {"logits": (kernel, bias)})


def _images(whole: Any, model: Any, folder: ModelFolder, config: Model, progress: Progress | None) -> Images:
    height, width, channels = model.input.shape[1:]
    size = (int(height), int(width)) if height and width else None
    scaling = _scaling(whole, model)
    if config.image_scaling == "auto" and scaling is None and progress is not None:
        progress.note(
            f"{folder.handle} does not say how images are scaled: taken is 0..1. Set model.image_scaling if it is otherwise."
        )
    return Images.scaled(scaling if scaling and len(SCALINGS[scaling][0]) <= channels else "0..1", size, int(channels))


def _scaling(whole: Any, model: Any) -> str | None:
    """Returns how a model's makers scale images, or None where neither a layer nor a name tells."""
    layers = {id(layer): layer for one in (whole, model) for layer in one._flatten_layers()}.values()
    if any(isinstance(layer, SCALING) for layer in layers):
        return "none"
    names = [layer.name.lower() for layer in layers if isinstance(layer, keras.Model)]
    return next((way for start, way in PUBLISHED.items() for name in names if name.startswith(start)), None)
