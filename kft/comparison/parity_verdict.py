"""Compares what two backends computed, item by item, and says where they differ first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

FLOOR = 1e-2  # gradients count as zero below so much of the largest one, times the tolerance


@dataclass(frozen=True)
class Result:
    """What a backend computed.

    Attributes:
        backend: its name.
        values: JSON values: digests, losses, metrics and the names of the arrays by kind.
        file: a safetensors file with the arrays, called `KIND/NUMBER`.
    """

    backend: str
    values: Mapping[str, Any]
    file: Path

    def names(self, kind: str) -> list[str]:
        """Returns the names of the arrays of a kind, in order."""
        return list(self.values["names"].get(kind, []))

    def array(self, kind: str, name: str) -> np.ndarray:
        """Reads one array, as float64; one that is not there is empty."""
        if name not in self.names(kind):
            return np.zeros((0,))
        with safe_open(str(self.file), framework="numpy") as stored:
            found: np.ndarray = stored.get_tensor(f"{kind}/{self.names(kind).index(name)}").astype(np.float64)
        return found


@dataclass(frozen=True)
class Difference:
    """How far one backend is from the reference in one item.

    Attributes:
        largest: the largest difference, in the unit of the item's tolerance; infinite where one has what the other lacks.
        where: what it was found in, or "".
        first: the first part that differs by more than the tolerance, or None if none does.
    """

    largest: float
    where: str = ""
    first: str | None = None

    @property
    def agrees(self) -> bool:
        """Whether nothing differs by more than the tolerance."""
        return self.first is None


@dataclass(frozen=True)
class Item:
    """One line of a certificate.

    Attributes:
        name: what is compared, as `layer outputs`.
        count: of how many parts, 1 for a single value.
        tolerance: the largest difference allowed; 0 for equal.
        unit: what differences are relative to.
        reference: the backend that the others are compared with.
        differences: by backend.
    """

    name: str
    count: int
    tolerance: float
    unit: str
    reference: str
    differences: dict[str, Difference]

    @property
    def agrees(self) -> bool:
        """Whether every backend agrees with the reference."""
        return all(difference.agrees for difference in self.differences.values())


Parts = Iterator[tuple[str, float]]
Measure = Callable[[Result, Result], Parts]


@dataclass(frozen=True)
class Rule:
    """How an item is compared.

    Attributes:
        name: the item's name.
        tolerance: the largest difference allowed.
        unit: what differences are relative to.
        measure: yields each part of the reference's with its difference, in the order of computation.
    """

    name: str
    tolerance: float
    unit: str
    measure: Measure


def compare(reference: Result, others: Sequence[Result]) -> list[Item]:
    """Compares backends with the first of them, item by item in the order of a training."""
    return [judged(rule, reference, others) for rule in RULES]


def fast_paths(results: Sequence[Result]) -> Item | None:
    """Judges each backend's fast path by its own plain one; None where no model has one."""
    found = {result.backend: list(result.values["fast"]) for result in results if result.values["fast"]}
    if not found:
        return None
    differences = {backend: difference(parts, GRADIENT) for backend, parts in found.items()}
    count = max(len(parts) for parts in found.values())
    return Item("loss and gradients of the fast path", count, GRADIENT, OWN, "its plain path", differences)


def judged(rule: Rule, reference: Result, others: Sequence[Result]) -> Item:
    """Compares backends with a reference in one item."""
    parts = {other.backend: list(rule.measure(reference, other)) for other in others}
    count = max((len(found) for found in parts.values()), default=0)
    differences = {backend: difference(found, rule.tolerance) for backend, found in parts.items()}
    return Item(rule.name, count, rule.tolerance, rule.unit, reference.backend, differences)


def difference(parts: Sequence[tuple[str, float]], tolerance: float) -> Difference:
    """Sums up the parts of an item; a difference that is no number counts as infinite."""
    found = [(name, float("inf") if np.isnan(value) else float(value)) for name, value in parts]
    if not found:
        return Difference(0.0)
    where, largest = max(found, key=lambda part: part[1])
    first = next((name for name, value in found if value > tolerance), None)
    return Difference(largest, where if largest else "", first)


def furthest(left: np.ndarray, right: np.ndarray, scale: float) -> float:
    """Returns the largest difference of two arrays as a share of a scale; infinite if their shapes differ."""
    if left.shape != right.shape:
        return float("inf")
    if not left.size:
        return 0.0
    apart = float(np.abs(left - right).max())
    return apart / scale if scale > 0 else (float("inf") if apart else 0.0)


