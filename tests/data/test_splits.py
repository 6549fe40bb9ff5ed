from __future__ import annotations

import csv
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft.data
from kft.data.table import Splits, Table
from kft.errors import DataError
from kft.progress import Progress
from kft.recipe import Data

COUNTS = {"a": 300, "b": 101, "c": 47, "d": 2}


class Heard(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def write(file: Path, labels: list[str], start: int = 0) -> Path:
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([["text", "label"], *([f"text {start + n}", y] for n, y in enumerate(labels))])
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    labels = [label for label, count in COUNTS.items() for _ in range(count)]
    return write(tmp_path / "reviews.csv", [labels[n] for n in np.random.default_rng(5).permutation(len(labels))])


def load(
    source: Path, *, seed: int = 0, targets: Any = "labels", progress: Progress | None = None, **data: Any
) -> Splits:
    return kft.data.load(Data(source=str(source), **data), seed=seed, targets=targets, progress=progress)


def texts(table: Table | None) -> list[str]:
    return [] if table is None else table.column("text")


def sizes(splits: Splits) -> dict[str, int]:
    return {name: len(table) for name, table in splits.items()}


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.25, 0), (0.013, 0.5)])
def test_each_class_gives_its_share_to_within_one_row(file: Path, validation: float, test: float) -> None:
    splits = load(file, validation=validation, test=test)
    total = sum(COUNTS.values())
    for part, fraction in ((splits.validation, validation), (splits.test, test)):
        if not fraction:
            assert part is None
            continue
        assert part is not None
        size = round(fraction * total)
        found = Counter(part.column("label"))
        assert found.total() == size
        for label, count in COUNTS.items():
            assert abs(found[label] - Fraction(size * count, total)) < 1, (label, found)
    assert set(splits.train.column("label")) == set(COUNTS)


def test_fractions_share_no_row_and_lose_none(file: Path) -> None:
    splits = load(file, validation=0.3, test=0.3)
    every = [text for _, table in splits.items() for text in texts(table)]
    assert len(every) == len(set(every)) == sum(COUNTS.values())
    lines = file.read_text().splitlines()
    for _, table in splits.items():
        for row in (0, len(table) - 1):  # a row still knows its line after the cut
            line = int(table.where(row).removeprefix("reviews.csv line "))
            assert lines[line - 1] == f"{table.column('text')[row]},{table.column('label')[row]}"


def test_only_the_seed_decides(file: Path) -> None:
    one, again, other = (load(file, seed=seed, validation=0.2, test=0.2) for seed in (1, 1, 2))
    assert one.sha256() == again.sha256()
    assert all(one.sha256()[name] != other.sha256()[name] for name in one.sha256())
    assert texts(load(file, seed=1, validation=0, test=0.2).test) == texts(one.test)


@pytest.mark.parametrize("targets", ["values", "tags"])
def test_targets_that_are_no_labels_are_drawn_without_regard_to_them(file: Path, targets: str) -> None:
    splits = load(file, targets=targets, validation=0.1)
    assert sizes(splits) == {"train": 405, "validation": 45}
    assert texts(splits.validation) != texts(load(file, validation=0.1).validation)


