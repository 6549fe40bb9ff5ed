"""The one loop: `model.fit`, watched. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

from kft.data.batches import Batches
from kft.errors import RunFailed
from kft.progress import Progress
from kft.recipe import EarlyStopping, Train
from kft.rundir import History, RunFolder, replacing
from kft.tuning import checkpoint
from kft.tuning.checkpoint import Position
from kft.tuning.feed import Feed


class Interrupted(RunFailed):
    """Somebody asked the run to stop; its checkpoint is whole."""


class Diverged(RunFailed):
    """The loss is no longer a number."""


@dataclass
class Monitor:
    """What watches a training and may end it.

    Attributes:
        folder: where history, checkpoints and best weights go.
        train: the recipe's train section.
        position: where the training stands; moves on with it.
        history: takes the lines.
        steps: batches of the whole run.
        model: the whole model, of which a part may be trained.
        metric: the validation metric that says which epoch is best.
        higher: whether a higher value of it is better.
        progress: hears of each step.
        evaluate: scores what is trained on validation, or None where there is no validation.
        interrupt: set when somebody asked to stop.
        beside: variables that are trained and are none of the whole model's.
        array_of: returns a variable of the whole model as it is now.
    """

    folder: RunFolder
    train: Train
    position: Position
    history: History
    steps: int
    model: Any
    metric: str
    higher: bool
    progress: Progress
    evaluate: Callable[[], dict[str, float]] | None = None
    interrupt: threading.Event = field(default_factory=threading.Event)
    beside: Sequence[Any] = ()
    array_of: Callable[[Any], np.ndarray] = checkpoint.array_of
    note: str = ""

    def better(self, value: float) -> bool:
        """Says whether a value of the watched metric is better than the best so far."""
        best = self.position.best
        early = self.train.early_stopping or EarlyStopping()
        if best is None or math.isnan(best):
            return True
        return value > best + early.min_delta if self.higher else value < best - early.min_delta


def fit(
    model: Any,
    batches: Batches,
    monitor: Monitor,
    stage: int,
    *,
    epochs: tuple[int, int],
    restore: Callable[[], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> None:
    """Trains one stage of a compiled model, from where its position stands.

    Args:
        model: a compiled `keras.Model`.
        batches: of the training split.
        monitor: watches; its position says how many epochs and batches are done already.
        stage: the stage's number.
        epochs: the first epoch of this stage and the one after its last, counted over all stages.
        restore: puts a checkpoint's state into the model, where a training goes on.
        callbacks: further Keras callbacks, told of each step before kft's own.

    Raises:
        Interrupted: if somebody asked to stop; a checkpoint was written.
        Diverged: if the loss turned NaN; the checkpoint is the one before.
    """
    position = monitor.position
    position.stage = stage
    while position.epoch < epochs[1] and not position.stopped:
        # An epoch that was cut off is finished by a call of its own: Keras fixes an epoch's number of batches at the start.
        end = position.epoch + 1 if position.batch else epochs[1]
        feed = Feed(batches, position.epoch, position.batch)
        watch, restore = _Watch(monitor, feed, restore), None
        model.fit(
            feed, initial_epoch=position.epoch, epochs=end, callbacks=[*callbacks, watch], shuffle=False, verbose=0
        )
    if restore is not None:
        restore()
    position.stopped, position.waited = False, 0


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells the monitor of Keras' steps and epochs."""

    def __init__(self, monitor: Monitor, feed: Feed, restore: Callable[[], None] | None) -> None:
        super().__init__()
        self.monitor, self.feed, self.batches, self.restore = monitor, feed, len(feed.batches), restore
        self.seen, self.mean, self.logged = 0, 0.0, (0, 0.0)
        self.started = time.perf_counter()

    def on_train_begin(self, logs: Any = None) -> None:
        # Not before fit: Keras first runs the model once to learn its shapes, which uses up random numbers.
        if self.restore is not None:
            self.restore()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.feed.begin(epoch, self.monitor.position.batch)
        self.generators = checkpoint.generators()
        self.seen, self.mean, self.logged = 0, 0.0, (0, 0.0)
        self.started = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # torch's data loader draws a number whenever it starts, which is once more where an epoch was cut off.
        if self.seen == 0:
            checkpoint.set_generators(self.generators)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        monitor, position = self.monitor, self.monitor.position
        mean = float((logs or {})["loss"])
        position.step += 1
        position.batch += 1
        self.seen += 1
        if not math.isfinite(mean):
            raise Diverged(_diverged(position, monitor.folder))
        self.mean = mean
        if position.step % monitor.train.log_every == 0 or position.batch == self.batches:
            self._log()
        monitor.progress.advance(position.step, monitor.steps, self._note())
        if position.batch >= self.batches:
            return  # the epoch's end writes the checkpoint, and stops if somebody asked
        every = monitor.train.checkpoint_every
        if monitor.interrupt.is_set() or (every and position.step % every == 0):
            self._checkpoint()
        self._stop_if_asked()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        monitor, position = self.monitor, self.monitor.position
        position.epoch, position.batch = epoch + 1, 0
        seconds = round(time.perf_counter() - self.started, 3)
        if monitor.evaluate is not None:
            scores = monitor.evaluate()
            if not math.isfinite(scores["loss"]):
                raise Diverged(_diverged(position, monitor.folder))
            monitor.history.add(step=position.step, epoch=position.epoch, validation=scores, seconds=seconds)
            self._judge(scores)
            monitor.note = f"validation {monitor.metric} {scores[monitor.metric]:.4f}"
            monitor.progress.note(f"epoch {position.epoch}: loss {self.mean:.4f}, {_listed(scores)}")
        self._checkpoint()
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if self.monitor.interrupt.is_set():
            raise Interrupted(_interrupted(self.monitor.position, self.monitor.folder))

    def _judge(self, scores: dict[str, float]) -> None:
        monitor, position = self.monitor, self.monitor.position
        value = scores[monitor.metric]
        better = monitor.better(value)
        if better or not monitor.train.best_weights:
            position.scores = scores
        if better:
            position.best, position.waited = value, 0
            if monitor.train.best_weights:
                keep_best(monitor.model, monitor.folder, monitor.array_of)
            return
        position.waited += 1
        early = monitor.train.early_stopping
        if early is not None and position.waited > early.patience:
            position.stopped = True
            self.model.stop_training = True
            monitor.progress.note(f"stopped early: no better {monitor.metric} for {position.waited} epochs")

    def _checkpoint(self) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        monitor = self.monitor
        checkpoint.save(monitor.folder.checkpoint, monitor.model, monitor.position, monitor.beside)

    def _log(self) -> None:
        """Writes the mean loss since the last line; Keras gives the mean since the epoch began."""
        seen, mean = self.logged
        loss = (self.mean * self.seen - mean * seen) / (self.seen - seen)
        self.logged = (self.seen, self.mean)
        position = self.monitor.position
        rate = float(self.model.optimizer.learning_rate)
        epoch = position.epoch + position.batch / self.batches
        self.monitor.history.add(step=position.step, epoch=round(epoch, 4), loss=loss, learning_rate=rate)

    def _note(self) -> str:
        speed = self.seen * self.monitor.train.batch_size / max(1e-9, time.perf_counter() - self.started)
        return f"loss {self.mean:.4f}  {speed:.0f} examples/s  {self.monitor.note}"


