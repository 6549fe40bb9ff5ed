"""The part of Qwen3.5 that sees: a tower whose positions are learned and turned both, and that gives one state for each square
of patches. As the truth serves transformers' Qwen3_5VisionModel. Import after `backend.activate`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones import rotary
from kft.backbones.families import decoder, drawn, towers
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.families.towers import Tower
from kft.backbones.places import Place
from kft.errors import ModelError

# What transformers takes where a file leaves it out.
DEFAULTS = {
    "depth": 27,
    "hidden_size": 1152,
    "hidden_act": "gelu_pytorch_tanh",
    "intermediate_size": 4304,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 3584,
    "num_position_embeddings": 2304,
}
# What config.json has no fields for.
FIXED = {"layer_norm_eps": 1e-6, "attention_dropout": 0.0}


def vision(image_size: int | tuple[int, int], channels: int, attention_dropout: float = 0.0, **measures: Any) -> Any:
    """Builds a tower with random weights.

    Args:
        image_size: height and width of images in pixels, one number where they are the same.
        channels: of an image.
        attention_dropout: rate on attention's weights.
        **measures: see `features`.

    Returns:
        A `keras.Model` from scaled images, shape (batch, height, width, channels), to the states of their squares, row by row,
        shape (batch, squares, output_dim).
    """
    images = keras.Input((*sides(image_size), channels), name="images")
    tower = measures.pop("tower").dropping(attention_dropout)
    return keras.Model(images, features(images, tower, **measures), name="qwen3_5_vision")


def sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns height and width of images."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def squares(size: tuple[int, int], patch_size: int, merge_size: int) -> tuple[int, int]:
    """Returns how many squares of patches there are in a column and in a row.

    Raises:
        ValueError: if an image is not made of whole ones.
    """
    side = patch_size * merge_size
    if any(length % side or not length for length in size):
        raise ValueError(
            f"images of {size[0]} by {size[1]} pixels are not made of whole squares of {side} pixels a side"
        )
    return size[0] // side, size[1] // side


def features(
    images: Any,
    tower: Tower,
    patch_size: int,
    frames: int,
    merge_size: int,
    positions: int,
    wavelength: float,
    output_dim: int,
) -> Any:
    """Returns the states of images' squares of patches, row by row, shape (batch, squares, output_dim).

    Args:
        images: of shape (batch, height, width, channels).
        tower: its measures.
        patch_size: height and width of a patch in pixels.
        frames: how many of a video make a patch; an image is seen as so many that are the same.
        merge_size: patches a side of a square.
        positions: places that have been learned.
        wavelength: the base of the frequencies by which queries and keys are turned.
        output_dim: width of what is given.

    Raises:
        ValueError: if an image is not made of whole squares.
    """
    layers, ops, width = keras.layers, keras.ops, tower.width
    down, across = squares(images.shape[1:3], patch_size, merge_size)
    rows, columns = down * merge_size, across * merge_size
    kernel = (frames, patch_size, patch_size)
    film = ops.repeat(images[:, None], frames, axis=1)
    x = layers.Conv3D(width, kernel, strides=kernel, kernel_initializer=drawn.normal(), name="patch_embedding")(film)
    x = layers.Reshape((rows * columns, width), name="patches")(x)
    # One after the other, as many as there are patches, since there is no other input to count.
    number = drawn.places_of(ops.zeros_like(x[:1, :, 0], dtype="int32"))
    x = x + ops.cast(_learned(x, positions, rows, columns), x.dtype)
    waves = _waves(number // columns, number % columns, wavelength, width // tower.heads)
    x = tower.blocks(x, None, "image_block", functools.partial(decoder.turned, waves=waves))
    x = tower.norm("merger_norm")(x)
    x = layers.Reshape((down, merge_size, across, merge_size, width), name="merger_rows")(x)
    x = layers.Permute((1, 3, 2, 4, 5), name="merger_squares")(x)
    x = layers.Reshape((down * across, merge_size**2 * width), name="merger_inputs")(x)
    x = layers.Dense(x.shape[-1], "gelu", kernel_initializer=drawn.normal(), name="merger_intermediate")(x)
    return layers.Dense(output_dim, kernel_initializer=drawn.normal(), name="merger_output")(x)


def _learned(x: Any, positions: int, rows: int, columns: int) -> Any:
    """Returns the learned places of all patches, shape (1, patches, width): their square is stretched over the image.

    Args:
        x: the patches.
        positions: of the table.
        rows: of patches.
        columns: of patches.
    """
    layers, ops, side, width = keras.layers, keras.ops, math.isqrt(positions), x.shape[-1]
    first = ops.zeros_like(x[:1, :1, 0], dtype="int32")
    number = drawn.places_of(ops.repeat(first, side * side, axis=1))
    table = layers.Embedding(positions, width, embeddings_initializer=drawn.normal(), name="image_position_embedding")(
        number
    )
    if (rows, columns) == (side, side):
        return table
    table = ops.cast(layers.Reshape((side, side, width), name="image_positions")(table), "float32")
    # A sum over all, most of which count nothing: bilinear, and corners stay corners.
    table = ops.einsum("bijw,ri->brjw", table, _shares(rows, side))
    table = ops.einsum("brjw,cj->brcw", table, _shares(columns, side))
    return layers.Reshape((rows * columns, width), name="image_positions_stretched")(table)


def _shares(length: int, side: int) -> np.ndarray:
    """Returns how much each learned place counts for each of an image's, shape (length, side)."""
    places = np.arange(length, dtype=np.float32)[:, None] * np.float32(side - 1) / np.float32(max(length - 1, 1))
    shares: np.ndarray = np.maximum(1 - np.abs(places - np.arange(side, dtype=np.float32)), 0)
    return shares


