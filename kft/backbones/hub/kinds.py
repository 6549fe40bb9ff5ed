"""What KerasHub's converters leave out of `config.json` without a word, for the types that are read through them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kft.backbones import rotary
from kft.backbones.backbone import Modality
from kft.backbones.hugging_face import NEWER_DECODER, Head
from kft.errors import ModelError

Config = Mapping[str, Any]
LINEAR = ("default", "linear")


@dataclass(frozen=True)
class HubType:
    """What kft knows of a `model_type`.

    Attributes:
        prefix: what a model with a head puts before the names of its backbone's weights.
        fields: fields that the converter leaves out, and the arguments of KerasHub's class they are.
        only: fields, and the values with which KerasHub computes what they mean; the first is taken where one is not there.
        ropes: the ways to turn queries and keys by their positions that KerasHub computes.
        heads: whether a head has to be as wide as the states, divided by their number.
        more: looks at what one field does not tell, and returns further arguments.
        without_way_back: whether the way back from states to tokens, which no head of kft's reads, need not be loaded.
        scales: what KerasHub leaves out and a factor on a tensor makes up for.
        offsets: what is added to a tensor that has a factor.
        spellings: regular expressions, and what makes the names of weights those that KerasHub's converter knows.
        modality: what the model reads, where it is more than texts or more than images.
        head: how its makers' own heads are called, or None where published heads are not read.
        spare: names of weights that nothing needs, where they are not those that most types have.
    """

    prefix: str
    fields: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ropes: tuple[str, ...] = ("default",)
    heads: bool = False
    more: Callable[[Config], dict[str, Any]] = lambda config: {}
    without_way_back: bool = False
    scales: Callable[[Config], dict[str, float]] = lambda config: {}
    offsets: Callable[[Config], dict[str, float]] = lambda config: {}
    spellings: tuple[tuple[str, str], ...] = ()
    modality: Modality | None = None
    head: Head | None = NEWER_DECODER
    spare: re.Pattern[str] | None = None


def arguments(config: Config, known: HubType) -> dict[str, Any]:
    """Returns the arguments that KerasHub's converter leaves out.

    Raises:
        ModelError: if the configuration asks for what KerasHub computes otherwise; the message names the field.
    """
    for name, values in known.only.items():
        require(config, name, config.get(name, values[0]), values)
    if known.heads:
        whole, heads = config["hidden_size"], config["num_attention_heads"]
        require(config, "head_dim", config.get("head_dim") or whole // heads, (whole // heads,))
    found = {ours: config[name] for name, ours in known.fields.items() if config.get(name) is not None}
    tied = {"tie_word_embeddings": True} if known.without_way_back else {}
    return {**found, **tied, **_turned(config, known.ropes), **known.more(config)}


def require(config: Config, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises a ModelError that names a field, if its value is not one of those that KerasHub computes."""
    if value not in allowed:
        said = " or ".join(repr(one) for one in allowed)
        raise ModelError(
            f"{name} in config.json is {value!r}; for {config['model_type']} KerasHub computes {said} only. Take a model that "
            "has it so."
        )


def kind_of(rope: Config) -> str:
    """Returns how queries and keys are turned by their positions, `default` where nothing is said."""
    return str(rope.get("rope_type", rope.get("type", "default")))


def _turned(config: Config, ropes: tuple[str, ...]) -> dict[str, Any]:
    rope = rotary.fields_of(config)
    kind = kind_of(rope)
    require(config, "rope_type", kind, ropes)
    return {"rope_scaling_factor": rope["factor"]} if kind == "linear" else {}


def layers_of(config: Config) -> int:
    """Returns how many blocks a model has."""
    return int(config["num_hidden_layers"])
