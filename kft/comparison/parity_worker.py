"""One backend's part of a certificate of parity: computes, and leaves its numbers in a folder. Import after `backend.activate`.

Files: `arrays.safetensors` holds what the parent compares, `crossing/` a run folder cut off in the middle of the steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import save_file

from kft import pipeline, rundir
from kft import recipe as recipes
from kft.backbones import fused
from kft.comparison import parity_digests as digests
from kft.comparison import parity_fast, parity_gradients, parity_layers
from kft.comparison.parity_layers import as_array
from kft.comparison.parity_masks import Masks
from kft.data.batches import Batch
from kft.progress import Progress
from kft.rundir import RunFolder
from kft.tuning import compiling, trainable
from kft.tuning.fit import Interrupted
from kft.tuning.prepared import Prepared
from kft.tuning.training import Training

Say = Callable[[str], None]
BATCHES = 3  # the first batches are compared
ROWS = 4  # of a batch go through the model layer by layer, so that their outputs fit into memory
SAMPLED = 10_000  # at most so many places of each weight after made-up gradients
STAGES = ("prepare", "layers", "gradients", "fast", "optimizer")


@dataclass
class Work:
    """What a worker works on.

    Attributes:
        prepared: recipe, data and model.
        masks: feeds the dropouts.
        training: as `kft run` has it.
        start: the first value of each variable.
        arrays: what will be compared.
    """

    prepared: Prepared
    masks: Masks
    training: Training
    start: list[np.ndarray]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def again(self) -> None:
        """Puts back the first values, and compiles with a new optimizer."""
        model, recipe = self.prepared.model, self.prepared.recipe
        stage = recipe.stages[0]
        for variable, value in zip(model.variables, self.start, strict=True):
            variable.assign(value)
        trainable.apply(model, self.prepared.backbone, stage.trainable)
        steps = len(self.training.batches) * stage.epochs
        compiling.compile_model(model, recipe.train, self.prepared.target, steps, stage.learning_rate)

    def put(self, kind: str, found: dict[str, np.ndarray]) -> list[str]:
        """Keeps arrays under `kind/NUMBER` and returns their names in order."""
        self.arrays |= {f"{kind}/{place}": np.asarray(array) for place, array in enumerate(found.values())}
        return list(found)


def certify(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Computes every item of a certificate on this process's backend.

    Args:
        job: `recipe`, `backend`, `steps`, and `folder` to write to.
        say: hears `DONE/TOTAL what`.

    Returns:
        Digests, the names of the arrays by kind, losses, learning rates, metrics, steps and where the crossing starts.
    """
    total, folder = len(STAGES) + job["steps"] + 1, Path(job["folder"])
    said = Steps(say, len(STAGES), total, job["steps"])
    say(f"0/{total} prepare")
    work = _begin(job, folder / "run")
    model, batches = work.prepared.model, work.training.batches
    found: dict[str, Any] = {"weights": digests.weights(model), "batches": digests.batches(batches, BATCHES)}
    batch = _first_batch(work.training)
    names = {"masks": work.put("masks", work.masks.samples())}
    say(f"1/{total} outputs of each layer")
    names["layers"] = work.put("layers", _layers(work, batch))
    say(f"2/{total} gradient of each weight")
    found["loss"], names["gradients"] = _gradients(work, batch)
    say(f"3/{total} the fast path")
    found["fast"] = parity_fast.differences(work.prepared.model, work.masks.layers.values(), batch)
    say(f"4/{total} optimizer")
    names["optimizer"] = work.put("optimizer", _optimizer(work, job["seed"]))
    found |= _train(work, job["steps"], folder, said)
    names["step"] = work.put("step", found.pop("first_step"))
    names["logits"] = work.put("logits", _first_and_last(work, found))
    save_file(work.arrays, str(folder / "arrays.safetensors"))
    return {**found, "names": names, "dropouts": len(work.masks.layers)}


