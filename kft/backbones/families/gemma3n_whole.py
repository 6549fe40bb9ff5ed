"""Gemma 3n's part for images, and the whole of it: texts with images and sounds in them (https://ai.google.dev/gemma/docs/gemma-3n).

Images are seen by timm's MobileNetV5, sounds are heard by the encoder beside this, and what comes of both is put where a text
has tokens for it; the blocks above are those of the part for texts. A saved model loads where KerasHub is imported, without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras

from kft.backbones.families import drawn, gemma3n, gemma3n_audio, gemma3n_graph
from kft.backbones.families.family import Family, dense, refuse
from kft.backbones.places import Place
from kft.backbones.vision import mobilenet_v5
from kft.backbones.vision.mobilenet_v5_measures import CHANGES, HEIGHT, VARIANTS, MobileNetV5, changed
from kft.backbones.vision.timm import WITHOUT_EFFECT
from kft.errors import ModelError, unknown

TEXT, TOWER = "language_model.", "vision_tower.timm_model."
# What transformers takes where config.json says nothing.
SEES: dict[str, Any] = {
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": 2048,
    "vocab_size": 128,
    "vocab_offset": 262_144,
    "rms_norm_eps": 1e-6,
}
WHOLE = {
    "image_token_id": 262_145,
    "audio_token_id": 262_273,
    "vision_soft_tokens_per_image": 256,
    "audio_soft_tokens_per_image": 188,
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """How tokens of images, or of sounds, are embedded.

    Attributes:
        token: the id whose places are taken by states of an image or a sound.
        first: the least id that is embedded in a table of their own; those of sounds follow those of images.
        count: rows of the table.
        width: of a row, and of the states.
        epsilon: of the normalizations.
        length: how many places an image or a sound has.
    """

    token: int
    first: int
    count: int
    width: int
    epsilon: float
    length: int

    def layers(self, name: str, hidden_dim: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
        """Returns what embeds rows of the table by their numbers, and what embeds states; both end in the same layers."""
        table = keras.layers.Embedding(
            self.count, self.width, embeddings_initializer=drawn.normal(), name=f"{name}_embedding"
        )
        project = keras.layers.Dense(
            hidden_dim, use_bias=False, kernel_initializer=drawn.normal(), name=f"{name}_projection"
        )

        hard, soft = (
            keras.layers.RMSNormalization(epsilon=self.epsilon, name=f"{name}_{kind}_norm") for kind in ("hard", "soft")
        )

        def last(x: Any) -> Any:
            return keras.ops.rms_normalization(project(x), epsilon=self.epsilon)

        return (lambda numbers: last(hard(table(numbers)))), (lambda states: last(soft(states)))


def whole(
    vocabulary_size: int,
    hidden_dim: int,
    image: Kind,
    sound: Kind,
    vision: MobileNetV5,
    audio: gemma3n_audio.Hearing,
    image_size: int = HEIGHT,
    **blocks: Any,
) -> Any:
    """Builds a model with random weights.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of the hidden states.
        image: how tokens of images are embedded.
        sound: how those of sounds are.
        vision: the measures of what sees images.
        audio: those of what hears sounds.
        image_size: height and width of images in pixels.
        **blocks: see `gemma3n_graph.decoded`.

    Returns:
        A `keras.Model` to a dict of `sequence_output`, shape (batch, tokens, hidden_dim), from a dict of `token_ids` and
        `padding_mask`, each of shape (batch, tokens), `images`, scaled, shape (batch, images, image_size, image_size, 3),
        `audio_mel`, shape (batch, sounds, frames, bands), and `audio_mel_mask`, shape (batch, sounds, frames), nonzero for
        frames of the sound. A text without images or sounds has one that none of its tokens is for. A text whose tokens do not
        fit its images or its sounds has no states: they are NaN.
    """
    ops = keras.ops
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    images = keras.Input((None, image_size, image_size, 3), name="images")
    mel = keras.Input((None, None, audio.bands), name="audio_mel")
    heard = keras.Input((None, None), dtype="int32", name="audio_mel_mask")
    x = gemma3n_graph.embedded(ids, vocabulary_size, hidden_dim)
    of_image, of_states = image.layers("image", hidden_dim)
    x = _looked_up(x, ops.logical_and(ids >= image.first, ids < sound.first), ids, image, of_image)
    of_sound, of_frames = sound.layers("sound", hidden_dim)
    x = _looked_up(x, ids >= sound.first, ids, sound, of_sound)

    where, number, place = _spots(ids, image)
    given = keras.ops.sum(ops.ones_like(images[0, :, 0, 0, 0], dtype="int32"))
    fits = _fits(where, image, given)
    row = ops.minimum(number, given - 1) + _rows(ids) * given
    seen = mobilenet_v5.build(vision, (image_size, image_size))(ops.reshape(images, (-1, image_size, image_size, 3)))
    seen = keras.layers.Reshape((image.length, image.width), name="image_states")(seen)
    x = _placed(x, where, of_states(seen * image.width**0.5), row * image.length + place)

    where, number, place = _spots(ids, sound)
    given = ops.sum(ops.ones_like(heard[0, :, 0]))
    fits = ops.logical_and(fits, _fits(where, sound, given))
    row = ops.minimum(number, given - 1) + _rows(ids) * given
    states, real = audio.states(*_one_by_one(mel, heard))
    length = ops.sum(ops.ones_like(real[0], dtype="int32"))
    column = row * length + ops.minimum(place, length - 1)
    real = ops.logical_and(ops.take(ops.reshape(real, (-1,)), column, axis=0), place < length)
    # Places that a sound is too short for have the embedding of the last id.
    x = ops.where(
        ops.expand_dims(where, -1), of_sound(ops.zeros_like(ids[:, :1]) + vocabulary_size - 1 - sound.first), x
    )
    x = _placed(x, ops.logical_and(where, real), of_frames(states), column)

    x = ops.where(fits[:, :, None], x, float("nan"))
    x = gemma3n_graph.decoded(x, ids, mask, hidden_dim=hidden_dim, **blocks)
    inputs = {"token_ids": ids, "padding_mask": mask, "images": images, "audio_mel": mel, "audio_mel_mask": heard}
    return keras.Model(inputs, {"sequence_output": x}, name="gemma3n_whole")


def _looked_up(x: Any, where: Any, ids: Any, kind: Kind, table: Callable[[Any], Any]) -> Any:
    """Returns embedded tokens with those of a kind looked up in its own table."""
    ops = keras.ops
    found = table(ops.where(where, ids - kind.first, kind.count - 1))
    return ops.where(ops.expand_dims(where, -1), ops.cast(found, x.dtype), x)


def _spots(ids: Any, kind: Kind) -> tuple[Any, Any, Any]:
    """Returns which tokens states are put in the place of, the numbers of their images or sounds, and their places in these."""
    ops = keras.ops
    where = ops.equal(ids, kind.token)
    number = ops.maximum(ops.cumsum(ops.cast(where, "int32"), axis=1) - 1, 0)
    return where, number // kind.length, number % kind.length


def _fits(where: Any, kind: Kind, given: Any) -> Any:
    """Says whether a text has the tokens of whole images or sounds, and of no more than are given; shape (batch, 1)."""
    ops = keras.ops
    count = ops.sum(ops.cast(where, "int32"), axis=1, keepdims=True)
    return ops.logical_and(ops.equal(count % kind.length, 0), count <= given * kind.length)


def _rows(ids: Any) -> Any:
    """Returns the number of each text in the batch, shape (batch, 1)."""
    return keras.ops.cumsum(keras.ops.ones_like(ids[:, :1]), axis=0) - 1


def _placed(x: Any, where: Any, states: Any, numbers: Any) -> Any:
    """Returns embedded tokens with states in some places.

    Args:
        x: the tokens, shape (batch, tokens, width).
        where: which of them have such a place.
        states: of all images or sounds in the batch, shape (any, states, width).
        numbers: which of all states it is, shape (batch, tokens).
    """
    ops = keras.ops
    put = ops.take(ops.reshape(states, (-1, x.shape[-1])), numbers, axis=0)
    return ops.where(ops.expand_dims(where, -1), ops.cast(put, x.dtype), x)


def _one_by_one(mel: Any, heard: Any) -> tuple[Any, Any]:
    """Returns spectrograms and their masks without the axis of texts, of which neither texts, sounds nor frames are known."""
    ops = keras.ops
    sounds = ops.cumsum(ops.ones_like(ops.reshape(heard[:, :, 0], (-1,)))) - 1
    frames = ops.ones_like(heard[0, 0])
    numbers = sounds[:, None] * ops.sum(frames) + (ops.cumsum(frames) - 1)[None, :]
    return ops.take(ops.reshape(mel, (-1, mel.shape[-1])), numbers, axis=0), ops.take(
        ops.reshape(heard, (-1,)), numbers, axis=0
    )


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `whole`.

    Raises:
        ModelError: if the configuration asks for what is not computed, or its parts do not fit each other.
    """
    text = {**config["text_config"], "model_type": "gemma3n_text"}
    said, sees = {**WHOLE, **config}, {**SEES, **(config.get("vision_config") or {})}
    hears = {**gemma3n_audio.DEFAULTS, **(config.get("audio_config") or {})}
    found, vision = gemma3n.arguments(text), _vision(sees)
    refuse(said, "vision_soft_tokens_per_image", vision.resolution**2)
    refuse({**sees, "model_type": "gemma3n_vision"}, "hidden_size", vision.outputs)
    if not 0 <= found["vocabulary_size"] - 1 - hears["vocab_offset"] < hears["vocab_size"]:
        raise ModelError(
            f"vocab_size in config.json is {found['vocabulary_size']}, and its last id is none of the {hears['vocab_size']} of "
            f"sounds from {hears['vocab_offset']} on, as it is where a sound is too short. Get the file again."
        )
    return {
        **found,
        "image": _kind(sees, said["image_token_id"], said["vision_soft_tokens_per_image"]),
        "sound": _kind(hears, said["audio_token_id"], said["audio_soft_tokens_per_image"]),
        "vision": vision,
        "audio": gemma3n_audio.Hearing.of(hears),
    }


