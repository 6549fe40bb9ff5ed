"""`kft plan`: time and memory on each backend, before anything is trained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from kft import backend as backends
from kft import recipe as recipes
from kft.cli.group import ROOT
from kft.cli.plan import clock
from kft.comparison import plan_answers

Variant = Callable[..., dict]


def kft(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ROOT, ["plan", *map(str, arguments)])


@pytest.fixture
def recipe_file(tmp_path: Path, tiny: dict) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny), encoding="utf8")
    return file


def test_bad_input_is_one_line_before_anything_is_measured(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda: ["torch"])
    for arguments, said in (
        (["train.epoch=1"], "Did you mean 'train.epochs'?"),
        (["--backends", "trch"], "Did you mean 'torch'?"),
        (["data.target=lable"], "lable"),
    ):
        done = kft(recipe_file, *arguments)
        assert done.exit_code == 2 and said in done.stderr.splitlines()[-1], done.stderr
        assert "measure" not in done.stderr and done.stdout == ""


def test_where_nothing_is_installed_it_says_what_to_type(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda: [])
    done = kft(recipe_file)
    assert done.exit_code == 2
    assert "No backend is installed here. Type: pip install" in done.stderr


def test_seconds_on_a_clock() -> None:
    assert [clock(seconds) for seconds in (4.6, 250, 12_034)] == ["0:00:05", "0:04:10", "3:20:34"]


@pytest.mark.backend
def test_a_plan_says_time_and_memory_and_goes_on_where_a_backend_is_missing(
    backend: str, tiny: dict, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = next(name for name in backends.PREFERENCE if name != backend)
    stages = [{"epochs": 1}, {"trainable": "head", "epochs": 3}]  # the last one's frozen part is computed once
    changes = {"model.config.num_layers": 1, "train.epochs": None, "train.stages": stages}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(variant(tiny, changes)), encoding="utf8")
    monkeypatch.setattr(backends, "installed", lambda: [backend])
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    began = time.perf_counter()
    done = kft(file, "--backends", f"{backend},{other}", "--json")
    took = time.perf_counter() - began

    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pick"] == backend and found["why"].startswith(f"{backend}: ")
    assert "not installed" in found["backends"][other]["failed"]
    row = found["backends"][backend]
    assert row["steps"] == 11 * 4
    assert set(row["seconds"]) == {"start", "compile", "train", "evaluate", "save"}
    assert all(seconds > 0 for seconds in row["seconds"].values())
    # 44 steps of a tiny model take no longer than starting, compiling and trying them all.
    assert row["expected"] == pytest.approx(sum(row["seconds"].values()), abs=0.1) and row["expected"] < 2 * took
    assert 100e6 < row["peak_memory"]["host"] < 5e9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "recipe.yaml"]

    costs = plan_answers.recall(recipes.load(file), backend)
    assert costs is not None and len(costs.stages) == 2
    assert all(stage.train and stage.predict for stage in costs.stages)
    assert [bool(stage.once) for stage in costs.stages] == [False, True] and costs.after


@pytest.mark.backend
def test_no_backend_that_works_is_a_failed_run(
    backend: str, tiny: dict, variant: Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "installed", lambda: [backend])
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(variant(tiny, {"model.architecture": "NoSuchBackbone"})), encoding="utf8")
    done = kft(file)
    assert done.exit_code == 1
    assert f"No backend could be measured. {backend}: " in done.stderr and "NoSuchBackbone" in done.stderr
