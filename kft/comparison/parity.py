"""A certificate that backends compute the same: one fresh process a backend, then their numbers side by side."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kft import backend as backends_
from kft.check import check
from kft.comparison import parity_verdict, process
from kft.comparison.parity_verdict import Item, Result
from kft.errors import BackendError, KftError, unknown
from kft.progress import Progress
from kft.recipe import BACKENDS, Recipe

# Float32, one line of history a step, and nothing that could end the steps early or put other weights in place.
CHANGES = {
    "train.precision": "float32",
    "train.log_every": 1,
    "train.best_weights": False,
    "train.early_stopping": None,
}


@dataclass(frozen=True)
class Crossing:
    """A training that began on one backend and went on on another.

    Attributes:
        source: where it began.
        target: where it went on.
        step: the step the checkpoint stands at.
        item: its losses, compared with those of the source left alone.
    """

    source: str
    target: str
    step: int
    item: Item


@dataclass(frozen=True)
class Certificate:
    """What a comparison of backends found.

    Attributes:
        reference: the backend the others are compared with, or None if fewer than two came through.
        backends: those that came through, the reference first.
        failures: by backend, why it did not come through.
        items: what was compared, in the order of a training.
        fast: each backend's fast path against its plain one, dropout being off; None where there is none.
        crossings: checkpoints of one backend that went on on another.
        steps: how many steps were trained.
        dropouts: how many dropouts were fed with the same masks.
        versions: what the comparison ran on.
    """

    reference: str | None
    backends: list[str]
    failures: dict[str, str]
    items: list[Item] = field(default_factory=list)
    fast: Item | None = None
    crossings: list[Crossing] = field(default_factory=list)
    steps: int = 0
    dropouts: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether all backends that were asked for came through and agree in all items."""
        return self.reference is not None and not self.failures and all(item.agrees for item in self._all)

    @property
    def _all(self) -> list[Item]:
        fast = [self.fast] if self.fast is not None else []
        return [*self.items, *fast, *(crossing.item for crossing in self.crossings)]

    @property
    def verdict(self) -> str:
        """One sentence: that they agree, or what differs first."""
        if self.reference is None:
            return "No certificate: fewer than two backends came through."
        wrong = next((item for item in self._all if not item.agrees), None)
        if wrong is not None:
            return _first(wrong)
        if self.failures:
            return f"No certificate for {', '.join(self.failures)}; {', '.join(self.backends)} agree."
        return f"Agree: {', '.join(self.backends)}."

    def dump(self) -> dict[str, Any]:
        """Returns the certificate as JSON values."""
        found = asdict(self)
        for item, values in zip(self.items, found["items"], strict=True):
            values["agrees"] = item.agrees
        if self.fast is not None:
            found["fast"]["agrees"] = self.fast.agrees
        for crossing, values in zip(self.crossings, found["crossings"], strict=True):
            values["agrees"] = crossing.item.agrees
        return {"agrees": self.agrees, "verdict": self.verdict, **found}


def _first(item: Item) -> str:
    backend, found = next((name, found) for name, found in item.differences.items() if not found.agrees)
    return f"Differ: {backend} from {item.reference}, first in {item.name}: {found.first}."


def parity(recipe: Recipe, backends: Sequence[str], steps: int = 20, progress: Progress | None = None) -> Certificate:
    """Compares backends on a recipe: weights, batches, outputs, gradients, one update, losses, metrics, checkpoints.

    Trains in float32. Dropout is part of it: every backend gets the same masks. Then each backend's checkpoint goes on,
    at the same step, on the next backend.

    Args:
        recipe: what would be trained.
        backends: at least two; the first one that comes through is what the others are compared with.
        steps: how many steps to train.
        progress: hears of each backend's work.

    Raises:
        KftError: if the recipe cannot be used, or fewer than two backends are named.
    """
    progress = progress or Progress()
    _refuse(backends)
    changed = recipe.changed({**CHANGES, "output.directory": None})
    check(changed.model_copy(update={"backend": "auto"}))
    with tempfile.TemporaryDirectory(prefix="kft-parity-") as folder:
        job = {"recipe": changed.model_dump(mode="json", exclude_unset=True), "steps": steps, "seed": recipe.seed}
        results, failures = _results(job, backends, Path(folder), progress)
        if len(results) < 2:
            return Certificate(None, [result.backend for result in results], failures)
        items = parity_verdict.compare(results[0], results[1:])
        crossings = _crossings(job, results, Path(folder), progress, failures)
    return _certificate(results, failures, items, crossings)


