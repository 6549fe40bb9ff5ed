from __future__ import annotations

import copy
import csv
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import yaml

from kft import recipe as recipes
from kft.check import Findings, check
from kft.errors import KftError

has_keras_hub = importlib.util.find_spec("keras_hub") is not None
PROGRESS = re.compile(r"check (model|data)( \.\.\.|: .*)|.* has no validation split: .*|Downloading the wheel .*")


def checked(values: dict) -> Findings:
    return check(recipes.validate(values, "recipe"))


def changed(values: dict, **fields: Any) -> dict:
    """The recipe with `section__field` set."""
    values = copy.deepcopy(values)
    for name, value in fields.items():
        section, _, field = name.partition("__")
        if field:
            values.setdefault(section, {})[field] = value
        else:
            values[section] = value
    return values


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf8") as stream:
        return list(csv.DictReader(stream))


def write_rows(file: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with file.open("w", newline="", encoding="utf8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def some_rows(count: int = 20) -> list[tuple[str, str]]:
    return [(f"a {word} film", label) for word, label in (("good", "positive"), ("bad", "negative"))] * (count // 2)


def test_counts_percentiles_and_share_truncated_are_those_counted_independently(
    tiny: dict, vocabulary: Path, reviews: Path, tmp_path: Path
) -> None:
    rows = rows_of(reviews)
    parts = {"train": rows[:150], "validation": rows[150:200], "test": rows[200:]}
    for name, part in parts.items():
        write_rows(tmp_path / f"{name}.csv", [(row["text"], row["label"]) for row in part])
    files = {f"data__{name}": str(tmp_path / f"{name}.csv") for name in ("validation", "test")}
    recipe = changed(tiny, data__source=str(tmp_path / "train.csv"), model__sequence_length=20, **files)
    found = checked(recipe)
    truth = transformers.BertTokenizerFast.from_pretrained(str(vocabulary))
    assert list(found.splits) == list(parts)
    for name, part in parts.items():
        lengths = [len(ids) for ids in truth([row["text"] for row in part])["input_ids"]]
        split = found.splits[name]
        assert split["examples"] == len(part)
        assert split["labels"] == Counter(row["label"] for row in part)
        assert list(split["labels"]) == ["negative", "positive"]
        ordered = sorted(lengths)
        for point, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
            assert split["length"][point] == ordered[int(np.ceil(share * (len(ordered) - 1)))]
        assert split["length"]["max"] == max(lengths) > 20
        assert split["truncated"] == pytest.approx(sum(length > 20 for length in lengths) / len(lengths))
    assert any("longer than model.sequence_length=20" in note for note in found.notes)


def test_the_splits_that_are_drawn_are_those_of_the_run(tiny: dict) -> None:
    found = checked(tiny)
    assert {name: split["examples"] for name, split in found.splits.items()} == {
        "train": 168, "validation": 24, "test": 48,
    }  # fmt: skip
    assert found.splits["test"]["labels"] == {"negative": 24, "positive": 24}
    assert found.metrics == ["accuracy", "f1_macro"] and found.task == "text_classification"
    assert json.loads(json.dumps(found.dump()))["ok"] is True


def test_a_recipe_may_be_checked_where_its_backend_is_chosen_later(tiny: dict) -> None:
    here = [name for name in recipes.BACKENDS if importlib.util.find_spec(name)] if has_keras_hub else []
    assert checked(tiny).backend in (here or ["none installed"])
    for name in here:
        assert checked(changed(tiny, backend=name)).backend == name


def test_checking_loads_no_backend(tiny: dict) -> None:
    code = (
        "import json, sys; from kft import recipe; from kft.check import check;"
        "check(recipe.validate(json.loads(sys.argv[1]), 'r'));"
        "assert not {'keras', 'keras_hub', 'tensorflow', 'torch', 'jax'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, json.dumps(tiny)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_values_are_summed_up(tiny: dict, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(3, 2, 50).round(4)
    source = write_rows(tmp_path / "scores.csv", [(f"a good film {n}", str(n)) for n in numbers], ("text", "score"))
    recipe = changed(tiny, task="text_regression", data={"source": str(source), "target": "score", "validation": 0})
    found = checked(recipe)
    assert list(found.splits) == ["train"] and found.metrics == ["pearson", "spearmanr", "mse"]
    values = found.splits["train"]["values"]
    assert values == pytest.approx({"min": numbers.min(), "mean": numbers.mean(), "max": numbers.max()}, rel=1e-5)


def test_tags_are_counted_by_word_and_windows_by_row(tiny: dict, tmp_path: Path) -> None:
    sentence = [("good", "B-X"), ("film", "I-X"), *[("the", "O")] * 28]
    text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for _ in range(10))
    (tmp_path / "ner.conll").write_text(text + "\n")
    source = {"source": str(tmp_path / "ner.conll"), "target": "tags", "validation": 0.2}
    found = checked(changed(tiny, task="token_classification", data=source, model__sequence_length=12))
    train = found.splits["train"]
    assert train["examples"] == 8 and train["labels"] == {"B-X": 8, "I-X": 8, "O": 224}
    assert train["windows"] > 8 and train["truncated"] == 0 and train["length"]["max"] <= 12


def test_an_unbalanced_set_is_noted(tiny: dict, tmp_path: Path) -> None:
    rows = [*some_rows(2)[:1] * 44, *some_rows(2)[1:] * 4]
    recipe = changed(tiny, data={"source": str(write_rows(tmp_path / "r.csv", rows)), "validation": 0})
    assert any("'negative' has 4 training examples" in note for note in checked(recipe).notes)


def test_a_recipe_whose_model_and_data_lie_elsewhere_is_checked_as_far_as_it_goes(tiny: dict) -> None:
    recipe = changed(tiny, model={"preset": "hf://google-bert/bert-base-uncased"})
    found = checked(recipe)
    assert found.splits["train"]["examples"] == 168 and "length" not in found.splits["train"]
    assert any("hf://google-bert/bert-base-uncased" in note for note in found.notes)


def test_early_stopping_needs_something_to_watch(tiny: dict) -> None:
    with pytest.raises(KftError, match="early_stopping needs a validation split"):
        checked(changed(tiny, data__validation=0, train__early_stopping={}))


def test_a_model_larger_than_the_disk_is_refused_before_it_is_loaded(
    tiny: dict, vocabulary: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(vocabulary, folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    recipe = changed(tiny, model={"preset": str(folder)}, output__directory=str(tmp_path / "run"))
    assert checked(recipe).model["sha256"] == hashlib.sha256(b"x" * 1000).hexdigest()
    (folder / "model.safetensors").unlink()
    with pytest.raises(KftError, match="No weights in .*safetensors.*model.pretrained=false"):
        checked(recipe)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert checked(recipe).model["sha256"] == hashlib.sha256(b"x").hexdigest()


# Each bad input, as a person meets it: `kft check RECIPE`.


class Place:
    """A folder with a good recipe in it, to be spoilt."""

    def __init__(self, folder: Path, tiny: dict) -> None:
        self.folder = folder
        self.file = folder / "recipe.yaml"
        self.reviews = write_rows(folder / "reviews.csv", some_rows(40))
        self.values = changed(tiny, data={"source": "reviews.csv", "validation": 0.2})
        self.environment = {**os.environ, "KFT_CACHE": str(folder / "cache")}
        self.environment |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(folder / "index"),
            "PIP_CONFIG_FILE": os.devnull,
        }
        self.disk: Path | None = None

    def set(self, **fields: Any) -> None:
        self.values = changed(self.values, **fields)

    def lines(self, *rows: str) -> None:
        self.reviews.write_text("\n".join(["text,label", *(",".join(row) for row in some_rows(20)), *rows]) + "\n")

    def run(self) -> subprocess.CompletedProcess[str]:
        if not self.file.exists():
            self.file.write_text(yaml.safe_dump(self.values), encoding="utf8")
        command = [sys.executable, "-m", "kft", "check", self.file.name]
        if self.disk is not None:
            mount = (
                f"mount -t tmpfs -o size=64k none '{self.disk}' && dd if=/dev/zero of='{self.disk}/full' 2>/dev/null"
            )
            command = ["unshare", "-rm", "sh", "-c", f'{mount}; exec "$@"', "sh", *command]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, env=self.environment)


@pytest.fixture
def place(tmp_path: Path, tiny: dict) -> Place:
    return Place(tmp_path, tiny)


def missing_file(place: Place) -> list[str]:
    place.set(data__source="review.csv")
    return [f"No data at '{place.folder / 'review.csv'}'", "Did you mean 'reviews.csv'"]


def unknown_column(place: Place) -> list[str]:
    place.set(data__target="lable")
    return ["Unknown column 'lable' in reviews.csv", "Did you mean 'label'", "text, label"]


def empty_text(place: Place) -> list[str]:
    place.lines("  ,positive", "a film,negative")
    place.set(data__validation=0)
    return ["reviews.csv line 22", "empty text in column 'text'", "Fill it in or remove the row"]


def label_only_in_validation(place: Place) -> list[str]:
    write_rows(place.folder / "dev.csv", [("a film", "positive"), ("a book", "posotive")])
    place.set(data__validation="dev.csv")
    return ["dev.csv line 3", "label 'posotive' is not in the training split", "'positive'", "negative, positive"]


def one_class_only(place: Place) -> list[str]:
    write_rows(place.reviews, [("a good film", "positive")] * 20)
    return ["reviews.csv", "column 'label' has one class only, 'positive'", "data.target"]


def nan_target(place: Place) -> list[str]:
    write_rows(place.reviews, [*[("a film", "1.5"), ("a book", "2")] * 5, ("a phone", "nan")])
    place.set(task="text_regression", data__validation=0)
    return ["reviews.csv line 12", "column 'label' has to be a finite number, received 'nan'", "remove the row"]


def broken_csv_row(place: Place) -> list[str]:
    place.lines("a good, very good film,positive")
    return ["reviews.csv line 22", "expected 2 fields", "received 3", "Quote values that hold a comma"]


def broken_quote(place: Place) -> list[str]:
    place.lines('"a good film,positive')
    return ["reviews.csv line 22", "never closed", "Close it"]


def wrong_encoding(place: Place) -> list[str]:
    place.reviews.write_bytes(place.reviews.read_bytes() + "schöner film,positive\n".encode("latin-1"))
    return ["reviews.csv line 42", "(0xf6) is not utf-8", "data.encoding=latin-1"]


def unknown_preset(place: Place) -> list[str]:
    place.set(model={"preset": "bert_tiny_en_uncase"})
    return ["Unknown preset 'bert_tiny_en_uncase'", "'bert_tiny_en_uncased'", "kft list models"]


def _wheel(place: Place, **more: str) -> str:
    (place.folder / "index").mkdir()
    wheel = place.folder / "index" / "kft_sample-1.0-py3-none-any.whl"
    about = "kft_sample-1.0.dist-info"
    members = {
        "sample/reviews.csv": place.reviews.read_text(),
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: kft-sample\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
        **more,
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    place.set(data__source="pypi://kft-sample==1.0/sample/reviews.csv")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def wrong_checksum(place: Place) -> list[str]:
    digest = _wheel(place)
    place.set(data__sha256="0" * 64)
    return ["pypi://kft-sample==1.0/sample/reviews.csv", digest, "0" * 64, "correct the digest"]


def escaping_path(place: Place) -> list[str]:
    _wheel(place, **{"sample/../../../evil.txt": "gotcha"})
    return ["pypi://kft-sample==1.0", "evil.txt", "leaves its folder", "nothing of it was unpacked"]


def backend_not_installed(place: Place) -> list[str]:
    if importlib.util.find_spec("jax") is not None:
        site = place.folder / "site"  # a Python in which jax cannot be found
        site.mkdir()
        (site / "sitecustomize.py").write_text("import sys\nsys.modules['jax'] = None\n")
        place.environment["PYTHONPATH"] = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    place.set(backend="jax")
    return ["The backend 'jax' is not installed here", "installed: ", 'pip install "keras-finetune[jax]"']


def unknown_field(place: Place) -> list[str]:
    place.set(train__epoch=3)
    return ["recipe.yaml: Unknown field 'train.epoch'", "Did you mean 'train.epochs'"]


def wrong_type(place: Place) -> list[str]:
    place.set(train__epochs="three")
    return ["recipe.yaml: Field 'train.epochs': received \"three\"", "valid integer"]


def broken_recipe(place: Place) -> list[str]:
    place.file.write_text("task: [text\nmodel: {preset: x}\n")
    return ["recipe.yaml: not valid YAML", "line 2"]


def full_disk(place: Place) -> list[str]:
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=64k none '{place.folder}'"], capture_output=True
        ).returncode
    ):
        pytest.skip("this machine does not let a test mount a small disk")
    place.disk = place.folder / "disk"
    place.disk.mkdir()
    place.environment["KFT_CACHE"] = str(place.disk / "cache")
    return [f"'{place.disk}", "Free some space", "KFT_CACHE"]


def full_disk_for_the_run(place: Place) -> list[str]:
    said = full_disk(place)
    place.environment["KFT_CACHE"] = str(place.folder / "cache")
    model = place.folder / "model"
    shutil.copytree(place.values["model"]["tokenizer"], model)
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "model.safetensors").write_bytes(b"x" * 1000)
    place.set(model={"preset": "model"}, output__directory=str(place.disk / "run"))  # type: ignore[operator]
    return [said[0], "0 MB free", "Free some space", "--output"]


def occupied_output(place: Place) -> list[str]:
    folder = place.folder / "runs" / "reviews"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("task: text_classification\n")
    place.set(output__directory="runs/reviews")
    return ["The output folder 'runs/reviews' holds another run", "nothing was changed", "--output"]


BAD: list[Callable[[Place], list[str]]] = [
    missing_file,
    unknown_column,
    empty_text,
    label_only_in_validation,
    one_class_only,
    nan_target,
    broken_csv_row,
    broken_quote,
    wrong_encoding,
    pytest.param(unknown_preset, marks=pytest.mark.backend),  # the names are KerasHub's
    wrong_checksum,
    escaping_path,
    backend_not_installed,
    unknown_field,
    wrong_type,
    broken_recipe,
    full_disk,
    full_disk_for_the_run,
    occupied_output,
]


def files_of(folder: Path) -> dict[str, bytes]:
    own = [file for file in folder.rglob("*") if file.is_file() and "cache" not in file.parts]
    return {str(file): file.read_bytes() for file in own}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_input_is_one_line_and_changes_nothing(place: Place, spoil: Callable[[Place], list[str]]) -> None:
    expected = spoil(place)
    place.file.exists() or place.file.write_text(yaml.safe_dump(place.values), encoding="utf8")
    before = files_of(place.folder)
    run = place.run()
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    *progress, said = [line for line in run.stderr.splitlines() if line.strip()]
    assert said.startswith("kft: "), run.stderr
    assert [line for line in progress if not PROGRESS.fullmatch(line)] == []
    assert "Traceback" not in run.stderr
    assert [part for part in expected if part not in said] == [], said
    assert files_of(place.folder) == before


def test_the_good_recipe_that_the_bad_ones_were_made_from_passes(place: Place) -> None:
    run = place.run()
    assert run.returncode == 0, run.stderr
    assert "positive" in run.stdout and "kft run recipe.yaml" in run.stdout
