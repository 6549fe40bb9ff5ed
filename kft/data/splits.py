"""Cuts a data set into train, validation and test: by name, by file, or by a fraction that the seed draws."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from kft.data import sources
from kft.data.folders import VALIDATION_NAMES
from kft.data.table import Splits, Table, Targets
from kft.errors import DataError, listed, nearest

if TYPE_CHECKING:
    from kft.progress import Progress
    from kft.recipe import Data

DEFAULT_VALIDATION = 0.1
_OWN = {"validation": VALIDATION_NAMES, "test": ("test",)}
_STREAM = {"test": 1, "validation": 2, "limit": 3}  # so that no draw depends on whether another one was made


@dataclass(frozen=True)
class _Found:
    """A table, and where it came from, to tell whether two splits are the same rows."""

    table: Table
    identity: tuple[str, str]


def load(
    data: Data,
    *,
    seed: int,
    modality: Literal["text", "image"] = "text",
    targets: Targets = "labels",
    progress: Progress | None = None,
) -> Splits:
    """Loads the splits that a recipe's `data` section describes.

    `validation` and `test` are each a split's name, a file or handle, a fraction, 0 for none, or None for the split
    the source has itself (else a tenth of train for validation, and no test). A fraction is a share of the whole
    training split, drawn by the seed alone; with labels every class gives its share. A test split without targets,
    as benchmarks publish it, is dropped.

    Args:
        data: the section.
        seed: of every draw.
        modality: `text` or `image`, which decides what is looked for in a folder.
        targets: what the target columns hold.
        progress: hears of downloads, and of what was decided for the person.

    Returns:
        Splits that share no row of one source.

    Raises:
        KftError: if a source, a split or the target cannot be used.
    """
    found = _load(data, seed, modality, targets, progress)
    pa.default_memory_pool().release_unused()  # of what was there before the cut
    return found


def _load(
    data: Data, seed: int, modality: Literal["text", "image"], targets: Targets, progress: Progress | None
) -> Splits:
    own = sources.load(data.source, data, modality, progress)
    tables = {name: _Found(table, (_canonical(data.source), name)) for name, table in own.items()}
    cutter = _Cutter(data, seed, modality, targets, tables, progress)
    train = cutter.named("train", data.train) if data.train else cutter.training()
    test = cutter.find("test", data.test, train)
    validation = cutter.find("validation", data.validation, train)
    _refuse_same({"train": train, "validation": validation, "test": test})
    return cutter.cut(train, validation, test)


@dataclass(frozen=True)
class _Cutter:
    data: Data
    seed: int
    modality: str
    targets: Targets
    tables: Mapping[str, _Found]
    progress: Progress | None

    def note(self, text: str) -> None:
        if self.progress:
            self.progress.note(text)

    def training(self) -> _Found:
        if len(self.tables) == 1:
            return next(iter(self.tables.values()))
        if "train" not in self.tables:
            raise DataError(
                f"{self.data.source} has no split 'train'. Its splits: {', '.join(self.tables)}. Type data.train=NAME."
            )
        return self.tables["train"]

    def find(self, role: str, wanted: float | str | None, train: _Found) -> _Found | float:
        """Returns the split that is meant, or the fraction of train to cut, 0.0 for none."""
        if isinstance(wanted, str):
            return self.named(role, wanted)
        if wanted is not None:
            return float(wanted)
        for name in _OWN[role]:
            if name in self.tables and self.tables[name].identity != train.identity:
                return self.tables[name]
        return DEFAULT_VALIDATION if role == "validation" else 0.0

    def named(self, role: str, wanted: str) -> _Found:
        """Returns a split of the source by its name, or the one in another file or behind another handle."""
        if wanted in self.tables:
            return self.tables[wanted]
        path = Path(wanted).expanduser()
        if not sources.is_handle(wanted) and not path.exists():
            raise DataError(self._no_such(role, wanted, path))
        tables = sources.load(wanted, self.data, self.modality, self.progress)
        names = [name for name in ("train", *_OWN["validation"], "test") if name in tables]
        own = [name for name in _OWN.get(role, ("train",)) if name in tables]
        if len(tables) > 1 and not own:
            raise DataError(
                f"Field 'data.{role}': {wanted} has several splits ({listed(names or tables)}). Give a file."
            )
        name = own[0] if own else next(iter(tables))
        return _Found(tables[name], (_canonical(wanted), name))

    def _no_such(self, role: str, wanted: str, path: Path) -> str:
        if path.suffix.lower() in sources.SUFFIXES or len(path.parts) > 1:
            return f"Field 'data.{role}': {sources.missing(path)}"
        return (
            f"Field 'data.{role}': {self.data.source} has no split '{wanted}', and there is no such file."
            f"{nearest(wanted, self.tables)} Its splits: {listed(self.tables)}."
        )

    def cut(self, train: _Found, validation: _Found | float, test: _Found | float) -> Splits:
        whole = train.table
        rows = np.arange(len(whole))
        parts: dict[str, Table | None] = {}
        for role, part in (("test", test), ("validation", validation)):
            if isinstance(part, _Found):
                parts[role] = part.table
                continue
            taken = self._draw(role, part, whole, rows)
            rows = np.setdiff1d(rows, taken, assume_unique=True)
            parts[role] = whole.take(taken) if len(taken) else None
        self._tell(validation, parts["validation"])
        rows = self._limited(rows)
        kept = whole if len(rows) == len(whole) else whole.take(rows)
        return Splits(kept, self._labelled(parts["validation"]), self._with_targets(parts["test"]))

    def _draw(self, role: str, fraction: float, whole: Table, rows: np.ndarray) -> np.ndarray:
        if not fraction:
            return rows[:0]
        size = max(1, round(fraction * len(whole)))
        if size >= len(rows):
            raise DataError(
                f"{whole.origin} has {len(whole)} rows: taking {size} for {role} leaves none to train on. "
                f"Give more rows, a smaller fraction, or data.{role}=0."
            )
        keys = self._classes(whole)
        random = np.random.default_rng([self.seed, _STREAM[role]])
        if keys is None:
            return np.sort(random.permutation(rows)[:size])
        return np.sort(_stratified(keys[rows], rows, np.bincount(keys), size, random))

    def _classes(self, whole: Table) -> np.ndarray | None:
        """Returns a class number for each row, or None where rows are drawn without regard to classes."""
        if self.targets != "labels" or not isinstance(self.data.target, str) or self.data.label_separator:
            return None
        coded = whole.codes(self.data.target)
        keys = _numbers(whole.cells(self.data.target)) if coded is None else coded[1]
        return keys if keys is not None and len(keys) and np.bincount(keys).min() >= 2 else None

    def _limited(self, rows: np.ndarray) -> np.ndarray:
        if self.data.limit is None or self.data.limit >= len(rows):
            return rows
        random = np.random.default_rng([self.seed, _STREAM["limit"]])
        return np.sort(random.permutation(rows)[: self.data.limit])

    def _tell(self, wanted: _Found | float, table: Table | None) -> None:
        if self.data.validation is None and not isinstance(wanted, _Found) and table is not None:
            self.note(f"{self.data.source} has no validation split: {len(table)} rows of train are kept apart for it")

    def _labelled(self, validation: Table | None) -> Table | None:
        if validation is not None and self._unlabelled(validation):
            raise DataError(
                f"{validation.origin}: no row has a target in {self._target_names()}, so there is nothing to validate "
                "on. Give a labelled split, or data.validation=0.1."
            )
        return validation

    def _with_targets(self, test: Table | None) -> Table | None:
        if test is None:
            return None
        names = [self.data.target] if isinstance(self.data.target, str) else self.data.target
        absent = self.data.test is None and not set(names) & set(test.names)
        if absent or self._unlabelled(test):
            self.note(f"{test.origin} has no targets in {self._target_names()}: it is left out")
            return None
        return test

    def _target_names(self) -> str:
        names = [self.data.target] if isinstance(self.data.target, str) else self.data.target
        return ", ".join(f"'{name}'" for name in names)

    def _unlabelled(self, table: Table) -> bool:
        names = [self.data.target] if isinstance(self.data.target, str) else self.data.target
        return all(_is_nothing(value) for name in names for value in table.cells(name))


def _numbers(values: Iterable[Any]) -> np.ndarray | None:
    """Returns for each value the number of the first one that equals it, or None where values are lists."""
    numbers: dict[Any, int] = {}
    found = []
    for value in values:
        if not isinstance(value, Hashable):
            return None
        found.append(numbers.setdefault(value, len(numbers)))
    return np.asarray(found, np.int64)


def _is_nothing(value: Any) -> bool:
    """Says whether a target stands for none: null, empty, or the -1 with which benchmarks hide it."""
    if isinstance(value, list):
        return all(_is_nothing(inner) for inner in value)
    return value is None or value in ("", "-1", -1)


def _stratified(
    keys: np.ndarray, rows: np.ndarray, counts: np.ndarray, size: int, random: np.random.Generator
) -> np.ndarray:
    """Draws `size` of `rows`, each class in proportion to its count in the whole, by the largest remainders."""
    left = np.bincount(keys, minlength=len(counts))
    sizes = _shares(counts, left, size)
    of_class = np.split(rows[np.argsort(keys, kind="stable")], np.cumsum(left)[:-1])
    return np.concatenate([random.permutation(own)[:share] for own, share in zip(of_class, sizes, strict=True)])


def _shares(counts: np.ndarray, left: np.ndarray, size: int) -> np.ndarray:
    """Returns how many rows each class gives; the last row of a class goes only when there is no other."""
    exact = size * counts / counts.sum()
    shares: np.ndarray = np.zeros_like(counts)
    for room in (np.maximum(left - 1, 0), left):
        shares = np.minimum(np.floor(exact).astype(np.int64), room)
        while shares.sum() < size and (shares < room).any():
            behind = np.where(shares < room, exact - shares, -np.inf)
            shares[int(np.argmax(behind))] += 1
        if shares.sum() == size:
            break
    return shares


def _canonical(location: str) -> str:
    return location if sources.is_handle(location) else str(Path(location).expanduser().resolve())


def _refuse_same(parts: Mapping[str, _Found | float]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for role, part in parts.items():
        if not isinstance(part, _Found):
            continue
        if part.identity in seen:
            raise DataError(
                f"{seen[part.identity]} and {role} are the same rows, {part.table.origin}. Give data.{role} another "
                "split or file, a fraction, or 0."
            )
        seen[part.identity] = role