def chosen(names: str | None) -> list[str]:
    """Returns the backends that a list such as `torch,jax` names, or those that are installed.

    Raises:
        BackendError: if one is unknown, or fewer than two are left.
    """
    found = backends_.installed() if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if names is None and len(found) < 2:
        raise BackendError(
            f"Parity compares at least two backends; installed here: {', '.join(found) or 'none'}. "
            'Type: pip install "keras-finetune[torch,jax]"'
        )
    _refuse(found)
    return list(dict.fromkeys(found))


def _refuse(backends: Sequence[str]) -> None:
    for name in backends:
        if name not in BACKENDS:
            raise BackendError(unknown("backend", name, BACKENDS))
    if len(set(backends)) < 2:
        raise BackendError(
            f"Parity compares at least two backends, received: {', '.join(backends) or 'none'}. "
            "Type: kft parity --backends torch,jax"
        )


def _results(
    job: dict[str, Any], backends: Sequence[str], folder: Path, progress: Progress
) -> tuple[list[Result], dict[str, str]]:
    results, failures = [], {}
    for backend in backends:
        place = folder / backend
        place.mkdir()
        try:
            values = _ask("parity", {**job, "folder": str(place)}, backend, backend, progress)
        except KftError as error:
            failures[backend] = str(error)
        else:
            results.append(Result(backend, values, place / "arrays.safetensors"))
    return results, failures


def _ask(worker: str, job: dict[str, Any], backend: str, phase: str, progress: Progress) -> dict[str, Any]:
    def hear(text: str) -> None:
        share, _, note = text.partition(" ")
        done, _, total = share.partition("/")
        progress.advance(int(done), int(total), note)

    backends_.choose(backend)
    with progress.phase(phase):
        return process.ask(worker, {**job, "backend": backend}, backend, hear)


def _crossings(
    job: dict[str, Any], results: Sequence[Result], folder: Path, progress: Progress, failures: dict[str, str]
) -> list[Crossing]:
    """Every backend's checkpoint goes on on the next one, the last one's on the first."""
    found = []
    for place, source in enumerate(results):
        target = results[(place + 1) % len(results)].backend
        if source.values["crossing"] is None:
            continue
        try:
            found.append(_cross(job, source, target, folder, progress))
        except KftError as error:
            failures[target] = f"the checkpoint of {source.backend} does not go on there: {error}"
    return found


def _cross(job: dict[str, Any], source: Result, target: str, folder: Path, progress: Progress) -> Crossing:
    run, step = folder / f"{source.backend}-{target}", source.values["crossing"]
    shutil.copytree(folder / source.backend / "crossing", run / "run")
    more = {"folder": str(run), "steps": source.values["steps"], "position": step}
    name = f"{source.backend} to {target}"
    losses = _ask("parity_cross", {**job, **more}, target, name, progress)["losses"]
    parts = list(parity_verdict.series("loss", source.values["losses"][step:], losses, after=step))
    differences = {target: parity_verdict.difference(parts, parity_verdict.LOSSES)}
    title = f"losses of {name} from step {step}"
    item = Item(title, len(parts), parity_verdict.LOSSES, "of the loss", source.backend, differences)
    return Crossing(source.backend, target, step, item)


def _certificate(
    results: Sequence[Result], failures: dict[str, str], items: list[Item], crossings: list[Crossing]
) -> Certificate:
    first = results[0]
    return Certificate(
        first.backend,
        [result.backend for result in results],
        failures,
        items,
        parity_verdict.fast_paths(results),
        crossings,
        steps=first.values["steps"],
        dropouts=first.values["dropouts"],
        versions=backends_.versions(),
    )
