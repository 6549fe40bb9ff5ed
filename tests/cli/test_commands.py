"""What each command prints, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from kft import recipe
from kft.api import Run
from kft.backend import installed
from kft.cli.answer import as_text
from kft.cli.group import COMMANDS, ROOT
from kft.cli.predict import inputs_of
from kft.data import SOURCES
from kft.errors import DataError
from kft.metrics import METRICS
from kft.rundir import RunFolder
from kft.tasks import TASKS
from kft.tasks.targets import Target
from kft.tasks.task import Encoding

MAPPINGS = ("model", "data", "train", "output", "train.early_stopping", "train.stages", "train.augmentation")


def kft(*arguments: str | Path) -> Result:
    return CliRunner().invoke(ROOT, [str(argument) for argument in arguments])


@pytest.fixture
def recipe_file(tmp_path: Path, tiny: dict) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tiny), encoding="utf8")
    return file


def test_every_command_is_listed_and_has_json() -> None:
    listed = kft("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in listed
        shown = kft(name, "--help")
        assert shown.exit_code == 0
        assert "--json" in shown.stdout and "--debug" in shown.stdout


def test_no_arguments_show_the_help() -> None:
    assert kft().stdout == kft("--help").stdout
    assert kft().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "--bakend", "jax"], "--backend"),
        (["list", "taks"], "Did you mean 'tasks'?"),
        (["init", "text_clasification"], "Did you mean 'text_classification'?"),
        (["check", "absent.yaml"], "No recipe at 'absent.yaml'"),
        (["run", "absent.yaml"], "No recipe at 'absent.yaml'"),
        (["run", "train.epoch=1"], "Did you mean 'train.epochs'?"),
        (["run", "--seed", "one"], "'one' is not a valid integer"),
        (["run", "--resume", "runs/one", "train.epochs=1"], "--resume goes alone"),
        (["run", "--resume", "absent"], "No run at 'absent'"),
        (["evaluate", "absent"], "No run at 'absent'"),
        (["predict", "absent", "a text"], "No run at 'absent'"),
        (["predict", "absent"], "Give either texts or --input FILE"),
        (["predict", "absent", "a text", "--input", "file.csv"], "Give either texts or --input FILE"),
    ],
)
def test_bad_input_is_one_line_and_two(arguments: list[str], said: str) -> None:
    result = kft(*arguments)
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert line.startswith("kft: ") and said in line
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["rnu"], ["list", "taks"], ["check", "absent.yaml"], ["run", "--bakend", "jax"]])
def test_an_error_is_a_json_object_too(arguments: list[str]) -> None:
    result = kft(*arguments, "--json")
    told = json.loads(result.stdout)
    assert told["exit_code"] == result.exit_code == 2
    assert f"kft: {told['error']}" == result.stderr.splitlines()[-1]


def test_debug_shows_the_traceback_before_and_after_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--debug", "check", "absent.yaml"], ["check", "absent.yaml", "--debug"]):
        result = kft(*arguments)
        assert "Traceback" in result.stderr and result.exit_code == 2
    assert "Traceback" not in kft("check", "absent.yaml").stderr
    monkeypatch.setenv("KFT_DEBUG", "1")
    assert "Traceback" in kft("check", "absent.yaml").stderr


def test_options_behind_two_dashes_are_texts() -> None:
    result = kft("predict", "absent", "--", "--debug", "--json")
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_what_nobody_foresaw_is_one_line_and_one(monkeypatch: pytest.MonkeyPatch, recipe_file: Path) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr("kft.check.check", broken)
    result = kft("check", recipe_file)
    assert result.exit_code == 1
    assert result.stderr == "kft: unexpected ValueError: first line second line; run with --debug for the traceback\n"


def test_an_interrupt_is_one_line_and_one(monkeypatch: pytest.MonkeyPatch, recipe_file: Path) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kft.check.check", interrupted)
    result = kft("check", recipe_file)
    assert result.exit_code == 1
    assert result.stderr.strip() == "kft: Interrupted."


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_new_recipe_loads_and_shows_every_field(task: str, tmp_path: Path) -> None:
    file = tmp_path / "new.yaml"
    printed = kft("init", task).stdout
    assert kft("init", task, "--output", file).exit_code == 0
    assert file.read_text(encoding="utf8") == printed.replace("kft run recipe.yaml", f"kft run {file}")
    assert recipe.load(file).task == task

    bare = "\n".join(_uncommented(line) for line in printed.splitlines()[2:])
    stages = {f"train.stages.{name}" for name in recipe.Stage.model_fields}
    assert set(_names(yaml.safe_load(bare))) == set(recipe.fields()) - set(MAPPINGS) | stages


def test_a_new_recipe_has_the_defaults_of_the_schema() -> None:
    bare = "\n".join(_uncommented(line) for line in kft("init", "text_classification").stdout.splitlines()[2:])
    shown = _names(yaml.safe_load(bare))
    train = recipe.Train().model_dump(mode="json")
    assert shown["train.optimizer"] == train["optimizer"]
    assert shown["train.learning_rate"] == train["learning_rate"]
    assert shown["model.sequence_length"] == recipe.Model(preset="x").sequence_length


def _uncommented(line: str) -> str:
    head, mark, rest = line.partition("# ")
    return head + rest if mark and not head.strip() else line


def _names(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        inner = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else value
        if isinstance(inner, dict) and inner:
            found |= _names(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def test_init_leaves_a_file_that_exists_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine", encoding="utf8")
    result = kft("init", "text_regression", "--output", file)
    assert result.exit_code == 2 and "exists" in result.stderr
    assert file.read_text(encoding="utf8") == "mine"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tasks", set(TASKS)),
        ("data", set(SOURCES)),
        ("metrics", set(METRICS)),
        ("backends", set(recipe.BACKENDS)),
    ],
)
def test_list_names_every_part(kind: str, expected: set[str]) -> None:
    listed = json.loads(kft("list", kind, "--json").stdout)
    assert {row["name"] for row in listed[kind]} == expected
    text = kft("list", kind).stdout
    assert expected <= {line.split()[0] for line in text.splitlines()}
    assert "\x1b" not in text


def test_list_models_names_presets_and_the_forms_of_a_handle() -> None:
    listed = json.loads(kft("list", "models", "--json").stdout)
    assert any(handle.startswith("hf://") for handle in listed["handles"])
    if installed():
        assert "bert_base_en_uncased" in {row["name"] for row in listed["models"]}


def test_list_models_can_be_narrowed() -> None:
    every = json.loads(kft("list", "models", "--json").stdout)["models"]
    assert len({row["name"] for row in every}) == len(every)
    assert {row["source"] for row in every} >= {"hf", "tfhub", "pypi"}
    for row in every:
        assert set(row["tasks"]) <= set(TASKS)
        assert row["source"] == "kerashub" or None not in row.values()
    hub = json.loads(kft("list", "models", "--source", "tfhub", "--json").stdout)["models"]
    assert hub and {row["source"] for row in hub} == {"tfhub"}
    images = json.loads(kft("list", "models", "--task", "image_classification", "--source", "hf", "--json").stdout)
    assert {row["name"] for row in images["models"]} == {
        "hf://google/vit-base-patch16-224-in21k",
        "hf://timm/resnet50.a1_in1k",
        "hf://timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
        "hf://timm/convnext_tiny.in12k_ft_in1k",
    }
    head, first = kft("list", "models", "--source", "hf").stdout.splitlines()[:2]
    assert {"source", "parameters", "download_mb", "objective", "languages", "licence", "tasks"} <= set(head.split())
    assert first.startswith("hf://") and "token_classification" in first and "tensorflow torch jax" in first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["models", "--task", "text_clasification"], "Did you mean 'text_classification'"),
        (["models", "--source", "hub"], "Unknown --source 'hub'"),
        (["metrics", "--source", "hf"], "--task and --source choose among models. Type: kft list metrics"),
    ],
)
def test_list_models_is_narrowed_by_what_there_is(arguments: list[str], said: str) -> None:
    result = kft("list", *arguments)
    assert result.exit_code == 2 and said in result.stderr


def test_a_backend_that_is_not_installed_comes_with_the_line_that_installs_it() -> None:
    for row in json.loads(kft("list", "backends", "--json").stdout)["backends"]:
        assert row["installed"] == (row["name"] in installed())
        assert row["installed"] or row["install"] == f'pip install "keras-finetune[{row["name"]}]"'


def test_check_counts_labels_and_tokens(recipe_file: Path) -> None:
    result = kft("check", recipe_file, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["ok"] is True
    assert sum(split["examples"] for split in found["splits"].values()) == 240
    text = kft("check", recipe_file).stdout
    assert "negative" in text and "tokens p90" in text and f"kft run {recipe_file}" in text


def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = kft("run", recipe_file, "train.epochs=7", "--seed", "3", "--output", output, "--dry-run", "--json")
    resolved = json.loads(result.stdout)["recipe"]
    assert resolved["train"]["epochs"] == 7
    assert resolved["seed"] == 3
    assert resolved["output"]["directory"] == str(output)
    assert not output.exists()
    text = kft("run", recipe_file, "train.epochs=7", "--dry-run").stdout
    assert "epochs: 7" in text and "negative" in text


def test_predict_refuses_an_output_in_the_way_before_it_loads_the_run(tmp_path: Path) -> None:
    taken = tmp_path / "taken.jsonl"
    taken.write_text("mine", encoding="utf8")
    for output, said in ((taken, "exists"), (tmp_path, "is a folder"), (tmp_path / "no" / "file.jsonl", "no folder")):
        result = kft("predict", "absent", "a text", "--output", output)
        assert result.exit_code == 2 and said in result.stderr
    assert taken.read_text(encoding="utf8") == "mine"


@pytest.fixture
def pairs(tmp_path: Path) -> Run:
    values = {"task": "text_classification", "model": {"preset": "x"}, "data": {"source": "x", "inputs": ["a", "b"]}}
    loaded = recipe.validate(values, "pairs")
    task = TASKS.load("text_classification")
    return Run(RunFolder(tmp_path), loaded, Target("labels", ("no", "yes")), task, Encoding(loaded.data), "jax")


def test_texts_for_a_run_on_pairs_are_taken_two_by_two(pairs: Run) -> None:
    assert inputs_of(pairs, ["1", "2", "3", "4"]) == [("1", "2"), ("3", "4")]
    with pytest.raises(DataError, match="reads pairs"):
        inputs_of(pairs, ["1", "2", "3"])


def test_json_has_null_where_a_number_is_none() -> None:
    assert json.loads(as_text({"pearson": float("nan"), "all": [1.5, float("inf")]})) == {
        "pearson": None,
        "all": [1.5, None],
    }
