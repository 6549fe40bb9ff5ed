"""The weights of a folder, whichever way they are stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from kft.backbones.tensors import opened
from kft.errors import ModelError

RNG = np.random.default_rng(0)
ARRAYS = {
    name: RNG.normal(size=shape).astype("float32") for name, shape in (("a", (3, 4)), ("b.c", (5,)), ("d", (2, 2, 2)))
}


def check(folder: Path) -> None:
    tensors = opened(folder)
    assert sorted(tensors) == sorted(ARRAYS) and "a" in tensors and "e" not in tensors
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tensors[name], array)


def sharded(folder: Path) -> None:
    names = {name: f"model-0000{number}-of-00003.safetensors" for number, name in enumerate(ARRAYS, 1)}
    for name, file in names.items():
        save_file({name: ARRAYS[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf8")


def test_one_file(tmp_path: Path) -> None:
    save_file(ARRAYS, tmp_path / "model.safetensors")
    check(tmp_path)


def test_several_files(tmp_path: Path) -> None:
    sharded(tmp_path)
    check(tmp_path)


def test_half_precision_of_either_kind(tmp_path: Path) -> None:
    halves = {name: array.astype("float16") for name, array in ARRAYS.items()}
    save_file(halves, tmp_path / "model.safetensors")
    tensors = opened(tmp_path)
    np.testing.assert_array_equal(tensors["a"], halves["a"])


def test_bfloat16(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save

    wide = {name: torch.from_numpy(array).bfloat16() for name, array in ARRAYS.items()}
    save(wide, tmp_path / "model.safetensors")
    tensors = opened(tmp_path)
    for name, tensor in wide.items():
        np.testing.assert_array_equal(np.asarray(tensors[name], np.float32), tensor.float().numpy())


def test_torchs_own_file(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, tmp_path / "pytorch_model.bin")
    check(tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": Path("/")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pytorch_model.bin' holds more than weights: pathlib"):
        opened(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match="lacks model-00002-of-00003.safetensors, of 3 files"):
        opened(tmp_path)


def test_an_index_may_not_leave_its_folder(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf8")
    with pytest.raises(ModelError, match="does not lie in its own folder"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', "{}"])
def test_an_index_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf8")
    with pytest.raises(ModelError, match="does not say which file"):
        opened(tmp_path)


@pytest.mark.parametrize("kept", [4, 60, 120])
def test_a_file_that_was_cut_off(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file(ARRAYS, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match="broken or cut off"):
        opened(tmp_path)


def test_a_folder_without_weights_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf8")
    with pytest.raises(ModelError, match=r"No weights in .*there: config.json.*model.safetensors"):
        opened(tmp_path)
