"""Every recipe in examples/ loads, passes `kft check`, and says at its head what a reader has to know."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kft import recipe
from kft.metrics import benchmark_metrics, check

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RECIPES = sorted(EXAMPLES.glob("*.yaml"))
GLUE = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")
SUPER_GLUE = ("boolq", "cb", "rte", "wic")

each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_the_promised_recipes_are_there() -> None:
    sources = {recipe.load(path).data.source for path in RECIPES}
    promised = {f"tfds://glue/{name}" for name in GLUE} | {f"tfds://super_glue/{name}" for name in SUPER_GLUE}
    promised |= {
        "hf://datasets/leondz/wnut_17",
        str(EXAMPLES / "digits"),
        "tfds://imdb_reviews",
        "tfds://ag_news_subset",
        str(EXAMPLES / "data" / "reviews.csv"),
    }
    assert promised <= sources


@each_recipe
def test_a_recipe_loads_and_runs_again_as_it_is_dumped(path: Path, tmp_path: Path) -> None:
    loaded = recipe.load(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(loaded.dump(), encoding="utf8")
    assert recipe.load(copy).model_dump() == loaded.model_dump()


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the examples in which the digits were made."""
    folder = tmp_path_factory.mktemp("copy") / "examples"
    shutil.copytree(EXAMPLES, folder)
    subprocess.run([sys.executable, str(folder / "make_digits.py")], check=True, capture_output=True)
    return folder


@each_recipe
def test_a_recipe_passes_kft_check(path: Path, prepared: Path) -> None:
    command = [sys.executable, "-m", "kft", "check", str(prepared / path.name), "--json"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["ok"] is True


@each_recipe
def test_the_head_of_a_recipe_says_the_command_and_the_metric(path: Path) -> None:
    head = [line for line in path.read_text(encoding="utf8").splitlines() if line.startswith("#")]
    assert any(f"kft run examples/{path.name}" in line for line in head)
    assert any("metric:" in line.lower() for line in head)


def test_the_metrics_of_the_recipes_fit_their_tasks() -> None:
    kinds = {"text_regression": "values", "token_classification": "tags"}
    scored = []
    for loaded in map(recipe.load, RECIPES):
        if names := loaded.train.metrics or benchmark_metrics(loaded.data.source):
            check(names, kinds.get(loaded.task, "labels"))
            scored.append(loaded.data.source)
    assert len(scored) >= len(GLUE) + len(SUPER_GLUE)


def test_the_reviews_are_two_balanced_classes_of_different_texts() -> None:
    with (EXAMPLES / "data" / "reviews.csv").open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [row["label"] for row in rows]
    assert len(rows) >= 60
    assert labels.count("positive") == labels.count("negative") == len(rows) / 2
    assert len({row["text"] for row in rows}) == len(rows)