def test_a_class_of_one_row_makes_the_draw_plain(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", ["a"] * 19 + ["b"])
    assert sizes(load(file, validation=0.5)) == {"train": 10, "validation": 10}


def test_without_a_word_a_tenth_is_kept_for_validation_and_said(file: Path) -> None:
    heard = Heard()
    splits = load(file, progress=heard)
    assert sizes(splits) == {"train": 405, "validation": 45}
    assert len(heard.notes) == 1 and "45 rows" in heard.notes[0]
    assert sizes(load(file, validation=0)) == {"train": 450}


def test_a_fraction_takes_one_row_at_least_and_never_all(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", ["a", "a", "b", "b"])
    assert sizes(load(file, validation=0.01, test=0.01)) == {"train": 2, "validation": 1, "test": 1}
    with pytest.raises(DataError, match="4 rows: taking 3 for validation leaves none.*data.validation=0"):
        load(file, validation=0.75, test=0.25)
    with pytest.raises(DataError, match="1 rows"):
        load(write(tmp_path / "one.csv", ["a"]))


def test_the_limit_is_drawn_after_the_cut(file: Path) -> None:
    whole, limited = load(file, validation=0.1), load(file, validation=0.1, limit=50)
    assert sizes(limited) == {"train": 50, "validation": 45}
    assert texts(limited.validation) == texts(whole.validation)
    assert set(texts(limited.train)) < set(texts(whole.train))
    assert texts(load(file, seed=1, validation=0, limit=50).train) != texts(load(file, validation=0, limit=50).train)
    assert sizes(load(file, validation=0, limit=10_000)) == {"train": 450}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (name, rows) in enumerate((("train", 6), ("valid", 3), ("test", 2))):
        write(tmp_path / f"{name}.csv", ["a", "b"] * rows, 100 * number)
    return tmp_path


def test_a_source_with_splits_of_its_own_is_not_cut(folder: Path) -> None:
    splits = load(folder)
    assert sizes(splits) == {"train": 12, "validation": 6, "test": 4}
    assert [table.origin for _, table in splits.items()] == ["train.csv", "valid.csv", "test.csv"]


def test_splits_by_name_by_file_and_by_fraction(folder: Path) -> None:
    extra = write(folder / "extra.csv", ["a", "b", "c"], 900)
    splits = load(folder, train="valid", validation="test", test=str(extra))
    assert [texts(table)[0] for _, table in splits.items()] == ["text 100", "text 200", "text 900"]
    assert sizes(load(folder, validation=0.5, test=0)) == {"train": 6, "validation": 6}
    assert sizes(load(folder / "train.csv", validation=str(folder / "valid.csv"))) == {"train": 12, "validation": 6}
    assert sizes(load(folder, train=str(extra))) == {"train": 3, "validation": 6, "test": 4}


def test_a_split_that_is_not_there_offers_the_nearest(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"data.validation'.*no split 'valdi'.*Did you mean 'valid'\?.*train, valid, test"
    ):
        load(folder, validation="valdi")
    with pytest.raises(DataError, match=r"data.test'.*Did you mean 'test.csv'\?"):
        load(folder, test=str(folder / "tset.csv"))
    (folder / "other").mkdir()
    with pytest.raises(DataError, match="train"):
        load(folder, train="trian")


@pytest.mark.parametrize(
    "roles", [{"validation": "train"}, {"test": "train"}, {"validation": "test"}, {"train": "test", "test": "test"}]
)
def test_the_same_rows_twice_are_refused(folder: Path, roles: dict[str, str]) -> None:
    with pytest.raises(DataError, match="are the same rows"):
        load(folder, **roles)
    with pytest.raises(DataError, match="are the same rows"):
        load(folder / "train.csv", validation=str(folder / "." / "train.csv"))


@pytest.mark.parametrize("mark", ["-1", ""])
def test_a_test_split_without_targets_is_left_out_and_said(folder: Path, mark: str) -> None:
    write(folder / "test.csv", [mark] * 5)
    heard = Heard()
    assert load(folder, progress=heard).test is None
    assert heard.notes == ["test.csv has no targets in 'label': it is left out"]
    write(folder / "test.csv", [mark] * 4 + ["a"])
    assert sizes(load(folder))["test"] == 5


def test_a_test_split_that_lacks_the_column_is_left_out_unless_it_was_asked_for(folder: Path) -> None:
    (folder / "test.csv").write_text("text\nx\n")
    assert load(folder).test is None
    with pytest.raises(DataError, match="Unknown column 'label' in test.csv"):
        load(folder, test="test")


def test_a_validation_split_without_labels_is_refused(folder: Path) -> None:
    write(folder / "valid.csv", ["-1"] * 5)
    with pytest.raises(DataError, match="valid.csv: no row has a target in 'label'"):
        load(folder)


def test_an_unknown_target_is_named_before_the_cut(file: Path) -> None:
    with pytest.raises(DataError, match=r"Unknown column 'lable'.*Did you mean 'label'\?"):
        load(file, target="lable", validation=0.1)
