from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kft.data import encoded as encoded_
from kft.data.encoded import Encoded, Ragged, cached, read, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "encoded"


def sample() -> Encoded:
    rows = [np.array([2, 5, 3]), np.array([], np.int32), np.array([2, 9, 9, 9, 3])]
    return Encoded(
        inputs={"token_ids": Ragged.of(rows, np.int32), "segment_starts": np.array([3, 0, 5], np.int32)},
        targets=Ragged.of([row * 2 for row in rows], np.int32),
        weights=Ragged.of([row > 2 for row in rows], np.float32),
        padding={"token_ids": 7},
        owners=np.array([0, 1, 1], np.int32),
        lengths=np.array([3, 0, 12], np.int32),
    )


def bare() -> Encoded:
    return Encoded(inputs={"images": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)})


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(left, Ragged):
        assert isinstance(right, Ragged)
        assert_equal(left.values, right.values)
        assert_equal(left.offsets, right.offsets)
    elif left is None:
        assert right is None
    else:
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def assert_same(left: Encoded, right: Encoded) -> None:
    assert set(left.inputs) == set(right.inputs) and left.padding == right.padding and len(left) == len(right)
    for name in left.inputs:
        assert_equal(left.inputs[name], right.inputs[name])
    for name in ("targets", "weights", "owners", "lengths"):
        assert_equal(getattr(left, name), getattr(right, name))


def counted(what: Encoded) -> tuple[list[int], Any]:
    calls: list[int] = []

    def make() -> Encoded:
        calls.append(1)
        return what

    return calls, make


def test_ragged_rows_come_out_as_they_went_in() -> None:
    rows = [[1, 2, 3], [], [4]]
    ragged = Ragged.of([np.array(row, np.int32) for row in rows], np.int32)
    assert [ragged[row].tolist() for row in range(len(ragged))] == rows
    assert ragged.lengths.tolist() == [3, 0, 1]
    assert ragged.padded([2, 0, 1, 2], 4, -1).tolist() == [[4, -1, -1, -1], [1, 2, 3, -1], [-1] * 4, [4, -1, -1, -1]]
    assert len(Ragged.of([], np.int32)) == 0


@pytest.mark.parametrize("make", [sample, bare])
def test_the_cache_gives_back_what_was_encoded(make: Any, cache: Path) -> None:
    calls, counting = counted(make())
    assert_same(cached({"data": "abc"}, counting), make())
    assert_same(cached({"data": "abc"}, counting), make())
    assert len(calls) == 1


def test_cached_arrays_stay_on_disk(cache: Path) -> None:
    found = cached({}, lambda: sample())
    ids = found.inputs["token_ids"]
    assert isinstance(ids, Ragged) and isinstance(ids.values, np.memmap) and isinstance(ids.offsets, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        ids.values[0] = 1
    found = cached({"images": 1}, lambda: bare())
    assert isinstance(found.inputs["images"], np.memmap)


def test_an_equal_key_finds_the_data_and_another_does_not(cache: Path) -> None:
    calls, make = counted(sample())
    cached({"data": "abc", "length": 128, "inputs": ["a", "b"]}, make)
    cached({"inputs": ["a", "b"], "length": 128, "data": "abc"}, make)
    assert len(calls) == 1
    others = [
        {"data": "abd", "length": 128, "inputs": ["a", "b"]},
        {"data": "abc", "length": 64, "inputs": ["a", "b"]},
        {"data": "abc", "length": 128, "inputs": ["b", "a"]},
        {"data": "abc", "length": 128, "inputs": None},
        {"data": "abc", "length": 128},
    ]
    for key in others:
        cached(key, make)
    assert len(calls) == 1 + len(others) == len(list(cache.iterdir()))


def test_an_encoder_that_fails_leaves_nothing_and_is_asked_again(cache: Path) -> None:
    def fail() -> Encoded:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached({}, fail)
    assert not cache.exists() or not list(cache.iterdir())
    assert_same(cached({}, sample), sample())


CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from kft.data import encoded
save, calls = np.save, []
def crash(*arguments, **options):
    calls.append(1)
    if len(calls) == int(sys.argv[1]):
        os._exit(9)  # as kill -9 would, between two of its files
    save(*arguments, **options)
np.save = crash
encoded.cached({"data": 1}, lambda: encoded.Encoded({"x": np.arange(100)}, targets=np.arange(100)))
"""


@pytest.mark.parametrize("file", [1, 2])
def test_a_crash_between_two_files_leaves_nothing_that_is_taken_for_whole(cache: Path, file: int) -> None:
    assert subprocess.run([sys.executable, "-c", CRASH, str(file)]).returncode == 9
    assert [entry for entry in cache.iterdir() if not entry.name.startswith(".")] == []
    calls, make = counted(Encoded({"x": np.arange(100)}, targets=np.arange(100)))
    found = cached({"data": 1}, make)
    assert len(calls) == 1
    assert_same(found, Encoded({"x": np.arange(100)}, targets=np.arange(100)))


def test_a_folder_that_another_process_filled_first_is_kept(tmp_path: Path) -> None:
    write(sample(), tmp_path / "one")
    write(bare(), tmp_path / "one")
    assert_same(read(tmp_path / "one"), sample())
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"]


def test_data_without_rows_go_through_the_cache(cache: Path) -> None:
    empty = Encoded(inputs={"token_ids": Ragged.of([], np.int32)}, targets=np.zeros(0, np.int32))
    assert_same(cached({}, lambda: empty), empty)


def test_the_cache_holds_nothing_that_runs(cache: Path) -> None:
    folder = encoded_.cache_folder() / "encoded"
    with pytest.raises(ValueError, match="[Oo]bject"):
        cached({}, lambda: Encoded({"x": np.array([{"a": 1}], dtype=object)}))
    assert list(folder.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(encoded_.DataError, match="Cannot write encoded data to .*KFT_CACHE") as caught:
        cached({}, sample)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [(), (3,)])
def test_padding_some_rows_is_copying_them_one_by_one(width: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((length, *width)).astype(np.float32) for length in rng.integers(0, 9, 50)]
    halves = [Ragged.of(rows[:20], np.float32), Ragged.of(rows[20:], np.float32)]
    ragged = Ragged.joined(halves)
    assert_equal(ragged, Ragged.of(rows, np.float32))
    assert [row.tolist() for row in ragged] == [row.tolist() for row in rows]
    chosen = rng.permutation(50)[:17]
    found = ragged.padded(chosen, 9, 7)
    assert found.shape == (17, 9, *width) and ragged.padded([], 9, 7).shape == (0, 9, *width)
    for place, row in enumerate(chosen):
        assert found[place, : len(rows[row])].tolist() == rows[row].tolist()
        assert (found[place, len(rows[row]) :] == 7).all()
    with pytest.raises(ValueError):
        ragged.padded(chosen, max(len(rows[row]) for row in chosen) - 1, 7)
