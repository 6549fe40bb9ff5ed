"""A run, from recipe to run folder: what it learns, what it writes, and how it stops and goes on."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import kft
from kft import pipeline
from kft.errors import ModelError, RunFailed, RunFolderError
from kft.progress import Progress
from kft.rundir import read_history

pytestmark = pytest.mark.backend

STEPS_AN_EPOCH = 7  # 112 training examples in batches of 16
Variant = Callable[[dict, dict[str, Any]], dict]


class StopAt(Progress):
    """Sends the process a signal, or fails, once so many steps are done."""

    def __init__(self, step: int, error: Exception | None = None) -> None:
        super().__init__()
        self.step, self.error = step, error

    def advance(self, done: int, total: int, note: str = "") -> None:
        if done == self.step:
            if self.error is not None:
                raise self.error
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def recipe(backend: str, quick: dict, variant: Variant, tmp_path: Path) -> Callable[..., dict]:
    """The quick recipe with changes, its output in the folder `run` of the test's own place."""

    def make(changes: dict[str, Any] | None = None, name: str = "run") -> dict:
        return variant(quick, {"backend": backend, "output.directory": str(tmp_path / name), **(changes or {})})

    return make


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_history(folder / "history.jsonl") if "loss" in line]


def validations(folder: Path) -> list[dict[str, float]]:
    return [line["validation"] for line in read_history(folder / "history.jsonl") if "validation" in line]


def state(folder: Path) -> str:
    found: str = json.loads((folder / "state.json").read_text(encoding="utf8"))["state"]
    return found


def same_history(one: Path, other: Path) -> None:
    steps, values = zip(*losses(one), strict=True)
    other_steps, other_values = zip(*losses(other), strict=True)
    assert steps == other_steps == tuple(range(1, len(steps) + 1))
    np.testing.assert_allclose(values, other_values, rtol=0, atol=1e-6)
    for left, right in zip(validations(one), validations(other), strict=True):
        assert left == pytest.approx(right, abs=1e-6)


# What a run is


def test_a_run_learns(finished_run: Path) -> None:
    run = kft.load_run(finished_run)
    assert run.report["metrics"]["test"]["accuracy"] >= 0.9
    found = losses(finished_run)
    assert found[-1][1] < 0.5 * found[0][1]


def test_the_run_folder_has_everything_and_nothing_half_written(finished_run: Path, backend: str) -> None:
    names = {path.name for path in finished_run.iterdir()}
    wanted = {
        "recipe.yaml",
        "labels.json",
        "history.jsonl",
        "report.json",
        "model.keras",
        "preprocessing",
        "start.json",
        "state.json",
    }
    assert names == wanted
    assert state(finished_run) == "complete"
    assert {path.name for path in (finished_run / "preprocessing").iterdir()} == {
        "tokenizer.json",
        "preprocessing.json",
    }
    assert json.loads((finished_run / "labels.json").read_text(encoding="utf8"))["labels"] == ["negative", "positive"]


def test_the_report_says_how_the_run_went(finished_run: Path, backend: str) -> None:
    report = json.loads((finished_run / "report.json").read_text(encoding="utf8"))
    assert report["backend"] == backend and report["seed"] == 0 and report["device"]
    assert set(report["metrics"]) == {"validation", "test"}
    assert set(report["metrics"]["test"]) == {"loss", "accuracy", "f1_macro", "matthews_correlation"}
    assert {"import", "load data", "load model", "encode", "build", "train", "evaluate test", "save"} <= set(
        report["seconds"]
    )
    assert {"python", "keras", "keras-hub", "numpy", backend} <= set(report["versions"])
    assert report["examples"] == {"train": 112, "validation": 16, "test": 32}
    assert report["steps"] == 4 * STEPS_AN_EPOCH
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in report["sha256"]["data"].values())


