"""Builds KerasHub backbones from a folder or from a configuration. Import after `backend.activate`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import keras
import keras_hub

from kft import backend
from kft.backbones import families, hugging_face
from kft.backbones.backbone import Backbone, Images
from kft.backbones.families.family import load as of_table
from kft.backbones.folders import ModelFolder, locate, tokenizer_folder
from kft.backbones.renamed import folder_for
from kft.backbones.tokenizer import Tokenizer
from kft.backbones.tokenizer import load as load_tokenizer
from kft.errors import KftError, ModelError, unknown
from kft.progress import Progress
from kft.recipe import Model

CAUSAL = ("GPT", "Llama", "Gemma", "Mistral", "Mixtral", "Qwen", "Phi", "OPT", "Bloom", "Falcon", "SmolLM", "RWKV")

LEFT_OUT = {"llama": {"rms_norm_eps": "layer_norm_epsilon"}, "vit": {"layer_norm_eps": "layer_norm_epsilon"}}
# Decoders whose way back from states to tokens, which no head of kft's reads, need not be loaded.
WITHOUT_WAY_BACK = ("llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe")


def load(config: Model, progress: Progress | None = None) -> Backbone:
    """Loads the backbone that a recipe's model section describes.

    Raises:
        ModelError: if it cannot be found, fetched or built; the message says what to do.
    """
    if config.preset is None:
        return _from_configuration(config)
    folder = locate(config.preset, config.sha256, progress, bridge=config.bridge)
    if folder.format == "saved_model":
        return _from_saved_model(folder, config, progress)
    family = hugging_face.family_of(folder)
    origin = {"handle": folder.handle, "format": folder.format, "sha256": folder.sha256}
    if family is not None:
        model, head = hugging_face.load(folder, config, family)
        tokenizer, activation = _tokenizer(config, folder.path), family.head.activation
        return Backbone(model, "text", _pooling(model, folder), tokenizer, None, head, activation, origin)
    if folder.format == "hugging_face" and (table := families.family_for(str(folder.config.get("model_type")))):
        model, head = of_table(folder, config, table)
        _part_attention_dropout(model, config)
        pooling = "mean" if _reads_mean(folder.path) else table.pooling
        tokenizer, activation = _tokenizer(config, folder.path), table.head.activation if table.head else "tanh"
        return Backbone(model, "text", pooling, tokenizer, None, head, activation, origin)
    model = _build(folder, config)
    _tell_tied(model)
    _part_attention_dropout(model, config)
    if isinstance(model.input, dict):
        return Backbone(model, "text", _pooling(model, folder), _tokenizer(config, folder.path), origin=origin)
    return Backbone(model, "image", "mean", images=_images(model, folder, config), origin=origin)


def _from_saved_model(folder: ModelFolder, config: Model, progress: Progress | None) -> Backbone:
    if not config.pretrained or config.config or config.dropout is not None or config.attention_dropout is not None:
        raise ModelError(
            f"'{folder.handle}' is a SavedModel that runs its own graph: model.pretrained, model.config, model.dropout and "
            "model.attention_dropout cannot change it. Leave them out."
        )
    try:
        from kft.backbones.bridge import adapted
    except ImportError:
        raise ModelError(
            f"'{folder.handle}' runs its own TensorFlow graph, and TensorFlow is not installed here. Type: "
            'pip install "keras-finetune[tensorflow]"'
        ) from None
    if progress is not None:
        progress.note(
            f"{folder.handle} runs its own TensorFlow graph, which is a program: train it only if you trust it"
        )
    model, images = adapted.built(folder.path)
    origin = {"handle": folder.handle, "format": folder.format, "sha256": folder.sha256, "folder": str(folder.path)}
    if images is not None:
        return Backbone(model, "image", "mean", images=images, origin=origin)
    return Backbone(model, "text", _pooling(model, None), _tokenizer(config, folder.path), origin=origin)


def _from_configuration(config: Model) -> Backbone:
    names = [name for name in dir(keras_hub.models) if name.endswith("Backbone") and name != "Backbone"]
    if config.architecture not in names:
        raise ModelError(unknown("model.architecture", str(config.architecture), names))
    model = _call(getattr(keras_hub.models, config.architecture), config)
    _part_attention_dropout(model, config)
    origin: dict[str, str | None] = {"handle": config.architecture, "format": "configuration", "sha256": None}
    if isinstance(model.input, dict):
        if config.tokenizer is None:
            raise ModelError(f"{config.architecture} reads text: give model.tokenizer, a folder of tokenizer files.")
        return Backbone(model, "text", _pooling(model, None), _tokenizer(config, None), origin=origin)
    return Backbone(model, "image", "mean", images=_images(model, None, config), origin=origin)


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


def _part_attention_dropout(model: Any, config: Model) -> None:
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
    path = folder_for(folder) if config.pretrained else folder.path
    try:
        with backend.without_tensorflow():
            if config.dropout is not None:
                changes |= _dropout(_class(folder), config)
            changes = {**_left_out(folder), **changes}
            if config.image_size is not None:
                changes["image_shape"] = (config.image_size, config.image_size, 3)
            return keras_hub.models.Backbone.from_preset(str(path), load_weights=config.pretrained, **changes)
    except KftError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"KerasHub cannot build '{folder.handle}' ({folder.format}): {reason}") from None


def _left_out(folder: ModelFolder) -> dict[str, Any]:
    """Returns what KerasHub's converter of a family does not read off its configuration, or reads and need not."""
    kind = str(folder.config.get("model_type")) if folder.format == "hugging_face" else ""
    found = {ours: folder.config[name] for name, ours in LEFT_OUT.get(kind, {}).items() if name in folder.config}
    return found | ({"tie_word_embeddings": True} if kind in WITHOUT_WAY_BACK else {})


def _class(folder: ModelFolder) -> Any:
    """Returns the class a folder will become, which KerasHub tells only of its own presets."""
    if folder.format == "keras_hub":
        return getattr(keras_hub.models, str(folder.config.get("class_name")), None)
    found = keras_hub.models.Backbone.from_preset(str(folder.path), load_weights=False)
    return type(found)


def _tokenizer(config: Model, folder: Path | None) -> Tokenizer:
    place = tokenizer_folder(config.tokenizer) if config.tokenizer is not None else folder
    assert place is not None
    return load_tokenizer(place)


def _pooling(model: Any, folder: ModelFolder | None) -> str:
    if folder is not None and _reads_mean(folder.path):
        return "mean"
    if any(type(model).__name__.startswith(name) for name in CAUSAL):
        return "last"
    output = model.output
    return "pooled" if isinstance(output, dict) and "pooled_output" in output else "first"


def _reads_mean(path: Path) -> bool:
    """Says whether a sentence-transformers folder declares that its vectors are means over tokens."""
    file = path / "1_Pooling" / "config.json"
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf8")).get("pooling_mode_mean_tokens"))


def _images(model: Any, folder: ModelFolder | None, config: Model) -> Images:
    shape = model.input.shape
    declared = (int(shape[1]), int(shape[2])) if shape[1] and shape[2] else None
    size = (config.image_size, config.image_size) if config.image_size else declared
    values = _normalization(folder.path) if folder is not None else {}
    return Images(size=size, channels=int(shape[3]), **values)


def _normalization(path: Path) -> dict[str, Any]:
    """Reads mean and deviation, on the scale 0 to 255, off the preprocessing files of either layout."""
    file = path / "preprocessor_config.json"
    if file.is_file():
        values = json.loads(file.read_text(encoding="utf8"))
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
