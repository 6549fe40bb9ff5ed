"""When the steps of a training ended, and what its speed was: over all of it, and once nothing is compiled any more."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any


@dataclass
class Clock:
    """Marks of a training, seconds of `time.perf_counter`.

    Attributes:
        started: when the training was asked for.
        begun: when each epoch began.
        steps: for each epoch, when each of its steps ended.
        ended: when each epoch's last step was done, before anything is evaluated.
        closed: the same, or where it ended a stage, when all that follows an epoch was done.
    """

    started: float = field(default_factory=time.perf_counter)
    begun: list[float] = field(default_factory=list)
    steps: list[list[float]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)

    def epoch_begins(self) -> None:
        """An epoch begins."""
        self.begun.append(time.perf_counter())
        self.steps.append([])

    def step_ends(self) -> None:
        """A step is done."""
        self.steps[-1].append(time.perf_counter())

    def epoch_ends(self) -> None:
        """The last step of an epoch is done."""
        self.ended.append(time.perf_counter())
        self.closed.append(self.ended[-1])

    def training_ends(self) -> None:
        """What follows an epoch, as evaluation and checkpoint, is done too."""
        if self.closed:
            self.closed[-1] = time.perf_counter()

    @property
    def setup(self) -> float:
        """Seconds before the first epoch."""
        return self.begun[0] - self.started

    @property
    def first_step(self) -> float:
        """When the first step was done."""
        return self.steps[0][0]

    @property
    def seconds(self) -> float:
        """Seconds of the training without what comes between epochs."""
        return self.ended[-1] - self.started - sum(self._gaps())

    def durations(self) -> list[float]:
        """Returns the seconds of each step, what an epoch needs to start and to end being its first and last step's."""
        found: list[float] = []
        for begun, ends, ended in zip(self.begun, self.steps, self.ended, strict=True):
            marks = [begun, *ends[:-1], ended]
            found += [after - before for before, after in itertools.pairwise(marks)]
        return found

    def elapsed(self) -> list[float]:
        """Returns the seconds of training after which each step was done."""
        found, off = [], 0.0
        for ends, gap in zip(self.steps, [*self._gaps(), 0.0], strict=True):
            found += [end - self.started - off for end in ends]
            off += gap
        return found

    def _gaps(self) -> list[float]:
        # Between two stages the model is compiled anew, which belongs to the training; `closed` is before that.
        return [
            (closed if closed > ended else begun) - ended
            for ended, closed, begun in zip(self.ended, self.closed, self.begun[1:], strict=False)
        ]


@dataclass(frozen=True)
class Step:
    """What a step worked on.

    Attributes:
        kind: steps of one kind are compiled once.
        examples: in it.
        tokens: in it without padding, 0 for images.
        size: what its time goes by, where the steps of another kind have to tell: the length it was padded to.
    """

    kind: Hashable
    examples: float
    tokens: int = 0
    size: float = 1.0


def figures(clock: Clock, steps: Sequence[Step]) -> dict[str, Any]:
    """Returns the figures of a training as JSON values.

    A step is steady if one of its kind came before; what the first one of a kind takes longer is compiling or tracing.

    Args:
        clock: heard of every step.
        steps: what each one worked on.
    """
    durations = clock.durations()
    steady, cold = _parted(durations, steps)
    return {
        "steps": len(durations),
        "examples": sum(step.examples for step in steps),
        "tokens": sum(step.tokens for step in steps),
        "seconds": clock.seconds,
        "compile": clock.setup + sum(_excess(durations, steps, at, steady) for at in cold),
        "first_step": durations[0],
        "steady": _rates(durations, steps, steady),
        "epochs": [end - begin for begin, end in zip(clock.begun, clock.ended, strict=True)],
    }


def _parted(durations: Sequence[float], steps: Sequence[Step]) -> tuple[list[int], list[int]]:
    seen: set[Hashable] = set()
    steady: list[int] = []
    cold: list[int] = []
    for at in range(len(durations)):
        (steady if steps[at].kind in seen else cold).append(at)
        seen.add(steps[at].kind)
    return steady, cold


def _excess(durations: Sequence[float], steps: Sequence[Step], at: int, steady: Sequence[int]) -> float:
    """Returns how much longer a step took than steady ones of its kind, else than steady ones for their size."""
    like = [durations[other] for other in steady if steps[other].kind == steps[at].kind]
    scaled = [durations[other] / steps[other].size * steps[at].size for other in steady]
    usual = like or scaled
    return max(0.0, durations[at] - median(usual)) if usual else durations[at]


def _rates(durations: Sequence[float], steps: Sequence[Step], steady: Sequence[int]) -> dict[str, float] | None:
    if not steady:
        return None
    return {
        "steps": len(steady),
        "seconds": sum(durations[at] for at in steady),
        "examples": sum(steps[at].examples for at in steady),
        "tokens": sum(steps[at].tokens for at in steady),
        "step": fmean(durations[at] for at in steady),
    }
