"""What a bench says of its figures, and what it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kft import recipe as recipes
from kft.comparison import process
from kft.comparison.bench import changes, clock, memory, reference, rows, running, summary
from kft.comparison.bench.clock import Clock, Step
from kft.comparison.bench.flop import Flop
from kft.comparison.bench.settings import PEAK, Piece, Settings, backends_of, references_of
from kft.errors import KftError, RunFailed, RunFolderError
from kft.progress import Progress

GFLOP = 100e9


@pytest.fixture
def settings(tiny: dict) -> Settings:
    return Settings(recipes.validate(tiny, "tiny"), "tiny", ("torch", "jax"), repeats=3)


def result(examples_a_second: float, quality: float = 0.9, compile_: float = 5.0) -> dict[str, Any]:
    """What a piece leaves: 1000 examples of 20 tokens, trained at some speed."""
    seconds = 1000 / examples_a_second
    part = {"examples": 1000, "tokens": 20_000, "seconds": seconds}
    train = {
        **part,
        "steps": 63,
        "shapes": 4,
        "compile": compile_,
        "first_step": 2.0,
        "steady": {**part, "steps": 60, "step": seconds / 60},
        "epochs": [seconds],
        "flop": {"weights": 9 * GFLOP, "attention": GFLOP},
        "losses": [[1.0, 0.7], [2.0, 0.5], [3.0, 0.4]],
    }
    return {
        "device": ["cpu"],
        "versions": {"python": "3.11"},
        "phases": {"import": 3.0, "compile": compile_, "train": seconds - compile_},
        "to_first_step": 9.0,
        "train": train,
        "predict": {**part, "first_seconds": seconds},
        "memory": {"host": 10**9, "gpu": None},
        "quality": {"validation": {"loss": 0.3, "accuracy": quality}},
        "data": {"train": "abc"},
    }


def bench(settings: Settings, speeds: dict[str, Sequence[float]], **missing: str) -> dict[str, Any]:
    """What `bench.json` holds where the runners had some speeds, one a repeat."""
    done: dict[Piece, dict[str, Any]] = {Piece(PEAK, 1): {"figures": {"cpu": GFLOP, "gpu": None, "library": "torch"}}}
    for name, each in speeds.items():
        for repeat, speed in enumerate(each, 1):
            done[Piece(name, repeat)] = {"figures": result(speed), "seconds": 1.0, "began": 0.0}
    found = summary.summarise(settings, done, missing)
    return {
        **found,
        "machine": {"processor": "x", "cores": 2, "memory": 8e9, "system": "y", "devices": {}},
        "date": "2026-01-02T03:04",
    }


def test_a_runner_wins_only_if_its_slowest_repeat_beats_the_fastest_of_the_others(settings: Settings) -> None:
    clear = bench(settings, {"torch": [40, 44, 41], "jax": [20, 22, 21]})["verdict"]
    assert clear["winner"] == "torch"
    assert clear["headline"] == "torch trains fastest: 41.0 (40.0 to 44.0) examples/s, 1.95 times jax."
    noisy = bench(settings, {"torch": [40, 44, 25], "jax": [20, 30, 21]})["verdict"]
    assert noisy["winner"] is None and noisy["headline"].startswith("Too noisy to name a winner: torch 40.0")


def test_a_winner_has_to_beat_every_other_runner(tiny: dict) -> None:
    settings = Settings(recipes.validate(tiny, "tiny"), "tiny", repeats=3)
    speeds = {"torch": [40, 44, 41], "jax": [30, 31, 32], "tensorflow": [10, 10, 42]}
    assert bench(settings, speeds)["verdict"]["winner"] is None


def test_one_repeat_names_no_winner(settings: Settings) -> None:
    verdict = bench(settings, {"torch": [40], "jax": [10]})["verdict"]
    assert verdict["winner"] is None and "One repeat cannot tell" in verdict["headline"]


def test_utilisation_is_useful_operations_over_those_of_the_matrix_product(settings: Settings) -> None:
    figures = bench(settings, {"torch": [10, 10, 10]})["runners"]["torch"]["figures"]
    # ten times GFLOP operations in 100 s, on a machine that does GFLOP of them in a second
    assert figures["utilisation"]["median"] == pytest.approx(0.1)
    assert figures["train_examples"] == {"median": 10, "low": 10, "high": 10}
    assert figures["train_tokens"]["median"] == pytest.approx(200)


def test_a_runner_that_cannot_run_is_a_row_with_the_reason(settings: Settings) -> None:
    found = bench(settings, {"torch": [10, 11, 12]}, jax="The backend 'jax' is not installed here.")
    assert rows.reasons(found) == [("jax", "The backend 'jax' is not installed here.")]
    assert rows.figures(found)[0] == ["median (range)", "torch"]
    assert "nothing to compare it with" in found["verdict"]["headline"]


def test_every_repeat_has_every_runner_in_an_order_that_the_seed_decides(tiny: dict) -> None:
    recipe = recipes.validate(tiny, "tiny")
    orders = {tuple(Settings(recipe, "t", repeats=2, seed=seed).pieces) for seed in range(6)}
    assert len(orders) > 1
    for pieces in orders:
        for repeat in (1, 2):
            ran = [piece.runner for piece in pieces if piece.repeat == repeat]
            assert sorted(ran) == sorted(["tensorflow", "torch", "jax", PEAK])
        assert [piece.repeat for piece in pieces] == [1] * 4 + [2] * 4
    assert Settings(recipe, "t", seed=3).pieces == Settings(recipe, "t", seed=3).pieces


def test_settings_are_read_as_they_were_written(settings: Settings, tiny: dict) -> None:
    assert Settings.read(json.loads(json.dumps(settings.dump()))) == settings
    staged = {**tiny, "train": {"stages": [{"trainable": "head"}, {"epochs": 2}]}}
    again = Settings(recipes.validate(staged, "staged"), "s")
    assert Settings.read(json.loads(json.dumps(again.dump()))).recipe.stages == again.recipe.stages


def test_names_that_are_none_are_refused_with_the_nearest() -> None:
    assert backends_of("jax, torch,jax") == ("jax", "torch")
    assert references_of("transformers") == ("transformers", "transformers-grouped")
    with pytest.raises(KftError, match="Did you mean 'torch'"):
        backends_of("troch")
    with pytest.raises(KftError, match="Did you mean 'transformers'"):
        references_of("transfomers")
    with pytest.raises(KftError, match="names none"):
        backends_of(",")


def ticked() -> Clock:
    """Two epochs of two steps of a second each; the first step takes 5 more; validation takes 10 in between."""
    found = Clock(started=100.0)
    found.begun, found.steps, found.ended = [102.0, 119.0], [[108.0, 109.0], [120.0, 121.0]], [109.0, 121.0]
    found.closed = list(found.ended)
    return found


def test_what_comes_between_epochs_is_no_training() -> None:
    marks = ticked()
    assert marks.seconds == 11.0
    assert marks.durations() == [6.0, 1.0, 1.0, 1.0]
    assert marks.elapsed() == [8.0, 9.0, 10.0, 11.0]


def test_compiling_between_stages_is_training() -> None:
    marks = ticked()
    marks.closed[0] = 112.0  # evaluated until then; the next stage began at 119
    assert marks.seconds == 18.0


def test_the_first_step_of_a_shape_is_compiling_and_the_rest_steady() -> None:
    found = clock.figures(ticked(), [Step(64, 8, 100), Step(64, 8, 100), Step(64, 8, 100), Step(64, 4, 50)])
    assert found["compile"] == 2.0 + 5.0 and found["first_step"] == 6.0
    assert found["steady"]["examples"] == 20 and found["steady"]["seconds"] == 3.0 and found["steady"]["step"] == 1.0
    assert found["examples"] == 28 and found["tokens"] == 350 and found["seconds"] == 11.0


def test_where_every_shape_is_new_nothing_is_steady() -> None:
    found = clock.figures(ticked(), [Step(length, 8) for length in (8, 16, 24, 32)])
    assert found["steady"] is None and found["compile"] == 2.0 + 9.0


def test_operations_of_a_trained_and_of_a_frozen_matrix() -> None:
    model = Flop(token=(1000, 100), row=(10, 0), attention=(0, 8))
    counted = model.training([3, 5])
    assert counted == {"weights": 6 * 1000 * 8 + 2 * 100 * 8 + 6 * 10 * 2, "attention": 4 * 8 * (9 + 25)}
    once = model.training([3, 5, 3, 5], [3, 5])  # two epochs that read what the frozen part gave once
    assert once == {"weights": 6 * 1000 * 16 + 2 * 100 * 8 + 6 * 10 * 4, "attention": 4 * 8 * (9 + 25)}


def test_the_peak_is_of_this_process_and_not_of_the_one_that_started_it(tmp_path: Path) -> None:
    big = np.ones(60_000_000)  # 480 MB here
    assert memory.host_peak() > big.nbytes
    found = process.ask("bench gemm", {}, "none")
    assert found["cpu"] > 1e8 and found["library"] in ("torch", "numpy")
    import subprocess
    import sys

    code = "from kft.comparison.bench.memory import host_peak; print(host_peak())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert child < 200e6


def test_another_bench_or_other_files_are_left_alone(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "bench" / "pieces").mkdir(parents=True)
    (tmp_path / "bench" / "settings.json").write_text("{}")
    with pytest.raises(RunFolderError, match="another bench.*kft bench --resume"):
        running.start(settings, tmp_path / "bench", Progress())
    with pytest.raises(RunFolderError, match="other files"):
        running.start(settings, tmp_path, Progress())
    with pytest.raises(RunFolderError, match="Did you mean 'bench'"):
        running.resume(tmp_path / "bnch", Progress())


def test_a_recipe_that_cannot_be_used_is_refused_before_anything_is_written(tiny: dict, tmp_path: Path) -> None:
    broken = recipes.validate({**tiny, "data": {"source": str(tmp_path / "none.csv")}}, "broken")
    with pytest.raises(KftError, match="none.csv"):
        running.start(Settings(broken, "broken"), tmp_path / "out", Progress())
    assert not (tmp_path / "out").exists()


def test_a_bench_whose_runners_all_fail_says_why_and_how_to_go_on(tiny: dict, tmp_path: Path, variant: Any) -> None:
    odd = recipes.validate(variant(tiny, {"model.config.num_heads": 99}), "odd")
    seen: list[str] = []

    class Heard(Progress):
        def note(self, text: str) -> None:
            seen.append(text)

    with pytest.raises(RunFailed, match="Nothing could be measured: .*kft bench --resume") as error:
        running.start(Settings(odd, "odd", ("torch",), repeats=2), tmp_path / "out", Heard())
    assert error.value.exit_code == 1
    left = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert left["runners"]["torch"]["reason"]
    assert left["matrix_product"]["operations_per_second"]["cpu"] > 1e8
    assert sum("torch failed" in text for text in seen) <= 1  # not tried again in the second repeat


def test_transformers_is_not_asked_for_what_it_does_not_have(tiny: dict, variant: Any) -> None:
    def reason(**fields: Any) -> str:
        return str(reference.refusal(recipes.validate(variant(tiny, fields), "r")))

    assert "model.preset" in reason()
    assert "image_classification" in reason(task="image_classification")
    preset = {"model.architecture": None, "model.config": None, "model.preset": "x", "model.pretrained": None}
    assert "stages" in reason(**preset, **{"train.stages": [{"trainable": "head"}, {}], "train.epochs": None})
    assert "class_weights" in reason(**preset, **{"train.class_weights": "balanced"})
    assert "train.optimizer=lion" in reason(**preset, **{"train.optimizer": "lion"})


def test_the_trainer_gets_the_schedule_of_the_recipe(tiny: dict, variant: Any) -> None:
    recipe = recipes.validate(
        variant(tiny, {"train.warmup": 0.1, "train.schedule": "constant", "seed": 7}), "r"
    ).changed({"train.clip_norm": None})
    found = reference.arguments(recipe, 2, None, "transformers")
    assert found["warmup_steps"] == 0.1 and found["max_grad_norm"] == 0.0 and found["seed"] == 7
    assert found["lr_scheduler_type"] == "constant_with_warmup" and found["num_train_epochs"] == 2
    assert found["per_device_train_batch_size"] == 16 and "optim" not in found and "max_steps" not in found
    grouped = reference.arguments(recipe, 2, 9, "transformers-grouped")
    assert grouped["train_sampling_strategy"] == "group_by_length" and grouped["max_steps"] == 9


def written(folder: Path, name: str, found: dict[str, Any]) -> str:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(found), encoding="utf8")
    return str(file)


def test_changes_beyond_the_noise_are_told_from_those_within(settings: Settings, tmp_path: Path) -> None:
    before = written(tmp_path, "a", bench(settings, {"torch": [40, 44, 41], "jax": [20, 22, 21]}))
    after = written(tmp_path, "b", bench(settings, {"torch": [60, 61, 62], "jax": [21, 22, 23]}))
    found = changes.compare(before, after)
    told = {(c["runner"], c["figure"]): c for c in found["changes"]}
    assert told["torch", "train_examples"]["verdict"] == "better" and told["torch", "train_examples"]["ratio"] == "1.49"
    assert told["torch", "steady_step"]["verdict"] == "better"
    assert told["jax", "train_examples"]["verdict"] == "within the noise"
    assert told["torch", "host_memory"]["verdict"] == "the same"
    assert found["differences"] == []
    assert {c["verdict"] for c in changes.compare(after, before)["changes"]} >= {"worse"}


def test_one_repeat_cannot_tell_a_change(settings: Settings, tmp_path: Path) -> None:
    a, b = (written(tmp_path, str(v), bench(settings, {"torch": [v]})) for v in (40, 80))
    found = changes.compare(a, b)
    assert {c["verdict"] for c in found["changes"]} == {"one repeat cannot tell", "the same"}
    assert "--repeats 3" in found["summary"]


def test_another_recipe_or_machine_is_said(settings: Settings, tiny: dict, variant: Any, tmp_path: Path) -> None:
    other = Settings(recipes.validate(variant(tiny, {"train.batch_size": 8}), "o"), "tiny", ("torch",), repeats=3)
    one = bench(settings, {"torch": [1, 2, 3]})
    two = {**bench(other, {"torch": [1, 2, 3]}), "machine": {**one["machine"], "cores": 16}}
    found = list(changes.differences(one, two))
    assert "recipe: train.batch_size is 16 in A, 8 in B." in found
    assert "machine: cores is 2 in A, 16 in B." in found


def test_what_is_no_bench_cannot_be_compared(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"metrics": 1}')
    with pytest.raises(KftError, match="not of a bench"):
        changes.compare(str(tmp_path / "run.json"), str(tmp_path / "run.json"))
    with pytest.raises(KftError, match="No bench at"):
        changes.compare(str(tmp_path / "a.json"), str(tmp_path / "b.json"))


class Links(HTMLParser):
    """Collects what a page asks for from elsewhere, and the text it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "img")
        self.asked += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        self.ids += [value for name, value in attrs if name == "id" and value]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def html(settings: Settings) -> str:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    from kft.comparison.bench import page

    return page.html(bench(settings, {"torch": [40, 44, 41]}, jax="It <broke> & fell."))


def test_the_page_needs_no_other_file(html: str) -> None:
    links = Links()
    links.feed(html)
    assert all(asked.startswith("#") for asked in links.asked)
    assert {asked.removeprefix("#") for asked in links.asked} <= set(links.ids)
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"torch://\S*", "", html.lower()).replace("<!doctype", ""))
    assert len(links.ids) == len(set(links.ids))


def test_the_page_says_verdict_figures_reasons_versions_and_recipe(html: str) -> None:
    links = Links()
    links.feed(html)
    words = " ".join(links.words)
    for wanted in (
        "torch trains 41.0 (40.0 to 44.0) examples/s",
        "It <broke> & fell.",
        "validation accuracy",
        "0.9000",
        "compile or trace",
        "BertBackbone",
        "3.11",
        "100 GFLOP/s",
    ):
        assert wanted in words
    assert html.count("<svg") >= 4 and "prefers-color-scheme: dark" in html
    assert "<broke>" not in html
