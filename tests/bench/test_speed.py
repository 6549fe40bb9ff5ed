"""What the Speed table says of the pieces of a bench."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
GFLOP = 100e9


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_speed", BENCH / "speed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_speed"] = module
    spec.loader.exec_module(module)
    return module


def piece(runner: str, repeat: int, rate: float, memory: float = 1e9, once: float = 0.0) -> dict[str, Any]:
    """What a process of a bench leaves: 1,000 examples at some speed, in three epochs."""
    part = {"examples": 1000, "tokens": 20_000, "seconds": 1000 / rate}
    figures = {
        "device": ["cpu"],
        "train": {**part, "flop": {"weights": 1000 * GFLOP}, "steady": part, "epochs": [2.0, 1.0, 1.0]},
        "predict": part,
        "memory": {"host": memory, "gpu": None},
        "phases": {"frozen part": once},
    }
    return {"runner": runner, "repeat": repeat, "figures": figures}


def bench(pieces: list[dict[str, Any]], **reasons: str) -> dict[str, Any]:
    names = ["torch", "jax", "tensorflow", "transformers", "transformers-grouped"]
    return {
        "settings": {"steps": None, "backends": names[:3]},
        "matrix_product": {"operations_per_second": {"cpu": 50 * GFLOP}},
        "runners": {name: {"reason": reasons.get(name)} for name in names},
        "pieces": pieces,
    }


def test_ratios_are_of_the_same_repeat_and_of_the_better_reference(speed: ModuleType) -> None:
    # The machine was twice as fast in the second repeat: the ratios stay.
    pieces = [
        *(piece(name, 1, rate) for name, rate in (("torch", 30), ("transformers", 10), ("transformers-grouped", 20))),
        *(piece(name, 2, rate) for name, rate in (("torch", 60), ("transformers", 40), ("transformers-grouped", 30))),
    ]
    rows = speed.training(bench(pieces, jax="Not installed."))
    assert rows[0].what.endswith("the best backend (torch)") and rows[0].values == pytest.approx([3.0, 1.5])
    assert rows[0].reached == "yes (in 1 of 2 repeats)"
    assert rows[2].values == pytest.approx([1.5, 1.5]) and rows[2].reached == "yes"
    assert rows[3].measured == "not measured: jax: Not installed." and rows[3].reached == "-"
    utilisation = rows[5]
    assert utilisation.values == pytest.approx([0.6, 1.2]) and utilisation.goal == 0.7


def test_memory_is_better_the_smaller_it_is(speed: ModuleType) -> None:
    pieces = [piece("torch", 1, 1, 1e9), piece("jax", 1, 1, 3e9), piece("transformers", 1, 1, 2e9)]
    torch, jax, _ = speed.memory(bench([*pieces, piece("transformers-grouped", 1, 1, 4e9)]))
    assert (torch.measured, torch.reached) == ("0.50 x; 1,000 against 2,000 MB", "yes")
    assert (jax.measured, jax.reached) == ("1.50 x; 3,000 against 2,000 MB", "no")


def test_the_first_epoch_counts_with_what_is_computed_once(speed: ModuleType) -> None:
    (row,) = speed.frozen(bench([piece("torch", 1, 1, once=28.0)]), "head", ["torch"])
    assert list(row.values) == [30.0] and row.reached == "yes"
    (partly,) = speed.frozen(None, "top:2", ["torch"])
    assert partly.goal == pytest.approx(10 / 6) and partly.measured == "not measured"


def test_a_run_that_failed_says_so_in_its_row(speed: ModuleType) -> None:
    torch, jax, tensorflow = speed.start(
        {"torch": [{"first": 20.0, "second": 9.0}], "jax": [{"reason": "No such data."}]}
    )
    assert (torch.measured, torch.reached) == ("9.00 s; first run 20.0 s", "no")
    assert (jax.measured, jax.reached) == ("not measured: No such data.", "-")
    assert tensorflow.measured == "not measured"


def test_the_table_has_a_line_a_row_and_json_of_it(speed: ModuleType) -> None:
    small, large = ({"rows": n, "peak": peak, "rows_per_second": 30_000} for n, peak in ((10, 1e8), (100, 5e8)))
    rows = [*speed.many_rows({"files": [small, large], "more_mb": 400.0}), *speed.plan(None, ["jax"])]
    lines = speed.markdown(rows).splitlines()
    assert lines[2] == "| 100 rows: peak memory | 10 rows | + ≤ 300 MB | 400 MB more; 100 and 500 MB | no |"
    assert len(lines) == 2 + len(rows) and all(line.count(" | ") == 4 for line in lines if "---" not in line)
    assert [row["reached"] for row in json.loads(json.dumps([row.dump() for row in rows]))] == ["no", "yes", "-", "-"]


def test_the_table_of_the_readme_has_the_goals_that_are_judged_by(speed: ModuleType) -> None:
    text = (BENCH / "README.md").read_text(encoding="utf8")
    rows = [*speed.training(None), *speed.predict(None), *speed.start({}), *speed.memory(None), *speed.many_rows(None)]
    rows += [*speed.frozen(None, "head", ["torch"]), *speed.frozen(None, "top:2", ["torch"])]
    assert {row.reach for row in rows} <= set(
        text.replace("|", "\n").replace(" \n", "\n").replace("\n ", "\n").split("\n")
    )


def test_every_program_is_explained() -> None:
    text = (BENCH / "README.md").read_text(encoding="utf8")
    assert all(f"`{file.name}`" in text for file in BENCH.glob("*.py"))


@pytest.mark.parametrize("name", ["table", "backends"])
def test_what_cannot_be_measured_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / f"{name}.py"), "--output", str(tmp_path), "--backends", "theano"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("Unknown backend 'theano'.") and run.stderr.count("\n") == 1
