"""Reads off `config.json` how a family turns queries and keys, in the layouts that field has had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kft.errors import ModelError


@dataclass(frozen=True)
class Rotary:
    """What a configuration says of rotary positions.

    Attributes:
        kind: how frequencies are scaled; `default` where they are not.
        wavelength: the base of the frequencies.
        share: the part of a head's width that is turned.
        fields: all that is said of the kind.
    """

    kind: str
    wavelength: float
    share: float
    fields: Mapping[str, Any]


def read(config: Mapping[str, Any], wavelength: str, share: str, default: float) -> Rotary:
    """Returns what is said in one field, as it is today, or beside it, as it was.

    Args:
        config: `config.json`.
        wavelength: the older field of the base, which is 10000 where there is none.
        share: the older field of the share.
        default: the share where there is none.
    """
    fields = fields_of(config)
    return Rotary(
        kind=str(fields.get("rope_type", fields.get("type", "default"))),
        wavelength=fields.get("rope_theta", config.get(wavelength, 10000.0)),
        share=fields.get("partial_rotary_factor", config.get(share, default)),
        fields=fields,
    )


def fields_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what is said of positions, from the field of either time; where both are there, as transformers reads it."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def refuse(config: Mapping[str, Any], found: Rotary, kinds: tuple[str, ...]) -> None:
    """Refuses a configuration that scales frequencies in a way that is not computed.

    Raises:
        ModelError: if it is none of `kinds`.
    """
    if found.kind not in kinds:
        raise ModelError(
            f"rope_type in config.json is {found.kind!r}; of {config.get('model_type')} kft computes only "
            f"{', '.join(kinds)}. Take another model of the family."
        )
