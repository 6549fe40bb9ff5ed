"""The command line as a process: what reaches its standard output, and with which code it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kft.cli import start_lines

FULL = Path("/dev/full")


def kft(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kft", *map(str, arguments)]
    return subprocess.run(command, text=True, **{"capture_output": True, "timeout": 300, **options})  # type: ignore[call-overload, no-any-return]


def test_the_codes_of_success_and_of_bad_input() -> None:
    assert kft("list", "tasks").returncode == 0
    wrong = kft("lst", "tasks")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1 and "Did you mean 'list'?" in wrong.stderr


def test_what_writes_to_descriptor_one_does_not_reach_standard_output(tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        "import os, sys\n"
        "from kft import backend\n"
        "def versions():\n"
        "    os.write(1, b'written in C\\n'); print('printed'); os.system('echo of a child')\n"
        "    return {}\n"
        "backend.versions, backend.installed = versions, lambda: []\n"
        "sys.argv = ['kft', 'doctor', '--json']\n"
        "from kft.cli import main\n"
        "main()\n",
        encoding="utf8",
    )
    done = subprocess.run([sys.executable, noisy], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) >= {"versions", "backends", "caches", "missing"}
    for noise in ("written in C", "printed", "of a child"):
        assert noise in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_behind_standard_output_is_one_line(more: list[str]) -> None:
    with FULL.open("w") as full:
        done = kft("list", "metrics", *more, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "disk is full" in done.stderr


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_predictions_for_a_full_disk_leave_the_device_in_place() -> None:
    from kft.cli.predict import refuse_taken, write
    from kft.errors import RunFolderError

    refuse_taken(FULL)
    with pytest.raises(RunFolderError, match="disk is full"):
        write(FULL, [{"label": "a"}])
    assert FULL.is_char_device()


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    done = subprocess.run(
        f"{sys.executable} -m kft list metrics | head -n 1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "" and done.stdout.startswith("name")


def test_text_that_the_terminal_cannot_show_is_no_error() -> None:
    done = kft("init", "text_classification", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and yaml.safe_load(done.stdout)["task"] == "text_classification"


def test_the_start_lines_of_tensorflow_are_left_out_and_nothing_else(tmp_path: Path) -> None:
    chatter = (
        b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
        b"I0000 00:00:1795347770.843954   12671 port.cc:153] oneDNN custom operations are on.\n"
    )
    kept = b"E0000 00:00:1795347770.843954   12671 cuda.cc:1] out of memory\nI have something to say\nlast words"
    source, sink = tmp_path / "source", tmp_path / "sink"
    source.write_bytes(chatter + kept)
    with source.open("rb") as reader, sink.open("wb") as writer:
        start_lines.copy(reader.fileno(), writer.fileno())
    assert sink.read_bytes() == kept


@pytest.mark.backend
def test_doctor_names_the_devices_of_the_backend() -> None:
    done = kft("doctor", "--json")
    found = json.loads(done.stdout)
    name = os.environ["KFT_TEST_BACKEND"]
    assert found["backends"][name]["devices"], done.stderr
    assert name in found["versions"]
    assert {entry["name"] for entry in found["missing"]}.isdisjoint({name})
    assert all(cache["bytes"] >= 0 and cache["path"] for cache in found["caches"].values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: dict) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of the tiny recipe, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = folder / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(tiny), encoding="utf8")
    backend = os.environ["KFT_TEST_BACKEND"]
    done = kft("run", recipe, "train.epochs=1", "--backend", backend, "--output", folder / "run", "--json")
    return folder / "run", done


@pytest.mark.backend
def test_a_run_prints_one_json_object(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["run"] == str(folder) and report["backend"] == os.environ["KFT_TEST_BACKEND"]
    assert set(report["metrics"]) == {"validation", "test"}
    assert "accuracy" in report["metrics"]["test"] and report["seconds"]["train"] > 0
    assert "train ..." in done.stderr and "\x1b" not in done.stderr
    assert "InitializeLog" not in done.stderr


@pytest.mark.backend
def test_evaluate_gives_the_metrics_of_the_run(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = finished
    again = json.loads(kft("evaluate", folder, "--json").stdout)
    assert again["metrics"]["test"] == pytest.approx(json.loads(done.stdout)["metrics"]["test"], abs=1e-5)
    assert set(again) >= {"run", "backend", "metrics", "seconds"}


@pytest.mark.backend
def test_predict_writes_a_line_an_example_in_order(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = finished
    texts = ["good film", "the film was bad and the phone too", "a book"]
    printed = json.loads(kft("predict", folder, *texts, "--json").stdout)["predictions"]
    source, output = tmp_path / "texts.csv", tmp_path / "out.jsonl"
    source.write_text("\n".join(["text", *texts]) + "\n", encoding="utf8")
    assert kft("predict", folder, "--input", source, "--output", output).returncode == 0
    written = [json.loads(line) for line in output.read_text(encoding="utf8").splitlines()]
    assert len(written) == 3 and list(tmp_path.glob(".*")) == []
    for one, other in zip(printed, written, strict=True):
        assert one["label"] == other["label"] == max(one["probabilities"], key=one["probabilities"].get)
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.backend
def test_an_output_that_holds_a_run_is_left_alone(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder, _ = finished
    before = sorted((file, file.stat().st_mtime_ns) for file in folder.rglob("*"))
    done = kft("run", folder / "recipe.yaml", "--output", folder)
    assert done.returncode == 2 and "holds another run" in done.stderr
    assert sorted((file, file.stat().st_mtime_ns) for file in folder.rglob("*")) == before
