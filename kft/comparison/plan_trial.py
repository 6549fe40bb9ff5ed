"""A training in small: the recipe's own, with a few batches of each length. Import after `backend.activate`."""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kft.comparison.plan_costs import Shape, StageCosts
from kft.data.batches import Batches
from kft.data.encoded import Encoded
from kft.progress import Progress
from kft.recipe import Recipe
from kft.tuning import frozen, predicting, shapes
from kft.tuning.evaluating import Evaluator
from kft.tuning.prepared import Prepared
from kft.tuning.training import Training, stands_still

LEAST_ROUNDS, MOST_ROUNDS = 3, 25
ROUNDS_SECONDS = 8.0  # once the least number of rounds is made
EVALUATION_ROUNDS = 2
# Each further length has to be compiled on jax; those that are left out are read off between their neighbours.
LENGTHS = {"tensorflow": 4, "torch": 4, "jax": 3}
EVALUATION_LENGTHS = {"tensorflow": 3, "torch": 2, "jax": 2}
Plan = list[tuple[np.ndarray, int]]
Say = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Chosen(Batches):
    """Batches that were picked by hand.

    Attributes:
        picked: row numbers and length of each.
    """

    picked: tuple[tuple[np.ndarray, int], ...] = ()

    @classmethod
    def of(cls, batches: Batches, plan: Plan) -> Chosen:
        """Returns the same batches with another plan."""
        values = {f.name: getattr(batches, f.name) for f in dataclasses.fields(Batches)}
        return cls(**values, picked=tuple(plan))

    def __len__(self) -> int:
        return len(self.picked)

    def plan(self, epoch: int) -> Plan:
        """Returns the picked batches, whichever the epoch."""
        return list(self.picked)