def cross(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Goes on with another backend's training, from its checkpoint to the same last step.

    Args:
        job: as for `certify`; `folder` holds the other's run folder as `run`.
        say: hears `DONE/TOTAL what`.

    Returns:
        The losses and learning rates of the steps after the checkpoint.
    """
    said = Steps(say, 1, job["steps"] + 1, job["steps"])
    say(f"0/{job['steps'] + 1} prepare")
    work = _begin(job, Path(job["folder"]) / "run")
    follow = Follow(work, stop=job["steps"], crossing=None, said=said)
    _run(work, follow, resumed=True)
    return _history(work.training.folder, after=job["position"])


class Steps:
    """Says how many steps are done, after so many stages."""

    def __init__(self, say: Say, before: int, total: int, last: int) -> None:
        self._say, self._before, self._total, self._last = say, before, total, last

    def __call__(self, step: int) -> None:
        self._say(f"{self._before + step}/{self._total} training step {step} of {self._last}")


class Follow(keras.callbacks.Callback):  # type: ignore[misc]
    """Follows the training that `kft run` does: keeps dropouts counting, copies a checkpoint, stops at a step."""

    def __init__(self, work: Work, *, stop: int, crossing: Path | None, said: Steps) -> None:
        super().__init__()
        self.work, self.stop, self.crossing, self.said = work, stop, crossing, said
        self.counts = [0] * len(work.masks.layers)
        self.first_step: dict[str, np.ndarray] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        # Keras runs the model once beforehand, to learn its shapes; kft's own callback then restores a checkpoint.
        self.work.masks.set(self.counts)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        folder, position = self.work.training.folder, self.work.training.position
        every = self.work.training.recipe.train.checkpoint_every
        if self.crossing is not None and position.step == every and not self.crossing.exists():
            shutil.copytree(folder.path, self.crossing)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = self.work.training.position.step + 1
        if step == 1 and self.crossing is not None:
            self._sync()
            weights, array_of = _weights(self.work.prepared.model), self.work.training.array_of
            self.first_step = {path: np.array(array_of(weight)) for path, weight in weights.items()}
        self.said(step)
        if step >= self.stop:
            self.work.training.interrupt.set()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._sync()
        self.counts = self.work.masks.counts()

    def _sync(self) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()


def _begin(job: dict[str, Any], place: Path) -> Work:
    recipe = recipes.validate(job["recipe"], "recipe")
    with fused.disabled():  # there a block is one layer, and its masks are drawn inside
        prepared = pipeline.prepare(recipe.model_copy(update={"backend": job["backend"]}), Progress())
    _full_precision()
    place.mkdir(parents=True, exist_ok=True)
    training = Training(prepared, RunFolder(place), Progress())
    steps = min(job["steps"], training.steps)
    if steps > 1:
        changed = prepared.recipe.changed({"train.checkpoint_every": steps // 2})
        prepared = replace(prepared, recipe=changed)
        training = Training(prepared, RunFolder(place), Progress())
    masks = Masks(prepared.model, job["seed"])
    work = Work(prepared, masks, training, [as_array(variable) for variable in prepared.model.variables])
    work.again()
    return work


def _full_precision() -> None:
    """GPUs may multiply float32 numbers in fewer bits, which no tolerance here allows."""
    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    else:
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _weights(model: Any) -> dict[str, Any]:
    return {f"{place} {weight.path}": weight for place, weight in enumerate(model.trainable_variables)}


def _first_batch(training: Training) -> Batch:
    rows, length = training.batches.plan(0)[0]
    return training.batches.make(rows, length)


def _layers(work: Work, batch: Batch) -> dict[str, np.ndarray]:
    few = {name: digests.unpadded(array, batch[0])[:ROWS] for name, array in batch[0].items()}
    return parity_layers.outputs(work.prepared.model, few)


def _gradients(work: Work, batch: Batch) -> tuple[float, list[str]]:
    work.masks.set([0] * len(work.masks.layers))
    loss, slopes = parity_gradients.gradients(work.prepared.model, batch)
    names = list(_weights(work.prepared.model))
    return loss, work.put("gradients", dict(zip(names, slopes, strict=True)))


def _optimizer(work: Work, seed: int) -> dict[str, np.ndarray]:
    """Returns weights and slots after two updates with gradients that NumPy draws, so equal on every backend."""
    work.again()
    model = work.prepared.model
    optimizer, weights = model.optimizer, model.trainable_variables
    rng = np.random.default_rng([seed, 1])
    for _ in range(2 * work.prepared.recipe.train.gradient_accumulation):
        drawn = [rng.standard_normal(tuple(weight.shape), np.float32) for weight in weights]
        optimizer.apply([keras.ops.convert_to_tensor(slope) for slope in drawn], weights)
    # A slot's path begins with the optimizer's class, which is not the same everywhere.
    slots = {f"{place} {slot.path.rpartition('/')[2]}": slot for place, slot in enumerate(optimizer.variables)}
    found = {path: _sampled(as_array(variable)) for path, variable in {**_weights(model), **slots}.items()}
    work.again()
    return found


def _sampled(array: np.ndarray) -> np.ndarray:
    flat = array.ravel()
    return np.ascontiguousarray(flat[:: max(1, -(-flat.size // SAMPLED))])


def _train(work: Work, steps: int, folder: Path, said: Steps) -> dict[str, Any]:
    stop = min(steps, work.training.steps)
    follow = Follow(work, stop=stop, crossing=folder / "crossing", said=said)
    _run(work, follow, resumed=False)
    history = _history(work.training.folder)
    return {**history, "steps": stop, "crossing": _crossing(folder), "first_step": follow.first_step}


def _run(work: Work, follow: Follow, *, resumed: bool) -> None:
    work.training.callbacks = [follow]
    try:
        work.training.run(resumed=resumed)
    except Interrupted:
        return  # at the last step that was asked for


def _crossing(folder: Path) -> int | None:
    """Returns the step that the copied checkpoint stands at, or None if the training was too short for one."""
    position = rundir.read_json(folder / "crossing" / "checkpoint" / "position.json")
    return position.get("step")


def _history(folder: RunFolder, after: int = 0) -> dict[str, list[float]]:
    lines = [line for line in rundir.read_history(folder.history) if "loss" in line and line["step"] > after]
    return {"losses": [line["loss"] for line in lines], "rates": [line["learning_rate"] for line in lines]}


def _first_and_last(work: Work, found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the logits of validation, or of what there is, after the last step; adds their metrics to what was found."""
    encoded = work.prepared.encoded
    split = next(name for name in ("validation", "test", "train") if name in encoded)
    evaluator, model = work.training.evaluator, work.prepared.model
    logits = evaluator.logits(model, encoded[split])
    found |= {"split": split, "metrics": evaluator.score(model, encoded[split])}
    return {split: np.concatenate([np.atleast_2d(row) for row in logits])}
