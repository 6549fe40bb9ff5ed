"""The tensors of a published model, read one at a time: a file of safetensors, several with an index, or torch's own."""

from __future__ import annotations

import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kft.backbones import buffers
from kft.errors import ModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# Where the weights lie in a file that a training wrote.
WITHIN = ("state_dict", "model", "model_state_dict")
TORCH, TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# The kinds of numbers in safetensors, as NumPy has them.
KINDS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


class Tensors:
    """Tensors by name; each is read when it is asked for, so that no more than one is in memory.

    Args:
        readers: for each name what reads it, as a NumPy array.
        place: where they come from, for messages.
    """

    def __init__(self, readers: Mapping[str, Callable[[], np.ndarray]], place: Path) -> None:
        self._readers, self.place = dict(readers), place

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __contains__(self, name: object) -> bool:
        return name in self._readers

    def __len__(self) -> int:
        return len(self._readers)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._readers[name]()

    def renamed(self, names: Sequence[tuple[str, str]]) -> Tensors:
        """Returns the tensors by other names.

        Args:
            names: regular expressions and what is put in their place, one after the other.
        """
        return Tensors({_renamed(name, names): read for name, read in self._readers.items()}, self.place)

    def within(self, prefixes: Sequence[str], beside: tuple[str, ...] = ()) -> Tensors:
        """Returns the tensors of a part of a model by the names they have there.

        Args:
            prefixes: what stands before the names of the part's tensors; the first that is there counts. None: all tensors.
            beside: how the names of tensors begin that are the part's too, and keep them.

        Raises:
            ModelError: if none of these is there.
        """
        if not prefixes:
            return self
        for prefix in prefixes:
            if own := {
                name.removeprefix(prefix): read for name, read in self._readers.items() if name.startswith(prefix)
            }:
                more = {name: read for name, read in self._readers.items() if beside and name.startswith(beside)}
                return Tensors(own | more, self.place)
        raise ModelError(
            f"'{self.place}' has no weights whose names begin with {' or '.join(prefixes)}, as those of the part that "
            "model.part asks for do. Give a folder with the whole model."
        )


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    for pattern, other in names:
        name = re.sub(pattern, other, name)
    return name


def opened(folder: Path) -> Tensors:
    """Returns the weights of a folder in Hugging Face's layout.

    Raises:
        ModelError: if there are none, a part is missing or broken, or they are torch's and torch is not installed.
    """
    if (folder / INDEX).is_file():
        files = _parts(folder, INDEX)
    else:
        files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if files:
        return Tensors(_safetensors(files), folder)
    if (folder / TORCH_INDEX).is_file():
        return Tensors(_torch(_parts(folder, TORCH_INDEX)), folder)
    if (folder / TORCH).is_file():
        return Tensors(_torch([folder / TORCH]), folder)
    there = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
    raise ModelError(f"No weights in '{folder}' (there: {there}). Looked for {SINGLE}, {INDEX}, {TORCH}.")


def _parts(folder: Path, index: str) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / index).read_text(encoding="utf8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"'{folder / index}' does not say which file holds which weight: {error}.") from None
    files = []
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"'{folder / index}' names the file '{name}', which does not lie in its own folder.")
        files.append(folder / name)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"'{folder}' lacks {', '.join(missing)}, of {len(files)} files of weights that {index} names. Get them again."
        )
    return files


def _safetensors(files: list[Path]) -> dict[str, Callable[[], np.ndarray]]:
    found: dict[str, Callable[[], np.ndarray]] = {}
    for file in files:
        try:
            with safe_open(file, framework="numpy") as whole:  # sees to it that header and length fit
                names = list(whole.keys())
        except SafetensorError as error:
            raise ModelError(f"'{file}' is broken or cut off ({error}). Get the file again.") from None
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        found |= {name: functools.partial(_stored, file, 8 + size, name, header[name]) for name in names}
    return found


def _stored(file: Path, start: int, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    """Reads a tensor from where it lies; a file mapped into memory would count there as a whole.

    Half precision of bfloat16, which NumPy does not have, comes as float32: its bits are the upper half.
    """
    if entry["dtype"] not in KINDS:
        raise ModelError(f"'{file}': {name} is of type {entry['dtype']}, which cannot be read here.")
    array = buffers.untouched(tuple(entry["shape"]), KINDS[entry["dtype"]])
    with file.open("rb") as stream:
        stream.seek(start + entry["data_offsets"][0])
        count = stream.readinto(array.reshape(-1).view(np.uint8).data)
    if count != array.nbytes:
        raise ModelError(f"'{file}' was cut off while it was read: {name} is not whole. Get the file again.")
    return array if entry["dtype"] != "BF16" else (array.astype(np.uint32) << 16).view(np.float32)


def torch_tensors(file: Path) -> Tensors:
    """Returns the tensors of a file of torch's that holds a model's weights, or a training's with them in it.

    Raises:
        ModelError: if it holds more than weights, is broken, or torch is not installed.
    """
    return Tensors(_torch([file]), file)


def _torch(files: list[Path]) -> dict[str, Callable[[], np.ndarray]]:
    """Reads torch's files with `weights_only`, which refuses all that is no tensor."""
    try:
        import torch
    except ImportError:
        raise ModelError(
            f"'{files[0]}' is a file of torch's, which is not installed here. Type: pip install torch, or give a folder "
            f"with {SINGLE}."
        ) from None
    found: dict[str, Callable[[], np.ndarray]] = {}
    for file in files:
        try:
            # What torch wrote before 1.6 is no archive, and cannot be mapped.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:
            raise ModelError(_refused(file, error)) from None
        if not isinstance(state, dict):
            raise ModelError(f"'{file}' holds {type(state).__name__}, not weights by name. Save a model's state_dict.")
        state = next((state[name] for name in WITHIN if isinstance(state.get(name), dict)), state)
        found |= {
            str(name): _torch_reader(tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)
        }
    return found


def _refused(file: Path, error: Exception) -> str:
    """Returns why a file of torch's is not read; torch's own words advise to run what is in it."""
    reason = " ".join(str(error).split())
    safe = f"Take the model's {SINGLE} instead, or have its makers save its state_dict alone"
    if program := re.search(r"GLOBAL ([\w.]+)", reason):
        return f"'{file}' holds more than weights: {program[1]}, which unpickling it would run; kft reads weights only. {safe}."
    if not isinstance(error, OSError):
        return f"'{file}' is broken, or holds more than weights. Get the file again. {safe}."
    return f"'{file}' cannot be read: {reason.partition('. ')[0][:160]}. Get the file again. {safe}."


def _torch_reader(tensor: Any) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        found: np.ndarray = tensor.detach().float().numpy() if tensor.is_floating_point() else tensor.numpy()
        return found

    return read
