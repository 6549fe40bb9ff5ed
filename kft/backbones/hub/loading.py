"""Builds KerasHub backbones from a folder or from a configuration. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
import inspect
import json
from pathlib import Path
from typing import Any

import keras
import keras_hub
from keras_hub.src.utils.transformers.preset_loader import TransformersPresetLoader

from kft import backend
from kft.backbones import converted, initial
from kft.backbones.backbone import Images, Modality, PublishedHead
from kft.backbones.folders import ModelFolder
from kft.backbones.hub.configs import adapted, completed
from kft.backbones.hub.kinds import HubType, arguments
from kft.backbones.hub.types import TYPES
from kft.backbones.hugging_face import head_of
from kft.backbones.parts import PARTS
from kft.errors import KftError, ModelError, listed, unknown
from kft.recipe import Model

# With these an encoder of kft's own tables is another model.
ODD = ("is_decoder", "position_embedding_type")


def from_configuration(config: Model) -> Any:
    """Builds the model of an architecture that a recipe names, with random weights.

    Raises:
        ModelError: if there is no such class, or its arguments do not fit.
    """
    names = [name for name in dir(keras_hub.models) if name.endswith("Backbone") and name != "Backbone"]
    if config.architecture not in names:
        raise ModelError(unknown("model.architecture", str(config.architecture), names))
    model = _call(getattr(keras_hub.models, config.architecture), config)
    part_attention_dropout(model, config)
    return model


def from_folder(folder: ModelFolder, config: Model) -> tuple[Any, Modality, PublishedHead | None]:
    """Builds the model of a folder that KerasHub reads.

    Returns:
        The model, what it reads, and the head that was published with it, if there is one that a task may go on with.

    Raises:
        ModelError: if it cannot, or its configuration does not fit.
    """
    model = _build(folder, config)
    _tell_tied(model)
    part_attention_dropout(model, config)
    known = TYPES.get(str(folder.config["model_type"])) if folder.format == "hugging_face" else None
    if isinstance(model.input, dict) and list(model.input) in (["images"], ["pixel_values"]):
        (images,) = model.input.values()
        model = keras.Model(images, model.output, name=model.name)
    modality: Modality = "text" if isinstance(model.input, dict) else "image"
    if known is None:
        return model, modality, None
    return model, known.modality or modality, _head(folder, config, known, "image" if modality == "image" else "last")


def _head(folder: ModelFolder, config: Model, known: HubType, reads: str) -> PublishedHead | None:
    if known.head is None or not config.pretrained:
        return None
    return head_of(folder.config, known.head, reads, folder.tensors())


def _call(cls: Any, config: Model) -> Any:
    arguments = {**config.config, **_dropout(cls, config)}
    for name, value in arguments.items():
        if isinstance(value, list) and name.endswith("shape"):
            arguments[name] = tuple(value)
    try:
        return cls(**arguments)
    except Exception as error:
        allowed = [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "kwargs")]
        raise ModelError(
            f"model.config does not fit {cls.__name__}: {error}. Its arguments: {', '.join(allowed)}."
        ) from None


def _dropout(cls: Any, config: Model) -> dict[str, Any]:
    known = inspect.signature(cls.__init__).parameters
    names = [name for name in ("dropout", "dropout_rate", "hidden_dropout", "attention_dropout") if name in known]
    return {} if config.dropout is None else dict.fromkeys(names, config.dropout)


def _tell_tied(model: Any) -> None:
    """Has a Llama say that its embeddings are tied: KerasHub's leaves it out, and then cannot load what it saved."""
    tied, own = getattr(model, "tie_word_embeddings", None), model.get_config
    if tied is not None and "tie_word_embeddings" not in own():
        model.get_config = lambda: {**own(), "tie_word_embeddings": tied}


def part_attention_dropout(model: Any, config: Model) -> None:
    """Gives attention's weights a dropout rate of their own, which KerasHub's blocks do not know."""
    if config.attention_dropout is None:
        return
    found = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.MultiHeadAttention)]
    if not found:
        raise ModelError(f"model.attention_dropout: {model.name} has no attention layer of Keras' own. Leave it out.")
    for layer in found:
        layer._dropout = layer._dropout_layer.rate = config.attention_dropout


def _build(folder: ModelFolder, config: Model) -> Any:
    changes = dict(config.config)
    try:
        with backend.without_tensorflow():
            if config.dropout is not None:
                changes |= _dropout(_class(folder), config)
            if config.image_size is not None:
                changes["image_shape"] = (config.image_size, config.image_size, 3)
            if folder.format == "hugging_face":
                return _converted(folder, config, changes)
            return keras_hub.models.Backbone.from_preset(str(folder.path), load_weights=config.pretrained, **changes)
    except KftError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"KerasHub cannot build '{folder.handle}' ({folder.format}): {reason}") from None


