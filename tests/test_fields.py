"""Every field of a recipe changes something that a person can see."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from kft import recipe as recipes

pytestmark = pytest.mark.backend

# What is set, beside the tiny recipe, to show that the field does something. A pair is (changes of both, change of one).
CASES: dict[str, Any] = {
    "seed": 1,
    "model.config": {"num_layers": 1},
    "model.sequence_length": 8,
    "model.pooling": "mean",
    "model.trainable": "head",
    "model.dropout": 0.5,
    "model.attention_dropout": 0.5,
    "model.head_dropout": 0.5,
    "data.inputs": ["other"],
    "data.target": "other_label",
    "data.validation": 0.3,
    "data.test": 0.4,
    "data.limit": 40,
    "train.epochs": 2,
    "train.batch_size": 8,
    "train.optimizer": "sgd",
    "train.learning_rate": 1e-4,
    "train.weight_decay": 0.5,
    "train.epsilon": 0.1,
    "train.schedule": "cosine",
    "train.warmup": 0.5,
    "train.clip_norm": 1e-3,
    "train.label_smoothing": 0.3,
    "train.class_weights": {"positive": 5.0},
    "train.gradient_accumulation": 2,
    "train.precision": "mixed_bfloat16",
    "train.metrics": ["f1"],
    "train.stages": [{"trainable": "head", "epochs": 1}],
    "train.log_every": 4,
    "data.positive_label": ({"train.metrics": ["f1"]}, "negative"),
    "train.metric": ({"train.metrics": ["accuracy"]}, "f1_weighted"),
}
# Shown by a test of their own: where they refuse, where they are read, or what they write.
ELSEWHERE = {
    "task": "tests/contracts/test_tasks.py",
    "backend": "tests/contracts/test_parity.py",
    "model.preset": "tests/backbones/test_keras_hub.py",
    "model.sha256": "tests/backbones/test_folders.py",
    "model.pretrained": "tests/backbones/test_keras_hub.py",
    "model.architecture": "tests/contracts/test_tasks.py",
    "model.stride": "tests/tasks/test_questions.py",
    "model.part": "tests/backbones/test_parts.py",
    "model.bridge": "tests/backbones/test_bridge.py",
    "model.tokenizer": "tests/backbones/test_tokenizer.py",
    "model.image_size": "tests/test_api.py",
    "model.image_scaling": "tests/backbones/test_vision.py",
    "data.source": "tests/data/test_sources.py",
    "data.sha256": "tests/data/test_pypi.py",
    "data.train": "tests/data/test_splits.py",
    "data.label_separator": "tests/tasks/test_targets.py",
    "data.encoding": "tests/data/test_files.py",
    "train.evaluation_batch_size": "tests/tuning/test_compiling.py",
    "train.early_stopping": "tests/test_pipeline.py",
    "train.best_weights": "tests/test_pipeline.py",
    "train.augmentation": "tests/test_api.py",
    "train.checkpoint_every": "tests/test_pipeline.py",
    "output.directory": "tests/test_pipeline.py",
}


@pytest.fixture(scope="module")
def two_columns(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reviews with a second text and a second label."""
    rng = random.Random(1)
    lines = reviews.read_text(encoding="utf8").splitlines()[1:97]
    file = tmp_path_factory.mktemp("fields") / "reviews.csv"
    rows = [f"{line},the film was {i % 7},{rng.choice('xy')}" for i, line in enumerate(lines)]
    file.write_text("\n".join(["text,label,other,other_label", *rows]) + "\n", encoding="utf8")
    return str(file)


def outcome(base: dict, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Runs a recipe and returns what it left behind, times left out."""
    from kft import pipeline

    recipe = recipes.validate({**copy.deepcopy(base), "output": {"directory": str(folder)}}, "test").changed(changes)
    report = pipeline.run(recipe).dump()
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf8").splitlines()]
    losses = [(line["step"], line.get("loss"), line.get("validation")) for line in history]
    return {"history": losses, "metrics": report["metrics"], "examples": report["examples"]}


@pytest.fixture(scope="module")
def base(tiny: dict, two_columns: str) -> dict:
    """A recipe of a few steps that every case starts from."""
    values = copy.deepcopy(tiny)
    values["data"] = {"source": two_columns, "inputs": ["text"], "test": 0.2}
    values["train"] = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-2, "log_every": 1}
    values["model"]["config"] |= {"num_layers": 2, "max_sequence_length": 64}
    return values


@pytest.fixture(scope="module")
def plain(base: dict, tmp_path_factory: pytest.TempPathFactory, backend: str) -> dict[str, Any]:
    """What the unchanged recipe leaves behind."""
    return outcome(base, {}, tmp_path_factory.mktemp("plain") / "run")


def test_every_field_has_a_case() -> None:
    sections = ("model", "data", "train", "output")
    below = ("train.early_stopping.", "train.augmentation.", "train.stages.")
    fields = {name for name in recipes.fields() if name not in sections and not name.startswith(below)}
    assert fields == set(CASES) | set(ELSEWHERE)
    for place in ELSEWHERE.values():
        assert (Path(__file__).parent.parent / place).is_file(), place


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_field_changes_the_run(name: str, base: dict, plain: dict, backend: str, tmp_path: Path) -> None:
    if backend != "torch":
        pytest.skip("the schema is the same on each backend, and torch has nothing to compile")
    case = CASES[name]
    common, value = case if isinstance(case, tuple) else ({}, case)
    start = copy.deepcopy(base)
    if name == "train.stages":
        del start["train"]["epochs"]
    before = outcome(start, common, tmp_path / "before") if common else plain
    if name == "model.config":
        value = {**base["model"]["config"], **value}
    assert outcome(start, {**common, name: value}, tmp_path / "run") != before, f"{name} changed nothing"


def test_the_same_recipe_leaves_the_same_behind(base: dict, plain: dict, tmp_path: Path) -> None:
    assert outcome(base, {}, tmp_path / "run") == plain
