"""Metrics of tags are seqeval's numbers in its default mode, without its warnings."""

from __future__ import annotations

import numpy as np
import pytest
from seqeval import metrics as truth

from kft.metrics import Context, score

TAGS = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
CONTEXT = Context(TAGS)
EXPECTED = {
    "entity_f1": truth.f1_score,
    "entity_precision": truth.precision_score,
    "entity_recall": truth.recall_score,
    "token_accuracy": truth.accuracy_score,
}


def _draw() -> tuple[list[list[str]], list[list[str]]]:
    generator = np.random.default_rng(11)
    targets = [[str(tag) for tag in generator.choice(TAGS, length)] for length in generator.integers(1, 30, 40)]
    keep = [[tag if generator.random() < 0.8 else "O" for tag in sentence] for sentence in targets]
    return targets, keep


@pytest.mark.parametrize("name", EXPECTED)
def test_tags_are_seqevals(name: str) -> None:
    targets, predictions = _draw()
    found = score([name], targets, predictions, CONTEXT)[name]
    assert type(found) is float
    assert found == pytest.approx(EXPECTED[name](targets, predictions), abs=1e-12)
    assert 0 < found < 1


def test_an_entity_with_one_wrong_end_is_wrong() -> None:
    targets = [["B-PER", "I-PER", "O", "B-LOC"]]
    predictions = [["B-PER", "O", "O", "B-LOC"]]
    found = score(["entity_f1", "entity_precision", "entity_recall", "token_accuracy"], targets, predictions, CONTEXT)
    assert found == {"entity_f1": 0.5, "entity_precision": 0.5, "entity_recall": 0.5, "token_accuracy": 0.75}


@pytest.mark.parametrize("name", ["entity_f1", "entity_precision", "entity_recall"])
@pytest.mark.filterwarnings("error")
def test_no_entity_anywhere_scores_zero_in_silence(name: str) -> None:
    assert score([name], [["O", "O"]], [["O", "O"]], CONTEXT) == {name: 0.0}


@pytest.mark.filterwarnings("error")
def test_tags_outside_the_scheme_are_scored_in_silence() -> None:
    found = score(["entity_f1", "token_accuracy"], [["noun", "verb"]], [["noun", "noun"]], CONTEXT)
    assert found["token_accuracy"] == 0.5
