"""BLIP-2 (Li et al. 2023, https://arxiv.org/abs/2301.12597): a tower for images, and queries that read what it gives.

The whole ends at what its language model is given of an image; that model is read as a part. Drawn here, since KerasHub's class
leaves activations and attention's dropout out, and reads no files for image-text retrieval. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from kft.backbones.families import drawn, opt, t5, towers
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.families.towers import ACTIVATIONS, Tower
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

# What transformers takes where a file says nothing; some files have no more than the fields that differ.
IMAGE = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
QUERIES = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-12,
    "cross_attention_frequency": 2,
    "use_qformer_text_input": False,
}
# By model_type of the language model: the field of its width, and what it is where the file does not say.
WIDTHS = {"opt": ("hidden_size", opt.DEFAULTS), "t5": ("d_model", t5.DEFAULTS)}


def _seen(images: Any, tower: Tower, patch_size: int, last: Any) -> Any:
    """Returns the states of an image's class token and patches after the last normalization."""
    layers, side = keras.layers, images.shape[1] // patch_size
    x = layers.Conv2D(tower.width, patch_size, strides=patch_size, name="patch_embedding")(images)
    x = layers.Reshape((side * side, tower.width), name="patches")(x)
    table = layers.Embedding(1, tower.width, embeddings_initializer=drawn.normal(), name="class_embedding")
    first = table(keras.ops.zeros_like(x[:, :1, 0], dtype="int32"))
    x = layers.Concatenate(axis=1, name="class_and_patches")([first, x])
    places = keras_hub.layers.PositionEmbedding(side * side + 1, drawn.normal(), name="image_position_embedding")(x)
    return last(tower.blocks(layers.Add(name="image_embeddings")([x, places]), None, "image_block"))


def _blocks(
    x: Any, shape: Tower, dropout: float, start: str, mask: Any = None, seen: Any = None, every: int = 1
) -> Any:
    """Returns what BERT's blocks make of states that are not yet normalized.

    Args:
        x: the states.
        shape: the blocks' measures.
        dropout: rate on states.
        start: of the names of layers.
        mask: nonzero where a token is seen, of a shape that fits (batch, heads, tokens, tokens).
        seen: the states of an image that every `every`-th block, from the first on, reads besides.
        every: see `seen`.
    """
    x = shape.norm(f"{start}_first_norm")(x)
    x = keras.layers.Dropout(dropout, name=f"{start}_embeddings_dropout")(x)

    def attended(x: Any, others: Any, mask: Any, own: str) -> Any:
        more = drawn.attention((x, others, others), mask, own, shape.heads, shape.width, shape.attention_dropout)
        return drawn.joined(x, more, f"{own}_attention", dropout, shape.epsilon)

    for number in range(shape.layers):
        own = f"{start}_{number}"
        x = attended(x, x, mask, own)
        if seen is not None and number % every == 0:
            x = attended(x, seen, None, f"{own}_cross")
        up = keras.layers.Dense(shape.inner, kernel_initializer=drawn.normal(), name=f"{own}_intermediate")(x)
        up = ACTIVATIONS[shape.activation](up)
        more = keras.layers.Dense(shape.width, kernel_initializer=drawn.normal(), name=f"{own}_output")(up)
        x = drawn.joined(x, more, own, dropout, shape.epsilon)
    return x


def image_tower(tower: Tower, image_size: int, patch_size: int, attention_dropout: float = 0.0) -> Any:
    """Builds the part that reads images.

    Returns:
        A `keras.Model` from scaled images, shape (batch, height, width, 3), to a dict of `sequence_output`, shape
        (batch, 1 + patches, width), and `pooled_output`, the class token's state, normalized once more, shape (batch, width).
    """
    images, last = keras.Input((image_size, image_size, 3), name="images"), tower.norm("image_last_norm")
    states = _seen(images, tower.dropping(attention_dropout), patch_size, last)
    pooled = last(states[:, 0, :])
    return keras.Model(images, {"sequence_output": states, "pooled_output": pooled}, name="blip_2_image")


def text_tower(
    shape: Tower, vocabulary_size: int, positions: int, dropout: float = 0.1, attention_dropout: float = 0.1
) -> Any:
    """Builds what reads texts in a model for image-text retrieval: the queries' blocks without what reads an image.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, width).
    """
    shape, layers = shape.dropping(attention_dropout), keras.layers
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    table = layers.Embedding(
        vocabulary_size, shape.width, embeddings_initializer=drawn.normal(), name="token_embedding"
    )
    x = table(ids)
    places = keras_hub.layers.PositionEmbedding(positions, drawn.normal(), name="position_embedding")(x)
    x = layers.Add(name="embeddings_add")([x, places])
    x = _blocks(x, shape, dropout, "query_block", mask=mask[:, None, None, :])
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="blip_2_text")


