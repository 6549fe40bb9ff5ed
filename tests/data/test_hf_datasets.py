from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kft.data import load, sources
from kft.errors import DataError
from kft.recipe import Data


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))


def made(datasets: Any, labels: list[int]) -> Any:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    return datasets.Dataset.from_dict({"text": [f"text {n}" for n in labels], "label": labels}, features=features)


def test_a_dictionary_saved_to_disk_gives_its_splits(datasets: Any, tmp_path: Path) -> None:
    splits = {"train": made(datasets, [1, 0, 1]), "validation": made(datasets, [0]), "test": made(datasets, [-1, -1])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    found = load(Data(source=str(tmp_path / "saved")), seed=0)
    assert {name: table.column("label") for name, table in found.items()} == {"train": [1, 0, 1], "validation": [0]}
    assert found.train.class_names == {"label": ("neg", "pos")}
    assert found.validation is not None and found.validation.origin == "saved validation"


def test_rows_that_were_chosen_before_saving_stay_chosen(datasets: Any, tmp_path: Path) -> None:
    made(datasets, [1, 0, 1, 0]).select([3, 0]).save_to_disk(str(tmp_path / "saved"))
    (table,) = sources.load(str(tmp_path / "saved"), Data(source="saved")).values()
    assert table.column("label") == [0, 1]


def test_images_become_files(datasets: Any, tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (3, 2), color) for color in ("red", "blue")]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["r", "b"])})
    made = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1]}, features=features)
    made.save_to_disk(str(tmp_path / "saved"))
    for _ in range(2):  # the second time from the cache
        (table,) = sources.load(str(tmp_path / "saved"), Data(source="saved"), "image").values()
        assert table.names == ["image", "label"] and table.root is not None
        with Image.open(table.root / table.column("image")[1]) as image:
            assert image.size == (3, 2) and image.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    (table,) = sources.load(str(tmp_path / "saved"), Data(source="saved")).values()
    assert table.names == ["label"]


def test_a_parquet_file_of_datasets_keeps_its_class_names(datasets: Any, tmp_path: Path) -> None:
    made(datasets, [1, 0]).to_parquet(str(tmp_path / "t.parquet"))
    (table,) = sources.load(str(tmp_path / "t.parquet"), Data(source="t")).values()
    assert table.class_names == {"label": ("neg", "pos")} and table.column("label") == [1, 0]


def test_a_closed_network_is_one_line(
    datasets: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    handle = "hf://datasets/nobody-kft/nothing-kft/small"
    with pytest.raises(DataError) as caught:
        sources.load(handle, Data(source=handle))
    assert handle in str(caught.value) and "save_to_disk('copy')" in str(caught.value)
    assert "load_dataset('nobody-kft/nothing-kft', 'small')" in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_handle_of_another_form_is_refused(datasets: Any) -> None:
    with pytest.raises(DataError, match=r"hf://datasets/OWNER/NAME\[/CONFIG\]"):
        sources.load("hf://nyu-mll/glue", Data(source="x"))
