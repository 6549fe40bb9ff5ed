"""How long a recipe will take on each backend, measured in small before anything is trained, and so which one to take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kft import backend as backends
from kft.comparison import plan_answers
from kft.comparison.plan_costs import Costs, Job, expected
from kft.comparison.process import ProcessFailed, ask
from kft.errors import BackendError, KftError, RunFailed, unknown
from kft.progress import Progress
from kft.recipe import BACKENDS, Recipe

FEWEST_STEPS = 50  # a shorter training ends before three backends have been tried
LEAST_NOISE = 0.03


@dataclass(frozen=True)
class Row:
    """What a backend is expected to do.

    Attributes:
        backend: its name.
        seconds: expected, by phase: start, compile, train, evaluate, save.
        host_bytes: expected peak memory of the process.
        gpu_bytes: the same of the GPU, or None.
        steps: batches of the whole training.
        noise: how far a step was from the usual one, as a share.
        measured: seconds the measuring took.
        failed: why there is nothing of this, or an empty text.
    """

    backend: str
    seconds: dict[str, float] = field(default_factory=dict)
    host_bytes: int = 0
    gpu_bytes: int | None = None
    steps: int = 0
    noise: float = 0.0
    measured: float = 0.0
    failed: str = ""

    @property
    def expected(self) -> float:
        """Seconds of the whole run."""
        return sum(self.seconds.values())

    def dump(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        if self.failed:
            return {"failed": self.failed}
        return {
            "expected": round(self.expected, 2),
            "seconds": {phase: round(value, 2) for phase, value in self.seconds.items()},
            "peak_memory": {"host": self.host_bytes, "gpu": self.gpu_bytes},
            "steps": self.steps,
            "steps_per_second": round(self.steps / max(1e-9, self.seconds["train"]), 4),
            "noise": round(self.noise, 4),
            "measured_in": round(self.measured, 1),
        }


@dataclass(frozen=True)
class Plan:
    """What is expected of each backend.

    Attributes:
        rows: the backends, in the order kft prefers them.
    """

    rows: tuple[Row, ...]

    @property
    def ranked(self) -> list[Row]:
        """The backends that work, the one to take first: the fastest, or the preferred one of those too close to it."""
        found = sorted((row for row in self.rows if not row.failed), key=lambda row: row.expected)
        first = next((row for row in self.rows if row in self.close), None)
        return [first, *(row for row in found if row is not first)] if first else found

    @property
    def close(self) -> list[Row]:
        """The backends that the noise does not tell from the fastest one, itself among them."""
        working = [row for row in self.rows if not row.failed]
        best = min(working, key=lambda row: row.expected, default=None)
        return [row for row in working if best is not None and _overlap(best, row)]

    @property
    def pick(self) -> str:
        """The backend to take."""
        return self.ranked[0].backend

    @property
    def why(self) -> str:
        """One line that says which backend to take, and why."""
        first, *rest = self.ranked
        took = f"{first.backend}: {spoken(first.expected)}"
        if not rest:
            return f"{took}; the only backend that was measured."
        close = [row.backend for row in self.close]
        if len(close) > 1:
            noise = max(_noise(row) for row in self.close)
            return f"{took}; too close to call between {' and '.join(close)} (noise {noise:.0%}), so the first that kft prefers."
        return f"{took}, {rest[0].expected / first.expected:.1f} times faster than {rest[0].backend}."

    def dump(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        return {
            "pick": self.pick,
            "why": self.why,
            "too_close": len(self.close) > 1,
            "machine": plan_answers.machine(),
            "backends": {row.backend: row.dump() for row in self.rows},
        }


def plan(recipe: Recipe, names: Sequence[str] = (), progress: Progress | None = None) -> Plan:
    """Measures what a recipe will take on each backend; trains nothing that is kept.

    Each backend does a few batches of each length, an evaluation and a checkpoint in a fresh process. What was found is
    remembered for `backend: auto`.

    Args:
        recipe: the job.
        names: backends; none means those that are installed.
        progress: hears of each measuring.

    Raises:
        KftError: if the recipe cannot be run, or a name is no backend.
        RunFailed: if no backend could be measured.
    """
    progress = progress or Progress()
    for name in names:
        if name not in BACKENDS:
            raise BackendError(unknown("backend", name, BACKENDS))
    if not backends.installed():
        backends.choose("auto")
    wanted = [name for name in backends.PREFERENCE if name in (names or backends.installed())]
    with progress.phase("look at the job"):
        _look(recipe)
    found = Plan(tuple(_row(name, _measured(recipe, name, progress)) for name in wanted))
    if not found.ranked:
        raise RunFailed(
            f"No backend could be measured. {' '.join(f'{row.backend}: {row.failed}' for row in found.rows)}"
        )
    return found


def backend_for(recipe: Recipe, progress: Progress) -> str:
    """Returns the backend that a recipe runs on; `auto` is the one that is expected to finish first.

    Where there is a choice, what was measured before for the same machine, versions and shape of job is taken, and what
    was not is measured now. There is none if KERAS_BACKEND is set, keras is imported already, or one backend is
    installed; and for a training of a few steps the first one is taken that kft prefers.

    Raises:
        BackendError: if it is not installed, or none is.
    """
    settled = recipe.backend != "auto" or bool(os.environ.get("KERAS_BACKEND")) or backends.active() is not None
    here = backends.installed()
    if settled or len(here) < 2:
        return backends.choose(recipe.backend)
    try:
        with progress.phase("look at the job"):
            jobs = _look(recipe)
    except KftError:
        return backends.choose("auto")  # the run says better what is wrong
    if jobs[0].steps < FEWEST_STEPS:
        return backends.choose("auto")
    found = Plan(tuple(_row(name, found, jobs) for name, found in _known(recipe, here, jobs[0], progress).items()))
    if not found.ranked:
        return backends.choose("auto")
    progress.note(f"backend auto: {_listed(found)}")
    return found.pick


def spoken(seconds: float) -> str:
    """Returns seconds as people say them: 42 s, 4 min 10 s, 3 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _look(recipe: Recipe) -> list[Job]:
    found = ask("plan_look", {"recipe": recipe.dump()}, backend="")
    if "refused" in found:
        raise KftError(found["refused"])
    return [Job.read(values) for values in found["jobs"]]


