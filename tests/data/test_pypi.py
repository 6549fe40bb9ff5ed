from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from kft.data import sources
from kft.data.table import Table
from kft.errors import DataError, FetchError
from kft.recipe import Data

ABOUT = "kft_sample-1.0.dist-info"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "kft_sample-1.0-py3-none-any.whl"
    members = {
        "sample/texts/a/1.txt": "one",
        "sample/texts/b/1.txt": "two",
        "sample/inside.csv": "image,label\npictures/1.png,a\n",
        "sample/outside.csv": "image,label\npictures/1.png,a\n../../../secret.png,a\n",
        "sample/absolute.csv": "image,label\n/etc/passwd,a\n",
        f"{ABOUT}/METADATA": "Metadata-Version: 2.1\nName: kft-sample\nVersion: 1.0\n",
        f"{ABOUT}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{ABOUT}/RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    return file


def load(path: str, modality: str = "text", sha256: str | None = None) -> dict[str, Table]:
    handle = f"pypi://kft-sample==1.0/{path}"
    return sources.load(handle, Data(source=handle, sha256=sha256), modality)


def test_a_folder_in_a_wheel_is_read_as_a_local_one(wheel: Path) -> None:
    (table,) = load("sample/texts", sha256=hashlib.sha256(wheel.read_bytes()).hexdigest()).values()
    assert table.columns.to_pydict() == {"text": ["one", "two"], "label": ["a", "b"]}
    assert table.origin == "pypi://kft-sample==1.0/sample/texts"


def test_the_digest_in_the_recipe_is_checked(wheel: Path) -> None:
    with pytest.raises(FetchError, match="0" * 64):
        load("sample/texts", sha256="0" * 64)


def test_images_outside_the_folder_of_their_list_are_refused(wheel: Path) -> None:
    assert len(load("sample/inside.csv", "image")["train"]) == 1
    with pytest.raises(DataError, match=r"outside\.csv line 3 names the image '\.\./\.\./\.\./secret\.png', outside"):
        load("sample/outside.csv", "image")
    with pytest.raises(DataError, match="/etc/passwd"):
        load("sample/absolute.csv", "image")
