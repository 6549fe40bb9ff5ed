"""Puts published tensors into a model, strictly: none is left over, and no place stays empty. Import after `backend.activate`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable

from kft.backbones import buffers, initial
from kft.backbones.places import Place
from kft.backbones.tensors import Tensors
from kft.errors import ModelError, listed

BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq)$")
OLD = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))


def fill(
    places: Iterable[Place],
    tensors: Tensors,
    prefix: str,
    known: Callable[[str], bool],
    family: str,
    used: Iterable[str] = (),
) -> None:
    """Gives every place its tensor, one after the other.

    Args:
        places: all that the model has; several may take parts of one tensor.
        tensors: the weights.
        prefix: before the names that places have.
        known: says whether a tensor, by its name without the prefix, may be left over: a head's, or a block's that is not
            wanted.
        family: for messages.
        used: tensors that are used elsewhere, by their whole names.

    Raises:
        ModelError: if a tensor finds no place, a place no tensor, or their shapes differ.
    """
    wanted, taken = list(places), set(used)
    whole = {place.name: place.name if place.outside else prefix + place.name for place in wanted}
    found = {own: name for own, named in whole.items() if (name := stored_name(named, tensors)) is not None}
    missing = [place.name for place in wanted if place.name not in found]
    if missing:
        raise ModelError(
            f"'{tensors.place}' has no weights for {listed(missing, 4)}. Give a folder with the whole model."
        )
    # The largest first: it is in memory twice for a moment, when little else is there yet.
    for place in sorted(wanted, key=lambda place: -math.prod(place.variable.shape)):
        taken.add(found[place.name])
        _assign(place, found[place.name], tensors)
    left = [
        name
        for name in tensors
        if name not in taken and not BUFFERS.search(name) and not known(name) and not known(name.removeprefix(prefix))
    ]
    if left:
        raise ModelError(
            f"'{tensors.place}' has weights that find no place in a {family}: {listed(left, 4)}. It is of another model, or of "
            "a variant that kft does not know."
        )


def _assign(place: Place, name: str, tensors: Tensors) -> None:
    array = tensors[name]
    cut = array if place.cut is None else place.cut(array)
    if tuple(cut.shape) != place.published:
        raise ModelError(
            f"'{tensors.place}': {name} has the shape {tuple(array.shape)}, but config.json asks for {place.published}. "
            "Weights and config.json are of different models."
        )
    place.variable.assign(initial.tensor(buffers.settled(place.inward(cut))))


def stored_name(name: str, tensors: Tensors) -> str | None:
    """Returns the name under which a tensor is there: normalizations were called otherwise in TensorFlow's time."""
    if name in tensors:
        return name
    for new, old in OLD:
        if name.endswith(new) and (older := name.removesuffix(new) + old) in tensors:
            return older
    return None