def _largest(array: np.ndarray) -> float:
    return float(np.abs(array).max()) if array.size else 0.0


def _equal(kind: str) -> Measure:
    """Digests have to be equal; there the difference is 1 or 0."""

    def measure(reference: Result, other: Result) -> Parts:
        mine, theirs = reference.values[kind], other.values[kind]
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            yield name, float(mine.get(name) != theirs.get(name))

    return measure


def _arrays(kind: str, *, absolute: bool = False) -> Measure:
    """Each array relative to its own largest value."""

    def measure(reference: Result, other: Result) -> Parts:
        for name in reference.names(kind):
            left, right = reference.array(kind, name), other.array(kind, name)
            yield name, furthest(left, right, 1.0 if absolute else _largest(left))

    return measure


def _layers(reference: Result, other: Result) -> Parts:
    """Layers have no counterpart where a backend computes several as one; their result is compared all the same."""
    theirs = set(other.names("layers"))
    common = [name for name in reference.names("layers") if name in theirs]
    if not common or common[-1] != reference.names("layers")[-1]:
        yield "the last layer", float("inf")
    for name in common:
        left = reference.array("layers", name)
        yield name, furthest(left, other.array("layers", name), _largest(left))


def _gradients(reference: Result, other: Result) -> Parts:
    """From the head backwards, as gradients are computed."""
    scales = _gradient_scales(reference)
    for name in reversed(reference.names("gradients")):
        left, right = reference.array("gradients", name), other.array("gradients", name)
        yield name, furthest(left, right, scales[name])


def _gradient_scales(reference: Result) -> dict[str, float]:
    """A gradient that is zero but for rounding, as that of a key's bias in attention, is measured by the others."""
    own = {name: _largest(reference.array("gradients", name)) for name in reference.names("gradients")}
    floor = FLOOR * max(own.values(), default=0.0)
    return {name: max(value, floor) for name, value in own.items()}


def _step(reference: Result, other: Result) -> Parts:
    """Places whose gradient is within the tolerance of zero are left out: Adam's first step follows the sign alone."""
    scales = _gradient_scales(reference)
    for name in reference.names("step"):
        left, right = reference.array("step", name), other.array("step", name)
        sure = np.abs(reference.array("gradients", name)) > GRADIENT * scales[name]
        yield name, furthest(left[sure], right[sure], _largest(left)) if left.shape == right.shape else float("inf")


def _loss(reference: Result, other: Result) -> Parts:
    yield "loss", _relative(reference.values["loss"], other.values["loss"])


def series(kind: str, left: Sequence[float], right: Sequence[float], after: int = 0) -> Parts:
    """Yields the relative difference of two series step by step; what one of them lacks is infinite."""
    for place in range(max(len(left), len(right))):
        both = place < min(len(left), len(right))
        yield f"{kind} of step {after + place + 1}", _relative(left[place], right[place]) if both else float("inf")


def _series(kind: str, name: str) -> Measure:
    return lambda reference, other: series(name, reference.values[kind], other.values[kind])


def _metrics(reference: Result, other: Result) -> Parts:
    theirs = other.values["metrics"]
    for name, value in reference.values["metrics"].items():
        if name != "loss":
            yield name, abs(value - theirs[name])


def _relative(left: float, right: float) -> float:
    apart = abs(left - right)
    return apart / abs(left) if left else (float("inf") if apart else 0.0)


GRADIENT = 1e-4
LOSSES = 1e-4
OWN = "of the largest value"
RULES = (
    Rule("first weights", 0, "equal", _equal("weights")),
    Rule("first batches", 0, "equal", _equal("batches")),
    Rule("dropout masks", 1e-6, OWN, _arrays("masks")),
    Rule("layer outputs", 1e-4, OWN, _layers),
    Rule("loss", 1e-4, "of the loss", _loss),
    Rule("gradients", GRADIENT, OWN, _gradients),
    Rule("optimizer on equal gradients", 1e-4, OWN, _arrays("optimizer")),
    Rule("weights after one step", 1e-4, OWN, _step),
    Rule("learning rates", 1e-6, "of the rate", _series("rates", "learning rate")),
    Rule("losses", LOSSES, "of the loss", _series("losses", "loss")),
    Rule("logits after the last step", 1e-3, "absolute", _arrays("logits", absolute=True)),
    Rule("metrics after the last step", 1e-9, "absolute", _metrics),
)
