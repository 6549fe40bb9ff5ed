from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# TensorFlow is kept out of the process of the other tests: imported before torch, it makes torch crash.
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow_datasets as tfds
from kft.data import load, sources
from kft.data.tfds import tfds_features
from kft.errors import KftError
from kft.progress import Progress
from kft.recipe import Data

root = Path(sys.argv[1])


class Heard(Progress):
    def note(self, text):
        notes.append(text)


class KftSample(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["neg", "pos"]),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B"])),
            "words": tfds.features.Sequence(tfds.features.Text()),
            "image": tfds.features.Image(shape=(2, 3, 3)),
        })
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._examples(5), "validation": self._examples(2), "test": self._examples(2, hidden=True)}

    def _generate_examples(self):
        return iter(())

    def _examples(self, count, hidden=False):
        for n in range(count):
            image = np.full((2, 3, 3), 10 * n, np.uint8)
            yield n, {"text": f"été {n}", "label": -1 if hidden else n % 2, "tags": [n % 2] * n, "words": ["a"] * n,
                      "image": image}


def told(table):
    columns = {name: table.column(name) for name in table.names}
    return {"columns": columns, "origin": table.origin, "classes": table.class_names, "root": str(table.root)}


def said(location):
    try:
        return told(sources.load(location, Data(source=location))["train"])
    except KftError as error:
        return f"{type(error).__name__}: {error}"


notes = []
KftSample(data_dir=root / "prepared").download_and_prepare()
local = str(root / "prepared" / "kft_sample" / "1.0.0")
found = {
    "local": {name: told(table) for name, table in load(Data(source=local), seed=0, progress=Heard()).items()},
    "images": told(sources.load(local, Data(source=local), "image")["train"]),
    "again": told(sources.load(local, Data(source=local), "image")["train"]),
    "handle": said("tfds://kft_sample"),
    "features": tfds_features("tfds://glue/mrpc"),
    "name": said("tfds://gleu/mrpc"),
    "config": said("tfds://glue/mrcp"),
    "version": said("tfds://glue/mrpc:9.9.9"),
    "form": said("tfds://huggingface:glue/mrpc"),
    "notes": notes,
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    for name in ("tensorflow_datasets", "tensorflow", "importlib_resources"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    root = tmp_path_factory.mktemp("tfds")
    added = {"TFDS_DATA_DIR": str(root / "prepared"), "KFT_CACHE": str(root / "cache"), "TF_CPP_MIN_LOG_LEVEL": "2"}
    (root / "script.py").write_text(SCRIPT, encoding="utf8")
    command = [sys.executable, str(root / "script.py"), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **added}, cwd=root)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_a_prepared_folder_gives_its_splits(found: dict[str, Any]) -> None:
    splits = found["local"]
    assert list(splits) == ["train", "validation"]
    train = splits["train"]["columns"]
    assert sorted(train["text"]) == [f"été {n}" for n in range(5)]
    for text, label, tags, words in zip(train["text"], train["label"], train["tags"], train["words"], strict=True):
        number = int(text[-1])
        assert (label, tags, words) == (number % 2, [number % 2] * number, ["a"] * number)
    assert "image" not in train
    assert splits["train"]["classes"] == {"label": ["neg", "pos"], "tags": ["O", "B"]}
    assert splits["validation"]["origin"] == "1.0.0 validation"


def test_a_test_split_whose_labels_are_hidden_is_left_out_and_said(found: dict[str, Any]) -> None:
    assert found["notes"] == ["1.0.0 test has no targets in 'label': it is left out"]


def test_images_become_files_once(found: dict[str, Any]) -> None:
    from PIL import Image

    assert found["images"] == found["again"]
    columns, root = found["images"]["columns"], Path(found["images"]["root"])
    assert len(columns["image"]) == 5
    for text, name in zip(columns["text"], columns["image"], strict=True):
        with Image.open(root / name) as image:
            assert image.size == (3, 2) and image.getpixel((0, 0)) == (10 * int(text[-1]),) * 3


def test_a_handle_reads_what_was_prepared_before(found: dict[str, Any]) -> None:
    assert found["handle"]["columns"] == found["local"]["train"]["columns"]
    assert found["handle"]["origin"] == "tfds://kft_sample train"


def test_columns_and_classes_are_known_before_the_download(found: dict[str, Any]) -> None:
    assert found["features"] == [
        ["sentence1", "sentence2", "label", "idx"],
        {"label": ["not_equivalent", "equivalent"]},
    ]


def test_names_that_are_not_there(found: dict[str, Any]) -> None:
    assert found["name"].startswith(
        "DataError: tfds://gleu/mrpc: Unknown TensorFlow Dataset 'gleu'. Did you mean 'glue'?"
    )
    assert "Unknown configuration of glue 'mrcp'. Did you mean 'mrpc'?" in found["config"]
    assert "9.9.9" in found["version"] and "DataError" in found["version"]
    assert "tfds://NAME[/CONFIG][:VERSION]" in found["form"]


def test_what_cannot_be_prepared_says_how(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorflow_datasets") is None or importlib.util.find_spec("tensorflow") is None:
        pytest.skip("tensorflow_datasets is not installed")
    code = (
        "from kft.data import sources\nfrom kft.errors import DataError\nfrom kft.recipe import Data\n"
        "try:\n    sources.load('tfds://xquad/en', Data(source='x'))\nexcept DataError as error:\n    print(error)"
    )
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **closed, "TFDS_DATA_DIR": str(tmp_path), "NO_PROXY": "", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "tfds://xquad/en is not prepared" in done.stdout and "the network is closed" in done.stdout, done
    assert "t.builder('xquad/en').download_and_prepare()" in done.stdout and done.stdout.count("\n") == 1
