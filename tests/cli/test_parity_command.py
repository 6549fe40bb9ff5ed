"""`kft parity` as a person types it: what it refuses, what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kft.cli.group import ROOT
from kft.comparison.parity import Certificate, Crossing
from kft.comparison.parity_verdict import Difference, Item

AGREEING = Item("layer outputs", 39, 1e-4, "of the largest value", "torch", {"jax": Difference(3.5e-7, "block_0")})
DIFFERING = Item(
    "losses", 2, 1e-4, "of the loss", "torch", {"jax": Difference(0.25, "loss of step 2", "loss of step 2")}
)
FAST = Item(
    "fast", 42, 1e-4, "of the largest value", "its plain path", {"jax": Difference(1e-6), "torch": Difference(2e-6)}
)
CROSSED = Item("losses of jax to torch from step 1", 1, 1e-4, "of the loss", "jax", {"torch": Difference(2e-7)})


def ends(*arguments: str) -> int:
    """Runs the command line and returns its exit code."""
    with pytest.raises(SystemExit) as end:
        ROOT(["parity", *arguments])
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--backends", "torch"],
            "Parity compares at least two backends, received: torch. Type: kft parity --backends",
        ),
        (["--backends", "torch,torch"], "at least two backends"),
        (["--backends", ","], "at least two backends, received: none"),
        (["--backends", "torch,tensorflo"], "Unknown backend 'tensorflo'. Did you mean 'tensorflow'?"),
        (["--backends", "torch,jax", "absent.yaml"], "No recipe at 'absent.yaml'"),
        (["--backends", "torch,jax", "train.epoch=1"], "Did you mean 'train.epochs'?"),
        (["--backends", "torch,jax", "--steps", "0"], "0 is not in the range x>=1"),
        (["--backends", "torch,jax", "--output", "absent/parity.json"], "Give the name of a JSON file"),
    ],
)
def test_bad_input_is_one_line_and_two(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(*arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert len(printed.err.splitlines()) == 1 and says in printed.err


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Certificate]:
    """What the comparison is to find; the test puts it in."""
    given: list[Certificate] = []
    monkeypatch.setattr("kft.comparison.parity.parity", lambda *arguments: given[0])
    return given


def test_a_certificate_is_a_table_with_the_verdict_last(
    found: list[Certificate], capsys: pytest.CaptureFixture[str]
) -> None:
    crossing = Crossing("jax", "torch", 1, CROSSED)
    found.append(Certificate("torch", ["torch", "jax"], {}, [AGREEING], FAST, [crossing], steps=2, dropouts=8))
    assert ends("--backends", "torch,jax") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert " ".join(lines[0]) == "Largest difference from torch; 2 steps in float32, 8 dropouts fed with the same masks"
    assert " ".join(lines[2]) == "layer outputs 39 1e-04 of the largest value 3.5e-07 agrees"
    assert " ".join(lines[-2]) == "jax torch 1 1 1e-04 of the loss 2.0e-07 agrees"
    assert ["jax", "42", "1e-04", "of", "the", "largest", "value", "1.0e-06", "agrees"] in lines
    assert lines[-1] == ["Agree:", "torch,", "jax."]


def test_what_differs_ends_with_one(
    found: list[Certificate], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found.append(Certificate("torch", ["torch", "jax"], {}, [AGREEING, DIFFERING], steps=2))
    file = tmp_path / "parity.json"
    assert ends("--backends", "torch,jax", "--output", str(file)) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "Differ: jax from torch, first in losses: loss of step 2."
    assert printed[-2] == f"Certificate: {file}"
    assert any("DIFFERS: jax first in loss of step 2" in line for line in printed)
    written = json.loads(file.read_text(encoding="utf8"))
    assert [item["agrees"] for item in written["items"]] == [True, False]


def test_json_is_one_object_whatever_was_found(found: list[Certificate], capsys: pytest.CaptureFixture[str]) -> None:
    worst = Item("loss", 1, 1e-4, "of the loss", "torch", {"jax": Difference(float("inf"), "loss", "loss")})
    found.append(Certificate("torch", ["torch", "jax"], {"tensorflow": "out of memory"}, [worst], steps=2))
    assert ends("--backends", "torch,jax,tensorflow", "--json") == 1
    values = json.loads(capsys.readouterr().out)
    assert values["items"][0]["differences"]["jax"] == {"largest": None, "where": "loss", "first": "loss"}
    assert values["failures"] == {"tensorflow": "out of memory"} and values["agrees"] is False
