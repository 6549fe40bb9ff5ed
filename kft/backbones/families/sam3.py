"""What SAM 3 (Carion et al. 2025, https://arxiv.org/abs/2511.16719) sees images with, as a backbone of image tasks.

The layers are KerasHub's, whose numbers are transformers'. Its whole model is not read: its texts' encoder lets tokens see those
that follow, and boxes of more than one image a batch are masked wrongly. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.places import Place


def vision(
    image_size: int,
    patch_size: int,
    num_layers: int,
    hidden_dim: int,
    intermediate_dim: int,
    num_heads: int,
    window_size: int,
    global_attention: tuple[int, ...],
    pretrain_image_size: int,
    rope_theta: float = 10000.0,
    dropout: float = 0.0,
    layer_norm_epsilon: float = 1e-6,
) -> Any:
    """Builds a vision transformer with random weights.

    Args:
        image_size: height and width of images in pixels.
        patch_size: those of a patch.
        num_layers: of blocks.
        num_heads: of attention.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        window_size: height and width in patches of what a patch sees.
        global_attention: the blocks in which it sees the whole image, from 0.
        pretrain_image_size: height and width in pixels of what the table of positions is for; it is laid side by side.
        rope_theta: the base of the turns by position.
        dropout: on hidden states.
        layer_norm_epsilon: of all normalizations.

    Returns:
        A `keras.Model` from images, shape (batch, image_size, image_size, 3), to the states of their patches, shape (batch,
        rows, columns, hidden_dim).

    Raises:
        ValueError: if windows do not cut an image without a rest, which transformers pads and KerasHub does not.
    """
    side = image_size // patch_size
    if side % window_size:
        raise ValueError(f"windows of {window_size} patches do not cut {side} patches a side without a rest")
    whole = keras_hub.layers.SAM3VisionEncoder(
        image_shape=(image_size, image_size, 3),
        patch_size=patch_size,
        num_layers=num_layers,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
        num_heads=num_heads,
        fpn_hidden_dim=hidden_dim,
        fpn_scale_factors=[],
        pretrain_image_shape=(pretrain_image_size, pretrain_image_size, 3),
        rope_theta=rope_theta,
        window_size=window_size,
        global_attn_indexes=list(global_attention),
        hidden_dropout_rate=dropout,
        layer_norm_epsilon=layer_norm_epsilon,
    )
    images = keras.Input((image_size, image_size, 3), name="images")
    x = keras.layers.Reshape((side, side, hidden_dim), name="patches")(whole.backbone.embeddings(images))
    # One after the other, so that a recipe may train the uppermost alone.
    for layer in (whole.backbone.layer_norm, *whole.backbone.layers):
        x = layer(x)
    return keras.Model(images, x, name="sam3_vision")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `vision`.

    Raises:
        ModelError: if the transformer is of a kind that KerasHub computes otherwise.
    """
    own = {**config["backbone_config"], "model_type": config["model_type"]}
    refuse(own, "hidden_act", "gelu", "gelu")
    refuse(own, "num_channels", 3, 3)
    refuse(own, "layer_scale_init_value", None)
    refuse(own, "attention_dropout", 0.0, 0.0)
    rope = own.get("rope_parameters") or {}
    if rope.get("rope_type") != "default":  # as the same turns were called at first
        refuse({**own, **rope}, "rope_type", "axial", "axial")
    return {
        "image_size": own["image_size"],
        "patch_size": own["patch_size"],
        "num_layers": own["num_hidden_layers"],
        "hidden_dim": own["hidden_size"],
        "intermediate_dim": own["intermediate_size"],
        "num_heads": own["num_attention_heads"],
        "window_size": own["window_size"],
        "global_attention": tuple(own["global_attn_indexes"]),
        "pretrain_image_size": own["pretrain_image_size"],
        "rope_theta": float(rope.get("rope_theta", own.get("rope_theta", 10000.0))),
        "dropout": own.get("hidden_dropout", 0.0),
        "layer_norm_epsilon": own.get("layer_norm_eps", 1e-6),
    }


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    first, positions = model.get_layer("embeddings"), "backbone.embeddings.position_embeddings"
    kernel = first.patch_embeddings.projection.kernel
    yield Place(kernel, "backbone.embeddings.patch_embeddings.projection.weight", axes=(2, 3, 1, 0))
    yield Place(first.position_embeddings, positions)
    yield Place(first.tiled_position_embeddings, positions, cut=lambda table: _side_by_side(table, first))
    yield from norm(model.get_layer("layer_norm"), "backbone.layer_norm")
    blocks = [layer for layer in model.layers if hasattr(layer, "attention")]
    for number, block in enumerate(blocks):
        start = f"backbone.layers.{number}"
        yield from norm(block.layer_norm1, f"{start}.layer_norm1")
        for name in PROJECTIONS:
            yield from dense(getattr(block.attention, name), f"{start}.attention.{name}")
        yield from norm(block.layer_norm2, f"{start}.layer_norm2")
        for name in ("fc1", "fc2"):
            yield from dense(getattr(block.mlp, name), f"{start}.mlp.{name}")


def _side_by_side(table: np.ndarray, layer: Any) -> np.ndarray:
    """Lays a table of positions side by side until it covers an image; what stands over its edges is cut off."""
    rows, own = layer.image_shape[0] // layer.patch_size, round(table.shape[1] ** 0.5)
    times = -(-rows // own)
    tiled = np.tile(table.reshape(own, own, -1), (times, times, 1))[:rows, :rows]
    return tiled.reshape(1, rows * rows, -1)


FAMILY = Family(
    backbone=vision,
    arguments=arguments,
    places=places,
    prefix="",
    # The layers that make masks of the states.
    heads=("neck.",),
    pooling="mean",
    modality="image",
    resized=True,
)