def test_the_history_has_every_step_and_every_epoch(finished_run: Path) -> None:
    assert [step for step, _ in losses(finished_run)] == list(range(1, 4 * STEPS_AN_EPOCH + 1))
    assert len(validations(finished_run)) == 4
    rates = [line["learning_rate"] for line in read_history(finished_run / "history.jsonl") if "loss" in line]
    assert rates == sorted(rates, reverse=True) and 0 <= rates[-1] < rates[0] <= 3e-2


def test_metrics_are_those_of_scikit_learn_on_the_predictions(finished_run: Path, quick: dict) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rows = kft.load_data(quick["data"]["source"], test=0.2).splits.test
    assert rows is not None
    predictions = kft.load_run(finished_run).predict(rows.column("text"))
    truth, labels = rows.column("label"), [found["label"] for found in predictions]
    shares = [[found["probabilities"][name] for name in ("negative", "positive")] for found in predictions]
    scores = kft.load_run(finished_run).report["metrics"]["test"]
    assert scores["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, labels), abs=1e-12)
    assert scores["f1_macro"] == pytest.approx(sklearn.f1_score(truth, labels, average="macro"), abs=1e-12)
    assert scores["matthews_correlation"] == pytest.approx(sklearn.matthews_corrcoef(truth, labels), abs=1e-12)
    assert scores["loss"] == pytest.approx(
        sklearn.log_loss(truth, shares, labels=["negative", "positive"]), rel=1e-5, abs=1e-6
    )


def test_the_resolved_recipe_runs_again_as_it_is(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    again = kft.run(finished_run / "recipe.yaml")
    assert again.run.resolve().is_relative_to(tmp_path.resolve())
    assert again.metrics == kft.load_run(finished_run).report["metrics"]
    assert losses(again.run) == losses(finished_run)
    resolved = [
        yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf8")) for run in (finished_run, tmp_path / again.run)
    ]
    assert resolved[0] == resolved[1]


def test_an_occupied_folder_is_refused_and_left_alone(recipe: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    kept = tmp_path / "run" / "recipe.yaml"
    kept.write_text("of another run", encoding="utf8")
    with pytest.raises(RunFolderError, match="holds another run; nothing was changed. Give another --output"):
        kft.run(recipe())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]
    assert kept.read_text(encoding="utf8") == "of another run"


def test_nothing_is_written_for_a_recipe_that_cannot_run(recipe: Callable[..., dict], tmp_path: Path) -> None:
    with pytest.raises(kft.KftError, match="top:7"):
        kft.run(recipe({"model.trainable": "top:7"}))
    assert not (tmp_path / "run").exists()


def test_tensorflow_stays_out_of_a_whole_run(recipe: Callable[..., dict], backend: str, tmp_path: Path) -> None:
    if backend == "tensorflow":
        pytest.skip("the backend is TensorFlow itself")
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe({"train.epochs": 1})), encoding="utf8")
    code = f"""
import sys, kft
report = kft.run({str(file)!r})
found = kft.load_run(report.run).predict(["a good film"])
assert found[0]["label"] in ("negative", "positive")
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("tensorflow", "tensorflow_text", "tf_keras")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# Parts and stages


def backbone_weights(model: Any) -> list[np.ndarray]:
    import keras

    inner = next(layer for layer in model.layers if "backbone" in layer.name)
    return [keras.ops.convert_to_numpy(weight) for weight in inner.weights]


def fresh_backbone(quick: dict) -> list[np.ndarray]:
    import keras

    options = {name: quick["model"][name] for name in ("architecture", "config", "tokenizer")}
    model = kft.load_backbone(pretrained=False, **options).model
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def test_a_frozen_backbone_keeps_its_weights(recipe: Callable[..., dict], quick: dict) -> None:
    report = kft.run(recipe({"model.trainable": "head", "train.epochs": 1}))
    for trained, fresh in zip(backbone_weights(kft.load_run(report.run).model), fresh_backbone(quick), strict=True):
        np.testing.assert_array_equal(trained, fresh)
    assert losses(report.run)[0][1] != losses(report.run)[-1][1]


STAGES = [{"trainable": "head", "epochs": 1, "learning_rate": 1e-3}, {"trainable": "all", "epochs": 2}]
STAGED = {"train.epochs": None, "train.stages": STAGES}


def test_stages_train_one_after_the_other(recipe: Callable[..., dict], quick: dict) -> None:
    report = kft.run(recipe(STAGED))
    lines = [line for line in read_history(report.run / "history.jsonl") if "loss" in line]
    assert len(lines) == 3 * STEPS_AN_EPOCH
    assert max(line["learning_rate"] for line in lines[:STEPS_AN_EPOCH]) <= 1e-3
    assert lines[STEPS_AN_EPOCH]["learning_rate"] > 2e-2
    trained, fresh = backbone_weights(kft.load_run(report.run).model), fresh_backbone(quick)
    assert any((left != right).any() for left, right in zip(trained, fresh, strict=True))
    resolved = yaml.safe_load((report.run / "recipe.yaml").read_text(encoding="utf8"))
    assert resolved["train"]["stages"][0]["trainable"] == "head"


# Stopping and going on

DROPOUT = {"model.dropout": 0.1, "model.head_dropout": 0.1, "train.epochs": 3}
FROZEN = {"model.trainable": "head", "model.head_dropout": 0.1, "train.epochs": 3}
STOPPED: dict[str, dict] = {"dropout": DROPOUT, "stages": STAGED, "frozen": FROZEN}


@pytest.fixture(scope="module")
def uninterrupted(
    backend: str, quick: dict, variant: Variant, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    found = {}
    for name, changes in STOPPED.items():
        changes = {"backend": backend, "output.directory": str(folder / name), **changes}
        found[name] = kft.run(variant(quick, changes)).run
    return found


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        pytest.param("dropout", 10, id="in the middle of an epoch"),
        pytest.param("dropout", 2 * STEPS_AN_EPOCH, id="at the end of an epoch"),
        pytest.param("stages", 9, id="in the second stage"),
        pytest.param("frozen", 10, id="above a frozen part that was computed once"),
    ],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    recipe: Callable[..., dict], uninterrupted: dict[str, Path], tmp_path: Path, kind: str, step: int
) -> None:
    changes = STOPPED[kind]
    with pytest.raises(RunFailed) as failure:
        pipeline.run(pipeline.load_recipe(recipe(changes))[0], StopAt(step))
    assert str(failure.value) == f"Interrupted after step {step}. Type: kft run --resume {tmp_path / 'run'}"
    assert failure.value.exit_code == 1
    assert state(tmp_path / "run") == "interrupted"
    assert losses(tmp_path / "run")[-1][0] == step
    report = pipeline.resume(tmp_path / "run")
    whole = uninterrupted[kind]
    same_history(report.run, whole)
    expected = kft.load_run(whole).report["metrics"]
    for split, scores in report.metrics.items():
        assert scores == pytest.approx(expected[split], abs=1e-5)
    assert {path.name for path in report.run.iterdir()} == {path.name for path in whole.iterdir()}
    assert state(report.run) == "complete"


def test_a_crashed_run_goes_on_from_its_last_checkpoint(
    recipe: Callable[..., dict], uninterrupted: dict[str, Path], vocabulary: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words" / "vocab.txt"
    words.parent.mkdir()
    words.write_bytes((vocabulary / "vocab.txt").read_bytes())
    changes = {**DROPOUT, "train.checkpoint_every": 3, "model.tokenizer": str(words.parent)}
    with pytest.raises(RuntimeError, match="the power went"):
        pipeline.run(pipeline.load_recipe(recipe(changes))[0], StopAt(11, RuntimeError("the power went")))
    position = json.loads((tmp_path / "run" / "checkpoint" / "position.json").read_text(encoding="utf8"))
    assert position["step"] == 9
    assert losses(tmp_path / "run")[-1][0] == 11
    # It goes on with the tokenizer that it began with, whatever the folder holds by then.
    lines = words.read_text(encoding="utf8").splitlines()
    words.write_text("\n".join([*lines[:5], *reversed(lines[5:])]) + "\n", encoding="utf8")
    pipeline.resume(tmp_path / "run")
    same_history(tmp_path / "run", uninterrupted["dropout"])


def test_ids_without_an_embedding_are_refused(recipe: Callable[..., dict], tmp_path: Path) -> None:
    found = recipe()
    found["model"]["config"] = {**found["model"]["config"], "vocabulary_size": 20}
    with pytest.raises(
        ModelError, match=r"tokenizer gives the id \d+, but 'BertBackbone' has 20 embeddings.*model.token"
    ):
        kft.run(found)
    assert not (tmp_path / "run").exists()


def test_no_text_is_read_beyond_the_positions(recipe: Callable[..., dict], tmp_path: Path) -> None:
    """Positions that are no multiple of what lengths are rounded up to, and a text that takes all of them."""
    words, room = ["good", "bad"], 13
    rows = [f"{' '.join([words[n % 2]] * (room - 2 - n % 3))},{words[n % 2]}" for n in range(48)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]), encoding="utf8")
    changes = {"data.source": str(tmp_path / "reviews.csv"), "model.config.max_sequence_length": room}
    found = recipe({**changes, "model.sequence_length": 32, "train.epochs": 1})
    notes: list[str] = []
    progress = Progress()
    progress.note = notes.append  # type: ignore[method-assign]
    report = kft.run(found, progress=progress)
    assert any(note.startswith(f"model.sequence_length is {room}: 'BertBackbone' has no more") for note in notes)
    assert yaml.safe_load((report.run / "recipe.yaml").read_text(encoding="utf8"))["model"]["sequence_length"] == room
    (answer,) = kft.load_run(report.run).predict([" ".join(["good"] * 40)])
    assert math.isfinite(answer["probabilities"]["good"])
    with (tmp_path / "reviews.csv").open("a", encoding="utf8") as file:
        file.write("\n" + " ".join(["good"] * room) + ",good")
    with pytest.raises(
        ModelError, match=f"but 'BertBackbone' has positions for {room}. Type: model.sequence_length={room}"
    ):
        kft.run(recipe({**changes, "model.sequence_length": 32}, "longer"))
    assert not (tmp_path / "longer").exists()


def test_a_complete_run_is_not_resumed(finished_run: Path) -> None:
    with pytest.raises(RunFolderError, match="is complete; there is nothing to resume"):
        pipeline.resume(finished_run)


def test_a_run_whose_data_changed_is_not_resumed(recipe: Callable[..., dict], quick: dict, tmp_path: Path) -> None:
    source = tmp_path / "reviews.csv"
    text = Path(quick["data"]["source"]).read_text(encoding="utf8")
    source.write_text(text, encoding="utf8")
    with pytest.raises(RunFailed):
        pipeline.run(pipeline.load_recipe(recipe({"data.source": str(source)}))[0], StopAt(2))
    source.write_text(text.replace("film", "book"), encoding="utf8")
    with pytest.raises(RunFolderError, match="have changed since it began"):
        pipeline.resume(tmp_path / "run")
    assert losses(tmp_path / "run")[-1][0] == 2


def test_ctrl_c_in_a_terminal_leaves_a_run_to_go_on_with(
    recipe: Callable[..., dict], backend: str, tmp_path: Path
) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(recipe({"train.epochs": 500})), encoding="utf8")
    with subprocess.Popen(
        [sys.executable, "-m", "kft", "run", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    ) as process:
        folder, deadline = tmp_path / "run", time.monotonic() + 180
        while len(losses(folder)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert f"kft run --resume {folder}" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert state(folder) == "interrupted"
    position = json.loads((folder / "checkpoint" / "position.json").read_text(encoding="utf8"))
    assert position["step"] == losses(folder)[-1][0] >= 3


# Losses that are no numbers

EXPLODING = {"train.optimizer": "sgd", "train.clip_norm": None, "train.learning_rate": 1e30}


def recipe_without_clipping(found: dict) -> dict:
    found["train"]["clip_norm"] = None
    return found


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(recipe: Callable[..., dict], tmp_path: Path) -> None:
    found = recipe_without_clipping(recipe({**EXPLODING, "train.checkpoint_every": 1}))
    with pytest.raises(RunFailed, match=r"turned NaN at step [2-4] \(epoch 1\).*there were none yet.*learning_rate"):
        kft.run(found)
    assert state(tmp_path / "run") == "failed"
    assert not (tmp_path / "run" / "report.json").exists()
    with pytest.raises(RunFolderError, match="no model yet"):
        kft.load_run(tmp_path / "run")


def test_the_last_good_weights_are_kept(recipe: Callable[..., dict], quick: dict, tmp_path: Path) -> None:
    stages = [
        {"trainable": "head", "epochs": 1, "learning_rate": 0.1},
        {"trainable": "all", "epochs": 1, "learning_rate": 1e30},
    ]
    changes = {**EXPLODING, "train.learning_rate": 0.1, "train.epochs": None, "train.stages": stages}
    with pytest.raises(RunFailed, match=rf"step ([89]|1\d) \(epoch 2\).*those of step {STEPS_AN_EPOCH}, are in"):
        kft.run(recipe_without_clipping(recipe(changes)))
    assert state(tmp_path / "run") == "failed"
    run = kft.load_run(tmp_path / "run")
    scores = run.evaluate().metrics["validation"]
    assert math.isfinite(scores["loss"])
    assert scores == pytest.approx(validations(tmp_path / "run")[0], abs=1e-5)


def test_weights_that_gave_no_loss_yet_are_not_called_good(recipe: Callable[..., dict], tmp_path: Path) -> None:
    stages = [{"epochs": 1, "learning_rate": 0.1}, {"epochs": 1, "learning_rate": 1e30}]
    changes = {
        **EXPLODING,
        "train.learning_rate": 0.1,
        "train.epochs": None,
        "train.stages": stages,
        "train.checkpoint_every": 1,
    }
    with pytest.raises(RunFailed, match="the last good weights: the best so far, are in"):
        kft.run(recipe_without_clipping(recipe(changes)))
    scores = kft.load_run(tmp_path / "run").evaluate().metrics["validation"]
    assert scores == pytest.approx(validations(tmp_path / "run")[0], abs=1e-5)


# Which epoch is kept


def test_early_stopping_stops_and_the_best_weights_are_kept(recipe: Callable[..., dict], tmp_path: Path) -> None:
    changes = {"train.epochs": 12, "train.early_stopping": {"metric": "accuracy", "patience": 1}}
    report = kft.run(recipe(changes))
    scores = validations(report.run)
    best = int(np.argmax([found["accuracy"] for found in scores]))
    assert len(scores) == best + 3 < 12
    assert report.metrics["validation"] == scores[best] != scores[-1]
    assert kft.load_run(report.run).evaluate().metrics["validation"] == pytest.approx(scores[best], abs=1e-6)


def test_the_last_weights_are_kept_where_the_best_are_not_wanted(recipe: Callable[..., dict]) -> None:
    changes = {"train.epochs": 6, "train.best_weights": False, "train.metric": "accuracy"}
    report = kft.run(recipe(changes))
    scores = validations(report.run)
    assert len(scores) == 6
    assert report.metrics["validation"] == scores[-1] != scores[0]
    assert kft.load_run(report.run).evaluate().metrics["validation"] == pytest.approx(scores[-1], abs=1e-6)
