"""Families that Hugging Face publishes, KerasHub has a backbone of, and no converter for; a module for each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kft.backbones.families.family import Family

# model_type in config.json, and the module that knows it.
MODULES = {
    "deberta": "disentangled",
    "deberta-v2": "deberta",
    "esm": "esm",
    "falcon": "falcon",
    "fnet": "fnet",
    "mpnet": "mpnet",
    "mt5": "t5",
    "t5": "t5",
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


def family_for(config: Mapping[str, Any]) -> Family | None:
    """Returns how the family of a `config.json` is published, or None where kft has no table of it.

    Call after `backend.activate`.
    """
    module = MODULES.get(str(config.get("model_type")))
    if module is None:
        return None
    found: Family = importlib.import_module(f"kft.backbones.families.{module}").FAMILY
    return found.instead(config) or found
