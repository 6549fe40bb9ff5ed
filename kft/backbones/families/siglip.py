"""SigLIP's tower for images (Zhai et al. 2023, https://arxiv.org/abs/2303.15343), which also sees for Gemma 3 and PaliGemma.

KerasHub's `SigLIPVisionEncoder` ends in one vector for an image; here the states of all patches come out, as those models
read them. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, norm
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

# Whether the activation is computed by its approximation with tanh.
APPROXIMATE = {"gelu_pytorch_tanh": True, "gelu_new": True, "gelu_fast": True, "gelu": False}


def siglip(
    image_size: int,
    channels: int,
    patch_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    intermediate_dim: int,
    approximate: bool = True,
    layer_norm_epsilon: float = 1e-6,
    attention_dropout: float = 0.0,
) -> Any:
    """Builds a tower from scaled images to the states of their patches.

    Args:
        image_size: height and width in pixels.
        channels: of an image.
        patch_size: height and width of a patch.
        num_layers: blocks.
        num_heads: of attention.
        hidden_dim: width of states.
        intermediate_dim: width of the dense layers between.
        approximate: whether GELU is approximated with tanh.
        layer_norm_epsilon: of the normalizations.
        attention_dropout: rate on attention's weights.

    Returns:
        A `keras.Model` from float32 images of shape (batch, height, width, channels) to shape (batch, patches, width).
    """
    layers, side = keras.layers, image_size // patch_size
    images = keras.Input((image_size, image_size, channels), name="images")
    x = layers.Conv2D(hidden_dim, patch_size, strides=patch_size, name="patch_embedding")(images)
    x = layers.Reshape((side * side, hidden_dim), name="patches")(x)
    places = keras_hub.layers.PositionEmbedding(side * side, drawn.normal(), name="position_embedding")(x)
    x = layers.Add(name="embeddings")([x, places])
    for number in range(num_layers):
        start = f"block_{number}"
        seen = layers.LayerNormalization(epsilon=layer_norm_epsilon, name=f"{start}_attention_norm")(x)
        more = drawn.attention((seen, seen, seen), None, start, num_heads, hidden_dim, attention_dropout)
        x = layers.Add(name=f"{start}_attention_add")([x, more])
        seen = layers.LayerNormalization(epsilon=layer_norm_epsilon, name=f"{start}_feedforward_norm")(x)
        up = layers.Dense(intermediate_dim, kernel_initializer=drawn.normal(), name=f"{start}_intermediate")(seen)
        up = keras.ops.gelu(up, approximate=approximate)
        more = layers.Dense(hidden_dim, kernel_initializer=drawn.normal(), name=f"{start}_output")(up)
        x = layers.Add(name=f"{start}_feedforward_add")([x, more])
    x = layers.LayerNormalization(epsilon=layer_norm_epsilon, name="last_norm")(x)
    return keras.Model(images, x, name="siglip_vision_model")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `siglip`; what the file leaves out is as transformers has it.

    Raises:
        ModelError: if the activation is another, or images are not as wide as high.
    """
    activation = str(config.get("hidden_act", "gelu_pytorch_tanh"))
    if activation not in APPROXIMATE:
        raise ModelError(unknown("hidden_act in config.json", activation, list(APPROXIMATE)))
    size, patch = config.get("image_size", 224), config.get("patch_size", 16)
    if not (isinstance(size, int) and isinstance(patch, int)):
        raise ModelError(
            f"image_size and patch_size in config.json are {size!r} and {patch!r}; of siglip_vision_model kft computes images "
            "and patches that are as wide as high. Take another model of the family."
        )
    return {
        "image_size": size,
        "channels": config.get("num_channels", 3),
        "patch_size": patch,
        "num_layers": config.get("num_hidden_layers", 12),
        "num_heads": config.get("num_attention_heads", 12),
        "hidden_dim": config.get("hidden_size", 768),
        "intermediate_dim": config.get("intermediate_size", 3072),
        "approximate": APPROXIMATE[activation],
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-6),
        "attention_dropout": config.get("attention_dropout", 0.0),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    patches = model.get_layer("patch_embedding")
    yield Place(patches.kernel, "embeddings.patch_embedding.weight", axes=(2, 3, 1, 0))
    yield Place(patches.bias, "embeddings.patch_embedding.bias")
    yield Place(model.get_layer("position_embedding").position_embeddings, "embeddings.position_embedding.weight")
    for number in range(config.get("num_hidden_layers", 12)):
        start, block = f"encoder.layers.{number}", f"block_{number}"
        yield from norm(model.get_layer(f"{block}_attention_norm"), f"{start}.layer_norm1")
        for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            yield from dense(model.get_layer(f"{block}_attention_{part}"), f"{start}.self_attn.{name}")
        yield from dense(model.get_layer(f"{block}_attention_output"), f"{start}.self_attn.out_proj", 2)
        yield from norm(model.get_layer(f"{block}_feedforward_norm"), f"{start}.layer_norm2")
        yield from dense(model.get_layer(f"{block}_intermediate"), f"{start}.mlp.fc1")
        yield from dense(model.get_layer(f"{block}_output"), f"{start}.mlp.fc2")
    yield from norm(model.get_layer("last_norm"), "post_layernorm")


FAMILY = Family(siglip, arguments, places, "vision_model.", heads=("head.",), pooling="mean", modality="image")
