"""Heads on backbones: each gives an ordinary `keras.Model` from inputs to logits. Import after `backend.activate`.

Only Keras' and KerasHub's own layers are used, so the saved model loads without kft.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from kft.backbones import fused, initial
from kft.backbones.backbone import Backbone, Below, Images, PublishedHead
from kft.errors import ModelError, listed
from kft.progress import Progress
from kft.recipe import Augmentation
from kft.tasks.targets import Target
from kft.tasks.task import Task

LOWEST = -1e9


def build(
    task: Task,
    backbone: Backbone,
    target: Target,
    *,
    pooling: str = "auto",
    dropout: float = 0.1,
    augmentation: Augmentation | None = None,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Builds a backbone with a head: the one that was published with it where it fits, else a new one.

    A new head's weights are equal on every backend.

    Args:
        task: says which head.
        backbone: what it stands on.
        target: how many outputs it has.
        pooling: auto, first, pooled, mean or last; auto is what the backbone's makers read off.
        dropout: rate before the last layer.
        augmentation: random changes to images while training.
        image_size: height and width, where the backbone takes any.
        seed: the head is drawn from it.
        progress: hears what became of a published head.

    Returns:
        A `keras.Model` whose output is float32 logits: shape (batch, outputs), (batch, tokens, tags), or (batch, 2, tokens)
        for the first and last token of an answer, which no padding can be.

    Raises:
        ModelError: if the backbone does not fit the task.
    """
    task.refuse_other(backbone.modality)
    reads: str = task.head
    if task.head == "image":
        inputs, features = _image_features(backbone, augmentation or Augmentation(), image_size)
    else:
        inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in backbone.inputs}
        if unfit := set(inputs) - {"token_ids", "padding_mask", "segment_ids"}:
            raise ModelError(
                f"{backbone.origin.get('handle')} is not an encoder: it has the input '{sorted(unfit)[0]}'. "
                f"{task.name} needs one, such as BERT or RoBERTa."
            )
        features = backbone.model(inputs)
        if task.head == "sequence":
            reads = backbone.pooling if pooling == "auto" else pooling
            features = pool(features, inputs, reads)
        else:
            features = features["sequence_output"] if isinstance(features, dict) else features
        if reads == backbone.below.token or backbone.below.everywhere:
            features = _below(features, backbone.below)
    features = keras.layers.Dropout(dropout, name="head_dropout", seed=seed)(features)
    biased = _has_bias(backbone, reads)
    last = keras.layers.Dense(
        target.outputs, use_bias=biased, dtype="float32", name="logits", kernel_initializer=_kernel(task)
    )
    logits = last(features)
    if task.head == "spans":
        logits = _over_tokens(logits, inputs.get("padding_mask"))
    model = keras.Model(inputs, logits, name=task.name)
    initial.draw(head_layers(model, backbone), seed)
    kept = keep_published(model, backbone, target, reads)
    if progress is not None and backbone.head is not None:
        progress.note(_fate(backbone.head, kept, reads, target))
    fused.install(model)
    return model


def _has_bias(backbone: Backbone, reads: str) -> bool:
    """Says whether a head's last layer has a bias: as the published one, else not on a decoder's last token, as theirs."""
    head = backbone.head
    if head is not None and head.reads == reads and "logits" in head.weights:
        return len(head.weights["logits"]) > 1
    return reads != "last" or reads == backbone.below.token


def _over_tokens(logits: Any, mask: Any) -> Any:
    """Returns logits of shape (batch, tokens, outputs) as (batch, outputs, tokens), those of padding being lowest."""
    if mask is None:
        return keras.ops.transpose(logits, (0, 2, 1))
    # The mask as it comes in, so that a frozen part below can be computed once without it.
    logits = keras.ops.where(mask, keras.ops.transpose(logits, (2, 0, 1)), LOWEST)
    return keras.ops.transpose(logits, (1, 0, 2))


def _fate(head: PublishedHead, kept: Sequence[str], reads: str, target: Target) -> str:
    """Says what became of a published head."""
    if kept and not head.labels:
        return "the last layer is fresh; the published head for masked tokens goes on being trained below it"
    if "logits" in kept:
        return "the published head goes on being trained: its labels are the data's"
    if head.reads != reads:
        return f"the head is fresh: the published one reads {head.reads}, this one {reads}"
    some = " (of the published one, the layer below the labels is kept)" if kept else ""
    return f"the head is fresh: the published one has {listed(head.labels)}, the data {listed(target.labels or ['values'])}{some}"


def _kernel(task: Task) -> Any:
    """Returns the initializer of a head: small for text, as BERT's own heads have it (Devlin et al. 2019)."""
    return "glorot_uniform" if task.head == "image" else keras.initializers.TruncatedNormal(stddev=0.02)


