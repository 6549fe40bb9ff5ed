"""Gemma 4 as a whole: it reads texts with images in them, and the smaller ones sounds as well (https://ai.google.dev/gemma/docs/core).

Drawn of KerasHub's encoders and blocks. KerasHub's own graph pools the images of a batch as if all were as wide as the widest,
so their patches are pooled here, and what comes of them is put where a text has tokens for it.
Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
from keras_hub.src.models.gemma4.gemma4_vision_encoder import Gemma4VisionEncoderBlock, Gemma4VisionOutput

from kft.backbones.families import gemma4, gemma4_fields, gemma4_towers
from kft.backbones.families.family import Family, refuse
from kft.backbones.places import Place
from kft.errors import ModelError

# What stands before a text's names, and the kind of token that an image, a frame of a video or a piece of a sound fills.
TEXT = "language_model."
TOKENS = {"image": 258_880, "video": 258_884, "audio": 258_881}
# More than a row has of features: those that are none come after all that are.
FAR = 1 << 24
FRAMES = 4  # of a spectrogram, to a feature


def whole(
    vocabulary_size: int,
    hidden_dim: int,
    tokens: Mapping[str, int],
    padding: int,
    vision: Mapping[str, Any],
    pool_size: int,
    standardize: bool,
    audio: Mapping[str, Any] | None = None,
    **blocks: Any,
) -> Any:
    """Builds a model with random weights.

    Args:
        vocabulary_size: number of token ids.
        hidden_dim: width of the hidden states.
        tokens: the ids that features of an `image`, a `video` and `audio` take the places of.
        padding: the id that is looked up in their stead.
        vision: what KerasHub's encoder of images is made with.
        pool_size: how many patches a side become one feature.
        standardize: whether features have a mean and a deviation of their own.
        audio: what KerasHub's encoder of sounds is made with; None for a model that hears nothing.
        **blocks: see `gemma4.decoded`.

    Returns:
        A `keras.Model` to a dict of `sequence_output`, shape (batch, tokens, hidden_dim), from a dict of `token_ids` and
        `padding_mask`, each of shape (batch, tokens), `pixel_values`, shape (batch, images, patches, numbers of a patch) from 0
        to 1, and `pixel_position_ids`, shape (batch, images, patches, 2), -1 where a patch is of padding; of a model that hears
        `audio_mel`, shape (batch, sounds, frames, bands), and `audio_mel_mask`, shape (batch, sounds, frames), too.
    """
    ops, numbers = keras.ops, 3 * vision["patch_size"] ** 2
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    pixels = keras.Input((None, None, numbers), name="pixel_values")
    spots = keras.Input((None, None, 2), dtype="int32", name="pixel_position_ids")
    inputs = {"token_ids": ids, "padding_mask": mask, "pixel_values": pixels, "pixel_position_ids": spots}
    seen = ops.logical_or(ops.equal(ids, tokens["image"]), ops.equal(ids, tokens["video"]))
    filled = ops.logical_or(seen, ops.equal(ids, tokens["audio"]))
    looked_up = ops.where(filled, padding, ids)
    x = gemma4.token_embedding(vocabulary_size, hidden_dim)(looked_up) * hidden_dim**0.5
    patches = Gemma4VisionEncoderBlock(dtype="float32", name="image_encoder", **vision)(
        pixels, pixel_position_ids=spots
    )
    features, real = _pooled(patches, spots, pool_size)
    features = Gemma4VisionOutput(
        hidden_dim,
        layer_norm_epsilon=vision["layer_norm_epsilon"],
        standardize=standardize,
        dtype="float32",
        name="image_projection",
    )(features * vision["hidden_dim"] ** 0.5)
    x = _placed(x, ops.equal(ids, tokens["image"]), features, real, "image")
    if audio is not None:
        mel = keras.Input((None, None, audio["input_feat_size"]), name="audio_mel")
        heard = keras.Input((None, None), dtype="int32", name="audio_mel_mask")
        inputs |= {"audio_mel": mel, "audio_mel_mask": heard}
        encoder = keras_hub.models.Gemma4AudioEncoder(output_dim=hidden_dim, name="audio_encoder", **audio)
        features = encoder(mel, ops.cast(heard, "bool"))
        x = _placed(x, ops.equal(ids, tokens["audio"]), features, heard[:, :, ::FRAMES] > 0, "audio")
    images = ops.cast(seen, "int32")
    x = gemma4.decoded(x, looked_up, mask, hidden_dim=hidden_dim, images=images, **blocks)
    return keras.Model(inputs, {"sequence_output": x}, name="gemma4_whole")


def _pooled(patches: Any, spots: Any, pool: int) -> tuple[Any, Any]:
    """Returns the mean of each square of an image's patches, and which of them are squares, not padding.

    Args:
        patches: of shape (batch, images, patches, width).
        spots: their columns and rows.
        pool: patches a side of a square.
    """
    ops = keras.ops
    real = ops.any(ops.not_equal(spots, -1), axis=-1)
    column, row = (ops.maximum(spots[..., part], 0) for part in (0, 1))
    across = (ops.max(column, axis=2, keepdims=True) + 1) // pool
    square = ops.where(real, column // pool + across * (row // pool), -1)
    counted = ops.cumsum(ops.ones_like(square[:, :, :: pool**2]), axis=2) - 1
    within = ops.equal(ops.expand_dims(counted, 3), ops.expand_dims(square, 2))
    return ops.matmul(ops.cast(within, "float32") / pool**2, patches), ops.any(within, axis=-1)


def _placed(x: Any, where: Any, features: Any, real: Any, name: str) -> Any:
    """Returns embedded tokens with features in the places that are theirs, one after the other.

    Args:
        x: the tokens, shape (batch, tokens, width).
        where: which of them have such a place.
        features: of shape (batch, images, features, width).
        real: which of them are none of padding.
        name: of what the features are.
    """
    ops = keras.ops
    features = keras.layers.Reshape((-1, x.shape[-1]), name=f"{name}_features")(features)
    real = keras.layers.Reshape((-1,), name=f"{name}_features_mask")(ops.cast(real, "int32"))
    order = ops.argsort(ops.cumsum(real, axis=1) * real + (1 - real) * FAR, axis=1)
    number = ops.maximum(ops.cumsum(ops.cast(where, "int32"), axis=1) - 1, 0)
    own = ops.take_along_axis(ops.cast(order, "int32"), number, axis=1)
    put = ops.take_along_axis(features, ops.expand_dims(own, -1), axis=1)
    return ops.where(ops.expand_dims(where, -1), ops.cast(put, x.dtype), x)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `whole`.

    Raises:
        ModelError: if the configuration asks for what KerasHub's encoders and blocks do not compute.
    """
    text = _text(config)
    vision, audio = config.get("vision_config"), config.get("audio_config")
    if vision is None:
        raise ModelError(
            "config.json has no vision_config: this gemma4 reads texts without images. Type: model.part=text"
        )
    found = gemma4_fields.arguments(text)
    _refuse_far_images(config, text, found["block"]["sliding_window_size"])
    return {
        **found,
        "tokens": {name: config.get(f"{name}_token_id", usual) for name, usual in TOKENS.items()},
        "padding": text.get("pad_token_id") or 0,
        "vision": _vision(vision),
        "pool_size": vision.get("pooling_kernel_size", 3),
        "standardize": vision.get("standardize", False),
        "audio": None if audio is None else _audio(audio),
    }


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config["text_config"], "model_type": "gemma4_text"}