def rounds(plan: Plan, most: int, number: int) -> Plan:
    """Returns a plan that takes turns between the lengths of another one.

    Args:
        plan: of a whole epoch.
        most: how many lengths: the longest, and others so that as many batches lie between one and the next.
        number: how many turns.
    """
    by_length: dict[int, Plan] = defaultdict(list)
    for rows, length in plan:
        by_length[length].append((rows, length))
    wanted = sorted(by_length, reverse=True)
    if len(wanted) > most:
        every = sorted((length for _, length in plan), reverse=True)
        wanted = sorted({every[round(place)] for place in np.linspace(0, len(every) - 1, most)}, reverse=True)
    return [by_length[length][turn % len(by_length[length])] for turn in range(number) for length in wanted]


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Takes the time of each step, and ends the epoch when enough of them were seen.

    Args:
        plan: the batches that come.
        say: hears how far it is.
    """

    def __init__(self, plan: Plan, say: Say) -> None:
        super().__init__()
        self.lengths = [length for _, length in plan]
        self.width = len(set(self.lengths))
        self.say = say
        self.turns: list[dict[str, float]] = []
        self.steps: list[list[tuple[int, float]]] = []
        self.ended = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins a stage, of which each has one epoch here."""
        self.steps.append([])

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Ends what comes before the first step."""
        if batch == 0:
            self.last = time.perf_counter()
            self.turns.append({"begin": self.last - self.ended})

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Takes the time since the step before, in which the batch was cut as well."""
        float((logs or {})["loss"])  # waits for the device
        now = time.perf_counter()
        self.steps[-1].append((self.lengths[batch], now - self.last))
        self.last = now
        least, most = (1 + LEAST_ROUNDS) * self.width, len(self.lengths)
        self.say(min(batch + 1, least), least, "training steps")
        warm = sum(seconds for _, seconds in self.steps[-1][self.width :])
        self.model.stop_training = batch + 1 >= most or (batch + 1 >= least and warm > ROUNDS_SECONDS)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Ends the steps."""
        self.trained = time.perf_counter()

    def on_train_end(self, logs: Any = None) -> None:
        """Ends a stage."""
        self.ended = time.perf_counter()
        self.turns[-1]["end"] = self.ended - self.trained


class _Ticks(Progress):
    """Takes the time of each batch of a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.seconds_each = time.perf_counter(), list[float]()

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Takes the time since the batch before."""
        now = time.perf_counter()
        self.seconds_each.append(now - self.last)
        self.last = now


@dataclass(frozen=True)
class Sampled(Evaluator):
    """Scores a split whole, having predicted only some of its batches; the scores mean nothing.

    Attributes:
        most: how many lengths are predicted.
        seen: for each evaluation its batches' lengths and seconds.
        scored: for each evaluation its seconds beside the batches.
        say: hears how far it is.
    """

    most: int = 2
    seen: list[list[tuple[int, float]]] = field(default_factory=list)
    scored: list[float] = field(default_factory=list)
    say: Say = lambda done, total, what: None

    def batches(self, encoded: Encoded) -> Batches:
        """Returns the batches of a split, as an evaluation cuts them."""
        return Batches(encoded, self.batch_size, self.rungs, shapes.multiple(), shuffle=False, inputs=self.inputs)

    def rows(self, model: Any, encoded: Encoded, progress: Progress | None = None) -> list[np.ndarray]:
        """Returns the logits of each row; random ones where nothing was predicted."""
        self.say(0, 1, "evaluation batches")
        batches = self.batches(encoded)
        whole = batches.plan(0)
        plan, ticks = rounds(whole, self.most, 1 + EVALUATION_ROUNDS), _Ticks()
        found = predicting.logits(model, Chosen.of(batches, plan), ticks)
        self.seen.append([(length, each) for (_, length), each in zip(plan, ticks.seconds_each, strict=True)])
        return _filled(found, whole, along=1 if self.target.kind == "spans" else 0)

    def score(self, model: Any, encoded: Encoded, progress: Progress | None = None) -> dict[str, float]:
        """Returns the loss and the metrics of the logits that `rows` gives."""
        start = time.perf_counter()
        scores = super().score(model, encoded, progress)
        self.scored.append(time.perf_counter() - start - sum(seconds for _, seconds in self.seen[-1]))
        return scores


def _filled(found: list[np.ndarray], plan: Plan, along: int) -> list[np.ndarray]:
    """Fills in rows that were not predicted; of two axes `along` is that of tokens."""
    known = next(output for output in found if output.size)
    rng = np.random.default_rng(0)
    for rows, length in plan:
        shape = list(known.shape)
        if known.ndim == 2:
            shape[along] = length
        for row in rows:
            if not found[row].size:
                found[row] = rng.normal(size=shape).astype(np.float32)
    return found


class Trial(Training):
    """The training of a recipe with one epoch a stage, of a few batches of each length.

    Args:
        prepared: the recipe as it is.
        folder: a folder that is thrown away.
        say: hears how far it is.

    Attributes:
        kept_bytes: what the run keeps of frozen parts, and reads through.
    """

    def __init__(self, prepared: Prepared, folder: Any, say: Say) -> None:
        whole = Training(prepared, folder, Progress())
        self.whole = whole.batches
        self._plan = rounds(self.whole.plan(0), LENGTHS[prepared.backend], 1 + MOST_ROUNDS)
        self.clock = Clock(self._plan, say)
        small = dataclasses.replace(prepared, recipe=one_epoch(prepared.recipe))
        self._planned, self._once = prepared.recipe.stages, defaultdict[int, list[tuple[int, float]]](list)
        self.kept_bytes = 0
        super().__init__(small, folder, Progress(), callbacks=[self.clock])
        values = {f.name: getattr(whole.evaluator, f.name) for f in dataclasses.fields(Evaluator)}
        self.evaluator = self.sampled = Sampled(**values, most=EVALUATION_LENGTHS[prepared.backend], say=say)

    def _batches(self, encoded: Encoded, inputs: tuple[str, ...]) -> Batches:
        return Chosen.of(super()._batches(encoded, inputs), self._plan)

    def _stands_still(self, number: int) -> bool:
        return stands_still(self._planned[number])

    def _features(self, cut: frozen.Cut, split: Encoded, batches: Batches) -> Encoded | None:
        """Takes the time of some batches of the frozen part; what it gives is random."""
        layout, start, stage = frozen.layout(cut, split, batches), time.perf_counter(), len(self.clock.turns)
        if layout is None:
            return None
        if stage not in self._once:
            for rows, length in rounds(batches.plan(0), self.sampled.most, 1 + EVALUATION_ROUNDS):
                before = time.perf_counter()
                for _, inputs in predicting.pieces(batches, rows, length):
                    cut.lower.predict_on_batch(inputs)
                self._once[stage].append((length, time.perf_counter() - before))
        rng = np.random.default_rng(0)
        found = {}
        for name, shape in layout.shapes.items():
            # One row for all: the whole of it might not fit into memory.
            found[name] = np.broadcast_to(rng.normal(size=shape[1:]).astype(np.float32), shape)
            self.kept_bytes += found[name].nbytes
        self.clock.ended += time.perf_counter() - start
        return frozen.joined(split, found, layout)

    @property
    def splits_to_score(self) -> dict[str, Batches]:
        """The batches of the splits that a run evaluates, by name."""
        scored = [split for split in ("validation", "test") if split in self.encoded]
        return {split: self.sampled.batches(self.encoded[split]) for split in scored}

    def measure(self) -> tuple[tuple[StageCosts, ...], tuple[Shape, ...], float]:
        """Trains and evaluates.

        Returns:
            The costs of each stage; the batches of an evaluation after the training, where the last stage evaluates only
            the upper part of the model; the seconds of a later evaluation beside its batches.
        """
        sampled = self.sampled
        self.clock.ended = time.perf_counter()
        self.run(resumed=False)
        during = len(sampled.seen)
        if self.splits_to_score:
            sampled.score(self.scored, self.encoded[next(reversed(self.splits_to_score))])
        stages = [self._stage_costs(number, number < during) for number in range(len(self.clock.turns))]
        apart = len(stages) - 1 in self.parted
        # What is predicted after the training adds to what the last stage predicted, if that was the same model.
        late = _shapes([step for seen in sampled.seen[during if apart else max(0, during - 1) :] for step in seen])
        if not apart:
            stages[-1] = dataclasses.replace(stages[-1], predict=late)
        return tuple(stages), late if apart else (), sampled.scored[-1] if sampled.scored else 0.0

    def _stage_costs(self, number: int, evaluated: bool) -> StageCosts:
        turn, sampled = self.clock.turns[number], self.sampled
        seen = sampled.seen[number] if evaluated else []
        score = sampled.scored[number] if evaluated else 0.0
        keep = turn["end"] - score - sum(seconds for _, seconds in seen)
        steps, once = self.clock.steps[number], self._once.get(number, [])
        return StageCosts(turn["begin"], _shapes(steps), _shapes(seen), score, max(0.0, keep), _shapes(once))


def one_epoch(recipe: Recipe) -> Recipe:
    """Returns a recipe whose stages have one epoch each and whose last weights are kept as its best would be."""
    stages = [stage.model_copy(update={"epochs": 1}) for stage in recipe.stages]
    changes = {"epochs": 1, "stages": stages if recipe.train.stages else None, "checkpoint_every": None}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def _shapes(steps: Sequence[tuple[int, float]]) -> tuple[Shape, ...]:
    """Returns the times of batches, in the order they came, by length."""
    by_length: dict[int, list[float]] = defaultdict(list)
    for length, seconds in steps:
        by_length[length].append(seconds)
    return tuple(Shape(length, each[0], tuple(each[1:])) for length, each in sorted(by_length.items()))
