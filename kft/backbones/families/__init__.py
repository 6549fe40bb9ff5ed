"""Families that Hugging Face publishes, KerasHub has a backbone of, and no converter for; a module for each."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kft.backbones.families.family import Family

# model_type in config.json, or what `parts` calls a part of one, and the module that knows it.
MODULES = {
    "deberta-v2": "deberta",
    "esm": "esm",
    "falcon": "falcon",
    "fnet": "fnet",
    "mpnet": "mpnet",
    "mt5": "t5",
    "t5": "t5",
    "t5-whole": "t5",
    "t5gemma": "t5gemma",
    "t5gemma-encoder": "t5gemma",
    "t5gemma2-encoder": "t5gemma",
    "bloom": "bloom",
    "gpt_neox": "gpt_neox",
    "mobilebert": "mobilebert",
    "modernbert": "modernbert",
    "opt": "opt",
    "phi3": "phi3",
    "roformer": "roformer",
    "whisper": "whisper",
    "xlnet": "xlnet",
}
# Those that hear, which no task of kft does.
AUDIO = ("whisper",)


def family_for(model_type: str) -> Family | None:
    """Returns how a family is published, or None where kft has no table of it. Call after `backend.activate`."""
    if model_type not in MODULES:
        return None
    module = importlib.import_module(f"kft.backbones.families.{MODULES[model_type]}")
    found: Family = getattr(module, "FAMILIES", {}).get(model_type) or module.FAMILY
    return found
