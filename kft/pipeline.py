"""A run from recipe to report, read top to bottom; the only module that knows the order."""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kft import backend as backends
from kft import metrics as metrics_
from kft import recipe as recipes
from kft import rundir
from kft.backbones import tokenizer as tokenizers
from kft.backbones.backbone import Backbone
from kft.backbones.tokenizer import Tokenizer
from kft.data import load as load_data
from kft.data.encoded import Encoded, Ragged, cached
from kft.data.table import Table
from kft.errors import ModelError, RunFolderError
from kft.progress import Progress
from kft.recipe import Recipe
from kft.rundir import RunFolder
from kft.tasks import TASKS
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task
from kft.tuning.prepared import Prepared


@dataclass(frozen=True)
class Report:
    """What came out of a run.

    Attributes:
        run: the run folder.
        backend: what it ran on.
        metrics: by split, then by name; `loss` is among them.
        seconds: by phase.
        details: versions, device, seed, digests, sizes.
    """

    run: Path
    backend: str
    metrics: dict[str, dict[str, float]]
    seconds: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Returns the report as JSON values."""
        seconds = {name: round(value, 3) for name, value in self.seconds.items()}
        return {
            "run": str(self.run),
            "backend": self.backend,
            "metrics": self.metrics,
            "seconds": seconds,
            **self.details,
        }


def prepare(recipe: Recipe, progress: Progress, tokenizer: Tokenizer | None = None) -> Prepared:
    """Imports the backend, loads data and model, encodes and builds; writes nothing but caches.

    Args:
        recipe: what to prepare.
        progress: hears of phases.
        tokenizer: what a run began with, if it goes on; the model's own where it is left out.

    Raises:
        KftError: if the recipe, its data or its model cannot be used.
    """
    task: Task = TASKS.load(recipe.task)
    backend = backends.choose(recipe.backend)
    with progress.phase("import"):
        backends.activate(backend)
    _set_up(recipe)
    with progress.phase("load data"):
        splits = load_data(
            recipe.data, seed=recipe.seed, modality=task.modality, targets=task.targets, progress=progress
        )
        target = targets_.study(splits, recipe.data, task.targets)
        recipe = with_inputs(recipe, task.columns(splits.train, recipe.data))
        names = metric_names(recipe, task, target)
        targets_.refuse_unfit(recipe.train, target)
    with progress.phase("load model"):
        backbone = _load_backbone(recipe, task, progress)
        task.refuse_other(backbone.modality)
    with progress.phase("encode"):
        encoding = encoding_of(recipe, backbone)
        if tokenizer is not None:
            encoding = replace(encoding, tokenizer=tokenizer)
        encoded = {split: encode(task, table, encoding, target) for split, table in splits.items()}
        refuse_unread(encoded.values(), backbone, "model.sequence_length")
        if backbone.positions is not None and backbone.positions < encoding.sequence_length:
            progress.note(
                f"model.sequence_length is {backbone.positions}: {backbone.name} has no more positions, and no text is longer"
            )
            recipe = with_length(recipe, backbone.positions)
            encoding = replace(encoding, sequence_length=backbone.positions)
            encoded = {split: encode(task, table, encoding, target) for split, table in splits.items()}
    with progress.phase("build"):
        model = _build(recipe, task, backbone, target, encoded["train"], progress)
        weights = targets_.weights_of_classes(recipe.train.class_weights, splits.train, target, recipe.data)
    return Prepared(
        recipe, backend, task, target, names, splits, backbone, encoding, encoded, model, class_weights=weights
    )


def run(
    recipe: Recipe, progress: Progress | None = None, *, name: str = "run", resume: RunFolder | None = None
) -> Report:
    """Carries out a recipe: prepares, fits, evaluates, and writes the run folder.

    Args:
        recipe: what to do.
        progress: hears of phases and steps.
        name: what a run folder without a name of its own is called after.
        resume: an interrupted run to go on with.

    Returns:
        The report; the same as `report.json` in the run folder.

    Raises:
        KftError: if the recipe, its data or its model cannot be used, before anything is written.
        RunFailed: if training did not reach its end; the run folder says how to go on.
    """
    progress = progress or Progress()
    if resume is None and recipe.output.directory is not None:
        rundir.refuse_occupied(Path(recipe.output.directory))
    backend = _backend(recipe, progress)
    place = _folder(recipe, name, backend)
    began = None if resume is None else _tokenizer_of(resume)
    prepared = prepare(recipe.model_copy(update={"backend": backend}), progress, began)
    folder = resume or rundir.create(place)
    details = _details(prepared)
    if resume is None:
        _write_start(folder, prepared)
    elif rundir.read_json(folder.path / "start.json").get("data") != details["sha256"]["data"]:
        raise RunFolderError(
            f"The data of the run at '{folder.path}' have changed since it began; it cannot be resumed. Start a new run."
        )
    details |= _record_start(folder, prepared, details["sha256"]["data"], progress)
    training = _training(prepared, folder, progress)
    with progress.phase("train"):
        training.run(resumed=resume is not None)
    scores = training.scores()
    with progress.phase("save"):
        training.save_model()
    report = Report(folder.path, backend, scores, progress.seconds, {**details, "steps": training.steps})
    rundir.write_json(folder.report, report.dump())
    training.clean()
    folder.set_state("complete")
    return report


def resume(path: str | Path, progress: Progress | None = None, backend: str | None = None) -> Report:
    """Goes on with an interrupted run, at the step it stopped at.

    Args:
        path: the run folder.
        progress: hears of phases and steps.
        backend: goes on on another backend than the run began on; weights, optimizer, schedule and place in the data
            are kept, but what dropout draws is the other backend's.

    Raises:
        BackendError: if the backend is unknown or not installed.
        RunFolderError: if there is no such run, it is complete, or its data have changed.
    """
    folder = rundir.open_run(path, trained=False)
    if folder.state == "complete":
        raise RunFolderError(f"The run at '{path}' is complete; there is nothing to resume. Type: kft evaluate {path}")
    recipe = recipes.load(folder.recipe)
    if backend is not None:
        recipe = recipe.model_copy(update={"backend": backends.choose(backend)})
    return run(recipe, progress, resume=folder)


def metric_names(recipe: Recipe, task: Task, target: Target) -> tuple[str, ...]:
    """Returns the metrics of a run: the recipe's, else the benchmark's, else the task's; the watched one is among them."""
    wanted = recipe.train.metrics or metrics_.benchmark_metrics(recipe.data.source) or task.metrics[target.kind]
    watched = [name for name in recipe.watched_metrics if name not in wanted]
    names = [*wanted, *watched]
    metrics_.check([name for name in names if name != "loss"], target.kind, target.outputs)
    return tuple(name for name in names if name != "loss")


