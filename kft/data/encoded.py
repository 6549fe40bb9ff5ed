"""Encoded examples: arrays of one length or of many, kept on disk and read by memory map."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kft.errors import DataError
from kft.fetch import cache_folder
from kft.rundir import free_bytes

FORMAT = 2


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, end to end.

    Attributes:
        values: all rows' values, shape (sum of lengths, ...).
        offsets: where each row starts and the last one ends, int64, shape (rows + 1,).
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Returns the rows of several ragged arrays, of which there is at least one, in one."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls.of_lengths(np.concatenate([part.values for part in parts]), lengths)

    @classmethod
    def of_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Returns values that lie end to end as rows of the given lengths."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(values, offsets)

    @classmethod
    def of(cls, rows: Iterable[np.ndarray], dtype: Any) -> Ragged:
        """Returns the ragged array of some rows."""
        every = list(rows)
        offsets = np.zeros(len(every) + 1, np.int64)
        np.cumsum([len(row) for row in every], out=offsets[1:])
        return cls(np.concatenate(every).astype(dtype) if every else np.zeros(0, dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> np.ndarray:
        found: np.ndarray = self.values[self.offsets[row] : self.offsets[row + 1]]
        return found

    @property
    def lengths(self) -> np.ndarray:
        """The length of each row, int64."""
        found: np.ndarray = np.diff(self.offsets)
        return found

    def padded(self, rows: Sequence[int] | np.ndarray, length: int, value: float) -> np.ndarray:
        """Returns some rows as one array of shape (rows, length, ...), filled up with `value`."""
        rows = np.asarray(rows, np.int64)
        found = np.full((len(rows), length, *self.values.shape[1:]), value, self.values.dtype)
        if self.values.ndim > 1:  # wide values are copied faster row by row
            for place, row in enumerate(rows.tolist()):
                found[place, : len(self[row])] = self[row]
            return found
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        ends = np.cumsum(lengths)
        # A row's values lie end to end in the result's mask as they do here, apart from where they begin.
        index = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        found[np.arange(length) < lengths[:, None]] = self.values[index]
        return found

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the lengths of some rows, int64."""
        found: np.ndarray = self.offsets[rows + 1] - self.offsets[rows]
        return found


Array = np.ndarray | Ragged


@dataclass(frozen=True)
class Encoded:
    """A split as arrays, ready to be cut into batches.

    Attributes:
        inputs: the model's inputs by name; ragged ones are padded per batch.
        targets: what the model should say, or None.
        weights: a weight for each target (0 leaves it out), or None for all 1.
        padding: what fills up each ragged input; 0 where it is not named.
        owners: for each row the example it belongs to, where an example has several rows (windows), else None.
        lengths: for each row its length in tokens before anything was cut, or None.
        longest: what no row is padded beyond, or None where rows are not padded.
        beside: what the task itself needs to make sense of a model's outputs.
    """

    inputs: dict[str, Array]
    targets: Array | None = None
    weights: Array | None = None
    padding: dict[str, int] = field(default_factory=dict)
    owners: np.ndarray | None = None
    lengths: np.ndarray | None = None
    longest: int | None = None
    beside: dict[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def row_lengths(self) -> np.ndarray | None:
        """The length each row has in a batch, or None where all rows have the same shape."""
        for array in self.inputs.values():
            if isinstance(array, Ragged):
                return array.lengths
        return None


def cached(key: dict[str, Any], make: Callable[[], Encoded]) -> Encoded:
    """Returns encoded data from the disk cache, or makes it and puts it there.

    Args:
        key: everything the result depends on: digests of data and tokenizer, columns, lengths.
        make: encodes; called only if the cache has no entry for the key.
    """
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "encoded" / digest[:32]
    if not (folder / "encoded.json").exists():
        write(make(), folder)
    return read(folder)


def kept(
    key: dict[str, Any], shapes: Mapping[str, tuple[int, ...]], fill: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, np.ndarray]:
    """Returns float32 arrays from the disk cache, or has them filled there, piece by piece and never whole in memory.

    Args:
        key: everything the arrays depend on.
        shapes: of each array, by name.
        fill: writes into the arrays; called only if the cache has no entry for the key.

    Raises:
        DataError: if the disk is full or cannot be written.
    """
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "frozen" / digest[:32]
    if not folder.is_dir():
        with _appearing(folder) as temporary:
            made: dict[str, Any] = {
                name: np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", np.float32, shape)
                for name, shape in shapes.items()
            }
            fill(made)
            for array in made.values():
                array.flush()
    return {name: _map(folder / f"{name}.npy") for name in shapes}


def write(encoded: Encoded, folder: Path) -> None:
    """Writes encoded data as `.npy` files; the folder appears whole or not at all.

    Raises:
        DataError: if the disk is full or cannot be written.
    """
    arrays, ragged = _flatten(encoded)
    with _appearing(folder) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        meta = {
            "arrays": sorted(arrays),
            "ragged": sorted(ragged),
            "padding": encoded.padding,
            "longest": encoded.longest,
        }
        (temporary / "encoded.json").write_text(json.dumps(meta), encoding="utf8")


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder that takes the place of `folder` when the block ends well."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
        yield temporary
        if not folder.exists():
            temporary.replace(folder)
    except OSError as error:
        if folder.exists():
            return  # another process was quicker with the same data
        raise DataError(_refusal(folder.parent, error)) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _refusal(folder: Path, error: OSError) -> str:
    """NumPy says of a full disk only how many bytes it took."""
    free = free_bytes(folder)
    reason = f"the disk is full, {free / 1e6:.1f} MB free" if error.errno in (None, errno.ENOSPC) else error.strerror
    return f"Cannot write encoded data to '{folder}': {reason}. Free some space, or set KFT_CACHE to another folder."


def read(folder: Path) -> Encoded:
    """Reads what `write` wrote; the arrays stay on disk and are mapped into memory."""
    meta = json.loads((folder / "encoded.json").read_text(encoding="utf8"))
    found = {name: _map(folder / f"{name}.npy") for name in meta["arrays"]}
    whole: dict[str, Array] = {}
    for name in {name.removesuffix("#offsets").removesuffix("#values") for name in found}:
        is_ragged = name in meta["ragged"]
        whole[name] = Ragged(found[name + "#values"], found[name + "#offsets"]) if is_ragged else found[name]
    rest = {name: array for name, array in whole.items() if "." not in name}
    inputs, beside = _named("inputs.", whole), _named("beside.", whole)
    padding, longest = meta["padding"], meta["longest"]
    return Encoded(inputs=inputs, beside=beside, padding=padding, longest=longest, **rest)  # type: ignore[arg-type]


def _named(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in sorted(arrays.items()) if name.startswith(prefix)}


def _map(file: Path) -> np.ndarray:
    # An empty array cannot be mapped.
    array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False) if file.stat().st_size > 128 else np.load(file)
    return array


def _flatten(encoded: Encoded) -> tuple[dict[str, np.ndarray], set[str]]:
    named: dict[str, Array | None] = {f"inputs.{name}": array for name, array in encoded.inputs.items()}
    named |= {f"beside.{name}": array for name, array in encoded.beside.items()}
    named |= {name: getattr(encoded, name) for name in ("targets", "weights", "owners", "lengths")}
    arrays: dict[str, np.ndarray] = {}
    ragged = set()
    for name, array in named.items():
        if isinstance(array, Ragged):
            ragged.add(name)
            arrays |= {f"{name}#values": array.values, f"{name}#offsets": array.offsets}
        elif array is not None:
            arrays[name] = array
    return arrays, ragged