def _refuse_far_images(config: Mapping[str, Any], text: Mapping[str, Any], window: int) -> None:
    """Refuses images longer than a window whose tokens see each other: KerasHub's then see farther than the window."""
    longest = config.get("vision_soft_tokens_per_image", 280)
    if text.get("use_bidirectional_attention") == "vision" and longest > window:
        raise ModelError(
            f"sliding_window in config.json is {window}, less than the {longest} tokens of an image, of which each sees all others "
            "in KerasHub's gemma4. Type: model.part=text"
        )


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    refuse(config, "hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh")
    refuse(config, "attention_dropout", 0.0, 0.0)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") not in (None, "default"):  # what axial positions were called before there were others
        refuse({**rope, "model_type": "gemma4_vision"}, "rope_type", "axial")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    refuse(config, "head_dim", width // heads, 64)
    if config.get("pooling_kernel_size", 3) < 2:
        refuse(config, "pooling_kernel_size", 3)
    return {
        "image_size": config["patch_size"],  # which its layers are not changed by
        "patch_size": config["patch_size"],
        "hidden_dim": width,
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "head_dim": width // heads,
        "intermediate_dim": config["intermediate_size"],
        "position_embedding_size": config.get("position_embedding_size", 10_240),
        "rope_max_wavelength": float(rope.get("rope_theta", 100.0)),
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-6),
        "use_clipped_linears": config.get("use_clipped_linears", False),
    }


def _audio(config: Mapping[str, Any]) -> dict[str, Any]:
    refuse(config, "hidden_act", "silu", "silu")
    refuse(config, "rms_norm_eps", 1e-6, 1e-6)
    refuse(config, "use_clipped_linears", True, True)
    refuse(config, "attention_context_right", 0, 0)
    chunk = config.get("attention_chunk_size", 12)
    # transformers knows of as many distances as half of a chunk and what it sees before it have together.
    refuse(config, "attention_context_left", chunk + 1, 13)
    channels = tuple(config.get("subsampling_conv_channels", (128, 32)))
    return {
        "input_feat_size": channels[0],  # as many bands as transformers reckons with
        "hidden_size": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_hidden_layers"],
        "chunk_size": chunk,
        "context_left": chunk + 1,
        "logit_cap": config.get("attention_logit_cap", 50.0),
        "invalid_logit_value": config.get("attention_invalid_logits_value", -1e9),
        "conv_kernel_size": config.get("conv_kernel_size", 5),
        "residual_weight": config.get("residual_weight", 0.5),
        "gradient_clipping": config.get("gradient_clipping", 1e10),
        "sscp_conv_channels": channels,
        "output_proj_dims": config.get("output_proj_dims", 1536),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    for place in gemma4.places(model, config["text_config"]):
        yield dataclasses.replace(place, name=f"{TEXT}{place.name}")
    yield from gemma4_towers.seeing(model.get_layer("image_encoder"), model.get_layer("image_projection"))
    for layer in model.layers:
        if layer.name == "audio_encoder":
            yield from gemma4_towers.hearing(layer)


def heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns how names of tensors begin that no state depends on."""
    return ("lm_head.", *(f"{TEXT}{name}" for name in gemma4_fields.unread(_text(config))))


FAMILY = Family(
    backbone=whole,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=heads,
    pooling="last",
    modality="image_text",
)
