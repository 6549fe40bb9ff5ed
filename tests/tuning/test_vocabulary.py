"""Embeddings of the tokens that occur, trained in a table of their own, against the whole table."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kft.errors import RunFailed
from kft.progress import Progress
from kft.rundir import read_history

pytestmark = pytest.mark.backend

VOCABULARY = 40_000  # of which the reviews have some dozens
CASES: dict[str, dict[str, Any]] = {
    "adamw, best weights": {"train.epochs": 3},
    "adamw, last weights, accumulating": {"train.best_weights": False, "train.gradient_accumulation": 2},
    "sgd": {"train.optimizer": "sgd", "train.learning_rate": 0.1, "train.clip_norm": None},
    "lion": {"train.optimizer": "lion", "train.learning_rate": 1e-3},
    "a stage after the head's": {
        "train.best_weights": False,
        "train.epochs": None,
        "train.stages": [{"trainable": "head", "epochs": 2, "learning_rate": 1e-2}, {"trainable": "all", "epochs": 1}],
    },
}


@pytest.fixture
def recipe(
    tiny: dict, variant: Callable[..., dict], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict]:
    """Makes a recipe with a large vocabulary and much weight decay, for a folder."""
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))

    def make(folder: str, changes: dict[str, Any]) -> dict:
        fixed = {
            "model.config.vocabulary_size": VOCABULARY,
            "train.weight_decay": 0.5,
            "backend": backend,
            "output.directory": str(tmp_path / folder),
        }
        return variant(tiny, {**fixed, **changes})

    return make


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `occurring` gives, call by call."""
    from kft.tuning import vocabulary

    found: list[Any] = []
    real = vocabulary.occurring

    def occurring(*arguments: Any) -> Any:
        found.append(real(*arguments))
        return found[-1]

    monkeypatch.setattr(vocabulary, "occurring", occurring)
    return found


def trained(recipe: dict) -> tuple[list[float], dict[str, np.ndarray], dict]:
    """Trains and returns the losses, the weights of the kept model by path, and the metrics."""
    import kft

    report = kft.run(recipe)
    found = [line["loss"] for line in read_history(report.run / "history.jsonl") if "loss" in line]
    return found, weights_of(report.run), report.metrics


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Returns the weights of a run's model by path."""
    import keras

    import kft

    return {weight.path: keras.ops.convert_to_numpy(weight) for weight in kft.load_run(folder).model.weights}


def table_of(weights: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the embedding table among a model's weights."""
    return next(array for array in weights.values() if len(array) == VOCABULARY)


@pytest.mark.parametrize("case", CASES)
def test_the_same_is_trained(
    case: str, recipe: Callable[..., dict], tables: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kft.tuning import vocabulary

    few = trained(recipe("few", CASES[case]))
    assert tables and len(tables[-1].tokens) < 200
    monkeypatch.setattr(vocabulary, "ROW_BY_ROW", ())
    whole = trained(recipe("whole", CASES[case]))
    assert len(few[0]) > 10 and len(set(few[0])) > 5
    np.testing.assert_allclose(few[0], whole[0], rtol=1e-4, atol=1e-5)
    for name, array in whole[1].items():
        np.testing.assert_allclose(few[1][name], array, atol=1e-4, err_msg=name)
    for split in whole[2]:
        assert few[2][split] == pytest.approx(whole[2][split], abs=1e-4)
    # Decay alone reached the others, and reached them all alike.
    unseen = np.setdiff1d(np.arange(VOCABULARY), tables[-1].tokens)
    before = fresh_table(recipe("fresh", {}))[unseen]
    large = abs(before) > 0.01
    shares = table_of(few[1])[unseen][large] / before[large]
    assert shares.min() > 0.5 and shares.max() < 0.9999
    np.testing.assert_allclose(shares, shares.mean(), rtol=1e-4)


def fresh_table(recipe: dict) -> np.ndarray:
    """Returns the embedding table that a recipe begins with."""
    import keras

    import kft

    options = {name: recipe["model"][name] for name in ("architecture", "config", "tokenizer")}
    model = kft.load_backbone(pretrained=False, **options).model
    return next(keras.ops.convert_to_numpy(w) for w in model.weights if len(w.shape) and w.shape[0] == VOCABULARY)


@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_an_encoder_in_hugging_faces_layout(
    recipe: Callable[..., dict],
    hugging_face: Path,
    tables: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    pooling: str,
) -> None:
    from kft.tuning import vocabulary

    folder = tmp_path / "preset"
    shutil.copytree(hugging_face, folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf8"))
    (folder / "config.json").write_text(json.dumps({**values, "vocab_size": VOCABULARY}), encoding="utf8")
    model = {"preset": str(folder), "pretrained": False, "pooling": pooling, "sequence_length": 48, "head_dropout": 0.0}
    changes = {"model": model, "train.epochs": 1}
    few = trained({**recipe("few", changes), "model": model})
    assert tables and None not in tables
    monkeypatch.setattr(vocabulary, "ROW_BY_ROW", ())
    whole = trained({**recipe("whole", changes), "model": model})
    np.testing.assert_allclose(few[0], whole[0], rtol=1e-4, atol=1e-5)
    for name, array in whole[1].items():
        np.testing.assert_allclose(few[1][name], array, atol=1e-4, err_msg=name)


class StopAt(Progress):
    """Sends the process a signal once so many steps are done."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def advance(self, done: int, total: int, note: str = "") -> None:
        if done == self.step:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_goes_on(recipe: Callable[..., dict], tables: list[Any], tmp_path: Path) -> None:
    from kft import pipeline

    whole = trained(recipe("whole", {}))
    with pytest.raises(RunFailed, match="Interrupted after step 9"):
        pipeline.run(pipeline.load_recipe(recipe("parts", {}))[0], StopAt(9))
    pipeline.resume(tmp_path / "parts")
    assert len(tables) == 3 and None not in tables
    parts = weights_of(tmp_path / "parts")
    for name, array in whole[1].items():
        np.testing.assert_allclose(parts[name], array, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("order", [("all", "head"), ("head", "all"), ("all", "all")])
def test_the_last_good_weights_are_kept(
    recipe: Callable[..., dict], tables: list[Any], tmp_path: Path, order: tuple[str, str]
) -> None:
    import kft

    stages = [
        {"trainable": part, "epochs": 1, "learning_rate": rate} for part, rate in zip(order, (0.1, 3e38), strict=True)
    ]
    changes = {"train.optimizer": "sgd", "train.weight_decay": 0.0, "train.epochs": None, "train.stages": stages}
    exploding = recipe("run", changes)
    exploding["train"]["clip_norm"] = None
    with pytest.raises(RunFailed, match="turned NaN"):
        kft.run(exploding)
    assert [table is not None for table in tables] == [part == "all" for part in order]
    lines = [line for line in read_history(tmp_path / "run" / "history.jsonl") if "validation" in line]
    scores = kft.load_run(tmp_path / "run").evaluate().metrics["validation"]
    assert scores == pytest.approx(lines[0]["validation"], abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model.config.vocabulary_size": 600}, id="little to spare"),
        pytest.param({"train.optimizer": "adafactor"}, id="an optimizer that looks at rows together"),
        pytest.param({"model.trainable": "top:1"}, id="a table that is frozen"),
    ],
)
def test_elsewhere_the_whole_table_is_trained(
    recipe: Callable[..., dict], tables: list[Any], changes: dict[str, Any]
) -> None:
    assert len(trained(recipe("run", {"train.epochs": 1, **changes}))[0]) > 5
    assert not [table for table in tables if table is not None]
