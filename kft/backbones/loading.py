"""Loads the backbone that a recipe describes, whichever source it comes from. Import after `backend.activate`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from kft.backbones import families, hugging_face, parts
from kft.backbones.backbone import SCALINGS, Backbone, Below, Images
from kft.backbones.families.family import load as of_table
from kft.backbones.folders import ModelFolder, locate, tokenizer_folder
from kft.backbones.hub.loading import from_configuration, from_folder, images_of, part_attention_dropout
from kft.backbones.tokenizer import Tokenizer
from kft.backbones.tokenizer_files import load as load_tokenizer
from kft.errors import ModelError
from kft.progress import Progress
from kft.recipe import Model

CAUSAL = ("GPT", "Llama", "Gemma", "Mistral", "Mixtral", "Qwen", "Phi", "OPT", "Bloom", "Falcon", "SmolLM", "RWKV")


def load(config: Model, progress: Progress | None = None, reads: str = "auto") -> Backbone:
    """Loads the backbone that a recipe's model section describes.

    Args:
        config: the section.
        progress: hears of downloads.
        reads: which part is loaded of a model that has several, where the section does not say: text, image, or auto for
            what a script gets.

    Raises:
        ModelError: if it cannot be found, fetched or built; the message says what to do.
    """
    found = _load(config, progress, reads if config.part == "auto" else config.part)
    if config.part in ("text", "image") and found.modality != config.part:
        raise ModelError(
            f"model.part: '{config.preset or config.architecture}' reads {found.modality}, it has no part for {config.part}. "
            "Leave it out."
        )
    if config.image_scaling == "auto":
        return found
    if found.images is None:
        raise ModelError(f"model.image_scaling is for images; '{config.preset}' reads text. Leave it out.")
    return dataclasses.replace(found, images=_scaled(found.images, config.image_scaling))


def _scaled(images: Images, way: str) -> Images:
    mean = SCALINGS[way][0]
    if len(mean) > images.channels:
        raise ModelError(
            f"model.image_scaling: {way} is for images with {len(mean)} channels, this backbone takes {images.channels}. "
            "Allowed here: none, 0..1, -1..1."
        )
    return Images.scaled(way, images.size, images.channels)


def _load(config: Model, progress: Progress | None, wanted: str) -> Backbone:
    if config.preset is None:
        return _from_configuration(config)
    folder = locate(config.preset, config.sha256, progress, bridge=config.bridge)
    if folder.format == "saved_model":
        return _from_saved_model(folder, config, progress)
    if folder.format in ("timm", "keras_file", "layers"):
        return _of_images(folder, config, progress)
    part = parts.of(folder, wanted)
    if part is None:
        return _of_hugging_face(folder, config)
    return part.cut_out(_of_hugging_face(part.inside(folder), config), wanted)


def _of_hugging_face(folder: ModelFolder, config: Model) -> Backbone:
    """Loads a folder of Hugging Face's or KerasHub's: by kft's own tables where it has one, else by KerasHub."""
    origin = {"handle": folder.handle, "format": folder.format, "sha256": folder.sha256}
    family = hugging_face.family_of(folder)
    if family is not None:
        model, head = hugging_face.load(folder, config, family)
        tokenizer, below = _tokenizer(config, folder.path), family.head.below
        return Backbone(model, "text", _pooling(model, folder), tokenizer, None, head, below, origin)
    if folder.format == "hugging_face" and (table := families.family_for(folder.config)):
        model, head = of_table(folder, config, table)
        if not table.drawn:
            part_attention_dropout(model, config)
        if table.modality == "image":
            images = _images(model, "image", folder, config)
            return Backbone(model, "image", "mean", images=images, head=head, origin=origin)
        pooling = "mean" if _reads_mean(folder.path) else table.pools(folder.config)
        own, images = table.own_head(folder.config), _images(model, table.modality, folder, config)
        tokenizer, below = _tokenizer(config, folder.path), own.below if own else Below()
        return Backbone(model, table.modality, pooling, tokenizer, images, head, below, origin)
    model, modality, head = from_folder(folder, config)
    images = _images(model, modality, folder, config)
    if modality == "image":
        return Backbone(model, "image", _image_pooling(model), images=images, head=head, origin=origin)
    tokenizer, pooling = _tokenizer(config, folder.path), _pooling(model, folder)
    return Backbone(model, modality, pooling, tokenizer, images, head, origin=origin)