def _kind(said: Mapping[str, Any], token: int, length: int) -> Kind:
    return Kind(token, said["vocab_offset"], said["vocab_size"], said["hidden_size"], said["rms_norm_eps"], length)


def _vision(sees: Mapping[str, Any]) -> MobileNetV5:
    """Returns the network that `vision_config` names, as its `model_args` change it.

    Raises:
        ModelError: if kft does not know it, or the change.
    """
    name, changes = str(sees["architecture"]), sees.get("model_args") or {}
    if name not in VARIANTS:
        raise ModelError(unknown("architecture in config.json", name, VARIANTS))
    for field in changes:
        if field not in CHANGES and (field == "in_chans" or not WITHOUT_EFFECT.match(field)):
            raise ModelError(unknown("model_args in config.json", field, CHANGES))
    return changed(VARIANTS[name], changes)


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    for place in gemma3n.places(model, config["text_config"]):
        yield dataclasses.replace(place, name=f"{TEXT}{place.name}")
    found = arguments(config)
    for place in mobilenet_v5.places(model.get_layer("mobilenet_v5"), found["vision"]):
        yield dataclasses.replace(place, name=f"{TOWER}{place.name}")
    yield from gemma3n_audio.places(model, found["audio"].blocks)
    layer = model.get_layer
    for ours, theirs in (("image", "embed_vision"), ("sound", "embed_audio")):
        yield Place(layer(f"{ours}_embedding").embeddings, f"{theirs}.embedding.weight")
        yield from dense(layer(f"{ours}_projection"), f"{theirs}.embedding_projection")
        for kind in ("hard", "soft"):
            yield Place(layer(f"{ours}_{kind}_norm").scale, f"{theirs}.{kind}_embedding_norm.weight")


def heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns how names of tensors begin that no state depends on."""
    return ("lm_head.", *(f"{TEXT}{name}" for name in gemma3n.unread(config["text_config"])))


def tower(vision: MobileNetV5, image_size: int = HEIGHT, dropout: float = 0.0) -> Any:
    """Builds the part for images with random weights.

    Args:
        vision: its measures.
        image_size: height and width of images in pixels.
        dropout: see `mobilenet_v5.build`.
    """
    return mobilenet_v5.build(vision, (image_size, image_size), dropout=dropout)


def tower_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `tower`.

    Raises:
        ModelError: if kft does not know the network, or another number of blocks is asked for.
    """
    if config.get("num_hidden_layers") is not None:
        raise ModelError(
            "model.config: the tower of a gemma3n has the blocks of its architecture. Leave out num_layers."
        )
    return {"vision": _vision({**SEES, **config}), "dropout": 0.0}


FAMILIES = {
    "gemma3n": Family(
        backbone=whole,
        arguments=arguments,
        places=places,
        prefix="model.",
        heads=heads,
        pooling="last",
        modality="image_text",
        resized=True,
    ),
    "gemma3n_vision": Family(
        backbone=tower,
        arguments=tower_arguments,
        places=lambda model, config: mobilenet_v5.places(model, _vision({**SEES, **config})),
        prefix="timm_model.",
        heads=(),
        pooling="mean",
        modality="image",
        resized=True,
    ),
}