def _waves(row: Any, column: Any, wavelength: float, head_dim: int) -> tuple[Any, Any]:
    """Returns cosines and sines, float32 of shape (1, patches, 1, pairs): half of a head's pairs are for rows, half for columns."""
    ops, share = keras.ops, head_dim // 2
    frequencies = 1 / np.float32(wavelength) ** (np.arange(0, share, 2, dtype=np.float32) / np.float32(share))
    angles = ops.concatenate(
        [ops.cast(place, "float32")[:, :, None, None] * frequencies for place in (row, column)], axis=-1
    )
    return ops.cos(angles), ops.sin(angles)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `vision`; images are as large as the learned places, if nobody asks for another size.

    Raises:
        ModelError: if the activation is unknown, positions are of another kind, or patches are not as wide as high.
    """
    said = {**DEFAULTS, **config}
    # The names that other families have are read too, as transformers does.
    usual = {"num_hidden_layers": said["depth"], "num_attention_heads": said["num_heads"]}
    said = {**usual, **said, **FIXED}
    tower = Tower.arguments(said, {})
    patch, frames, merge = (_whole(said, name) for name in ("patch_size", "temporal_patch_size", "spatial_merge_size"))
    turned = rotary.read(said, "rope_theta", "partial_rotary_factor", 1.0)
    rotary.refuse(said, turned, ("axial", "default"))
    size = said["hidden_size"] // said["num_attention_heads"]
    refuse(said, "head_dim", size, size)
    positions = said["num_position_embeddings"]
    return {
        **tower,
        "image_size": max(math.isqrt(positions) // merge, 1) * merge * patch,
        "channels": said["in_channels"],
        "patch_size": patch,
        "frames": frames,
        "merge_size": merge,
        "positions": positions,
        "wavelength": float(turned.wavelength),
        "output_dim": said["out_hidden_size"],
    }


def _whole(said: Mapping[str, Any], name: str) -> int:
    if not isinstance(said[name], int):
        raise ModelError(
            f"{name} in config.json is {said[name]!r}; of {said.get('model_type')} kft computes only one number, for all sides. "
            "Take another model of the family."
        )
    return int(said[name])


def places(model: Any, config: Mapping[str, Any], prefix: str = "") -> Iterator[Place]:
    """Gives each variable of the tower with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    patches = found["patch_embedding"]
    yield Place(patches.kernel, f"{prefix}patch_embed.proj.weight", axes=(2, 3, 4, 1, 0))
    yield Place(patches.bias, f"{prefix}patch_embed.proj.bias")
    yield Place(found["image_position_embedding"].embeddings, f"{prefix}pos_embed.weight")
    names = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.linear_fc1", "mlp.linear_fc2")
    yield from towers.fused_places(found, f"{prefix}blocks", names)
    yield from norm(found["merger_norm"], f"{prefix}merger.norm")
    yield from dense(found["merger_intermediate"], f"{prefix}merger.linear_fc1")
    yield from dense(found["merger_output"], f"{prefix}merger.linear_fc2")


FAMILY = Family(vision, arguments, places, "", heads=(), pooling="mean", modality="image", resized=True)
