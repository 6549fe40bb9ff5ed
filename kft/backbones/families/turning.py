"""How fast pairs of a head's numbers are turned by their positions, for graphs that are drawn here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft.backbones.rotary import Rotary
from kft.errors import ModelError

# What LongRoPE has been called in Phi-3's own files.
LONG = ("longrope", "su")


@dataclass(frozen=True)
class Turning:
    """What a graph computes rotary positions with.

    Attributes:
        frequencies: one for each pair of numbers; the rest of a head is not turned.
        scale: of cosines and sines.
        trained: the number of tokens beyond which a text has other frequencies.
        beyond: those, or none where they are always the same.
    """

    frequencies: np.ndarray
    scale: float = 1.0
    trained: int = 0
    beyond: np.ndarray | None = None


def turning(config: Mapping[str, Any], found: Rotary, head_dim: int) -> Turning:
    """Returns what `config.json` says of rotary positions, in float32 step by step, as it is computed in training.

    Raises:
        ModelError: if frequencies are scaled in another way, or one that is said in part.
    """
    width = int(head_dim * found.share)
    waves = np.float32(found.wavelength) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    try:
        if found.kind == "default":
            return Turning(1 / waves)
        if found.kind == "linear":
            return Turning(1 / waves / np.float32(found.fields["factor"]))
        if found.kind == "llama3":
            return _llama3(found.fields, waves)
        if found.kind == "yarn":
            return _yarn(config, found, waves, width)
        if found.kind in LONG:
            return _long(config, found.fields, waves)
    except KeyError as error:
        raise ModelError(f"config.json says rope_type {found.kind!r} and no {error}. Get the file again.") from None
    raise ModelError(
        f"rope_type in config.json is {found.kind!r}; of {config.get('model_type')} kft computes only default, linear, "
        f"llama3, yarn and {', '.join(LONG)}. Take another model of the family."
    )


def _trained(config: Mapping[str, Any], fields: Mapping[str, Any]) -> int:
    """Returns how many tokens a text of pretraining had."""
    name = "original_max_position_embeddings"
    return int(config.get(name) or fields.get(name) or config["max_position_embeddings"])


def _llama3(fields: Mapping[str, Any], waves: np.ndarray) -> Turning:
    """Slows pairs whose waves are long beside a text of pretraining, and mixes in between.

    Grattafiori et al. 2024, https://arxiv.org/abs/2407.21783; the factors are those of `config.json`.
    """
    turns = fields["original_max_position_embeddings"] / (2 * math.pi * waves)
    low, high = fields["low_freq_factor"], fields["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return Turning(((kept + (1 - kept) / fields["factor"]) / waves).astype(np.float32))


def _yarn(config: Mapping[str, Any], found: Rotary, waves: np.ndarray, width: int) -> Turning:
    """Slows pairs that turn few times in a text of pretraining, leaves those that turn often, and mixes in between.

    Peng et al. 2023, https://arxiv.org/abs/2309.00071, sections 3.2 and 3.4.
    """
    fields, trained = found.fields, _trained(config, found.fields)
    factor = fields["factor"] or config["max_position_embeddings"] / trained
    fast, slow = fields.get("beta_fast") or 32, fields.get("beta_slow") or 1

    def pair(turns: float) -> float:
        """Returns which pair turns so often in a text of pretraining."""
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(found.wavelength))

    low, high = pair(fast), pair(slow)
    if fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    slowed = np.clip((np.arange(width // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    mixed = 1 / (np.float32(factor) * waves) * slowed + 1 / waves * (1 - slowed)
    return Turning(mixed.astype(np.float32), _temperature(fields, factor))


def _temperature(fields: Mapping[str, Any], factor: float) -> float:
    if fields.get("attention_factor") is not None:
        return float(fields["attention_factor"])

    def scale(share: float) -> float:
        return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0

    over, under = fields.get("mscale"), fields.get("mscale_all_dim")
    return scale(over) / scale(under) if over and under else scale(1)


def _long(config: Mapping[str, Any], fields: Mapping[str, Any], waves: np.ndarray) -> Turning:
    """Divides each frequency by a number that was searched for, others for long texts.

    Ding et al. 2024, https://arxiv.org/abs/2402.13753.
    """
    trained = _trained(config, fields)
    factor, scale = fields.get("factor"), fields.get("attention_factor")
    ratio = config["max_position_embeddings"] / trained if factor is None else factor
    if scale is None:
        scale = math.sqrt(1 + math.log(ratio) / math.log(trained)) if ratio > 1 else 1.0
    short, long = (1 / (np.asarray(fields[name], np.float32) * waves) for name in ("short_factor", "long_factor"))
    return Turning(short, scale, trained, long)
