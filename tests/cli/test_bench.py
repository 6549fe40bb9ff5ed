"""`kft bench`: what a person gets from it, on one backend, beside another tool, and after it was cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from kft.cli.group import ROOT

BACKEND = os.environ.get("KFT_TEST_BACKEND", "")
# Keras itself imports jax wherever it is.
BROKEN = "torch" if BACKEND == "tensorflow" else "tensorflow"


def kft(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ROOT, [str(argument) for argument in arguments])


def write(folder: Path, recipe: dict) -> Path:
    file = folder / "reviews.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf8")
    return file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backends", "troch"], "Did you mean 'torch'?"),
        (["--against", "transfomers"], "Did you mean 'transformers'?"),
        (["--repeats", "0"], "--repeats"),
        (["--resume", "nowhere"], "No bench at 'nowhere'"),
        (["--resume", "a", "--steps", "3"], "--resume goes alone"),
        (["--compare", "a.json", "b.json", "--backends", "jax"], "--compare goes alone"),
        (["--compare", "a.json", "b.json"], "No bench at 'a.json'"),
        (["nowhere.yaml"], "No recipe at 'nowhere.yaml'"),
        (["train.epoch=1"], "Did you mean 'train.epochs'?"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str) -> None:
    done = kft("bench", *arguments)
    assert done.exit_code == 2 and said in done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.fixture(scope="module")
def bench(quick: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quick look at the backend under test and at one whose import fails; its folder and what it printed."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "shim").mkdir()
    (folder / "shim" / f"{BROKEN}.py").write_text("raise RuntimeError('the driver is too old')\n", encoding="utf8")
    path = os.pathsep.join([str(folder / "shim"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "kft", "bench", str(write(folder, quick)), "--backends", f"{BACKEND},{BROKEN}"]
    command += ["--repeats", "1", "--steps", "5", "--output", str(folder / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "out", done.stdout


@pytest.mark.backend
def test_a_bench_shows_figures_and_the_reason_of_a_backend_that_fails(bench: tuple[Path, str]) -> None:
    _, shown = bench
    assert BACKEND in shown.splitlines()[0]
    assert f"{BROKEN}: RuntimeError: the driver is too old" in shown
    for figure in ("steady state, examples/s", "prediction, examples/s", "command to first step", "peak memory"):
        assert figure in shown
    assert "A quick look: 5 training steps" in shown and "quality  " not in shown


@pytest.mark.backend
def test_the_figures_are_of_the_steps_that_were_asked_for(bench: tuple[Path, str]) -> None:
    found = json.loads((bench[0] / "bench.json").read_text(encoding="utf8"))
    figures = next(piece["figures"] for piece in found["pieces"] if piece["runner"] == BACKEND)
    train = figures["train"]
    # Eight tokens at most, four at least, in rows of sixteen
    assert train["steps"] == 5 and train["examples"] <= 80 and 4 * 5 * 15 < train["tokens"] <= 8 * 80
    assert train["shapes"] >= 1 and train["seconds"] >= train["compile"] >= 0
    assert figures["to_first_step"] > figures["phases"]["import"] > 0
    assert figures["quality"] is None and figures["memory"]["host"] > 100e6
    assert found["runners"][BACKEND]["figures"]["utilisation"]["median"] < 1
    assert found["settings"]["recipe"]["train"]["batch_size"] == 16
    assert found["versions"][BACKEND] and found["machine"]["cores"] >= 1


@pytest.mark.backend
def test_resume_runs_only_what_is_not_done(bench: tuple[Path, str]) -> None:
    folder, _ = bench
    kept = folder / "pieces" / f"{BACKEND}-1.json"
    before = kept.stat().st_mtime_ns
    (folder / "pieces" / f"{BROKEN}-1.json").unlink()
    settings = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps({**settings, "backends": [BACKEND]}))
    (folder / "pieces" / "matrix-product-1.json").unlink()
    done = kft("bench", "--resume", folder, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["runners"][BACKEND]["reason"] is None
    assert kept.stat().st_mtime_ns == before and (folder / "pieces" / "matrix-product-1.json").is_file()


@pytest.mark.backend
@pytest.mark.skipif(BACKEND != "torch", reason="what is tested is the same on every backend")
def test_ctrl_c_says_what_to_type_and_leaves_no_process(quick: dict, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kft", "bench", str(write(tmp_path, quick)), "--backends", "torch"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # ignored in a shell's background
    ) as child:
        working = tmp_path / "out" / "working"
        end = time.monotonic() + 60
        while not working.exists() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(child.pid, signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert f"Type: kft bench --resume {tmp_path / 'out'}" in said.splitlines()[-1]
    assert not working.exists() and "Traceback" not in said


@pytest.mark.backend
@pytest.mark.skipif(BACKEND != "torch", reason="transformers runs on torch")
def test_the_same_job_with_transformers_stands_beside(
    quick: dict, vocabulary: Path, tmp_path: Path, variant: object
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    words = len((vocabulary / "vocab.txt").read_text(encoding="utf8").split())
    config = transformers.BertConfig(
        vocab_size=words, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    transformers.BertTokenizerFast(str(vocabulary / "vocab.txt")).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    recipe = {**quick, "model": {"preset": str(tmp_path / "model"), "sequence_length": 8, "trainable": "top:1"}}
    done = kft(
        "bench", write(tmp_path, recipe), "train.epochs=1", "--backends", "torch", "--against", "transformers",
        "--repeats", "1", "--output", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    rows = found["runners"]
    assert list(rows) == ["torch", "transformers", "transformers-grouped"]
    assert {name: row["reason"] for name, row in rows.items()} == dict.fromkeys(rows)
    train = {p["runner"]: p["figures"]["train"] for p in found["pieces"] if "train" in p["figures"]}
    # The same rows and tokens, and within the parts that are trained the same matrices
    assert len({(each["examples"], each["tokens"]) for each in train.values()}) == 1
    assert train["transformers"]["flop"]["attention"] == pytest.approx(train["torch"]["flop"]["attention"])
    assert train["transformers"]["flop"]["weights"] == pytest.approx(train["torch"]["flop"]["weights"], rel=0.05)
    for row in rows.values():
        assert set(row["quality"]["validation"]) == {"loss", "accuracy", "f1_macro", "matthews_correlation"}
    assert "transformers" in found["versions"]
