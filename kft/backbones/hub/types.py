"""Which models of Hugging Face's are read through KerasHub's converters, and with which settings.

The converters leave fields of `config.json` out without a word. Here is what of them an argument of KerasHub's class says, and
what must have the value that KerasHub computes with.
"""

from __future__ import annotations

import re
from typing import Any

from kft.backbones.hub.gemma import (
    CAUSAL,
    GEMMA,
    SIXTH,
    SOFT,
    SPELLINGS,
    TEXT,
    gemma,
    gemma2,
    gemma3_whole,
    less_one,
    steeper_norms_within,
    steeper_queries,
    t5gemma2,
)
from kft.backbones.hub.kinds import LINEAR, Config, HubType, layers_of, require
from kft.backbones.hugging_face import DECODER, Head
from kft.errors import ModelError


def _whole(config: Config) -> dict[str, Any]:
    """Raises a ModelError if a token of Qwen's sees no more than a window, which KerasHub leaves out."""
    first = config.get("max_window_layers", 28)
    if config.get("use_sliding_window"):
        made = ["full_attention" if i < first else "sliding_attention" for i in range(layers_of(config))]
        kinds = sorted(set(config.get("layer_types") or made))
        require(config, "layer_types", kinds, (["full_attention"],))
    return {"sliding_window_size": None}


def _windows(config: Config) -> dict[str, Any]:
    """Raises a ModelError unless windows cut each stage's image without a rest, which KerasHub does not pad."""
    window, side = config["window_size"], config["image_size"] // config["patch_size"]
    for stage in range(len(config["depths"])):
        if (side >> stage) % window:
            raise ModelError(
                f"window_size in config.json is {window}; at stage {stage + 1} of {len(config['depths'])} the image has "
                f"{side >> stage} patches a side, and KerasHub's swin needs a multiple. Take a model for another image_size."
            )
    return {}


SILU = {"hidden_act": ("silu",)}
PLAIN = {**SILU, "attention_bias": (False,), "mlp_bias": (False,)}
EPSILON = {"rms_norm_eps": "layer_norm_epsilon"}
SPARSE: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}
GELU = {"hidden_act": ("gelu",), "qkv_bias": (True,), "num_channels": (3,)}
# The heads of DINO's makers read the class token and the mean of all patches together, which kft's do not.
DINO2 = HubType("dinov2.", only={**GELU, "layer_norm_eps": (1e-6,)}, head=None)
TYPES = {
    "llama": HubType("model.", EPSILON, PLAIN, ("default", "llama3"), heads=True, without_way_back=True),
    "mistral": HubType("model.", only=SILU, ropes=LINEAR),
    "mixtral": HubType("model.", only=SILU, ropes=LINEAR, heads=True),
    "qwen2": HubType("model.", {}, SILU, LINEAR, heads=True, more=_whole, without_way_back=True),
    # With another epsilon than that of KerasHub's norms of queries and keys it is drawn, as all that Qwen published is.
    "qwen3": HubType("model.", {}, {**PLAIN, "rms_norm_eps": (1e-5,)}, LINEAR, more=_whole, without_way_back=True),
    "qwen2_moe": HubType(
        "model.",
        {},
        {**SILU, **SPARSE, "qkv_bias": (True,)},
        LINEAR,
        heads=True,
        more=_whole,
        without_way_back=True,
    ),
    "qwen3_moe": HubType(
        "model.",
        {},
        {**PLAIN, **SPARSE, **SIXTH},
        LINEAR,
        more=_whole,
        without_way_back=True,
    ),
    "smollm3": HubType("model.", {}, {**PLAIN, "use_sliding_window": (False, None)}, heads=True),
    "gemma": HubType(
        "model.",
        # What its first files call gelu, transformers computes by the approximation too.
        only={**GEMMA, **CAUSAL, "hidden_activation": SOFT, "hidden_act": (*SOFT, "gelu")},
        more=gemma,
    ),
    "gemma2": HubType(
        "model.",
        only={**GEMMA, **CAUSAL, "hidden_activation": SOFT},
        more=gemma2,
        scales=steeper_queries,
    ),
    "gemma3_text": TEXT,
    "gemma3": HubType(
        "",
        more=gemma3_whole,
        scales=steeper_norms_within,
        offsets=less_one(steeper_norms_within),
        spellings=SPELLINGS,
        modality="image_text",
        head=None,
    ),
    "t5gemma2": HubType(
        "model.",
        more=t5gemma2,
        without_way_back=True,
        modality="image_text",
        spare=re.compile(r"(^|\.)(lm_head|score)\.|\.vision_tower\.(vision_model\.)?head\."),
    ),
    "gpt2": HubType(
        "transformer.",
        {"n_inner": "intermediate_dim"},
        {
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "add_cross_attention": (False,),
        },
        head=DECODER,
    ),
    "vit": HubType("vit.", {"layer_norm_eps": "layer_norm_epsilon"}, GELU, head=Head()),
    "deit": HubType("deit.", {}, GELU, head=Head()),
    "dinov2": DINO2,
    "dinov2_with_registers": HubType("dinov2_with_registers.", only=DINO2.only, head=None),
    "dinov3_vit": HubType("", only={"num_channels": (3,)}, head=None),
    "swin": HubType(
        "swin.",
        only={
            "hidden_act": ("gelu",),
            "num_channels": (3,),
            "layer_norm_eps": (1e-5,),
            "use_absolute_embeddings": (False,),
        },
        more=_windows,
        head=Head(),
    ),
}
