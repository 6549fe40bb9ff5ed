"""Qwen3.5 as a whole: it reads texts with images in them, whose tokens have a place in the text, a row and a column.

The tower is that of `qwen3_5_vision`, the blocks those of `qwen3_5`; KerasHub's own class does not pass the images' places on.
As the truth serve transformers' Qwen3_5Model and Qwen3_5MoeModel. Videos are not read. Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kft.backbones import rotary
from kft.backbones.families import drawn, experts, qwen3_5, qwen3_5_vision
from kft.backbones.families.family import Family, refuse
from kft.backbones.families.turning import Turning
from kft.backbones.places import Place
from kft.errors import ModelError

# What transformers takes where a file leaves it out: the id of a token of an image, and pairs turned by text, row, column.
IMAGE, SECTIONS = 248_056, (11, 11, 10)
TEXT, VISION = "language_model.", "visual."


def whole(
    vocabulary_size: int,
    hidden_dim: int,
    image_token: int,
    image_size: int | tuple[int, int],
    channels: int,
    vision: Mapping[str, Any],
    turning: Turning,
    sections: Sequence[int],
    **blocks: Any,
) -> Any:
    """Builds a model with random weights.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of the hidden states.
        image_token: the id that an image's states take the places of.
        image_size: height and width of images in pixels, one number where they are the same.
        channels: of an image.
        vision: the measures of `qwen3_5_vision.features`.
        turning: how queries and keys are turned.
        sections: how many pairs of a head are turned by a token's place in the text, its row and its column.
        **blocks: see `qwen3_5.decoded`.

    Returns:
        A `keras.Model` to a dict of `sequence_output`, shape (batch, tokens, hidden_dim), from a dict of `token_ids` and
        `padding_mask`, each of shape (batch, tokens), and scaled `images`, shape (batch, images, height, width, channels). A text
        has its images from the first on, and for each as many tokens as that has states; what images it leaves over are not
        read, and one without any has one that is not read. A text whose tokens do not fit its images has no states: they are NaN.
    """
    ops, (height, width) = keras.ops, qwen3_5_vision.sides(image_size)
    grid = qwen3_5_vision.squares((height, width), vision["patch_size"], vision["merge_size"])
    ids, mask = qwen3_5.inputs()
    images = keras.Input((None, height, width, channels), name="images")
    seen = qwen3_5_vision.features(ops.reshape(images, (-1, height, width, channels)), output_dim=hidden_dim, **vision)
    given = grid[0] * grid[1] * ops.sum(ops.ones_like(images[:, :, 0, 0, 0], dtype="int32"), axis=1, keepdims=True)
    real = ops.cast(mask > 0, "int32")
    filled = ops.cast(ops.equal(ids, image_token), "int32") * real
    x = qwen3_5.token_embedding(vocabulary_size, hidden_dim)(ids)
    x = _placed(x, filled, ops.reshape(seen, (-1, hidden_dim)), given, grid)
    waves = _waves(_places(real, filled, grid), turning, sections)
    x = qwen3_5.decoded(x, mask, drawn.places_of(ids), waves, **blocks)
    inputs = {"images": images, "token_ids": ids, "padding_mask": mask}
    return keras.Model(inputs, {"sequence_output": x}, name="qwen3_5_whole")


def _placed(x: Any, filled: Any, features: Any, given: Any, grid: tuple[int, int]) -> Any:
    """Returns embedded tokens with the states of images in their places, NaN in a text that has no place for each.

    Args:
        x: the tokens, shape (batch, tokens, width).
        filled: 1 where a token is an image's, shape (batch, tokens).
        features: the states of all images, shape (states, width).
        given: how many of them a text has, shape (batch, 1).
        grid: rows and columns of an image's.
    """
    ops = keras.ops
    count = ops.sum(filled, axis=1, keepdims=True)
    fits = ops.logical_and(ops.equal(count % (grid[0] * grid[1]), 0), count <= given)
    texts = ops.cumsum(ops.ones_like(count), axis=0) - 1
    own = ops.minimum(ops.cumsum(filled, axis=1) - filled, given - 1) + texts * given
    put = ops.cast(ops.take(features, own, axis=0), x.dtype)
    x = ops.where(filled[:, :, None] > 0, put, x)
    return ops.where(fits[:, :, None], x, float("nan"))


def _places(real: Any, filled: Any, grid: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Returns tokens' places in the text, their rows and their columns, each of shape (batch, tokens).

    All three count on where a token is a text's. The tokens of an image stand at one place of the text, and go on from
    there by row and by column; what follows comes after the larger of both (Wang et al. 2024,
    https://arxiv.org/abs/2409.12191, section 2.1).

    Args:
        real: 1 where a token is no padding.
        filled: 1 where it is an image's.
        grid: rows and columns of an image's tokens.
    """
    ops, size = keras.ops, grid[0] * grid[1]
    before = ops.cumsum(filled, axis=1) - filled
    place = ops.maximum(ops.cumsum(real, axis=1) - 1 - before + before // size * max(grid), 0)
    within = before % size
    return place, place + filled * (within // grid[1]), place + filled * (within % grid[1])


def _waves(places: Sequence[Any], turning: Turning, sections: Sequence[int]) -> tuple[Any, Any]:
    """Returns cosines and sines, float32 of shape (batch, tokens, 1, pairs): by place, row and column in turns.

    Args:
        places: of the three kinds.
        turning: how fast pairs are turned.
        sections: how many pairs are turned by each kind; those left over are by the first.
    """
    ops, angles = keras.ops, 0.0
    kinds = np.zeros(len(turning.frequencies), np.int32)
    for kind in (1, 2):
        kinds[kind : 3 * sections[kind] : 3] = kind
    for kind, place in enumerate(places):
        own = np.where(kinds == kind, turning.frequencies, np.float32(0))
        angles = angles + ops.cast(place, "float32")[:, :, None, None] * own
    return ops.cos(angles) * turning.scale, ops.sin(angles) * turning.scale


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `whole`.

    Raises:
        ModelError: if the configuration asks for what tower or blocks do not compute, or these do not fit together.
    """
    text, vision = _text(config), config.get("vision_config") or {}
    found = qwen3_5.arguments(text)
    seeing = qwen3_5_vision.arguments({**vision, "model_type": f"{config['model_type']}_vision"})
    if found["turning"].beyond is not None:
        rotary.refuse(text, rotary.read(text, "rope_theta", "", 1.0), ("default", "linear", "llama3", "yarn"))
    if seeing.pop("output_dim") != found["hidden_dim"]:
        said = {**qwen3_5_vision.DEFAULTS, **vision, "model_type": config["model_type"]}
        refuse(said, "out_hidden_size", found["hidden_dim"])
    tower, rate = seeing.pop("tower"), seeing.pop("attention_dropout")
    return {
        **found,
        "image_token": config.get("image_token_id", IMAGE),
        "image_size": seeing.pop("image_size"),
        "channels": seeing.pop("channels"),
        "vision": {"tower": tower.dropping(rate), **seeing},
        "sections": _sections(text),
    }


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config["text_config"], "model_type": f"{config['model_type']}_text"}


def _sections(text: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns how many pairs are turned by each kind of place.

    Raises:
        ModelError: if it is not said of all three.
    """
    found = rotary.fields_of(text).get("mrope_section") or SECTIONS
    if len(found) != 3:
        raise ModelError(
            f"mrope_section in config.json is {found!r}; of {text['model_type']} kft computes places, rows and columns. "
            "Take another model of the family."
        )
    return tuple(found)


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    for place in qwen3_5.places(model, _text(config)):
        yield dataclasses.replace(place, name=f"{TEXT}{place.name}")
    yield from qwen3_5_vision.places(model, config, VISION)


FAMILY = Family(
    backbone=whole,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=qwen3_5.HEADS,
    pooling="last",
    modality="image_text",
    resized=True,
    read=experts.together,
)
