from __future__ import annotations

from pathlib import Path

import pytest

from kft.data import SOURCES, sources
from kft.data.table import Table
from kft.errors import DataError
from kft.progress import Progress
from kft.recipe import Data


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def load(path: Path | str, modality: str = "text", progress: Progress | None = None) -> dict[str, Table]:
    return sources.load(str(path), Data(source=str(path)), modality, progress)


def write(root: Path, *names: str, content: str = "text,label\na,b\n") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_a_missing_file_offers_the_nearest_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "reviews.csv", "other.txt")
    with pytest.raises(DataError, match=r"No data at '.*revews.csv'. Did you mean 'reviews.csv'\?"):
        load(tmp_path / "revews.csv")
    with pytest.raises(DataError, match="there is no folder"):
        load(tmp_path / "nowhere" / "reviews.csv")


def test_an_unknown_column_offers_the_nearest(tmp_path: Path) -> None:
    table = load(write(tmp_path, "reviews.csv") / "reviews.csv")["train"]
    with pytest.raises(DataError, match=r"Unknown column 'lable' in reviews.csv. Did you mean 'label'\?.*text, label"):
        table.column("lable")


@pytest.mark.parametrize("location", ["s3://bucket/x.csv", "https://example.org/x.csv", "csv://x.csv"])
def test_an_unknown_scheme_lists_those_there_are(location: str) -> None:
    with pytest.raises(DataError, match="hf, pypi, tfds"):
        load(location)


def test_an_unknown_suffix_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ending in .*\.csv.*\.parquet"):
        load(write(tmp_path, "reviews.xlsx") / "reviews.xlsx")


def test_every_listed_source_can_be_loaded() -> None:
    assert set(sources.SUFFIXES.values()) < set(SOURCES)
    for name in SOURCES:
        assert callable(SOURCES[name].load()), name


def test_a_folder_of_split_files_gives_these_splits(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "dev.csv", "test.csv", "more.csv", "SOURCE.txt")
    tables = load(tmp_path)
    assert list(tables) == ["train", "dev", "test"]
    assert [table.origin for table in tables.values()] == ["train.csv", "dev.csv", "test.csv"]
    write(tmp_path, "test.tsv")
    with pytest.raises(DataError, match=r"different kinds: .*test\.csv, test\.tsv"):
        load(tmp_path)


def test_a_folder_a_class_of_texts(tmp_path: Path) -> None:
    write(tmp_path, "pos/2.txt", "pos/deep/1.TXT", content="good")
    write(tmp_path, "neg/1.txt", content="bad")
    write(tmp_path, "README.md", ".hidden/1.txt", "pos/.3.txt", "pos/4.md")
    heard = Heard()
    (table,) = load(tmp_path, progress=heard).values()
    assert table.columns.to_pydict() == {"text": ["bad", "good", "good"], "label": ["neg", "pos", "pos"]}
    assert [table.where(row) for row in range(3)] == ["neg/1.txt", "pos/2.txt", "pos/deep/1.TXT"]
    assert len(heard.notes) == 1 and "3 files" in heard.notes[0]


def test_a_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a/1.txt", "b/1.txt")
    (tmp_path / "b" / "2.txt").write_bytes(b"\xa35")
    with pytest.raises(DataError, match=r"2\.txt line 1: byte 0 \(0xa3\) is not utf-8.*data.encoding=latin-1"):
        load(tmp_path)
    found = sources.load(str(tmp_path), Data(source=str(tmp_path), encoding="latin-1"))
    assert found["train"].column("text")[2] == "£5"


def test_a_folder_a_class_of_images_with_splits(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("train/cat/1.png", "train/dog/1.JPG", "val/cat/9.png", "test/dog/3.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    tables = load(tmp_path, "image")
    assert list(tables) == ["train", "val", "test"]
    train = tables["train"]
    assert train.columns.to_pydict() == {"image": ["train/cat/1.png", "train/dog/1.JPG"], "label": ["cat", "dog"]}
    assert train.root is not None and (train.root / train.column("image")[1]).is_file()
    with pytest.raises(DataError, match=r"no \.txt files.*found 4 files \(2 \.png.*task=image_classification"):
        load(tmp_path)


def test_a_folder_with_nothing_to_read_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no files"):
        load(tmp_path)
    write(tmp_path, "a/1.doc", "a/2.doc")
    with pytest.raises(DataError, match=r"found 2 files \(2 \.doc\)"):
        load(tmp_path, "image")