def _converted(folder: ModelFolder, config: Model, changes: dict[str, Any]) -> Any:
    """Builds a model of Hugging Face's as KerasHub's converter says, and fills it strictly."""
    known = TYPES.get(kind := str(folder.config["model_type"]))
    if known is None:
        raise ModelError(_not_read(folder, kind))
    loader = _loader(folder)
    # Sizes that a recipe asks for count for what is checked too.
    size = {} if config.image_size is None else {"image_size": config.image_size}
    whole = completed(folder.config)
    changes = {**arguments({**whole, **size}, known), **changes}
    with initial.undrawn() if config.pretrained else contextlib.nullcontext():
        model = loader.load_backbone(loader.check_backbone_class(), False, **changes)
    if config.pretrained:
        tensors = folder.tensors().renamed(known.spellings)
        offsets = known.offsets(whole)
        reader = converted.Reader(tensors, known.prefix, known.scales(whole), offsets, known.spare)
        all_blocks = "num_layers" not in config.config
        converted.fill(model, loader.converter, loader.config, reader, all_blocks=all_blocks)
    return model


def _loader(folder: ModelFolder) -> Any:
    """Returns KerasHub's loader of a folder, with `config.json` as it looks for it."""
    loader = TransformersPresetLoader(str(folder.path), dict(folder.config))
    loader.config = adapted(folder.config)
    return loader


def _not_read(folder: ModelFolder, kind: str) -> str:
    odd = [
        f"{name} {folder.config[name]!r}" for name in ODD if folder.config.get(name) not in (None, False, "absolute")
    ]
    if known := PARTS.get(kind):
        return (
            f"'{folder.handle}' is a {kind}, which kft does not read as a whole: KerasHub's converter of it is not held against "
            f"transformers. Type: {' or '.join(f'model.part={name}' for name in known)}"
        )
    return (
        f"'{folder.handle}' is a {kind}{' with ' + ' and '.join(odd) if odd else ''}, which kft does not read: KerasHub's "
        f"converter of it is not held against transformers. Give a folder of another model_type: {listed(sorted(TYPES), 30)}, "
        "or one of those of `kft list models`."
    )


def _class(folder: ModelFolder) -> Any:
    """Returns the class a folder will become, which KerasHub tells only of its own presets."""
    if folder.format == "keras_hub":
        return getattr(keras_hub.models, str(folder.config.get("class_name")), None)
    if (kind := str(folder.config["model_type"])) not in TYPES:
        raise ModelError(_not_read(folder, kind))
    return _loader(folder).check_backbone_class()


def images_of(model: Any, folder: ModelFolder | None, config: Model) -> Images:
    """Returns how a model wants its images, as the recipe, its own input and the preprocessing files of its folder say."""
    tensors = model.input if isinstance(model.input, dict) else {"images": model.input}
    if "images" not in tensors:
        return Images(channels=3, **(_normalization(folder.path) if folder is not None else {}))
    shape = tensors["images"].shape[-3:]
    declared = (int(shape[0]), int(shape[1])) if shape[0] and shape[1] else None
    size = (config.image_size, config.image_size) if config.image_size else declared
    values = _normalization(folder.path) if folder is not None else {}
    return Images(size=size, channels=int(shape[2]), **values)


def _normalization(path: Path) -> dict[str, Any]:
    """Reads mean and deviation, on the scale 0 to 255, off the preprocessing files of either layout."""
    file = path / "preprocessor_config.json"
    if not file.is_file():
        file = path / "processor_config.json"  # of models that read texts too
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf8"))
        values = values.get("image_processor", values)
        if values.get("image_mean") and values.get("do_normalize", True):
            mean, deviation = values["image_mean"], values["image_std"]
            return {"mean": tuple(255 * m for m in mean), "deviation": tuple(255 * d for d in deviation)}
        return {}
    for name in ("image_converter.json", "preprocessor.json"):
        if (path / name).is_file():
            values = json.loads((path / name).read_text(encoding="utf8"))
            return _from_scale(_converter(values))
    return {}


def _converter(values: dict[str, Any]) -> dict[str, Any]:
    inner = values.get("config", {})
    nested = inner.get("image_converter")
    return _converter(nested) if isinstance(nested, dict) else dict(inner)


def _from_scale(values: dict[str, Any]) -> dict[str, Any]:
    """KerasHub computes x * scale + offset, which is (x + offset / scale) / (1 / scale)."""
    scale, offset = values.get("scale"), values.get("offset")
    if scale is None:
        return {"mean": (0.0,), "deviation": (1.0,)}
    scales = scale if isinstance(scale, list) else [scale]
    offsets = offset if isinstance(offset, list) else [offset or 0.0] * len(scales)
    return {
        "mean": tuple(-o / s for s, o in zip(scales, offsets, strict=True)),
        "deviation": tuple(1 / s for s in scales),
    }
