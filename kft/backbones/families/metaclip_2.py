"""MetaCLIP 2 (Chuang et al. 2025, https://arxiv.org/abs/2507.22062): a tower for images and one for texts, drawn here.

KerasHub's class reads texts without a mask, and gives no states. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub

from kft.backbones.families import drawn, towers
from kft.backbones.families.family import Family, norm
from kft.backbones.families.towers import Tower
from kft.backbones.places import Place

COMMON = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "num_hidden_layers": 12}
TEXT = {
    **COMMON,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
IMAGE = {
    **COMMON,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}


def _texts(ids: Any, mask: Any, tower: Tower, vocabulary_size: int, positions: int) -> Any:
    """Returns the states of texts, each token seeing itself and those before it."""
    table = keras.layers.Embedding(
        vocabulary_size, tower.width, embeddings_initializer=drawn.normal(), name="token_embedding"
    )
    x = table(ids)
    x = keras.layers.Add(name="text_embeddings")(
        [x, keras_hub.layers.PositionEmbedding(positions, drawn.normal(), name="text_position_embedding")(x)]
    )
    seen = drawn.seen(drawn.places_of(ids), mask)
    return tower.norm("text_last_norm")(tower.blocks(x, seen, "text_block"))


def _images(images: Any, tower: Tower, patch_size: int) -> tuple[Any, Any]:
    """Returns the states of an image's class token and patches, and the normalized one of the class token."""
    layers, side = keras.layers, images.shape[1] // patch_size
    x = layers.Conv2D(tower.width, patch_size, strides=patch_size, use_bias=False, name="patch_embedding")(images)
    x = layers.Reshape((side * side, tower.width), name="patches")(x)
    table = layers.Embedding(1, tower.width, embeddings_initializer=drawn.normal(), name="class_embedding")
    first = table(keras.ops.zeros_like(x[:, :1, 0], dtype="int32"))
    x = layers.Concatenate(axis=1, name="class_and_patches")([first, x])
    places = keras_hub.layers.PositionEmbedding(side * side + 1, drawn.normal(), name="image_position_embedding")(x)
    x = tower.norm("image_first_norm")(layers.Add(name="image_embeddings")([x, places]))
    x = tower.blocks(x, None, "image_block")
    return x, tower.norm("image_last_norm")(x[:, 0, :])


def _text_inputs() -> tuple[Any, Any]:
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    return ids, mask


def text_tower(tower: Tower, vocabulary_size: int, positions: int, attention_dropout: float = 0.0) -> Any:
    """Builds the part that reads texts.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, width).
    """
    ids, mask = _text_inputs()
    states = _texts(ids, mask, tower.dropping(attention_dropout), vocabulary_size, positions)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": states}, name="metaclip_2_text")


def image_tower(tower: Tower, image_size: int, channels: int, patch_size: int, attention_dropout: float = 0.0) -> Any:
    """Builds the part that reads images.

    Returns:
        A `keras.Model` from scaled images, shape (batch, height, width, channels), to a dict of `sequence_output`, shape
        (batch, 1 + patches, width), and `pooled_output`, the class token's normalized state, shape (batch, width).
    """
    images = keras.Input((image_size, image_size, channels), name="images")
    states, pooled = _images(images, tower.dropping(attention_dropout), patch_size)
    return keras.Model(images, {"sequence_output": states, "pooled_output": pooled}, name="metaclip_2_image")