def whole(
    image: Tower,
    shape: Tower,
    image_size: int,
    patch_size: int,
    num_queries: int,
    cross_attention_frequency: int,
    projection_dim: int,
    retrieval: bool,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
) -> Any:
    """Builds the tower for images, the queries that read it, and what they are projected by.

    Args:
        image: the measures of the tower.
        shape: those of the queries' blocks.
        image_size: height and width of images in pixels.
        patch_size: height and width of a patch.
        num_queries: how many states come of an image.
        cross_attention_frequency: the first of so many blocks reads the image.
        projection_dim: width of what the states are projected to.
        retrieval: whether that is compared with texts, or else is given to a language model.
        dropout: on the queries' states.
        attention_dropout: on the weights of their attention.

    Returns:
        A `keras.Model` from scaled images, shape (batch, height, width, 3), to a dict of `sequence_output`, shape (batch,
        num_queries, width), and `language_inputs`, shape (batch, num_queries, projection_dim), which a language model has
        before the embeddings of its tokens; for retrieval instead `image_embeds`, of that shape and of length 1.
    """
    layers, ops = keras.layers, keras.ops
    shape = shape.dropping(attention_dropout)
    images = keras.Input((image_size, image_size, 3), name="images")
    seen = _seen(images, image, patch_size, image.norm("image_last_norm"))
    ones = ops.repeat(ops.ones_like(seen[:, :1, 0], dtype="int32"), num_queries, axis=1)
    table = layers.Embedding(num_queries, shape.width, embeddings_initializer=drawn.normal(), name="query_tokens")
    queries = table(ops.cumsum(ones, axis=1) - 1)
    x = _blocks(queries, shape, dropout, "query_block", seen=seen, every=cross_attention_frequency)
    projected = layers.Dense(projection_dim, kernel_initializer=drawn.normal(), name="projection")(x)
    if retrieval:
        more = {"image_embeds": layers.UnitNormalization(axis=-1, name="image_embeds")(projected)}
    else:
        more = {"language_inputs": projected}
    return keras.Model(images, {"sequence_output": x, **more}, name="blip_2")


def image_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `image_tower`.

    Raises:
        ModelError: if images or patches are not as wide as high, or attention's dense layers lack biases.
    """
    said = {**IMAGE, **config, "model_type": "blip_2_vision_model"}
    refuse(said, "qkv_bias", True, True)
    refuse(said, "num_channels", 3)
    found = {**Tower.arguments(said, {}), **towers.square(said, "blip_2_vision_model")}
    return {name: value for name, value in found.items() if name != "channels"}


def _queries(config: Mapping[str, Any]) -> tuple[Tower, dict[str, Any]]:
    """Returns the measures of the queries' blocks, and all fields that `config.json` has of them."""
    said = {**QUERIES, **(config.get("qformer_config") or {}), "model_type": "blip_2_qformer"}
    refuse(said, "position_embedding_type", "absolute", "absolute")
    shape: Tower = Tower.arguments({**said, "attention_dropout": said["attention_probs_dropout_prob"]}, {})["tower"]
    return shape, said


def _rates(said: Mapping[str, Any]) -> dict[str, float]:
    return {"dropout": said["hidden_dropout_prob"], "attention_dropout": said["attention_probs_dropout_prob"]}


def text_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `text_tower`."""
    shape, said = _queries(config)
    return {
        "shape": shape,
        "vocabulary_size": said["vocab_size"],
        "positions": said["max_position_embeddings"],
        **_rates(said),
    }


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `whole`.

    Raises:
        ModelError: if the language model is of a type whose width kft does not know.
    """
    shape, said = _queries(config)
    found = image_arguments(config.get("vision_config") or {})
    retrieval, speaks = said["use_qformer_text_input"], config.get("text_config") or {}
    kind = speaks.get("model_type", "opt")
    if not retrieval and kind not in WIDTHS:
        raise ModelError(unknown("model_type of text_config in config.json", kind, list(WIDTHS)))
    field, usual = WIDTHS.get(kind, WIDTHS["opt"])
    return {
        "image": found["tower"].dropping(found["attention_dropout"]),
        "shape": shape,
        "image_size": found["image_size"],
        "patch_size": found["patch_size"],
        "num_queries": config.get("num_query_tokens", 32),
        "cross_attention_frequency": said["cross_attention_frequency"],
        "projection_dim": config.get("image_text_hidden_size", 256) if retrieval else {**usual, **speaks}[field],
        "retrieval": retrieval,
        **_rates(said),
    }


