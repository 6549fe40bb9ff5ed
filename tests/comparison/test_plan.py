"""Which backend a job is given to, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kft import backend as backends
from kft import recipe as recipes
from kft.comparison import plan_answers
from kft.comparison.plan import Plan, Row, backend_for, plan, spoken
from kft.comparison.plan_costs import Costs, Job, Shape, StageCosts
from kft.errors import BackendError
from kft.progress import Progress
from kft.recipe import Recipe

PHASES = ("start", "compile", "train", "evaluate", "save")
LENGTHS = (8, 16, 24, 32, 40, 48)


class Heard(Progress):
    """Keeps the lines a person would read."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def row(backend: str, seconds: float, noise: float = 0.0) -> Row:
    return Row(backend, dict.fromkeys(PHASES, seconds / 5), 10**9, None, 100, noise)


def costs(start: float, step: float) -> Costs:
    train = tuple(Shape(length, step, (step,) * 3) for length in LENGTHS)
    stage = StageCosts(0, train, (Shape(16, 0.01, (0.01, 0.01)),), 0, 0)
    job = Job(1, (1,), 16, ({16: 1.0},), {}, 0)
    return Costs({"import": start}, (stage,), 0, 0, 0, None, 30, job)


@pytest.fixture
def two_backends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with torch and jax, and nothing measured on it."""
    monkeypatch.setattr(backends, "installed", lambda: ["torch", "jax"])
    monkeypatch.setattr(backends, "active", lambda: None)
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def job(tiny: dict, variant: Callable[..., dict]) -> Callable[..., Recipe]:
    """The tiny recipe, of 11 steps an epoch, with changes."""

    def make(changes: dict[str, Any]) -> Recipe:
        return recipes.validate(variant(tiny, changes), "recipe")

    return make


def test_the_fastest_backend_is_picked_and_the_line_says_by_how_much() -> None:
    found = Plan((row("torch", 250), row("jax", 400), Row("tensorflow", failed="no memory")))
    assert found.pick == "torch"
    assert found.why == "torch: 4 min 10 s, 1.6 times faster than jax."
    dumped = found.dump()
    assert dumped["backends"]["tensorflow"] == {"failed": "no memory"} and not dumped["too_close"]
    assert sum(dumped["backends"]["jax"]["seconds"].values()) == pytest.approx(400)


def test_backends_too_close_to_call_are_taken_by_preference() -> None:
    found = Plan((row("torch", 104, 0.05), row("jax", 100, 0.05), row("tensorflow", 200, 0.05)))
    assert found.pick == "torch"
    assert "too close to call between torch and jax (noise 5%)" in found.why
    assert Plan((row("torch", 150, 0.05), row("jax", 100, 0.05))).pick == "jax"


@pytest.mark.usefixtures("two_backends")
def test_a_short_job_is_given_to_the_fast_start_and_a_long_one_to_the_fast_steps(job: Callable[..., Recipe]) -> None:
    short, long = job({"train.epochs": 8}), job({"train.epochs": 800})
    plan_answers.remember(short, "torch", costs(start=2, step=0.1))
    plan_answers.remember(short, "jax", costs(start=60, step=0.01))
    heard = Heard()
    assert backend_for(short, heard) == "torch"
    assert backend_for(long, heard) == "jax"
    assert [line.split(", ")[0] for line in heard.lines] == ["backend auto: torch", "backend auto: jax"]
    assert "expected 11 s (jax 1 min 1 s)" in heard.lines[0]


@pytest.mark.usefixtures("two_backends")
def test_a_training_of_a_few_steps_is_not_measured(job: Callable[..., Recipe], tmp_path: Path) -> None:
    heard = Heard()
    assert backend_for(job({"train.epochs": 4}), heard) == "torch"
    assert not heard.lines and not (tmp_path / "cache" / "plans").exists()


@pytest.mark.usefixtures("two_backends")
def test_where_the_backend_is_settled_nothing_is_measured(
    job: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = job({"train.epochs": 800})
    progress = Progress()
    assert backend_for(long.model_copy(update={"backend": "jax"}), progress) == "jax"
    monkeypatch.setattr(backends, "installed", lambda: ["jax"])
    assert backend_for(long, progress) == "jax"
    monkeypatch.setattr(backends, "installed", lambda: ["torch", "jax"])
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert backend_for(long, progress) == "jax"
    assert not progress.seconds and not (tmp_path / "cache").exists()


@pytest.mark.usefixtures("two_backends")
def test_answers_are_kept_apart_by_shape_of_job_but_not_by_its_size(job: Callable[..., Recipe]) -> None:
    recipe, found = job({}), costs(1, 1)
    plan_answers.remember(recipe, "torch", found)
    assert plan_answers.recall(recipe, "torch") == found
    assert plan_answers.recall(recipe, "jax") is None
    same = {"train.epochs": 9, "data.limit": 10, "seed": 3, "train.learning_rate": 1e-5}
    assert plan_answers.recall(job(same), "torch") == found
    others = {
        "train.batch_size": 8,
        "model.trainable": "head",
        "model.sequence_length": 16,
        "train.precision": "bfloat16",
    }
    for name, value in others.items():
        assert plan_answers.recall(job({name: value}), "torch") is None, name
    file = plan_answers.file_of(recipe, "torch")
    file.write_text("{", encoding="utf8")
    assert plan_answers.recall(recipe, "torch") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("two_backends")
def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(job: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    plan_answers.remember(job({}), "torch", costs(1, 1))
    assert plan_answers.recall(job({}), "torch") is None


def test_costs_of_another_job_do_not_fit_one_with_an_evaluation() -> None:
    found = costs(1, 1)
    assert found.fits(Job(1, (3,), 16, ({16: 1.0},), {"validation": {16: 1}}))
    without = replace(found, stages=(replace(found.stages[0], predict=()),))
    assert not without.fits(Job(1, (3,), 16, ({16: 1.0},), {"validation": {16: 1}}))
    assert not found.fits(Job(1, (3, 1), 16))


@pytest.mark.usefixtures("two_backends")
def test_a_name_that_is_no_backend_is_refused(job: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="Unknown backend 'troch'. Did you mean 'torch'?"):
        plan(job({}), ["troch"])
    monkeypatch.setattr(backends, "installed", lambda: [])
    with pytest.raises(BackendError, match="pip install"):
        plan(job({}))


def test_seconds_as_people_say_them() -> None:
    assert [spoken(seconds) for seconds in (9.6, 250, 12_000)] == ["10 s", "4 min 10 s", "3 h 20 min"]