def whole(
    text: Tower,
    image: Tower,
    vocabulary_size: int,
    positions: int,
    image_size: int,
    channels: int,
    patch_size: int,
    projection_dim: int,
    end_id: int,
) -> Any:
    """Builds the whole model, which compares images with texts.

    Args:
        text: the measures of the tower for texts.
        image: those of the one for images.
        vocabulary_size: number of token ids.
        positions: most tokens of a text.
        image_size: height and width of images in pixels.
        channels: of an image.
        patch_size: height and width of a patch.
        projection_dim: width of the vectors that are compared.
        end_id: of the token that ends a text, whose state is compared.

    Returns:
        A `keras.Model` from a dict of scaled `images`, `token_ids` and `padding_mask` to a dict of `image_embeds` and
        `text_embeds`, of length 1, and `logits_per_image`, shape (images, texts).
    """
    layers, ops = keras.layers, keras.ops
    images = keras.Input((image_size, image_size, channels), name="images")
    ids, mask = _text_inputs()
    _, seen = _images(images, image, patch_size)
    states = _texts(ids, mask, text, vocabulary_size, positions)
    end = ops.argmax(ops.cast(ops.equal(ids, end_id), "int32"), axis=1)
    read = ops.squeeze(ops.take_along_axis(states, end[:, None, None], axis=1), axis=1)
    embeds = [
        layers.UnitNormalization(axis=-1, name=f"{name}_embeds")(
            layers.Dense(projection_dim, use_bias=False, kernel_initializer=drawn.normal(), name=f"{name}_projection")(
                x
            )
        )
        for name, x in (("image", seen), ("text", read))
    ]
    scale = layers.Embedding(1, 1, name="logit_scale")(ops.zeros_like(ids[:1, 0]))
    logits = ops.matmul(embeds[0], ops.transpose(embeds[1])) * ops.exp(scale)
    outputs = {"image_embeds": embeds[0], "text_embeds": embeds[1], "logits_per_image": logits}
    return keras.Model({"images": images, "token_ids": ids, "padding_mask": mask}, outputs, name="metaclip_2")


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `text_tower`; what the file leaves out is as transformers has it."""
    said = {**TEXT, **config}
    return {
        **Tower.arguments(config, TEXT),
        "vocabulary_size": said["vocab_size"],
        "positions": said["max_position_embeddings"],
    }


def image_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `image_tower`; what the file leaves out is as transformers has it.

    Raises:
        ModelError: if images or patches are not as wide as high.
    """
    return {**Tower.arguments(config, IMAGE), **towers.square({**IMAGE, **config}, "metaclip_2")}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `whole`."""
    text, image = (config.get(name) or {} for name in ("text_config", "vision_config"))
    texts, images = text_arguments(text), image_arguments(image)
    return {
        "text": texts.pop("tower").dropping(texts.pop("attention_dropout")),
        "image": images.pop("tower").dropping(images.pop("attention_dropout")),
        **texts,
        **images,
        "projection_dim": config.get("projection_dim", 512),
        "end_id": {**TEXT, **text}["eos_token_id"],
    }


def text_places(model: Any, config: Mapping[str, Any], prefix: str = "") -> Iterator[Place]:
    """Gives each variable of the part for texts with the name of its tensor."""
    yield Place(model.get_layer("token_embedding").embeddings, f"{prefix}embeddings.token_embedding.weight")
    positions = model.get_layer("text_position_embedding").position_embeddings
    yield Place(positions, f"{prefix}embeddings.position_embedding.weight")
    yield from towers.places(model, prefix, "text_block")
    yield from norm(model.get_layer("text_last_norm"), f"{prefix}final_layer_norm")


def image_places(model: Any, config: Mapping[str, Any], prefix: str = "") -> Iterator[Place]:
    """Gives each variable of the part for images with the name of its tensor."""
    kernel = model.get_layer("patch_embedding").kernel
    yield Place(kernel, f"{prefix}embeddings.patch_embedding.weight", axes=(2, 3, 1, 0))
    yield Place(
        model.get_layer("class_embedding").embeddings, f"{prefix}embeddings.class_embedding", cut=lambda x: x[None]
    )
    positions = model.get_layer("image_position_embedding").position_embeddings
    yield Place(positions, f"{prefix}embeddings.position_embedding.weight")
    # The makers' own spelling.
    yield from norm(model.get_layer("image_first_norm"), f"{prefix}pre_layrnorm")
    yield from towers.places(model, prefix, "image_block")
    yield from norm(model.get_layer("image_last_norm"), f"{prefix}post_layernorm")


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of the whole with the name of its tensor."""
    yield from text_places(model, config, "text_model.")
    yield from image_places(model, config, "vision_model.")
    yield Place(model.get_layer("text_projection").kernel, "text_projection.weight", 1)
    yield Place(model.get_layer("image_projection").kernel, "visual_projection.weight", 1)
    yield Place(model.get_layer("logit_scale").embeddings, "logit_scale", cut=lambda x: x.reshape(1, 1))


PROJECTIONS = ("text_projection.", "visual_projection.", "logit_scale", "classifier.")
FAMILIES = {
    "metaclip_2": Family(whole, arguments, places, "metaclip_2.", (), pooling="last", modality="image_text"),
    "metaclip_2_text_model": Family(
        text_tower, text_arguments, text_places, "text_model.", PROJECTIONS, pooling="last"
    ),
    "metaclip_2_vision_model": Family(
        image_tower, image_arguments, image_places, "vision_model.", PROJECTIONS, pooling="first", modality="image"
    ),
}
