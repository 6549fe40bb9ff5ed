"""What a job consists of, what its parts cost on a backend, and so how long it will take."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from kft.data.batches import Batches
from kft.recipe import Recipe

EPOCHS_COUNTED = 3  # the orders of further epochs hardly differ in their numbers of batches a length
PHASES = ("start", "compile", "train", "evaluate", "save")
Counts = dict[int, float]


@dataclass(frozen=True)
class Job:
    """How much a recipe has to be done.

    Attributes:
        examples: in the training split.
        epochs: of each stage.
        train: for each stage its batches by length in tokens, 0 where rows have one shape; None if it is not known yet.
        evaluate: for each split that is scored its batches by length.
        checkpoints: further ones than one an epoch.
        multiple: that of the batches' lengths, or None for a ladder of a few, as `Batches` has it.
        once: the training split's batches by length as an evaluation cuts them, for what is computed once.
    """

    examples: int
    epochs: tuple[int, ...]
    batch_size: int
    train: tuple[Counts, ...] | None = None
    evaluate: dict[str, Counts] = field(default_factory=dict)
    checkpoints: int = 0
    multiple: int | None = None
    once: Counts = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Batches of the whole training; the fewest it can have, where lengths are not known yet."""
        if self.train is None:
            return -(-self.examples // self.batch_size) * sum(self.epochs)
        return round(sum(sum(counts.values()) for counts in self.train))

    def dump(self) -> dict[str, Any]:
        """Returns the job as JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Job:
        """Returns what `dump` made; JSON has made the lengths text."""
        train = values["train"]
        return cls(
            values["examples"],
            tuple(values["epochs"]),
            values["batch_size"],
            None if train is None else tuple(_whole(counts) for counts in train),
            {split: _whole(counts) for split, counts in values["evaluate"].items()},
            values["checkpoints"],
            values["multiple"],
            _whole(values["once"]),
        )

    def like(self, other: Job) -> Job:
        """Returns this job with the lengths of another one, where its own are not known."""
        if self.train is not None or other.train is None:
            return self
        share = self.examples / max(1, other.examples)
        train = tuple(
            {length: count * share * mine / theirs for length, count in counts.items()}
            for counts, mine, theirs in zip(other.train, self.epochs, other.epochs, strict=True)
        )
        evaluate = {
            split: {length: count * share for length, count in c.items()} for split, c in other.evaluate.items()
        }
        once = {length: count * share for length, count in other.once.items()}
        checkpoints, multiple = self.checkpoints, other.multiple
        return Job(self.examples, self.epochs, self.batch_size, train, evaluate, checkpoints, multiple, once)


def count(recipe: Recipe, examples: int, train: Batches, evaluate: Mapping[str, Batches]) -> Job:
    """Returns the job of a recipe whose data are encoded.

    Args:
        recipe: says how many epochs.
        examples: in the training split.
        train: the batches of the training split.
        evaluate: those of the splits that are scored, by name.
    """
    epochs = tuple(stage.epochs for stage in recipe.stages)
    counted = min(EPOCHS_COUNTED, sum(epochs))
    seen = Counter(length for epoch in range(counted) for _, length in train.plan(epoch))
    every = recipe.train.checkpoint_every
    once = replace(train, batch_size=recipe.train.evaluation_batch_size, shuffle=False)
    return Job(
        examples,
        epochs,
        train.batch_size,
        tuple({length: number / counted * n for length, number in seen.items()} for n in epochs),
        {split: dict(Counter(length for _, length in batches.plan(0))) for split, batches in evaluate.items()},
        sum(epochs) * len(train) // every if every else 0,
        train.multiple,
        dict(Counter(length for _, length in once.plan(0))),
    )


@dataclass(frozen=True)
class Shape:
    """What batches of one length took.

    Attributes:
        length: in tokens.
        first: seconds of the first batch, which may have had to be compiled or traced.
        more: seconds of the batches after it.
    """

    length: int
    first: float
    more: tuple[float, ...]

    @property
    def steady(self) -> float:
        """Seconds a batch takes once everything is warm."""
        warm = self.more[1:] if len(self.more) > 3 else self.more
        return statistics.median(warm) if warm else self.first

    @property
    def once(self) -> float:
        """Seconds that the first batch took beyond that."""
        return max(0.0, self.first - self.steady)


@dataclass(frozen=True)
class StageCosts:
    """What a stage took.

    Attributes:
        begin: seconds from its start to its first batch, without what is computed once.
        train: steps by length.
        predict: batches of an evaluation by length.
        score: seconds of an evaluation beside its batches.
        keep: seconds an epoch's end took beside the evaluation: checkpoint and best weights.
        once: batches of the frozen part by length, which is computed once for training and validation; empty where it is
            part of each step.
    """

    begin: float
    train: tuple[Shape, ...]
    predict: tuple[Shape, ...]
    score: float
    keep: float
    once: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Costs:
    """What was measured on a backend, the whole training being made in small.

    Attributes:
        start: seconds of each phase before the training.
        stages: the stages.
        score: seconds of a later evaluation beside its batches.
        save: seconds it took to save the model.
        host_bytes: the process's peak memory.
        gpu_bytes: the peak memory of the GPU, or None.
        seconds: what the measuring took.
        job: that of the recipe it was measured with.
        after: batches by length of an evaluation after the training, where it is not of what the last stage evaluates.
    """

    start: dict[str, float]
    stages: tuple[StageCosts, ...]
    score: float
    save: float
    host_bytes: int
    gpu_bytes: int | None
    seconds: float
    job: Job
    after: tuple[Shape, ...] = ()

    def dump(self) -> dict[str, Any]:
        """Returns the costs as JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Costs:
        """Returns what `dump` made."""
        measured = ("train", "predict", "once")
        stages = tuple(
            StageCosts(**{**stage, **{name: _shapes(stage[name]) for name in measured}}) for stage in values["stages"]
        )
        return cls(**{**values, "stages": stages, "job": Job.read(values["job"]), "after": _shapes(values["after"])})

    @property
    def noise(self) -> float:
        """How far a step is from the usual one of its length, as a share: 1.48 times the median absolute deviation."""
        shapes = [shape for stage in self.stages for shape in stage.train]
        off = [abs(seconds / shape.steady - 1) for shape in shapes for seconds in shape.more]
        return 1.4826 * statistics.median(off) if off else 0.0

    def fits(self, job: Job) -> bool:
        """Says whether these costs tell what a job of the same shape would take."""
        return len(self.stages) == len(job.epochs) and (not job.evaluate or bool(self.stages[-1].predict or self.after))


def expected(costs: Costs, job: Job) -> dict[str, float]:
    """Returns the seconds that a job should take, by phase; early stopping is not foreseen.

    Args:
        costs: what its parts cost.
        job: how many of them there are; one of the same shape as that which was measured.
    """
    job = job.like(costs.job)
    assert job.train is not None
    validation = job.evaluate.get("validation", {})
    test = job.evaluate.get("test", {})
    each = job.multiple is None
    compiled, trained, scored, kept = 0.0, 0.0, 0.0, 0.0
    for number, (stage, counts) in enumerate(zip(costs.stages, job.train, strict=True)):
        last = number == len(costs.stages) - 1
        evaluated = {*validation, *(test if last and not costs.after else {})}
        compiled += stage.begin + _once(stage.train, counts, each) + _once(stage.predict, evaluated, each)
        trained += _steady(stage.train, counts)
        if stage.once:
            compiled += _once(stage.once, {*job.once, *validation}, each)
            trained += _steady(stage.once, job.once) + _steady(stage.once, validation)
        if validation:
            scored += job.epochs[number] * (_steady(stage.predict, validation) + costs.score)
            scored += max(0.0, stage.score - costs.score)
        if test and last:
            compiled += _once(costs.after, test, each)
            scored += _steady(costs.after or stage.predict, test) + costs.score
        kept += job.epochs[number] * stage.keep
    kept += job.checkpoints * costs.stages[-1].keep + costs.save
    return dict(zip(PHASES, (sum(costs.start.values()), compiled, trained, scored, kept), strict=True))


def seconds_of(shapes: Sequence[Shape], length: int) -> float:
    """Returns the steady seconds of a batch of any length, between and beyond the lengths that were measured."""
    found = sorted(shapes, key=lambda shape: shape.length)
    if not found:
        return 0.0
    shortest, longest = found[0], found[-1]
    if length > longest.length > 0:
        return longest.steady * length / longest.length
    if length < shortest.length and len(found) > 1:
        slope = (found[1].steady - shortest.steady) / (found[1].length - shortest.length)
        least = shortest.steady * length / shortest.length
        return min(shortest.steady, max(least, shortest.steady - slope * (shortest.length - length)))
    return float(np.interp(length, [shape.length for shape in found], [shape.steady for shape in found]))


def _steady(shapes: Sequence[Shape], counts: Counts) -> float:
    return sum(number * seconds_of(shapes, length) for length, number in counts.items())


def _once(shapes: Sequence[Shape], lengths: Any, each: bool) -> float:
    """Where each length is compiled, one that was not measured costs as little as any other; else nothing."""
    measured = {shape.length: shape.once for shape in shapes}
    least = min(measured.values(), default=0.0) if each else 0.0
    return float(sum(measured.get(length, least) for length in lengths))


def _whole(counts: Mapping[Any, float]) -> Counts:
    return {int(length): number for length, number in counts.items()}


def _shapes(values: Sequence[Mapping[str, Any]]) -> tuple[Shape, ...]:
    return tuple(Shape(shape["length"], shape["first"], tuple(shape["more"])) for shape in values)
