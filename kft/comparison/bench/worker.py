"""One backend's piece of a bench, in a process of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kft import backend as backends
from kft import fetch, pipeline, rundir
from kft.comparison.bench import memory
from kft.comparison.bench.clock import Clock
from kft.data.table import Table
from kft.progress import Progress
from kft.recipe import Recipe, validate
from kft.tuning.prepared import Prepared

MOST_PREDICTED = 2000
KEPT = ("wheels",)  # what was fetched; everything else of the caches is made anew where they are to be fresh


class Told(Progress):
    """Tells the bench what its process is doing, a few times a second."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say, self._said = say, 0.0

    def started(self, name: str) -> None:
        """Names the phase."""
        self._say(json.dumps({"phase": name}))

    def finished(self, name: str) -> None:
        """Names what goes on after a phase inside the training."""
        if name == "frozen part":
            self.started("train")

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Says how far the phase is."""
        if time.monotonic() - self._said > 0.3:
            self._said = time.monotonic()
            self._say(json.dumps({"done": done, "total": total, "note": note}))


def measure(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Trains, evaluates and predicts on one backend, and returns the figures.

    Args:
        job: `recipe`, `backend`, `steps` (None: all), `folder` to write in, `caches` (fresh or kept), `started`.
        say: hears what is being done.
    """
    progress = Told(say)
    progress.seconds["import"] = time.time() - job["started"]  # the interpreter's own start
    use_caches(job)
    recipe = validate(job["recipe"], "recipe").changed({"backend": job["backend"]})
    prepared = pipeline.prepare(recipe, progress)
    from kft.comparison.bench import measured

    clock = Clock()
    folder = rundir.create(Path(job["folder"]) / "run")
    training = measured.prepare(prepared, folder, progress, clock, job["steps"])
    to_training = time.time() - job["started"]
    progress.started("train")
    figures = measured.run(training, clock)
    peak = {"host": memory.host_peak(), "gpu": memory.gpu_peak(prepared.backend)}
    quality = _quality(prepared, training, progress) if job["steps"] is None else None
    with progress.phase("save"):
        training.save_model()
    return {
        "device": backends.devices(),
        "versions": backends.versions(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "phases": progress.seconds
        | {
            # What is frozen is computed between compiling and the first step.
            "compile": figures["compile"] - progress.seconds.get("frozen part", 0.0),
            "train": figures["seconds"] - figures["compile"],
        },
        "to_first_step": to_training + clock.first_step - clock.started,
        "train": figures,
        "predict": _predict(prepared, training, progress, job["steps"]),
        "memory": peak,
        "quality": quality,
        "data": prepared.splits.sha256(),
    }


def _quality(prepared: Prepared, training: Any, progress: Progress) -> dict[str, dict[str, float]]:
    with progress.phase("evaluate"):
        return {
            split: training.evaluator.score(training.model, encoded, progress)
            for split, encoded in prepared.encoded.items()
            if split != "train"
        }


def use_caches(job: Mapping[str, Any]) -> None:
    """Gives this process caches of its own, in which only what was fetched is there already."""
    if job["caches"] == "kept":
        return
    real, own = fetch.cache_folder().resolve(), Path(job["folder"]) / "cache"
    own.mkdir(parents=True)
    for name in KEPT:
        (real / name).mkdir(parents=True, exist_ok=True)
        (own / name).symlink_to(real / name)
    os.environ["KFT_CACHE"] = str(own)


def chosen(table: Table, recipe: Recipe, steps: int | None) -> Table:
    """Returns the examples to predict: all of a split, or as many as are enough to time, drawn by the seed."""
    most = MOST_PREDICTED
    if steps is not None:
        most = min(most, max(steps * recipe.train.batch_size, 4 * recipe.train.evaluation_batch_size))
    if len(table) <= most:
        return table
    return table.take(np.sort(np.random.default_rng(recipe.seed).permutation(len(table))[:most]))


def _predict(prepared: Prepared, training: Any, progress: Progress, steps: int | None) -> dict[str, Any]:
    """Times what `kft predict` does with raw examples: encoding and logits."""
    from kft.comparison.bench import measured

    table = chosen(prepared.splits.validation or prepared.splits.test or prepared.splits.train, prepared.recipe, steps)
    found: list[Any] = []

    def predict() -> None:
        encoded = prepared.task.encode(table, prepared.encoding.without_target(), None)
        training.evaluator.logits(training.model, encoded, progress)
        found[:] = [encoded]

    progress.started("predict")
    first, second = measured.predicted(predict, time.perf_counter)
    lengths = found[0].row_lengths
    tokens = None if lengths is None else int(lengths.sum())
    return {"examples": len(table), "tokens": tokens, "first_seconds": first, "seconds": second}