def _images(model: Any, modality: str, folder: ModelFolder, config: Model) -> Images | None:
    """Returns how a model wants its images, or None if it reads none."""
    if modality not in ("image", "image_text"):
        return None
    tensor = model.input.get("images") if isinstance(model.input, dict) else model.input
    if tensor is not None:
        _refuse_size(folder, config, tuple(tensor.shape[-3:-1]))
    elif config.image_size:
        raise ModelError(f"model.image_size: '{folder.handle}' takes patches, of images of any size. Leave it out.")
    return images_of(model, folder, config)


def _refuse_size(folder: ModelFolder, config: Model, declared: tuple[int | None, ...]) -> None:
    """Raises a ModelError if a recipe asks for images of another size than a model takes."""
    if config.image_size and None not in declared and declared != (config.image_size, config.image_size):
        raise ModelError(
            f"model.image_size: '{folder.handle}' takes images of {declared[0]} by {declared[1]} pixels only. Leave it out."
        )


def _of_images(folder: ModelFolder, config: Model, progress: Progress | None) -> Backbone:
    if folder.format == "timm":
        from kft.backbones.vision import timm

        model, images, head = timm.load(folder, config)
    elif folder.format == "layers":
        from kft.backbones.vision import layers

        model, images, head = layers.load(folder, config)
    else:
        from kft.backbones.vision import keras_file

        model, images, head = keras_file.load(folder, config, progress)
    if config.image_size is not None:
        _refuse_size(folder, config, tuple(model.input.shape[1:3]))
        images = dataclasses.replace(images, size=(config.image_size, config.image_size))
    origin = {"handle": folder.handle, "format": folder.format, "sha256": folder.sha256}
    return Backbone(model, "image", "first", images=images, head=head, origin=origin)


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
        return Backbone(model, "image", "first", images=images, origin=origin)
    return Backbone(model, "text", _pooling(model, None), _tokenizer(config, folder.path), origin=origin)


def _from_configuration(config: Model) -> Backbone:
    model = from_configuration(config)
    origin: dict[str, str | None] = {"handle": config.architecture, "format": "configuration", "sha256": None}
    if isinstance(model.input, dict):
        if config.tokenizer is None:
            raise ModelError(f"{config.architecture} reads text: give model.tokenizer, a folder of tokenizer files.")
        return Backbone(model, "text", _pooling(model, None), _tokenizer(config, None), origin=origin)
    images = images_of(model, None, config)
    return Backbone(model, "image", _image_pooling(model), images=images, origin=origin)


def _tokenizer(config: Model, folder: Path | None) -> Tokenizer:
    place = tokenizer_folder(config.tokenizer) if config.tokenizer is not None else folder
    assert place is not None
    return load_tokenizer(place)


def _pooling(model: Any, folder: ModelFolder | None) -> str:
    if folder is not None and (_reads_mean(folder.path) or folder.config.get("use_bidirectional_attention")):
        return "mean"
    if any(type(model).__name__.startswith(name) for name in CAUSAL):
        return "last"
    output = model.output
    return "pooled" if isinstance(output, dict) and "pooled_output" in output else "first"


def _image_pooling(model: Any) -> str:
    """Returns which of an image's patches are read, where a model gives a state for each: Swin has no class token."""
    return "mean" if model.name.startswith("swin") else "first"


def _reads_mean(path: Path) -> bool:
    """Says whether a sentence-transformers folder declares that its vectors are means over tokens."""
    file = path / "1_Pooling" / "config.json"
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf8")).get("pooling_mode_mean_tokens"))