def _known(recipe: Recipe, names: Sequence[str], job: Job, progress: Progress) -> dict[str, Costs | str]:
    """Returns the costs on each backend, or why there are none; measures only what is not remembered."""
    known = {name: costs for name in names if (costs := plan_answers.recall(recipe, name)) and costs.fits(job)}
    missing = [name for name in names if name not in known]
    if missing:
        progress.note(
            f"backend auto: measuring {', '.join(missing)} first, a minute or so each; remembered for jobs like this one."
        )
    return {name: known.get(name) or _measured(recipe, name, progress) for name in names}


def _measured(recipe: Recipe, name: str, progress: Progress) -> Costs | str:
    if name not in backends.installed():
        return f"not installed; type: pip install 'keras-finetune[{name}]'"
    job = {"recipe": recipe.model_copy(update={"backend": name}).dump()}

    def say(text: str) -> None:
        done, total, what = text.split(" ", 2)
        progress.advance(int(done), int(total), what)

    try:
        with progress.phase(f"measure {name}"):
            answer = ask("plan", job, name, say)
            if answer["compiled"]:  # the run will find it on disk, so that must be measured
                answer = ask("plan", job, name, say)
            found = Costs.read(answer["costs"])
    except ProcessFailed as error:
        return str(error)
    plan_answers.remember(recipe, name, found)
    return found


def _row(name: str, found: Costs | str, jobs: Sequence[Job] = ()) -> Row:
    if isinstance(found, str):
        return Row(name, failed=found)
    job = next((job for job in jobs if job.multiple == found.job.multiple), jobs[0] if jobs else found.job)
    job = job.like(found.job)
    return Row(
        name,
        expected(found, job),
        found.host_bytes,
        found.gpu_bytes,
        job.steps,
        found.noise,
        found.seconds,
    )


def _overlap(best: Row, other: Row) -> bool:
    return other is best or other.expected * (1 - _noise(other)) <= best.expected * (1 + _noise(best))


def _noise(row: Row) -> float:
    return max(LEAST_NOISE, min(0.5, row.noise))


def _listed(found: Plan) -> str:
    first, *rest = found.ranked
    others = [f"{row.backend} {spoken(row.expected)}" for row in rest]
    others += [f"{row.backend} failed: {row.failed}" for row in found.rows if row.failed]
    close = ", too close to call" if len(found.close) > 1 else ""
    return f"{first.backend}, expected {spoken(first.expected)}{close} ({', '.join(others)})"
