"""SigLIP's tower for images (Zhai et al. 2023, https://arxiv.org/abs/2303.15343), which also sees for Gemma 3 and PaliGemma.

KerasHub's `SigLIPVisionEncoder` ends in one vector for an image; here the states of all patches come out, as those models
read them. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub

from kft.backbones.families import drawn, towers
from kft.backbones.families.family import Family, norm
from kft.backbones.families.towers import Tower
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place

DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}


def siglip(tower: Tower, image_size: int, channels: int, patch_size: int, attention_dropout: float = 0.0) -> Any:
    """Builds a tower from scaled images to the states of their patches.

    Args:
        tower: its measures.
        image_size: height and width in pixels.
        channels: of an image.
        patch_size: height and width of a patch.
        attention_dropout: rate on attention's weights.

    Returns:
        A `keras.Model` from float32 images of shape (batch, height, width, channels) to shape (batch, patches, width).
    """
    layers, side = keras.layers, image_size // patch_size
    images = keras.Input((image_size, image_size, channels), name="images")
    x = layers.Conv2D(tower.width, patch_size, strides=patch_size, name="patch_embedding")(images)
    x = layers.Reshape((side * side, tower.width), name="patches")(x)
    places = keras_hub.layers.PositionEmbedding(side * side, drawn.normal(), name="position_embedding")(x)
    x = tower.dropping(attention_dropout).blocks(layers.Add(name="embeddings")([x, places]))
    return keras.Model(images, tower.norm("last_norm")(x), name="siglip_vision_model")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `siglip`; what the file leaves out is as transformers has it.

    Raises:
        ModelError: if the activation is unknown, or images are not as wide as high.
    """
    return {**Tower.arguments(config, DEFAULTS), **towers.square({**DEFAULTS, **config}, "siglip_vision_model")}


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    patches = model.get_layer("patch_embedding")
    yield Place(patches.kernel, "embeddings.patch_embedding.weight", axes=(2, 3, 1, 0))
    yield Place(patches.bias, "embeddings.patch_embedding.bias")
    yield Place(model.get_layer("position_embedding").position_embeddings, "embeddings.position_embedding.weight")
    yield from towers.places(model)
    yield from norm(model.get_layer("last_norm"), "post_layernorm")


FAMILY = Family(
    siglip, arguments, places, "vision_model.", ("head.", "classifier."), Head(), pooling="mean", modality="image"
)
