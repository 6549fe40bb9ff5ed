"""A training that is listened to, and a sample of it for a quick look. Import after `backend.activate`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from kft.comparison.bench import clock as clocks
from kft.comparison.bench import flop
from kft.comparison.bench.clock import Clock, Step
from kft.progress import Progress
from kft.recipe import Recipe, Stage
from kft.rundir import RunFolder, read_history
from kft.tuning import trainable
from kft.tuning.prepared import Prepared
from kft.tuning.training import Training

Plan = list[tuple[np.ndarray, int]]


class Listener(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells a clock of Keras' steps and epochs; it reads no values, so it waits for nothing."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """An epoch begins."""
        self.clock.epoch_begins()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A step is done."""
        self.clock.step_ends()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """The last step of an epoch is done."""
        self.clock.epoch_ends()

    def on_train_end(self, logs: Any = None) -> None:
        """All epochs of a stage are done."""
        self.clock.training_ends()


class Sample:
    """Some steps in place of all those of an epoch: every length comes as often as in the whole training.

    Attributes:
        inner: the batches of the whole training.
    """

    def __init__(self, inner: Any, plan: Plan) -> None:
        self.inner, self._plan = inner, plan

    def __len__(self) -> int:
        return len(self._plan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def plan(self, epoch: int) -> Plan:
        """Returns the same steps for any epoch."""
        return list(self._plan)


def sampled(plan: Plan, steps: int, seed: int) -> Plan:
    """Returns some steps of a plan: at even distances when it is sorted by length, then shuffled, the longest first.

    Args:
        plan: rows and length of each step.
        steps: how many to take, at most all.
        seed: decides the order.
    """
    ranked = sorted(plan, key=lambda step: step[1])
    wanted = min(steps, len(ranked))
    chosen = [ranked[int((i + 0.5) * len(ranked) / wanted)] for i in range(wanted)]
    random.Random(seed).shuffle(chosen)
    longest = max(range(wanted), key=lambda i: chosen[i][1])
    chosen.insert(0, chosen.pop(longest))
    other = next((i for i, step in enumerate(chosen) if step[1] != chosen[0][1]), None)
    if other is not None:
        chosen.insert(1, chosen.pop(other))
    return chosen


class Measured(Training):
    """A training that ends with its last weights, evaluates nothing on the way, and may be cut down to some steps."""

    sample: Sample | None = None

    @property
    def batches(self) -> Any:
        """The batches of the training split, or the sample of them."""
        return self.sample or super().batches


def prepare(prepared: Prepared, folder: RunFolder, progress: Progress, clock: Clock, steps: int | None) -> Measured:
    """Returns the training to measure.

    Args:
        prepared: recipe, data and model.
        folder: where it may write.
        progress: hears of each step.
        clock: is told of each step.
        steps: takes so many of its longest stage, or None for the whole training.
    """
    recipe = recipe_of(prepared.recipe, steps)
    training = Measured(replace(prepared, recipe=recipe), folder, progress, [Listener(clock)])
    training.encoded = {"train": prepared.encoded["train"]}  # the ladder of lengths was made of all splits before
    if steps is not None:
        whole = training.batches
        epochs = range(max(1, min(-(-steps // len(whole)), longest_stage(prepared.recipe).epochs)))
        plan = [step for epoch in epochs for step in whole.plan(epoch)]
        training.sample = Sample(whole, sampled(plan, steps, recipe.seed))
    return training


def recipe_of(recipe: Recipe, steps: int | None) -> Recipe:
    """Returns the recipe as it is measured: all epochs and the last weights, or one short epoch of its longest stage."""
    changes: dict[str, Any] = {"early_stopping": None, "best_weights": False, "checkpoint_every": None}
    if steps is not None:
        changes["stages"] = [longest_stage(recipe).model_copy(update={"epochs": 1})]
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def longest_stage(recipe: Recipe) -> Stage:
    """Returns the stage with most epochs, the later one of two."""
    return max(reversed(recipe.stages), key=lambda stage: stage.epochs)


def run(training: Measured, clock: Clock) -> dict[str, Any]:
    """Trains and returns its figures."""
    training.run(resumed=False)
    stages = [number for number, stage in enumerate(training.recipe.stages) for _ in range(stage.epochs)]
    plans = [(stages[epoch], training.batches.plan(epoch)) for epoch in range(len(clock.begun))]
    rows = [(stage, at, length) for stage, plan in plans for at, length in plan]
    each = getattr(training.batches, "multiple", None) is None
    kinds = compiled([(stage, length) for stage, _, length in rows], each=each)
    tokens, share = training.encoded["train"].row_lengths, examples_a_row(training.prepared, "train")
    steps = [
        Step(kind, share * len(at), 0 if tokens is None else int(tokens[at].sum()), max(1, length))
        for kind, (_, at, length) in zip(kinds, rows, strict=True)
    ]
    found = clocks.figures(clock, steps) | {"shapes": len({length for _, _, length in rows})}
    operations = None if tokens is None else flop_of(training, [(stage, tokens[at]) for stage, at, _ in rows])
    return {**found, "flop": operations, "losses": losses(training.folder, clock.elapsed())}


def compiled(lengths: Sequence[tuple[int, int]], *, each: bool) -> list[tuple[int, int]]:
    """Returns for each step what it shares its compiled code with.

    Args:
        lengths: of each step, the stage and the length its rows were padded to.
        each: whether every length is compiled; else TensorFlow traces two, the second time for any length, and torch none.
    """
    order: dict[tuple[int, int], int] = {}
    for stage, length in lengths:
        order.setdefault((stage, length), sum(other == stage for other, _ in order))
    return [(stage, order[stage, length] if each else min(order[stage, length], 2)) for stage, length in lengths]


def flop_of(training: Measured, rows: Sequence[tuple[int, np.ndarray]]) -> dict[str, float]:
    """Returns the operations of the matrix products of a training's steps.

    Args:
        training: what was trained.
        rows: of each step, the stage and the lengths of its rows in tokens.
    """
    found: dict[str, float] = {}
    for number, stage in enumerate(training.recipe.stages):
        mine = [lengths for other, lengths in rows if other == number]
        trainable.apply(training.model, training.prepared.backbone, stage.trainable)
        # What is computed once passes the frozen part once, however many epochs read it.
        once = training.encoded["train"].row_lengths if number in training.parted else None
        counted = flop.of_keras(training.model).training(np.concatenate(mine), once) if mine else {}
        found = {kind: found.get(kind, 0.0) + value for kind, value in counted.items()} or found
    return found


def examples_a_row(prepared: Prepared, split: str) -> float:
    """Returns how many examples a row of a split is: less than one where long examples have several rows."""
    encoded = prepared.encoded[split]
    return 1.0 if encoded.owners is None else len(np.unique(encoded.owners)) / max(1, len(encoded))


def losses(folder: RunFolder, elapsed: Sequence[float]) -> list[tuple[float, float]]:
    """Returns the losses a training has written, each with the seconds of training before it."""
    lines = [line for line in read_history(folder.history) if "loss" in line and line["step"] <= len(elapsed)]
    return [(round(elapsed[line["step"] - 1], 3), line["loss"]) for line in lines]


def predicted(predict: Callable[[], Any], timer: Callable[[], float]) -> tuple[float, float]:
    """Calls something twice and returns the seconds of the first time, which may compile, and of the second."""
    start = timer()
    predict()
    middle = timer()
    predict()
    return middle - start, timer() - middle
