"""Models that answer questions: their loss, what is computed once, and what a plan measures of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft

pytestmark = pytest.mark.backend
WORDS = ["good", "bad", "the", "film", "book", "very"]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about long contexts; one of four has no answer."""
    rng, rows = random.Random(0), []
    for number in range(48):
        context = " ".join(rng.choices(WORDS, k=40))
        answer = {"text": ["good film"], "answer_start": [0]} if number % 4 else None
        rows.append({"question": "what good", "context": f"good film {context}", "answers": answer})
    file = tmp_path_factory.mktemp("asked") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return file


def recipe(quick: dict, asked: Path, folder: Path, **train: Any) -> dict[str, Any]:
    config = {**quick["model"]["config"], "max_sequence_length": 64}
    return {
        "task": "question_answering",
        "model": {**quick["model"], "config": config, "sequence_length": 32},
        "data": {"source": str(asked), "target": "answers"},
        "train": {"batch_size": 16, "learning_rate": 1e-3, **train},
        "output": {"directory": str(folder)},
    }


def test_a_frozen_backbone_is_computed_once_and_the_run_says_where_answers_are(
    quick: dict, asked: Path, backend: str, tmp_path: Path
) -> None:
    values = recipe(quick, asked, tmp_path / "run", epochs=2)
    values["model"]["trainable"] = "head"
    report = kft.run(values)
    assert "frozen part" in report.seconds
    assert set(report.metrics["validation"]) == {"loss", "answer_f1", "exact_match"}
    context = "the film was very good " * 12
    (found,) = kft.load_run(tmp_path / "run").predict([("what good", context)])
    if found["answer"]:
        assert context[found["start"] : found["end"]] == found["answer"]
    else:  # a run that has seen questions without an answer may say so
        assert set(found) == {"answer", "probability"}


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_logits_are_float32_in_half_precision_too(
    precision: str, quick: dict, asked: Path, backend: str, tmp_path: Path
) -> None:
    values = recipe(quick, asked, tmp_path / "run", epochs=1, precision=precision)
    report = kft.run(values)
    assert np.isfinite(report.metrics["validation"]["loss"])
    assert kft.load_run(tmp_path / "run").model.output.dtype == "float32"


def test_a_plan_fills_in_answers_that_it_did_not_predict(backend: str) -> None:
    from kft.comparison.plan_trial import _filled

    found = [np.zeros((2, 8), np.float32), np.zeros(0), np.zeros(0)]
    filled = _filled(found, [(np.array([0, 1]), 8), (np.array([2]), 16)], along=1)
    assert [row.shape for row in filled] == [(2, 8), (2, 8), (2, 16)]
    tags = _filled([np.zeros((8, 5), np.float32), np.zeros(0)], [(np.array([0]), 8), (np.array([1]), 16)], along=0)
    assert tags[1].shape == (16, 5)
