"""PaliGemma (Beyer et al. 2024, https://arxiv.org/abs/2407.07726) and PaliGemma 2 (Steiner et al. 2024,
https://arxiv.org/abs/2412.03555): SigLIP's tower before a Gemma or a Gemma 2, which sees image and prompt in both directions.

KerasHub's converter knows the first with images of 224 pixels only, so its class is filled here. Import after
`backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from kft.backbones.families.family import Family, dense, norm
from kft.backbones.hub import kinds
from kft.backbones.hub.configs import completed
from kft.backbones.hub.gemma import SPELLINGS, steeper, tower
from kft.backbones.hub.types import TYPES
from kft.backbones.places import Place

# Gemma 2's.
WINDOW = 4096
TEXT, TOWER = "language_model.model", "vision_tower.vision_model"


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's `PaliGemmaBackbone`.

    transformers lets a token of an answer see no further than Gemma 2's window in every other block; image and prompt are
    seen whole. KerasHub's window would hide parts of those too, so it is left out: nothing differs before a text with its
    image is longer than the window.

    Raises:
        ModelError: if the tower or the Gemma computes something that KerasHub does not.
    """
    text, vision = _text(config), tower(config)
    kinds.require(text, "model_type", text["model_type"], ("gemma", "gemma2"))
    kinds.arguments(text, TYPES[text["model_type"]])
    second = text["model_type"] == "gemma2"
    if second and text["sliding_window"] < WINDOW:
        kinds.require(text, "sliding_window", text["sliding_window"], (f"{WINDOW} or more",))
    return {
        "vocabulary_size": text["vocab_size"],
        "image_size": vision["image_size"],
        "num_layers": text["num_hidden_layers"],
        "num_query_heads": text["num_attention_heads"],
        "num_key_value_heads": text["num_key_value_heads"],
        "hidden_dim": text["hidden_size"],
        # KerasHub counts the two dense layers of a gate as one.
        "intermediate_dim": 2 * text["intermediate_size"],
        "head_dim": text["head_dim"],
        "vit_patch_size": vision["patch_size"],
        "vit_num_heads": vision["num_attention_heads"],
        "vit_hidden_dim": vision["hidden_size"],
        "vit_num_layers": vision["num_hidden_layers"],
        "vit_intermediate_dim": vision["intermediate_size"],
        "use_post_ffw_norm": second,
        "use_post_attention_norm": second,
        "attention_logit_soft_cap": text["attn_logit_softcapping"] if second else None,
        "dropout": 0.0,
    }


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is said of the Gemma, without how it sees by itself: here image and prompt are always seen whole."""
    return {**completed(config)["text_config"], "use_bidirectional_attention": None}


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    text, tower = _text(config), model.vit_encoder.get_layer("image_encoder")
    yield Place(model.token_embedding.embeddings, f"{TEXT}.embed_tokens.weight")
    for number, block in enumerate(model.transformer_layers):
        yield from _block(block, f"{TEXT}.layers.{number}", text)
    yield Place(model.layer_norm.scale, f"{TEXT}.norm.weight")
    yield from dense(model.vit_encoder.get_layer("image_classifier"), "multi_modal_projector.linear")
    embeddings = tower.vision_embeddings
    yield Place(embeddings.patch_embedding.kernel, f"{TOWER}.embeddings.patch_embedding.weight", axes=(2, 3, 1, 0))
    yield Place(embeddings.patch_embedding.bias, f"{TOWER}.embeddings.patch_embedding.bias")
    yield Place(embeddings.position_embedding.embeddings, f"{TOWER}.embeddings.position_embedding.weight")
    for number, block in enumerate(tower.resblocks):
        start = f"{TOWER}.encoder.layers.{number}"
        for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
            yield from dense(getattr(block.attn, f"{part}_proj"), f"{start}.self_attn.{name}")
        for place in (1, 2):
            yield from norm(getattr(block, f"layer_norm_{place}"), f"{start}.layer_norm{place}")
            yield from dense(getattr(block, f"mlp_dense_{place}"), f"{start}.mlp.fc{place}")
    yield from norm(tower.encoder_layer_norm, f"{TOWER}.post_layernorm")


def _block(block: Any, start: str, text: Mapping[str, Any]) -> Iterator[Place]:
    attention, second = block.attention, text["model_type"] == "gemma2"
    factor = steeper(text) if second else 1.0
    for layer, name, scale in (
        (attention.query_dense, "q_proj", factor),
        (attention.key_dense, "k_proj", 1.0),
        (attention.value_dense, "v_proj", 1.0),
    ):
        shape = tuple(layer.kernel.shape)
        yield Place(layer.kernel, f"{start}.self_attn.{name}.weight", cut=partial(_heads, shape=shape, scale=scale))
    yield Place(attention.output_dense.kernel, f"{start}.self_attn.o_proj.weight", 2)
    for layer, name in ((block.gating_ffw, "gate"), (block.gating_ffw_2, "up"), (block.ffw_linear, "down")):
        yield Place(layer.kernel, f"{start}.mlp.{name}_proj.weight", 1)
    yield Place(block.pre_attention_norm.scale, f"{start}.input_layernorm.weight")
    if not second:
        yield Place(block.pre_ffw_norm.scale, f"{start}.post_attention_layernorm.weight")
        return
    yield Place(block.post_attention_norm.scale, f"{start}.post_attention_layernorm.weight")
    yield Place(block.pre_ffw_norm.scale, f"{start}.pre_feedforward_layernorm.weight")
    yield Place(block.post_ffw_norm.scale, f"{start}.post_feedforward_layernorm.weight")


def _heads(array: np.ndarray, shape: tuple[int, int, int], scale: float) -> np.ndarray:
    """Returns a kernel with heads first, then inputs; an array of other measures is refused by its shape then."""
    heads, inputs, size = shape
    if array.shape != (heads * size, inputs):
        return array
    return array.reshape(heads, size, inputs).transpose(0, 2, 1) * np.float32(scale)


def texts(model: Any) -> Any:
    """Returns the part for texts, which are seen in both directions, as prompts are.

    Args:
        model: a `PaliGemmaBackbone`.
    """
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask")}
    mask = inputs["padding_mask"]
    x = model.token_embedding(inputs["token_ids"]) * model.hidden_dim**0.5
    for block in model.transformer_layers:
        x = block(x, padding_mask=mask, response_mask=keras.ops.zeros_like(mask))
    return keras.Model(inputs, {"sequence_output": model.layer_norm(x)}, name="paligemma_text")


FAMILY = Family(
    "PaliGemmaBackbone",
    arguments,
    places,
    prefix="",
    heads=("language_model.lm_head.", "lm_head.", f"{TOWER}.head."),
    pooling="last",
    modality="image_text",
    read=lambda tensors: tensors.renamed(SPELLINGS),
)
