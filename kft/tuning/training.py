"""A recipe's training, stage by stage, from built model to saved model. Import after `backend.activate`."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np

from kft import metrics as metrics_
from kft import rundir
from kft.data.batches import Batches, common_ladder
from kft.data.encoded import Encoded
from kft.progress import Progress
from kft.recipe import Stage
from kft.rundir import RunFolder
from kft.tuning import checkpoint, compiling, fit, frozen, shapes, trainable, vocabulary
from kft.tuning.checkpoint import Position
from kft.tuning.evaluating import Evaluator
from kft.tuning.prepared import Prepared
from kft.tuning.vocabulary import Occurring


@dataclass(frozen=True)
class Part:
    """What a stage trains.

    Attributes:
        model: the whole model, or its upper part.
        batches: what it is fed with.
        evaluate: scores it on validation, or None where there is no validation.
        rows: what knows the whole model's embedding table, where only some of its rows are trained.
    """

    model: Any
    batches: Batches
    evaluate: Callable[[], dict[str, float]] | None
    rows: Occurring | None = None


@dataclass
class Training:
    """What a training works on.

    Attributes:
        prepared: recipe, data and model.
        folder: where everything is written.
        progress: hears of phases and steps.
        callbacks: further Keras callbacks, told of each step.
        position: where the training stands.
        interrupt: set it to stop at the next step, with a checkpoint.
        parted: the stages whose frozen part was computed once.
    """

    prepared: Prepared
    folder: RunFolder
    progress: Progress
    callbacks: Sequence[Any] = ()
    position: Position = field(default_factory=Position)
    interrupt: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.recipe, self.model, self.encoded = self.prepared.recipe, self.prepared.model, self.prepared.encoded
        self.rungs = common_ladder(list(self.encoded.values()))
        self.inputs = tuple(self.model.input.keys())
        self.parted: set[int] = set()
        self.rows: Occurring | None = None
        self._table: Occurring | None = None
        self.evaluator = Evaluator(
            self.prepared.task,
            self.prepared.target,
            self.prepared.names,
            self.rungs,
            self.recipe.train.evaluation_batch_size,
            self.inputs,
        )

    @property
    def batches(self) -> Batches:
        """The batches of the training split."""
        return self._batches(self.encoded["train"], self.inputs)

    def _batches(self, encoded: Encoded, inputs: tuple[str, ...]) -> Batches:
        train = self.recipe.train
        one_hot = train.label_smoothing > 0 and self.prepared.target.kind in ("labels", "tags")
        return Batches(
            encoded,
            train.batch_size,
            self.rungs,
            shapes.multiple(),
            seed=self.recipe.seed,
            inputs=inputs,
            classes=self.prepared.target.outputs if one_hot else None,
            class_weights=self.prepared.class_weights,
        )

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return len(self.batches) * sum(stage.epochs for stage in self.recipe.stages)

    def run(self, *, resumed: bool) -> None:
        """Trains all stages, and ends with the weights that the recipe wants.

        Raises:
            Interrupted: if somebody asked to stop; the run folder can be resumed.
            Diverged: if the loss turned NaN; the last good weights were kept.
        """
        kept = checkpoint.position_of(self.folder.checkpoint) if resumed else None
        self.position = kept or Position()
        monitor = self._monitor()
        first = self.position.stage
        try:
            with fit.listening(self.interrupt):
                for stage in range(first, len(self.recipe.stages)):
                    self._stage(stage, monitor, restore=kept is not None and stage == first)
        except fit.Interrupted:
            self._settle()
            self.folder.set_state("interrupted")
            raise
        except fit.Diverged:
            self._keep_last_good()
            raise
        fit.take_best(self.model, self.folder)
        if self.rows is not None:
            self.rows.gather()

    @property
    def scored(self) -> Any:
        """The model to score with: the one that was trained last, if it takes what the whole model does."""
        return self.model if self.rows is None else self.rows.model

    def array_of(self, variable: Any) -> np.ndarray:
        """Returns a variable of the whole model as it is now, also while a table beside the model is trained."""
        return checkpoint.array_of(variable) if self.rows is None else self.rows.array_of(variable)

    def scores(self) -> dict[str, dict[str, float]]:
        """Returns the metrics of validation, as they were when the kept weights were new, and of test, used once."""
        found = {}
        if self.position.scores:
            found["validation"] = self.position.scores
        if "test" in self.encoded:
            with self.progress.phase("evaluate test"):
                found["test"] = self.evaluator.score(self.scored, self.encoded["test"], self.progress)
        return found

    def save_model(self) -> None:
        """Saves the model without optimizer and compile state, so that it loads without kft."""
        trainable.apply(self.model, self.prepared.backbone, "all")
        plain = keras.Model(self.model.input, self.model.output, name=self.model.name)
        with rundir.replacing(self.folder.model) as temporary:
            named = temporary.with_suffix(".saving.keras")
            try:
                plain.save(named)
                named.replace(temporary)
            finally:
                named.unlink(missing_ok=True)

    def clean(self) -> None:
        """Removes what only an unfinished training needs."""
        shutil.rmtree(self.folder.checkpoint, ignore_errors=True)
        self.folder.best.unlink(missing_ok=True)

    def _stage(self, number: int, monitor: fit.Monitor, *, restore: bool) -> None:
        stages, train = self.recipe.stages, self.recipe.train
        stage, steps = stages[number], len(self.batches) * stages[number].epochs
        trainable.apply(self.model, self.prepared.backbone, stage.trainable)
        part = self._part(number)
        compiling.compile_model(part.model, train, self.prepared.target, steps, stage.learning_rate)
        if part.model is not self.model:
            # A checkpoint is of the whole model, and of the optimizer of the part that is trained.
            self.model.compile(optimizer=part.model.optimizer)
        self.rows = rows = part.rows
        if rows is not None:
            self._table = rows
            rows.gather()
        monitor.beside = () if rows is None else rows.variables
        monitor.array_of = self.array_of
        monitor.evaluate = part.evaluate
        state = (lambda: checkpoint.restore(self.folder.checkpoint, self.model, monitor.beside)) if restore else None
        before = sum(earlier.epochs for earlier in stages[:number])
        # A stage that was stopped early leaves epochs out.
        self.position.epoch = max(self.position.epoch, before)
        epochs = (before, before + stage.epochs)
        fit.fit(part.model, part.batches, monitor, number, epochs=epochs, restore=state, callbacks=self.callbacks)
        self._settle()

    def _settle(self) -> None:
        if self.rows is not None:
            self.rows.settle()

    def _part(self, number: int) -> Part:
        """Returns what a stage trains.

        It is the model, or its upper part where the frozen rest is computed once, or the model with the embeddings that
        occur where those are much fewer.
        """
        validation = self.encoded.get("validation")
        if self._stands_still(number) and (found := self._upper(validation)) is not None:
            self.parted.add(number)
            return found
        rows, evaluator = self._occurring(), self.evaluator
        model = self.model if rows is None else rows.model
        evaluate = None if validation is None else lambda: evaluator.score(model, validation)
        return Part(model, self.batches, evaluate, rows)

    def _occurring(self) -> Occurring | None:
        if self.recipe.train.optimizer not in vocabulary.ROW_BY_ROW:
            return None
        return vocabulary.occurring(self.model, self.prepared.backbone.model, self.encoded.values())

    def _stands_still(self, number: int) -> bool:
        """Says whether a stage has a part that gives the same in more than one epoch."""
        return stands_still(self.recipe.stages[number])

    def _upper(self, validation: Encoded | None) -> Part | None:
        cut = frozen.cut(self.model, self.prepared.backbone.model)
        if cut is None:
            return None
        splits = {"train": self.encoded["train"], **({} if validation is None else {"validation": validation})}
        with self.progress.phase("frozen part"):
            size = self.evaluator.batch_size
            found = {
                name: self._features(
                    cut,
                    split,
                    Batches(split, size, self.rungs, shapes.multiple(), shuffle=False, inputs=self.inputs),
                )
                for name, split in splits.items()
            }
        train, scored = found["train"], found.get("validation")
        if train is None or (validation is not None and scored is None):
            return None
        inputs = tuple(cut.upper.input.keys())
        evaluator = replace(self.evaluator, inputs=inputs)
        return Part(
            cut.upper,
            self._batches(train, inputs),
            None if scored is None else lambda: evaluator.score(cut.upper, scored),
        )

    def _features(self, cut: frozen.Cut, split: Encoded, batches: Batches) -> Encoded | None:
        return frozen.features(cut, split, batches, self.progress)

    def _monitor(self) -> fit.Monitor:
        metric = (self.recipe.watched_metrics or [self.prepared.names[0]])[0]
        return fit.Monitor(
            folder=self.folder,
            train=self.recipe.train,
            position=self.position,
            history=rundir.History(self.folder.history, self.position.step),
            steps=self.steps,
            model=self.model,
            metric=metric,
            higher=metric != "loss" and metrics_.higher_is_better(metric),
            progress=self.progress,
            interrupt=self.interrupt,
        )

    def _keep_last_good(self) -> None:
        self.folder.set_state("failed")
        good = fit.last_good(self.folder, self.position)
        if good is None:
            return
        if good == self.folder.checkpoint:
            # It may be of the stage before this one.
            beside = () if self._table is None else self._table.variables
            if checkpoint.restore_weights(good, self.model, beside) and self._table is not None:
                self._table.settle()
        else:
            fit.take_best(self.model, self.folder)
        self.save_model()


def stands_still(stage: Stage) -> bool:
    """Says whether a stage may have a frozen part that is worth keeping: one that several epochs read."""
    return stage.trainable != "all" and stage.epochs > 1
