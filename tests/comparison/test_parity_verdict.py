"""What two backends computed, compared: what agrees, what differs, and the name of what differs first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from kft.comparison import parity_verdict
from kft.comparison.parity import Certificate
from kft.comparison.parity_verdict import Item, Result

LAYERS = ["embedding", "block_0/attention", "block_0", "block_1", "logits"]
WEIGHTS = ["0 embedding/table", "1 block_0/kernel", "2 block_0/key/bias", "3 logits/kernel"]


def numbers() -> dict[str, Any]:
    """What a backend might have computed: values by kind, arrays by kind and name."""
    rng = np.random.default_rng(0)
    slopes = {name: rng.normal(size=(4, 3)) for name in WEIGHTS} | {WEIGHTS[2]: 1e-10 * rng.normal(size=3)}
    values = {name: rng.normal(size=slopes[name].shape) for name in WEIGHTS}
    arrays = {
        "masks": {"dropout call 0": np.float32([0, 1.25])},
        "layers": {name: rng.normal(size=(2, 5, 3)) for name in LAYERS},
        "gradients": slopes,
        "optimizer": values,
        "step": {name: value - 1e-3 * np.sign(slopes[name]) for name, value in values.items()},
        "logits": {"validation": rng.normal(size=(20, 2))},
    }
    found = {
        "weights": dict.fromkeys(WEIGHTS, "digest"),
        "batches": {"batch 1 token_ids": "digest", "batch 2 token_ids": "digest"},
        "loss": 0.69,
        "rates": [2e-5, 1e-5],
        "losses": [0.69, 0.61],
        "metrics": {"loss": 0.6, "accuracy": 0.75},
    }
    return {"values": found, "arrays": arrays}


def result(folder: Path, backend: str, found: dict[str, Any]) -> Result:
    """Stores numbers as a worker does."""
    stored = {
        f"{kind}/{place}": np.asarray(array, np.float32)
        for kind, arrays in found["arrays"].items()
        for place, array in enumerate(arrays.values())
    }
    file = folder / f"{backend}.safetensors"
    save_file(stored, str(file))
    names = {kind: list(arrays) for kind, arrays in found["arrays"].items()}
    return Result(backend, {**found["values"], "names": names}, file)


Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def compared(tmp_path: Path) -> Callable[[Change], list[Item]]:
    """Compares a torch with a jax whose numbers were changed."""

    def compare(change: Change) -> list[Item]:
        theirs = copy.deepcopy(numbers())
        change(theirs)
        return parity_verdict.compare(
            result(tmp_path, "torch", numbers()),
            [result(tmp_path, "jax", theirs), result(tmp_path, "tensorflow", numbers())],
        )

    return compare


def test_equal_numbers_agree(compared: Callable[[Change], list[Item]]) -> None:
    items = compared(lambda found: None)
    assert len(items) == 12 and all(item.agrees for item in items)
    certificate = Certificate("torch", ["torch", "jax", "tensorflow"], {}, items)
    assert certificate.agrees and certificate.verdict == "Agree: torch, jax, tensorflow."


def scaled(kind: str, name: str, by: float) -> Change:
    def change(found: dict[str, Any]) -> None:
        found["arrays"][kind][name] = found["arrays"][kind][name] * by

    return change


def valued(name: str, value: Any) -> Change:
    return lambda found: found["values"].update({name: value})


@pytest.mark.parametrize(
    ("change", "item", "first"),
    [
        pytest.param(scaled("layers", "block_0", 1.001), "layer outputs", "block_0", id="a layer"),
        pytest.param(scaled("layers", "block_0/attention", np.nan), "layer outputs", "block_0/attention", id="NaN"),
        pytest.param(scaled("gradients", WEIGHTS[1], 1.01), "gradients", WEIGHTS[1], id="a gradient"),
        pytest.param(scaled("optimizer", WEIGHTS[0], 1.001), "optimizer on equal gradients", WEIGHTS[0], id="optimizer"),
        pytest.param(scaled("step", WEIGHTS[3], 1.01), "weights after one step", WEIGHTS[3], id="a step"),
        pytest.param(scaled("masks", "dropout call 0", 0), "dropout masks", "dropout call 0", id="a mask"),
        pytest.param(scaled("logits", "validation", 1.01), "logits after the last step", "validation", id="logits"),
        pytest.param(valued("loss", 0.6902), "loss", "loss", id="the loss"),
        pytest.param(valued("losses", [0.69, 0.611]), "losses", "loss of step 2", id="a later loss"),
        pytest.param(valued("losses", [0.69]), "losses", "loss of step 2", id="a loss that is missing"),
        pytest.param(valued("rates", [2e-5, 2e-5]), "learning rates", "learning rate of step 2", id="the schedule"),
        pytest.param(valued("batches", {"batch 1 token_ids": "digest", "batch 2 token_ids": "other"}), "first batches",
                     "batch 2 token_ids", id="a batch"),
        pytest.param(valued("metrics", {"loss": 0.6, "accuracy": 0.8}), "metrics after the last step", "accuracy", id="a metric"),
    ],
)  # fmt: skip
def test_what_differs_is_named(compared: Callable[[Change], list[Item]], change: Change, item: str, first: str) -> None:
    items = compared(change)
    wrong = [found for found in items if not found.agrees]
    assert [found.name for found in wrong] == [item]
    assert wrong[0].differences["jax"].first == first and wrong[0].differences["tensorflow"].agrees
    certificate = Certificate("torch", ["torch", "jax", "tensorflow"], {}, items)
    assert certificate.verdict == f"Differ: jax from torch, first in {item}: {first}."


def test_the_first_layer_is_named_not_the_one_furthest_apart(compared: Callable[[Change], list[Item]]) -> None:
    def change(found: dict[str, Any]) -> None:
        scaled("layers", "block_1", 1.001)(found)
        scaled("layers", "logits", 3)(found)

    found = next(item for item in compared(change) if item.name == "layer outputs").differences["jax"]
    assert (found.first, found.where) == ("block_1", "logits")
    assert found.largest == pytest.approx(2, rel=1e-6)


def test_gradients_are_searched_from_the_head_backwards(compared: Callable[[Change], list[Item]]) -> None:
    def change(found: dict[str, Any]) -> None:
        for name in (WEIGHTS[0], WEIGHTS[1]):
            scaled("gradients", name, 2)(found)

    found = next(item for item in compared(change) if item.name == "gradients").differences["jax"]
    assert found.first == WEIGHTS[1]


def test_a_gradient_that_is_only_rounding_does_not_count(compared: Callable[[Change], list[Item]]) -> None:
    def change(found: dict[str, Any]) -> None:
        scaled("gradients", WEIGHTS[2], -1)(found)
        found["arrays"]["step"][WEIGHTS[2]] += 2e-3 * np.sign(numbers()["arrays"]["gradients"][WEIGHTS[2]])

    assert all(item.agrees for item in compared(change))


def test_a_layer_that_one_backend_computes_with_others_as_one_is_left_out(
    compared: Callable[[Change], list[Item]],
) -> None:
    items = compared(lambda found: found["arrays"]["layers"].pop("block_0/attention"))
    assert all(item.agrees for item in items)


def test_a_backend_that_failed_leaves_no_certificate(compared: Callable[[Change], list[Item]]) -> None:
    items = compared(lambda found: None)
    certificate = Certificate("torch", ["torch", "jax"], {"tensorflow": "out of memory"}, items)
    assert not certificate.agrees
    assert certificate.verdict == "No certificate for tensorflow; torch, jax agree."
    alone = Certificate(None, ["torch"], {"jax": "a", "tensorflow": "b"})
    assert not alone.agrees and alone.dump()["verdict"] == "No certificate: fewer than two backends came through."


@pytest.mark.parametrize("kind", ["gradients", "optimizer", "step"])
def test_what_one_backend_lacks_differs(compared: Callable[[Change], list[Item]], kind: str) -> None:
    items = compared(lambda found: found["arrays"][kind].pop(WEIGHTS[1]))
    assert any(item.differences["jax"].first == WEIGHTS[1] for item in items)


def test_outputs_without_the_last_layer_differ(compared: Callable[[Change], list[Item]]) -> None:
    items = compared(lambda found: found["arrays"]["layers"].pop("logits"))
    assert next(item for item in items if not item.agrees).differences["jax"].first == "the last layer"