def image_places(model: Any, config: Mapping[str, Any], prefix: str = "") -> Iterator[Place]:
    """Gives each variable of the tower for images with the name of its tensor."""
    found, start = {layer.name: layer for layer in model.layers}, f"{prefix}embeddings"
    patches, positions = found["patch_embedding"], found["image_position_embedding"].position_embeddings
    yield Place(patches.kernel, f"{start}.patch_embedding.weight", axes=(2, 3, 1, 0))
    yield Place(patches.bias, f"{start}.patch_embedding.bias")
    yield Place(found["class_embedding"].embeddings, f"{start}.class_embedding", cut=_only)
    yield Place(positions, f"{start}.position_embedding", cut=_only)
    names = ("layer_norm1", "self_attn.qkv", "self_attn.projection", "layer_norm2", "mlp.fc1", "mlp.fc2")
    yield from towers.fused_places(found, f"{prefix}encoder.layers", names)
    yield from norm(found["image_last_norm"], f"{prefix}post_layernorm")


def _only(array: np.ndarray) -> np.ndarray:
    return array[0, ...]


def _block_places(model: Any, of: str) -> Iterator[Place]:
    """Gives each variable of the queries' blocks; what `of` ends the names of has dense layers of its own for queries."""
    found = {layer.name: layer for layer in model.layers}
    yield from norm(found["query_block_first_norm"], "qformer.layernorm")
    for number in range(sum(name.startswith("query_block_") and name.endswith("_intermediate") for name in found)):
        block, start = f"query_block_{number}", f"qformer.encoder.layer.{number}"
        for own, name in ((block, "attention"), (f"{block}_cross", "crossattention")):
            if f"{own}_attention_query" not in found:
                continue
            for part in ("query", "key", "value"):
                yield from dense(found[f"{own}_attention_{part}"], f"{start}.{name}.attention.{part}")
            yield from dense(found[f"{own}_attention_output"], f"{start}.{name}.output.dense", 2)
            yield from norm(found[f"{own}_attention_layer_norm"], f"{start}.{name}.output.LayerNorm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.intermediate{of}.dense")
        yield from dense(found[f"{block}_output"], f"{start}.output{of}.dense")
        yield from norm(found[f"{block}_layer_norm"], f"{start}.output{of}.LayerNorm")


def text_places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of what reads texts for retrieval with the name of its tensor."""
    yield Place(model.get_layer("token_embedding").embeddings, "embeddings.word_embeddings.weight")
    yield Place(model.get_layer("position_embedding").position_embeddings, "embeddings.position_embeddings.weight")
    yield from _block_places(model, "")


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of the whole with the name of its tensor."""
    yield from image_places(model, config, "vision_model.")
    yield Place(model.get_layer("query_tokens").embeddings, "query_tokens", cut=_only)
    yield from _block_places(model, "_query")
    retrieval = _queries(config)[1]["use_qformer_text_input"]
    yield from dense(model.get_layer("projection"), "vision_projection" if retrieval else "language_projection")


def _of_blocks(config: Mapping[str, Any], *names: str) -> tuple[str, ...]:
    blocks = range(_queries(config)[0].layers)
    return tuple(f"qformer.encoder.layer.{number}.{name}." for number in blocks for name in names)


def _not_texts(config: Mapping[str, Any]) -> tuple[str, ...]:
    own = _of_blocks(config, "crossattention", "intermediate_query", "output_query")
    return ("vision_model.", "query_tokens", "vision_projection.", "text_projection.", "itm_head.", *own)


def _not_images(config: Mapping[str, Any]) -> tuple[str, ...]:
    if not _queries(config)[1]["use_qformer_text_input"]:
        return ("language_model.",)
    return ("embeddings.", "text_projection.", "itm_head.", *_of_blocks(config, "intermediate", "output"))


FAMILIES = {
    "blip-2": Family(whole, arguments, places, "", _not_images, pooling="mean", modality="image"),
    "blip_2_text": Family(text_tower, text_arguments, text_places, "", _not_texts),
    "blip_2_vision_model": Family(
        image_tower, image_arguments, image_places, "vision_model.", (), pooling="first", modality="image"
    ),
}
