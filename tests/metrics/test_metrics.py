"""The table of metrics: what serves which task, which way is better, and how a wrong name is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from kft.errors import DataError, KftError
from kft.metrics import KINDS, METRICS, Context, check, higher_is_better, metrics_for, score
from kft.registry import Part


def _perfect_and_worse(kind: str) -> tuple[object, object, object]:
    if kind == "labels":
        return np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]), np.array([1, 0, 0, 0])
    if kind == "multi_label":
        return np.eye(3, dtype=int), np.eye(3, dtype=int), np.zeros((3, 3), int)
    if kind == "values":
        return np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.5, 1.0])
    if kind == "spans":
        return [["the tower", "tower"], []], ["tower", ""], ["bridge", "tower"]
    return [["B-PER", "O"]], [["B-PER", "O"]], [["O", "O"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_metric_of_a_kind_prefers_the_perfect_prediction(kind: str) -> None:
    targets, perfect, worse = _perfect_and_worse(kind)
    names = metrics_for(kind)
    best, less = (score(names, targets, predictions, Context(("no", "yes"))) for predictions in (perfect, worse))
    assert names
    for name in names:
        assert type(best[name]) is float
        assert best[name] == pytest.approx(1.0 if higher_is_better(name) else 0.0)
        assert (best[name] > less[name]) is higher_is_better(name), name


def test_every_metric_serves_a_kind_and_has_a_summary() -> None:
    served = {name for kind in KINDS for name in metrics_for(kind)}
    assert served == set(METRICS)
    assert all(part.summary for part in METRICS.parts().values())


def test_only_errors_are_better_when_lower() -> None:
    assert {name for name in METRICS if not higher_is_better(name)} == {"mse", "rmse", "mae"}


def test_importing_the_table_is_light() -> None:
    code = "import json, sys, kft.metrics as m; m.check(['f1'], 'labels', 2); print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"sklearn", "scipy", "seqeval", "keras"} & set(json.loads(run.stdout))


def test_an_unknown_metric_names_the_nearest_and_every_fitting_one() -> None:
    with pytest.raises(KftError, match="'acuracy' is unknown. Did you mean 'accuracy'") as caught:
        check(["accuracy", "acuracy"], "labels")
    assert all(name in str(caught.value) for name in metrics_for("labels"))
    assert "entity_f1" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "kind", "classes", "message"),
    [
        ("pearson", "labels", 2, "'pearson' does not fit labels with 2 classes"),
        ("accuracy", "tags", None, "'accuracy' does not fit tags"),
        ("f1", "labels", 3, "'f1' does not fit labels with 3 classes"),
        ("f1", "multi_label", 2, "'f1' does not fit multi_label"),
        ("matthews_correlation", "multi_label", None, "does not fit multi_label"),
    ],
)
def test_an_unfitting_metric_is_refused_before_training(
    name: str, kind: str, classes: int | None, message: str
) -> None:
    with pytest.raises(KftError, match=message):
        check([name], kind, classes)


def test_fitting_metrics_pass() -> None:
    check(["f1", "accuracy"], "labels", 2)
    check(["f1_macro"], "labels", 3)
    check(["f1_macro", "accuracy"], "multi_label", 3)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KftError, match="Unknown kind of metric 'tag'. Did you mean 'tags'"):
        metrics_for("tag")


@pytest.mark.parametrize(("targets", "predictions"), [([], []), ([1, 0], [1])])
def test_nothing_to_score_is_told(targets: list[int], predictions: list[int]) -> None:
    with pytest.raises(DataError, match=f"received {len(targets)} targets and {len(predictions)} predictions"):
        score(["accuracy"], targets, predictions, Context(("no", "yes")))


def test_an_added_metric_that_is_no_metric_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS._own, "length", Part("builtins:len", "not a metric"))
    with pytest.raises(KftError, match="'length' at builtins:len is a builtin_function_or_method, not a"):
        higher_is_better("length")
