"""The certificate on real backends, each in a process of its own: that it is given, and that it is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kft.comparison import parity
from kft.comparison.parity import Certificate
from kft.pipeline import load_recipe
from kft.rundir import read_history

pytestmark = pytest.mark.parity

Variant = Callable[..., dict]
DROPOUT = {"model.dropout": 0.2, "model.head_dropout": 0.2, "train.learning_rate": 3e-3}
ITEMS = ("first weights", "first batches", "dropout masks", "layer outputs", "loss", "gradients")


@pytest.fixture(scope="module")
def certificate(quick: dict, variant: Variant) -> Certificate:
    """Three backends on the quick recipe with dropout, six steps."""
    recipe = variant(quick, {**DROPOUT, "train.batch_size": 32})
    return parity.parity(load_recipe(recipe)[0], ["torch", "jax", "tensorflow"], 6)


def test_three_backends_agree_with_dropout(certificate: Certificate) -> None:
    assert certificate.agrees, certificate.dump()
    assert certificate.verdict == "Agree: torch, jax, tensorflow."
    # the embeddings' dropout, two of the block, one of its attention, and the head's
    assert (certificate.steps, certificate.dropouts) == (6, 5)
    assert tuple(item.name for item in certificate.items)[: len(ITEMS)] == ITEMS
    assert all(set(item.differences) == {"jax", "tensorflow"} and item.count for item in certificate.items)


def test_the_figures_are_measured(certificate: Certificate) -> None:
    found = {item.name: item for item in certificate.items}
    assert found["losses"].count == 6
    assert found["layer outputs"].count > 15
    # float32 on another backend is never the same to the last bit
    assert 0 < found["layer outputs"].differences["jax"].largest < 1e-5


def test_every_checkpoint_goes_on_on_another_backend(certificate: Certificate) -> None:
    pairs = [(crossing.source, crossing.target) for crossing in certificate.crossings]
    assert pairs == [("torch", "jax"), ("jax", "tensorflow"), ("tensorflow", "torch")]
    # four batches make an epoch: the third is in its middle
    assert [(crossing.step, crossing.item.count) for crossing in certificate.crossings] == [(3, 3)] * 3


def test_the_fast_path_is_measured_on_each_backend(certificate: Certificate) -> None:
    assert certificate.fast is not None
    assert set(certificate.fast.differences) == {"torch", "jax", "tensorflow"}
    gradients = next(item for item in certificate.items if item.name == "gradients")
    assert certificate.fast.count == gradients.count + 1  # the loss, and each weight
    assert 0 < certificate.fast.differences["torch"].largest < 1e-5


# Each new Python runs it: TensorFlow's does not start, and jax computes one layer otherwise.
BROKEN = """
import os
backend = os.environ.get('KERAS_BACKEND')
if backend == 'tensorflow':
    raise SystemExit('no device was found')
if backend == 'jax':
    from kft.comparison import parity_worker
    prepare = parity_worker.pipeline.prepare
    def prepared(*arguments):
        found = prepare(*arguments)
        block = next(layer for layer in found.backbone.model.layers if layer.name == 'transformer_layer_0')
        dense = block._feedforward_intermediate_dense
        call = dense.call
        dense.call = lambda *given, **named: call(*given, **named) * 3
        return found
    parity_worker.pipeline.prepare = prepared
"""


def test_what_fails_is_a_row_and_the_first_layer_that_computes_something_else_is_named(
    quick: dict, variant: Variant, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BROKEN, encoding="utf8")
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(variant(quick, {"train.batch_size": 32})), encoding="utf8")
    command = [sys.executable, "-m", "kft", "parity", str(file), "--steps", "1", "--backends", "tensorflow,torch,jax"]
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    output = ["--output", str(tmp_path / "parity.json")]
    done = subprocess.run([*command, *output], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert "tensorflow failed: SystemExit: no device was found" in lines
    assert lines[-1].startswith("Differ: jax from torch, first in layer outputs: ")
    assert lines[-1].endswith("transformer_layer_0/feedforward_intermediate_dense.")
    found = json.loads((tmp_path / "parity.json").read_text(encoding="utf8"))
    assert (found["agrees"], found["reference"], found["backends"]) == (False, "torch", ["torch", "jax"])
    assert found["failures"] == {"tensorflow": "SystemExit: no device was found"}
    agreeing = {item["name"] for item in found["items"] if item["agrees"]}
    assert {"first weights", "first batches", "optimizer on equal gradients", "learning rates"} <= agreeing
    assert not {"layer outputs", "gradients"} & agreeing
    assert not found["crossings"]  # one step leaves no place for a checkpoint


INTERRUPT = """
import signal
import sys
from kft import pipeline
from kft.errors import RunFailed
from kft.progress import Progress

class StopAt(Progress):
    def advance(self, done, total, note=""):
        if done == 6:
            signal.raise_signal(signal.SIGINT)

recipe = pipeline.load_recipe(sys.argv[1])[0]
pipeline.run(recipe.changed({"output.directory": sys.argv[2]}))
try:
    pipeline.run(recipe.changed({"output.directory": sys.argv[3]}), StopAt())
except RunFailed as error:
    print(error)
"""


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_history(folder / "history.jsonl") if "loss" in line]


def test_an_interrupted_run_goes_on_on_another_backend(quick: dict, variant: Variant, tmp_path: Path) -> None:
    file, whole, run = tmp_path / "recipe.json", tmp_path / "whole", tmp_path / "run"
    changes = {"backend": "torch", "train.epochs": 3, "train.batch_size": 32, "train.learning_rate": 3e-3}
    file.write_text(json.dumps(variant(quick, {**changes, "train.warmup": 0.2})), encoding="utf8")
    command = [sys.executable, "-c", INTERRUPT, str(file), str(whole), str(run)]
    begun = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "Interrupted after step 6" in begun.stdout, begun.stderr
    resume = [sys.executable, "-m", "kft", "run", "--resume", str(run), "--backend", "jax", "--json"]
    done = subprocess.run(resume, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["backend"] == "jax"
    assert report["backends"] == [{"backend": "torch", "from_step": 0}, {"backend": "jax", "from_step": 6}]
    assert "goes on at step 6 of torch on jax" in done.stderr.splitlines()
    assert len(losses(whole)) == 12
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