def keep_published(model: Any, backbone: Backbone, target: Target, reads: str) -> list[str]:
    """Puts the head that was published with a backbone into a model that reads the same part of it.

    The layers below the last one are kept whatever the labels are. That one is kept where its labels are the target's, in
    whichever order, or where nobody has named them and there are as many.

    Args:
        model: with its head.
        backbone: what it stands on.
        target: what its outputs mean.
        reads: the part of the backbone that the head stands on: tokens, or a pooling.

    Returns:
        The names of the layers that are no longer random.
    """
    head = backbone.head
    if head is None or head.reads not in (reads, "any"):
        return []
    kept, layers = [], {layer.name: layer for layer in head_layers(model, backbone)}
    for name, arrays in head.weights.items():
        order = _order(head.labels, target) if name == "logits" else slice(None)
        if order is None:
            continue
        values, variables = [array[..., order] for array in arrays], layers[name].weights
        if [value.shape for value in values] == [tuple(variable.shape) for variable in variables]:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            kept.append(name)
    return kept


def _order(labels: tuple[str, ...], target: Target) -> list[int] | None:
    """Returns for each output of a target the output of a published head, or None where they are not the same."""
    names = [label.casefold() for label in labels]
    if target.kind == "spans":
        return [0, 1] if len(labels) == 2 else None
    wanted = [label.casefold() for label in target.labels] or ["value"]
    if sorted(names) == sorted(wanted) and len(set(names)) == len(names):
        return [names.index(label) for label in wanted]
    unnamed = all(name == f"label_{number}" for number, name in enumerate(names))
    return list(range(len(names))) if unnamed and len(names) == len(wanted) else None


def head_layers(model: Any, backbone: Backbone) -> list[Any]:
    """Returns the layers of a model that are not the backbone's."""
    return [layer for layer in model.layers if layer is not backbone.model]


def pool(features: Any, inputs: dict[str, Any], pooling: str) -> Any:
    """Returns one vector a text, shape (batch, width): of its first or last token, their mean, or what the pooler gives.

    Raises:
        ModelError: if the backbone has no pooler and one is asked for.
    """
    tokens = features["sequence_output"] if isinstance(features, dict) else features
    mask = inputs.get("padding_mask")
    if pooling == "pooled":
        if not isinstance(features, dict) or "pooled_output" not in features:
            raise ModelError("model.pooling: this backbone has no pooler. Allowed: first, mean, last.")
        return features["pooled_output"]
    if pooling == "mean":
        return keras.layers.GlobalAveragePooling1D(name="mean_pooling")(tokens, mask=mask)
    if pooling == "last":
        if mask is None:
            raise ModelError(
                "model.pooling: this backbone has no padding mask to find the last token by. Allowed: first, mean."
            )
        position = keras.ops.sum(mask, axis=1, keepdims=True) - 1
        return keras.ops.squeeze(keras.ops.take_along_axis(tokens, position[:, :, None], axis=1), axis=1)
    return tokens[:, 0, :]


def _below(features: Any, below: Below) -> Any:
    """Puts new layers on what a head reads: a dense one with tanh, as BERT's pooler is, or what the backbone's makers chose."""
    activation = keras.saving.get_registered_object(f"keras_hub>{below.activation}") or below.activation
    width = features.shape[-1]
    x = keras.layers.Dense(width, activation=activation, use_bias=below.bias, name="head_dense")(features)
    if below.epsilon is None:
        return x
    return keras.layers.LayerNormalization(epsilon=below.epsilon, center=below.offset, name="head_norm")(x)


def _image_features(backbone: Backbone, augmentation: Augmentation, size: tuple[int, int] | None) -> tuple[Any, Any]:
    images = backbone.images
    assert images is not None
    height, width = images.size or size or (None, None)
    inputs = keras.Input((height, width, images.channels), name="images")
    x = inputs
    for layer in _augmentation(augmentation):
        x = layer(x)
    if images.bgr:
        x = keras.ops.flip(x, axis=-1)
    features = backbone.model(_normalization(images)(x))
    if isinstance(features, dict):
        features = features.get("pooled_output", features.get("sequence_output", next(iter(features.values()))))
    if len(features.shape) == 4:
        features = keras.layers.GlobalAveragePooling2D(name="mean_pooling")(features)
    elif len(features.shape) == 3 and backbone.pooling == "mean":
        features = keras.layers.GlobalAveragePooling1D(name="mean_pooling")(features)
    elif len(features.shape) == 3:
        features = features[:, 0, :]
    return {"images": inputs}, features


def _normalization(images: Images) -> Any:
    if len(set(images.mean)) == 1 and len(set(images.deviation)) == 1:
        scale = 1 / images.deviation[0]
        return keras.layers.Rescaling(scale, -images.mean[0] * scale, name="normalization")
    variance = [deviation**2 for deviation in images.deviation]
    return keras.layers.Normalization(axis=-1, mean=list(images.mean), variance=variance, name="normalization")


def _augmentation(wanted: Augmentation) -> list[Any]:
    layers = keras.layers
    span = (0.0, 255.0)
    choices: list[tuple[Any, Any]] = [
        (wanted.flip != "none", lambda: layers.RandomFlip(wanted.flip)),
        (wanted.rotation, lambda: layers.RandomRotation(wanted.rotation)),
        (wanted.zoom, lambda: layers.RandomZoom(wanted.zoom)),
        (wanted.translation, lambda: layers.RandomTranslation(wanted.translation, wanted.translation)),
        (wanted.contrast, lambda: layers.RandomContrast(wanted.contrast, value_range=span)),
        (wanted.brightness, lambda: layers.RandomBrightness(wanted.brightness, value_range=span)),
    ]
    return [make() for chosen, make in choices if chosen]
