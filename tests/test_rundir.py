from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kft import rundir
from kft.errors import RunFolderError
from kft.rundir import History


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_new_run_folder_is_made_with_its_parents_and_is_running(tmp_path: Path) -> None:
    folder = rundir.create(tmp_path / "runs" / "first")
    assert folder.path.is_dir() and folder.state == "running"
    for state in rundir.STATES:
        folder.set_state(state)
        assert rundir.RunFolder(folder.path).state == state
    assert [file.name for file in folder.path.iterdir()] == ["state.json"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert rundir.create(tmp_path).state == "running"


@pytest.mark.parametrize(
    ("files", "says", "resumable"),
    [
        (["notes.txt"], "other files", False),
        (["recipe.yaml", "model.keras"], "another run", False),
        (["recipe.yaml", "checkpoint/position.json"], "another run", True),
        ([".hidden"], "other files", False),
    ],
)
def test_an_occupied_folder_is_refused_and_nothing_in_it_changes(
    tmp_path: Path, files: list[str], says: str, resumable: bool
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(RunFolderError) as caught:
        rundir.create(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message and says in message and "--output" in message and "\n" not in message
    assert (f"kft run --resume {tmp_path}" in message) is resumable
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.write_text("mine")
    for path in (place, place / "inner"):
        with pytest.raises(RunFolderError, match=re.escape(str(path))):
            rundir.create(path)
    assert place.read_text() == "mine"


class Crash(Exception):
    pass


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    rundir.write_json(file, {"accuracy": 0.5})
    with pytest.raises(Crash), rundir.replacing(file) as temporary:
        temporary.write_text("half a fi")
        assert file.read_text() != "half a fi"
        raise Crash
    assert rundir.read_json(file) == {"accuracy": 0.5}
    with pytest.raises(TypeError):
        rundir.write_json(file, {"accuracy": object()})
    assert rundir.read_json(file) == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [file]


def test_a_writer_that_succeeds_replaces_the_file_at_its_end(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text("old")
    with rundir.replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=f"Cannot write to '{tmp_path}/gone/report.json': No such file"):
        rundir.write_text(tmp_path / "gone" / "report.json", "text")


def test_json_keeps_letters_as_they_are_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    rundir.write_json(tmp_path / "labels.json", {"labels": ["schön", "日本"]})
    assert "schön" in (tmp_path / "labels.json").read_text(encoding="utf8")
    assert rundir.read_json(tmp_path / "labels.json") == {"labels": ["schön", "日本"]}
    assert rundir.read_json(tmp_path / "none.json") == {}


def test_a_history_goes_on_after_a_step(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history = History(file)
    for step in range(1, 6):
        history.add(step=step, loss=1 / step)
    history.add(step=5, split="validation", accuracy=0.5)
    History(file, step=3).add(step=4, loss=9.0)
    assert [(line["step"], line["loss"]) for line in rundir.read_history(file)] == [
        (1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0),
    ]  # fmt: skip
    History(file)
    assert rundir.read_history(file) == []


def test_a_line_that_a_crash_cut_off_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 8}) for step in (1, 2)]
    for end in range(1, len(lines[1])):
        file.write_text(f"{lines[0]}\n{lines[1][:end]}")
        assert rundir.read_history(file) == [{"step": 1, "loss": 0.125}]
    History(file, step=2).add(step=2, loss=0.5)
    assert rundir.read_history(file) == [{"step": 1, "loss": 0.125}, {"step": 2, "loss": 0.5}]


def test_a_run_that_is_not_there_offers_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "reviews-jax").mkdir()
    with pytest.raises(RunFolderError, match="No run at '.*reviews-jaxx'. Did you mean 'reviews-jax'?") as caught:
        rundir.open_run(tmp_path / "reviews-jaxx")
    assert "`kft run` makes one" in str(caught.value)
    with pytest.raises(RunFolderError, match="No run at"):
        rundir.open_run(tmp_path / "no" / "such" / "place")


def test_a_run_without_a_model_says_how_to_go_on(tmp_path: Path) -> None:
    folder = rundir.create(tmp_path / "run")
    rundir.write_text(folder.recipe, "task: text_classification\n")
    folder.set_state("interrupted")
    with pytest.raises(RunFolderError, match=f"no model yet .*interrupted.* kft run --resume {folder.path}"):
        rundir.open_run(folder.path)
    assert rundir.open_run(folder.path, trained=False) == folder
    folder.model.write_bytes(b"weights")
    assert rundir.open_run(str(folder.path)) == folder


def test_the_free_space_of_a_place_that_is_not_there_yet(tmp_path: Path) -> None:
    assert rundir.free_bytes(tmp_path / "a" / "b") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)


FULL = """
import json, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from kft import rundir

place = Path(sys.argv[1])
rundir.write_text(place / "report.json", "the last good state")
folder = rundir.create(place / "before")
history = rundir.History(place / "history.jsonl")

def fill():
    with (place / "filler").open("wb", buffering=0) as stream:
        for size in (4096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                pass

def weights():
    with rundir.replacing(place / "best.safetensors") as temporary:
        save_file({"kernel": np.zeros(100_000)}, str(temporary))

def arrays():
    with rundir.replacing(place / "report.json") as temporary:
        temporary.write_bytes(bytes(10_000_000))

calls = [weights, arrays]
said = []
def attempt(call):
    try:
        call()
        said.append("written")
    except rundir.RunFolderError as error:
        said.append(str(error))
for call in calls:
    attempt(call)
fill()
for call in (
    lambda: rundir.create(place / "run"),
    lambda: rundir.write_text(place / "report.json", "x" * 5000),
    lambda: [history.add(step=step, text="x" * 100) for step in range(100)],
):
    attempt(call)
left = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
print(json.dumps({"said": said, "left": left, "report": (place / "report.json").read_text()}))
"""


def test_a_full_disk_is_one_line_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare to make a small disk with")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=200k none '{disk}'"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    (tmp_path / "full.py").write_text(FULL)
    command = f"{mount} && exec '{sys.executable}' '{tmp_path / 'full.py'}' '{disk}'"
    run = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found["said"]) == 5
    for message in found["said"]:
        assert re.fullmatch(r"The disk is full: cannot write to '.*' \(\d+ MB free\)\. Free some space.*", message)
    assert found["report"] == "the last good state"
    assert found["left"] == ["before/state.json", "filler", "history.jsonl", "report.json"]


def test_a_folder_that_several_make_at_once_is_there_once(tmp_path: Path) -> None:
    def make(place: Path) -> None:
        rundir.make_folder(place, lambda folder: rundir.write_text(folder / "file", "whole"))

    for number in range(50):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, [tmp_path / str(number)] * 4))
        assert (tmp_path / str(number) / "file").read_text(encoding="utf8") == "whole"
    assert len(list(tmp_path.iterdir())) == 50
