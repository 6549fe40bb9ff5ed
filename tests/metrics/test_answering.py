"""Metrics of answers, against torchmetrics' copy of SQuAD's own program."""

from __future__ import annotations

import random

import pytest

from kft import metrics
from kft.metrics.context import Context

NAMES = ["exact_match", "answer_f1"]
WORDS = ["The", "a", "tower", "Tower", "in", "Paris", "Paris,", "(1889)", "1889", "an", "été", "U.S.", "東京", "-"]


def scored(true: list[list[str]], said: list[str]) -> dict[str, float]:
    return metrics.score(NAMES, true, said, Context())


@pytest.mark.backend
def test_they_are_what_squads_own_program_gives(backend: str) -> None:
    text = pytest.importorskip("torchmetrics.functional.text", reason="torchmetrics, to compare with, runs on torch")
    rng = random.Random(0)

    def phrase() -> str:
        # Of nothing but articles and marks both versions of the program make something else.
        return " ".join([*rng.choices(WORDS, k=rng.randint(0, 3)), rng.choice(["tower", "Paris", "1889"])])

    true = [[phrase() for _ in range(rng.randint(1, 3))] for _ in range(200)]
    said = [rng.choice(answers) if rng.random() < 0.3 else phrase() for answers in true]
    wanted = text.squad(
        [{"prediction_text": one, "id": str(n)} for n, one in enumerate(said)],
        [{"answers": {"text": every, "answer_start": [0] * len(every)}, "id": str(n)} for n, every in enumerate(true)],
    )
    found = scored(true, said)
    assert 0.3 < found["exact_match"] < found["answer_f1"] < 0.9
    assert found["exact_match"] * 100 == pytest.approx(float(wanted["exact_match"]))
    assert found["answer_f1"] * 100 == pytest.approx(float(wanted["f1"]))


@pytest.mark.parametrize(
    ("true", "said", "exact", "f1"),
    [
        (["the Eiffel Tower"], "Eiffel tower.", 1.0, 1.0),
        (["Eiffel Tower", "a tower in Paris"], "tower in France", 0.0, 2 / 3),
        ([], "", 1.0, 1.0),  # a question without an answer, as SQuAD 2.0 counts it
        ([], "Paris", 0.0, 0.0),
        (["Paris"], "", 0.0, 0.0),
    ],
)
def test_examples_that_can_be_counted_by_hand(true: list[str], said: str, exact: float, f1: float) -> None:
    assert scored([true], [said]) == {"exact_match": exact, "answer_f1": pytest.approx(f1)}


def test_they_are_for_spans() -> None:
    assert metrics.metrics_for("spans") == ["answer_f1", "exact_match"]
    assert all(metrics.higher_is_better(name) for name in NAMES)
