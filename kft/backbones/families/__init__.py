"""Families that Hugging Face publishes, and KerasHub has no converter for, or none that reads all that they say; a module for each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kft.backbones.families.family import Family

# model_type in config.json, or what `parts` calls a part of one, and the module that knows it.
MODULES = {
    "bart": "bart",
    "deberta": "disentangled",
    **dict.fromkeys(("blip-2", "blip_2_text", "blip_2_vision_model"), "blip_2"),
    "deberta-v2": "deberta",
    "esm": "esm",
    "falcon": "falcon",
    "fnet": "fnet",
    **dict.fromkeys(("gemma3n", "gemma3n_vision"), "gemma3n_whole"),
    "gemma3n_text": "gemma3n",
    "gemma4": "gemma4_whole",
    "gemma4_assistant": "gemma4",
    "gemma4_text": "gemma4",
    "mpnet": "mpnet",
    "mt5": "t5",
    "t5": "t5",
    "t5-whole": "t5",
    "t5gemma": "t5gemma",
    "t5gemma-encoder": "t5gemma",
    "t5gemma2-encoder": "t5gemma",
    "bloom": "bloom",
    "gpt_neox": "gpt_neox",
    "gpt_oss": "gpt_oss",
    "llama": "llama",
    "mistral": "llama",
    **dict.fromkeys(("metaclip_2", "metaclip_2_text_model", "metaclip_2_vision_model"), "metaclip_2"),
    "mobilebert": "mobilebert",
    "modernbert": "modernbert",
    "opt": "opt",
    "paligemma": "paligemma",
    "phi3": "phi3",
    "qwen2": "llama",
    "qwen3": "llama",
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "qwen3_5_whole"),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), "qwen3_5"),
    **dict.fromkeys(("qwen3_5_vision", "qwen3_5_moe_vision"), "qwen3_5_vision"),
    "roformer": "roformer",
    "sam3_vision_model": "sam3",
    "siglip_vision_model": "siglip",
    "whisper": "whisper",
    "xlnet": "xlnet",
}
# Those that hear, which no task of kft does.
AUDIO = ("whisper",)


def family_for(config: Mapping[str, Any]) -> Family | None:
    """Returns how a model is published, or None where kft has no table of it. Call after `backend.activate`.

    A module has the table of its family, `FAMILY`, those of several types or parts, `FAMILIES`, or what takes one by
    `config.json`, `of`.
    """
    model_type = str(config.get("model_type"))
    if model_type not in MODULES:
        return None
    module = importlib.import_module(f"kft.backbones.families.{MODULES[model_type]}")
    if hasattr(module, "of"):
        found: Family | None = module.of(config)
        return found
    own: Family = getattr(module, "FAMILIES", {}).get(model_type) or module.FAMILY
    return own