def with_inputs(recipe: Recipe, inputs: list[str]) -> Recipe:
    """Returns the recipe with its input columns named, as the run folder keeps it."""
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"inputs": inputs})})


def with_length(recipe: Recipe, length: int) -> Recipe:
    """Returns the recipe with another `model.sequence_length`; texts to predict are cut to it too."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"sequence_length": length})})


def encoding_of(recipe: Recipe, backbone: Backbone) -> Encoding:
    """Returns how raw columns become the inputs of a backbone."""
    encoding, images = Encoding.of_texts(recipe, backbone.tokenizer), backbone.images
    return encoding if images is None else replace(encoding, image_size=images.size, channels=images.channels)


def refuse_unread(encoded: Iterable[Encoded], backbone: Backbone, field: str) -> None:
    """Sees to it that a backbone has an embedding for each token id of the data, and a position for each token.

    Args:
        encoded: the splits.
        backbone: what is to read them.
        field: the name of the length that texts are cut to, for the message.

    Raises:
        ModelError: if it has not: tokenizer and weights are of different models, or texts are too long.
    """
    rows, room = backbone.embeddings, backbone.positions
    for split in encoded:
        longest = 0 if split.row_lengths is None else int(split.row_lengths.max(initial=0))
        if room is not None and longest > room:
            raise ModelError(
                f"{field} is {split.longest} and there are texts of {longest} tokens or more, but {backbone.name} has positions "
                f"for {room}. Type: {field}={room}"
            )
        if rows is None:
            continue
        ids = split.inputs["token_ids"]
        values = ids.values if isinstance(ids, Ragged) else ids
        if values.size and (largest := int(values.max())) >= rows:
            raise ModelError(
                f"The tokenizer gives the id {largest}, but {backbone.name} has {rows} embeddings, from 0 on: "
                "they are of different models. Give model.tokenizer, the folder of the model's own."
            )


def _tokenizer_of(folder: RunFolder) -> Tokenizer | None:
    """Returns the tokenizer that a run began with: what is read of a model may be read otherwise since."""
    found = (folder.preprocessing / "preprocessing.json").is_file()
    return tokenizers.read(folder.preprocessing) if found else None


def encode(task: Task, table: Table, encoding: Encoding, target: Target | None) -> Encoded:
    """Returns a split as arrays, from the cache on disk if it was encoded before."""
    key = {
        "task": task.name,
        "data": table.sha256(),
        "target": target.dump() if target is not None else None,
        **encoding.key(),
    }
    if task.modality == "image":
        key["files"] = _digest_of_files(task, table, encoding)
    return cached(key, lambda: task.encode(table, encoding, target))


def _backend(recipe: Recipe, progress: Progress) -> str:
    from kft.comparison import plan  # which starts processes that import this module

    return plan.backend_for(recipe, progress)


def _folder(recipe: Recipe, name: str, backend: str) -> Path:
    if recipe.output.directory is not None:
        return Path(recipe.output.directory)
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{backend}-{now}"


def _set_up(recipe: Recipe) -> None:
    import keras

    keras.utils.clear_session()
    with backends.without_tensorflow():
        keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(recipe.train.precision)


def _load_backbone(recipe: Recipe, task: Task, progress: Progress) -> Backbone:
    from kft.backbones import initial, loading

    backbone = loading.load(recipe.model, progress, task.modality)
    if not recipe.model.pretrained:
        initial.draw([backbone.model], recipe.seed)
    return backbone


def _build(recipe: Recipe, task: Task, backbone: Backbone, target: Target, train: Encoded, progress: Progress) -> Any:
    from kft.tasks import heads
    from kft.tuning import trainable

    images = train.inputs.get("images")
    model = heads.build(
        task,
        backbone,
        target,
        pooling=recipe.model.pooling,
        dropout=recipe.model.head_dropout,
        augmentation=recipe.train.augmentation,
        image_size=None if images is None else tuple(images.shape[1:3]),  # type: ignore[union-attr]
        seed=recipe.seed,
        progress=progress,
    )
    for stage in reversed(recipe.stages):  # what cannot be frozen is refused here, before anything is written
        trainable.apply(model, backbone, stage.trainable)
    return model


def _training(prepared: Prepared, folder: RunFolder, progress: Progress) -> Any:
    from kft.tuning.training import Training

    return Training(prepared, folder, progress)


def _digest_of_files(task: Task, table: Table, encoding: Encoding) -> str:
    from kft.tasks.images import files

    digest = hashlib.sha256()
    for file in files(table, task.columns(table, encoding.data)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _details(prepared: Prepared) -> dict[str, Any]:
    return {
        "device": backends.devices(),
        "versions": backends.versions(),
        "seed": prepared.recipe.seed,
        "sha256": {"weights": prepared.backbone.origin.get("sha256"), "data": prepared.splits.sha256()},
        "examples": {name: len(table) for name, table in prepared.splits.items()},
        "parameters": int(prepared.model.count_params()),
    }


def _write_start(folder: RunFolder, prepared: Prepared) -> None:
    encoding = prepared.encoding
    resolved = prepared.recipe.model_copy(update={"backend": prepared.backend, "output": recipes.Output()})
    rundir.write_text(folder.recipe, resolved.dump())
    rundir.write_json(folder.labels, prepared.target.dump())
    folder.preprocessing.mkdir(exist_ok=True)
    if graph := prepared.backbone.origin.get("folder"):
        with rundir.explained(folder.path):
            shutil.copytree(graph, folder.saved_model, dirs_exist_ok=True)
    if encoding.tokenizer is not None:
        encoding.tokenizer.save(folder.preprocessing)
    else:
        size = prepared.encoded["train"].inputs["images"].shape[1:3]  # type: ignore[union-attr]
        rundir.write_json(folder.preprocessing / "images.json", {"size": list(size), "channels": encoding.channels})


def _record_start(folder: RunFolder, prepared: Prepared, data: str, progress: Progress) -> dict[str, Any]:
    """Writes what a run started from, and on which backends; returns those for the report if there are several."""
    place = folder.path / "start.json"
    began: list[dict[str, Any]] = rundir.read_json(place).get("backends", [])
    if not began or began[-1]["backend"] != prepared.backend:
        step = rundir.read_json(folder.checkpoint / "position.json").get("step", 0)
        if began:
            progress.note(f"goes on at step {step} of {began[-1]['backend']} on {prepared.backend}")
            resolved = prepared.recipe.model_copy(update={"backend": prepared.backend, "output": recipes.Output()})
            rundir.write_text(folder.recipe, resolved.dump())
        began = [*began, {"backend": prepared.backend, "from_step": step}]
    rundir.write_json(place, {"data": data, "backends": began})
    return {"backends": began} if len(began) > 1 else {}


def load_recipe(recipe: Recipe | Mapping[str, Any] | str | Path, overrides: Iterable[str] = ()) -> tuple[Recipe, str]:
    """Returns a recipe from whatever describes one, and a name for its runs."""
    if isinstance(recipe, Recipe):
        return recipe, recipe.task
    if isinstance(recipe, Mapping):
        found = recipes.validate(recipe, "recipe")
        return found, found.task
    return recipes.load(recipe, overrides), Path(recipe).stem
