"""Classification metrics are scikit-learn's numbers, without its warnings."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as truth

from kft.errors import KftError
from kft.metrics import Context, score

TWO = Context(("no", "yes"), 1)
FOUR = Context(("a", "b", "c", "d"), 3)
AVERAGES = ("macro", "micro", "weighted")
SCORES = ("f1", "precision", "recall")


def _draw(classes: int, shape: tuple[int, ...] = (200,)) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    targets = generator.integers(0, classes, shape)
    return targets, np.where(generator.random(shape) < 0.6, targets, generator.integers(0, classes, shape))


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("positive", [0, 1])
def test_binary_scores_count_the_positive_label(name: str, positive: int) -> None:
    targets, predictions = _draw(2)
    expected = getattr(truth, f"{name}_score")(targets, predictions, pos_label=positive)
    found = score([name], targets, predictions, Context(("no", "yes"), positive))
    assert found == {name: pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("multi_label", [False, True])
def test_averaged_scores_are_scikit_learns(name: str, average: str, multi_label: bool) -> None:
    targets, predictions = _draw(2, (200, 4)) if multi_label else _draw(4)
    expected = getattr(truth, f"{name}_score")(targets, predictions, average=average)
    found = score([f"{name}_{average}"], targets, predictions, FOUR)[f"{name}_{average}"]
    assert type(found) is float
    assert found == pytest.approx(expected, abs=1e-12)


def test_accuracy_and_matthews_correlation_are_scikit_learns() -> None:
    targets, predictions = _draw(4)
    found = score(["matthews_correlation", "accuracy"], targets, predictions, FOUR)
    assert list(found) == ["matthews_correlation", "accuracy"]
    assert found["accuracy"] == pytest.approx(truth.accuracy_score(targets, predictions))
    assert found["matthews_correlation"] == pytest.approx(truth.matthews_corrcoef(targets, predictions))


def test_multi_label_accuracy_asks_for_every_class() -> None:
    targets = np.array([[1, 0, 1], [0, 1, 0]])
    predictions = np.array([[1, 0, 1], [0, 1, 1]])
    assert score(["accuracy"], targets, predictions, Context(("a", "b", "c"))) == {"accuracy": 0.5}


@pytest.mark.parametrize("name", [*SCORES, *(f"{name}_{average}" for name in SCORES for average in AVERAGES)])
@pytest.mark.filterwarnings("error")
def test_a_class_never_predicted_scores_zero_in_silence(name: str) -> None:
    found = score([name], np.array([1, 1, 1]), np.array([0, 0, 0]), TWO)
    assert found == {name: 0.0}


@pytest.mark.filterwarnings("error")
def test_one_class_only_has_no_correlation_and_says_nothing() -> None:
    ones = np.ones(5, int)
    assert score(["matthews_correlation", "accuracy"], ones, ones, TWO) == {
        "matthews_correlation": 0.0,
        "accuracy": 1.0,
    }


@pytest.mark.parametrize("name", SCORES)
def test_binary_scores_refuse_more_classes_and_name_what_to_take(name: str) -> None:
    targets, predictions = _draw(4)
    with pytest.raises(KftError, match=f"'{name}' is for two classes, received 4 classes. Take {name}_macro"):
        score([name], targets, predictions, FOUR)


def test_binary_scores_refuse_several_labels_an_example() -> None:
    targets, predictions = _draw(2, (20, 2))
    with pytest.raises(KftError, match="received several labels an example. Take f1_macro"):
        score(["f1"], targets, predictions, TWO)
