"""Every task trains an epoch on tiny data of its kind, and its saved model predicts."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.tasks import TASKS

pytestmark = pytest.mark.backend

WORDS = ["good", "bad", "the", "film", "book"]


def texts(folder: Path, target: Callable[[int], Any]) -> str:
    rng = random.Random(0)
    rows = [{"text": " ".join(rng.choices(WORDS, k=4)), "label": target(i)} for i in range(40)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return str(file)


def classification(folder: Path) -> dict[str, Any]:
    return {"data": {"source": texts(folder, lambda i: ["no", "yes"][i % 2])}}


def regression(folder: Path) -> dict[str, Any]:
    return {"data": {"source": texts(folder, lambda i: i / 40)}}


def tags(folder: Path) -> dict[str, Any]:
    file = folder / "rows.conll"
    file.write_text("\n\n".join("the O\ngood B-GOOD\nfilm I-GOOD" for _ in range(40)), encoding="utf8")
    return {"data": {"source": str(file), "target": "tags"}}


def questions(folder: Path) -> dict[str, Any]:
    rng = random.Random(0)
    rows = []
    for number in range(40):
        words = rng.choices(WORDS, k=12)
        answer = {"text": ["the film"], "answer_start": [len(" ".join([*words, ""]))]} if number % 8 else None
        rows.append({"question": "what good book", "context": " ".join([*words, "the film"]), "answers": answer})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return {"data": {"source": str(file), "target": "answers"}}


def images(folder: Path) -> dict[str, Any]:
    from PIL import Image

    for label, level in (("dark", 20), ("light", 200)):
        (folder / label).mkdir()
        for i in range(20):
            Image.fromarray(np.full((8, 8, 3), level + i, np.uint8)).save(folder / label / f"{i}.png")
    config = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64],
        "stackwise_num_blocks": [1],
        "stackwise_num_strides": [1],
        "block_type": "basic_block",
        "image_shape": [8, 8, 3],
    }
    model = {"pretrained": False, "architecture": "ResNetBackbone", "config": config}
    return {"model": model, "data": {"source": str(folder)}}


# A task's recipe beside the quick one, an example to predict, and what a prediction has.
CASES: dict[str, tuple[Callable[[Path], dict[str, Any]], Any, set[str]]] = {
    "text_classification": (classification, "the good film", {"label", "probabilities"}),
    "text_regression": (regression, "the good film", {"value"}),
    "token_classification": (tags, ["the", "good", "film"], {"label", "probabilities"}),
    "question_answering": (questions, ("what good book", "the good film"), {"answer", "probability", "start", "end"}),
    "image_classification": (images, "dark/3.png", {"label", "probabilities"}),
}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_trains_and_its_saved_model_predicts(
    backend: str, quick: dict, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in CASES, f"the task {name} has no case here: give it tiny data in CASES"
    make, example, wanted = CASES[name]
    data = tmp_path / "data"
    data.mkdir()
    train = {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "log_every": 1}
    recipe = {"task": name, "backend": backend, "model": quick["model"], "train": train, **make(data)}
    report = kft.run({**recipe, "output": {"directory": str(tmp_path / "run")}})
    assert set(report.metrics) == {"validation"}
    assert np.isfinite(list(report.metrics["validation"].values())).any()
    monkeypatch.chdir(data)
    run = kft.load_run(report.run)
    (found,) = run.predict([example])
    kind = run.target.kind
    assert set(found) == wanted or (kind == "spans" and set(found) == {"answer", "probability"})
    if kind == "values":
        assert isinstance(found["value"], float)
    elif kind == "spans":
        assert found["answer"] in example[1] and 0 < found["probability"] <= 1
    elif kind == "tags":
        assert len(found["label"]) == len(example) and set(found["label"]) <= set(run.labels)
    else:
        assert found["label"] in run.labels and sum(found["probabilities"].values()) == pytest.approx(1)
    assert set(run.report["metrics"]["validation"]) == {"loss", *run.task.metrics[kind]}


def test_there_are_tasks_to_try() -> None:
    assert set(TASKS) >= set(CASES) and len(CASES) >= 4
