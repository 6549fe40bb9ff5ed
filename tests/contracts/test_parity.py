"""The same recipe on three backends, each in a process of its own: same start, same batches, same losses, same answers."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.parity

BACKENDS = ("tensorflow", "torch", "jax")
TEXTS = ["the film was great", "a sad and broken phone", "so very lovely the table the book", "awful"]
# Trains, and writes what the others are to have too: the first weights of the head, the first batches, the logits.
PROGRAM = """
import json, sys
import numpy as np
from kft import api, pipeline, recipe
from kft.tuning import training

start = {}
begin = training.Training.run

def run(self, *, resumed):
    kernel = next(w for layer in self.model.layers if layer.name == "logits" for w in layer.weights)
    start["head"] = np.asarray(kernel.numpy()).ravel().tolist()
    start["weights"] = [float(np.abs(np.asarray(w.numpy())).sum()) for w in self.model.weights]
    plan = self.batches.plan(0)
    made = [self.batches.make(*step)[0] for step in plan[:3]]  # how far they are padded is each backend's own affair
    start["batches"] = [
        [row[kept > 0].tolist() for row, kept in zip(one["token_ids"], one["padding_mask"])] for one in made
    ]
    begin(self, resumed=resumed)
    test = self.evaluator.logits(self.model, self.encoded["test"])
    start["logits"] = np.asarray(test).tolist()

training.Training.run = run
report = pipeline.run(recipe.load(sys.argv[1]))
json.dump({**start, "metrics": report.metrics, "backend": report.backend}, open(sys.argv[2], "w"))
"""


def in_a_process(backend: str, program: str, *arguments: str) -> str:
    """Runs a program on a backend and returns what it printed."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    run = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def train(recipe: dict, backend: str, folder: Path) -> dict[str, Any]:
    """Trains on a backend and returns what it wrote, with the losses of its history."""
    values = {**copy.deepcopy(recipe), "backend": backend, "output": {"directory": str(folder / "run")}}
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf8")
    in_a_process(backend, PROGRAM, str(folder / "recipe.yaml"), str(folder / "out.json"))
    found = json.loads((folder / "out.json").read_text(encoding="utf8"))
    lines = [json.loads(line) for line in (folder / "run" / "history.jsonl").read_text(encoding="utf8").splitlines()]
    return {**found, "losses": [line["loss"] for line in lines if "loss" in line], "run": folder / "run"}


@pytest.fixture(scope="module")
def trained(tiny: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The tiny recipe, dropout 0 and float32, on each backend."""
    folder = tmp_path_factory.mktemp("parity")
    recipe = copy.deepcopy(tiny)
    recipe["train"] |= {"epochs": 3, "learning_rate": 1e-3}
    return {backend: train(recipe, backend, folder / backend) for backend in BACKENDS}


def test_each_ran_on_its_own_backend(trained: dict) -> None:
    assert [trained[backend]["backend"] for backend in BACKENDS] == list(BACKENDS)


def test_the_first_weights_are_the_same_numbers(trained: dict) -> None:
    first = trained["tensorflow"]
    for other in (trained["torch"], trained["jax"]):
        assert other["head"] == first["head"]
        np.testing.assert_allclose(other["weights"], first["weights"], rtol=1e-6)
    assert np.std(first["head"]) > 0


def test_the_batches_are_the_same(trained: dict) -> None:
    first = trained["tensorflow"]["batches"]
    assert len(first) == 3
    assert trained["torch"]["batches"] == first
    assert trained["jax"]["batches"] == first


def test_the_first_twenty_losses_agree(trained: dict) -> None:
    first = np.asarray(trained["tensorflow"]["losses"])
    assert len(first) >= 20
    assert len(set(first[:20])) == 20
    for other in (trained["torch"], trained["jax"]):
        np.testing.assert_allclose(other["losses"][:20], first[:20], rtol=1e-4)


def test_the_final_logits_agree(trained: dict) -> None:
    first = np.asarray(trained["tensorflow"]["logits"])
    assert first.std() > 1e-3
    for other in (trained["torch"], trained["jax"]):
        np.testing.assert_allclose(other["logits"], first, atol=1e-3)
        assert other["metrics"]["test"]["accuracy"] == trained["tensorflow"]["metrics"]["test"]["accuracy"]


@pytest.fixture(scope="module")
def learnt(tiny: dict, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A longer training with dropout on each backend."""
    folder = tmp_path_factory.mktemp("learnt")
    recipe = copy.deepcopy(tiny)
    recipe["model"]["head_dropout"] = 0.1
    recipe["model"]["config"]["dropout"] = 0.1
    recipe["train"] |= {"epochs": 10, "learning_rate": 5e-3, "warmup": 0.1}
    return {backend: train(recipe, backend, folder / backend) for backend in BACKENDS}


def test_with_dropout_the_metrics_lie_within_the_spread_of_seeds(learnt: dict) -> None:
    # The problem is learnt by every seed, so what is left of the spread are a few of the 48 test examples.
    found = {backend: learnt[backend]["metrics"]["test"]["accuracy"] for backend in BACKENDS}
    assert min(found.values()) >= 0.9, found


@pytest.mark.parametrize("trainer", BACKENDS)
def test_a_run_predicts_the_same_on_every_backend(trainer: str, learnt: dict) -> None:
    program = "import json, sys, kft; print(json.dumps(kft.load_run(sys.argv[1]).predict(json.loads(sys.argv[2]))))"
    run = str(learnt[trainer]["run"])
    answers = [json.loads(in_a_process(b, program, run, json.dumps(TEXTS)).splitlines()[-1]) for b in BACKENDS]
    tables = [[list(answer["probabilities"].values()) for answer in found] for found in answers]
    assert np.ptp(np.asarray(tables[0])[:, 0]) > 0.01  # it tells them apart
    for table in tables[1:]:
        np.testing.assert_allclose(table, tables[0], atol=1e-5)
