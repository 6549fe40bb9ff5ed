"""A published model with only the lower of its blocks, as `num_layers` in `model.config` asks for.

Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kft.backbones.places import Place
from kft.errors import ModelError

# What config.json calls the number of blocks, by family; where none of these is there, the first two are what may be meant.
COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers")
# That of a decoder beside an encoder, which may have fewer blocks.
DECODER_COUNTS = ("decoder_layers", "num_decoder_layers")
# What may have an entry for each block.
LISTS = ("layer_types", "intermediate_size", "activation_sparsity_pattern", "no_rope_layers")
# The upper blocks that take keys and values of lower ones.
SHARED = "num_kv_shared_layers"
# Fields with a configuration of their own, as T5Gemma has them.
HALVES = ("encoder", "decoder")
# Tensors of all blocks together, and the axis along which these follow each other: Gemma's embeddings for blocks.
TOGETHER = {"embed_tokens_per_layer.weight": 1, "per_layer_model_projection.weight": 0}
BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


def cut(config: Mapping[str, Any], count: int, halves: Sequence[str] = HALVES) -> dict[str, Any] | None:
    """Returns `config.json` as a model has it that has so many blocks, or None where it is of several models together.

    Args:
        config: `config.json`.
        count: of blocks; an encoder and its decoder both have so many, where they are published with as many.
        halves: fields that have a configuration of their own.

    Raises:
        ModelError: if a list has no entries for so many blocks.
    """
    found = dict(config)
    counts = [name for name in COUNTS if config.get(name) is not None]
    inner = [name for name in halves if isinstance(config.get(name), Mapping)]
    for name in inner:
        own = config[name]
        found[name] = cut(own, min(count, own.get(COUNTS[0], count)) if name == "decoder" else count, ("text_config",))
    if not counts and not inner:
        if any(name.endswith("_config") and isinstance(value, Mapping) for name, value in config.items()):
            return None
        found |= dict.fromkeys(COUNTS[:2], count)
    published = config[counts[0]] if counts else count
    found |= dict.fromkeys(counts, count)
    for name in DECODER_COUNTS:
        if config.get(name) is not None:
            found[name] = min(count, config[name]) if count <= published else count
    for name in LISTS:
        if isinstance(entries := config.get(name), Sequence):
            if len(entries) < count:
                raise ModelError(
                    f"model.config.num_layers is {count}, but {name} in config.json is for {len(entries)} blocks. "
                    f"Give {len(entries)} or less."
                )
            found[name] = list(entries[:count])
    if config.get(SHARED):
        found[SHARED] = max(0, config[SHARED] - max(0, published - count))
    return found


def beyond(name: str, count: int) -> bool:
    """Returns whether a tensor is of a block that a model of so many blocks does not have."""
    block = BLOCK.search(name)
    return block is not None and int(block[1]) >= count


def lower(places: Iterable[Place], config: Mapping[str, Any], count: int) -> Iterator[Place]:
    """Gives places, those for tensors of all blocks together with the part for the lower ones.

    Args:
        places: all that the model has.
        config: `config.json` as it is published.
        count: of the blocks that the model has.
    """
    for place in places:
        if place.name in TOGETHER:
            published = config.get(COUNTS[0], count)
            part = functools.partial(_lower, axis=TOGETHER[place.name], count=count, published=published)
            place = dataclasses.replace(place, cut=part)
        yield place


def _lower(array: np.ndarray, axis: int, count: int, published: int) -> np.ndarray:
    size = array.shape[axis] * count // published
    return array[:size] if axis == 0 else array[:, :size]