def keep_best(model: Any, folder: RunFolder, array_of: Callable[[Any], np.ndarray] = checkpoint.array_of) -> None:
    """Writes a model's weights, as `array_of` gives them, as the best so far."""
    arrays = {str(i): array_of(variable) for i, variable in enumerate(model.weights)}
    with replacing(folder.best) as temporary:
        save_file(arrays, str(temporary))


def take_best(model: Any, folder: RunFolder) -> bool:
    """Puts the best weights back into the model; returns False where none were kept."""
    if not folder.best.is_file():
        return False
    arrays = load_file(str(folder.best))
    for i, variable in enumerate(model.weights):
        variable.assign(arrays[str(i)])
    return True


@contextlib.contextmanager
def listening(interrupt: threading.Event) -> Iterator[None]:
    """Turns the first Ctrl-C, or a polite kill, into a request to stop at the next step; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        if interrupt.is_set():
            raise KeyboardInterrupt
        interrupt.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listed(scores: dict[str, float]) -> str:
    return ", ".join(f"validation {name} {value:.4f}" for name, value in scores.items())


def _interrupted(position: Position, folder: RunFolder) -> str:
    return f"Interrupted after step {position.step}. Type: kft run --resume {folder.path}"


def last_good(folder: RunFolder, position: Position) -> Path | None:
    """Returns where the last weights lie that gave a finite loss, after a training diverged at a position."""
    kept = checkpoint.position_of(folder.checkpoint)
    if kept is not None:
        # A step's loss is that of the weights before it, so weights written one step ago are at fault unless validated.
        proven = kept.step < position.step - (position.batch > 0)
        if proven or (kept.batch == 0 and kept.scores):
            return folder.checkpoint
    return folder.best if folder.best.is_file() else None


def _diverged(position: Position, folder: RunFolder) -> str:
    good = last_good(folder, position)
    kept = checkpoint.position_of(folder.checkpoint)
    step = f"those of step {kept.step}" if kept and good == folder.checkpoint else "the best so far"
    fate = f"{step}, are in '{folder.path}'" if good else "there were none yet"
    epoch = position.epoch + (position.batch > 0)
    return (
        f"The loss turned NaN at step {position.step} (epoch {epoch}); the last good weights: {fate}. "
        "Try a lower train.learning_rate, train.warmup=0.1 or train.precision=float32."
    )
