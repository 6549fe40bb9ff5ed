"""What a model is to say: labels, several labels, tags or values; read from the data, stored with the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kft.data.table import Splits, Table, Targets
from kft.errors import DataError, listed, nearest
from kft.recipe import Data, Train
from kft.tasks import spans

Kind = Literal["labels", "multi_label", "tags", "values", "spans"]


@dataclass(frozen=True)
class Target:
    """The meaning of a model's outputs.

    Attributes:
        kind: labels (one of several), multi_label (any of several), tags (one a word), values (a number), spans (the first
            and last token of a part of the text).
        labels: the names of the outputs, in their order; empty for values and spans.
        positive: the index of the label that binary metrics count.
        unanswerable: whether a question may have no answer.
    """

    kind: Kind
    labels: tuple[str, ...] = ()
    positive: int = 0
    unanswerable: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers the model gives for an example, a word or a token."""
        return len(self.labels) or (2 if self.kind == "spans" else 1)

    def dump(self) -> dict[str, Any]:
        """Returns the target as JSON values."""
        return {**asdict(self), "labels": list(self.labels)}

    @classmethod
    def read(cls, values: dict[str, Any]) -> Target:
        """Returns the target that `dump` gave."""
        return cls(values["kind"], tuple(values["labels"]), values["positive"], values.get("unanswerable", False))


def text_of(value: Any) -> str:
    """Returns a label as text: 1, 1.0 and "1" are the same label."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def study(splits: Splits, data: Data, kind: Targets) -> Target:
    """Reads off the training split what there is to predict, and that the other splits ask for nothing else.

    Raises:
        DataError: for a missing label or value, one class only, or a label the training split does not have.
    """
    if kind == "values":
        for _, table in splits.items():
            values(table, data)
        return Target("values")
    if kind == "spans":
        without = {name: spans.unanswered(table, data) for name, table in splits.items()}
        if without["train"] == len(splits.train):
            raise DataError(
                f"{splits.train.origin}: no question has an answer in column '{data.target}'. Check data.target."
            )
        return Target("spans", unanswerable=without["train"] > 0)
    multi = kind == "labels" and (isinstance(data.target, list) or data.label_separator or _is_list(splits.train, data))
    found: Kind = "multi_label" if multi else kind
    counts = count(splits.train, data, found)
    known = _class_names(splits.train, data, counts)
    if len(known) < 2:
        raise DataError(
            f"{splits.train.origin}: column '{_column(data)}' has one class only, '{next(iter(known), '')}'; at least two "
            "are needed. Check data.target."
        )
    target = Target(found, known, _positive(data, known))
    for name, table in splits.items():
        if name != "train":
            encode(table, target, data)
    return target


def count(table: Table, data: Data, kind: Kind) -> Counter[str]:
    """Counts the labels of a split."""
    coded = _coded(table, data) if kind == "labels" else None
    if coded is None:
        return Counter(label for row in rows(table, data, kind) for label in row)
    found: Counter[str] = Counter()
    for name, number in zip(coded.names, np.bincount(coded.codes).tolist(), strict=True):
        found[name] += number
    return found


def rows(table: Table, data: Data, kind: Kind) -> list[list[str]]:
    """Returns the labels of each example, as text: one, several, or one a word.

    Raises:
        DataError: for an example without a label; the message has its place.
    """
    if isinstance(data.target, list):
        return _flags(table, data.target)
    found = []
    for row, cell in enumerate(table.cells(data.target)):
        if isinstance(cell, list):
            found.append([_name(table, data.target, row, value) for value in cell])
        elif kind == "multi_label" and data.label_separator is not None and cell is not None:
            found.append([part.strip() for part in str(cell).split(data.label_separator) if part.strip()])
        else:
            found.append([_name(table, data.target, row, cell)])
    return found


def values(table: Table, data: Data) -> np.ndarray:
    """Returns the numbers to predict, float32, shape (examples, 1).

    Raises:
        DataError: for a cell that is not a finite number; the message has its place.
    """
    return np.fromiter(_numbers(table, _column(data)), np.float64, len(table)).astype(np.float32).reshape(-1, 1)


def _numbers(table: Table, column: str) -> Iterator[float]:
    for row, cell in enumerate(table.cells(column)):
        try:
            value = float(cell)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{table.where(row)}: column '{column}' has to be a finite number, received {cell!r}. "
                "Correct it or remove the row."
            )
        yield value


def encode(table: Table, target: Target, data: Data) -> np.ndarray | list[np.ndarray]:
    """Returns the targets of each example.

    Returns:
        A label's index, int32, shape (examples, 1); 0 or 1 a label, float32, shape (examples, labels); a value,
        float32, shape (examples, 1); of tags, a list with an index a word for each example, int32, shape (words,).

    Raises:
        DataError: for a label that the training split does not have.
    """
    if target.kind == "values":
        return values(table, data)
    places = {label: i for i, label in enumerate(target.labels)}
    coded = _coded(table, data) if target.kind == "labels" else None
    if coded is not None:
        of_code = [_index(places, name, table, row) for name, row in zip(coded.names, coded.first, strict=True)]
        wanted: np.ndarray = np.asarray(of_code, np.int32)[coded.codes][:, None]
        return wanted
    every = enumerate(rows(table, data, target.kind))
    found = [[_index(places, name, table, row) for name in names] for row, names in every]
    if target.kind == "multi_label":
        flags = np.zeros((len(found), len(places)), np.float32)
        for row, numbers in enumerate(found):
            flags[row, numbers] = 1
        return flags
    return [np.asarray(numbers, np.int32) for numbers in found]


def _index(places: dict[str, int], name: str, table: Table, row: int) -> int:
    if name not in places:
        raise DataError(
            f"{table.where(row)}: label '{name}' is not in the training split.{nearest(name, places)} "
            f"Labels there: {listed(places)}. Correct it, or add examples of it to the training split."
        )
    return places[name]


@dataclass(frozen=True)
class _Coded:
    """A column of single labels: its different cells as text, the first row of each, and which one each row has."""

    names: list[str]
    first: list[int]
    codes: np.ndarray


def _coded(table: Table, data: Data) -> _Coded | None:
    """Returns a column's single labels, or None where it may hold something else.

    Cells come in the order of their first rows, so the first one that is no label is that of the first row without one.
    """
    coded = None if isinstance(data.target, list) else table.codes(data.target)
    if coded is None:
        return None
    cells, codes = coded
    first = np.zeros(len(cells), np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of several numbers for one place the last stays
    names = [_name(table, _column(data), row, cell) for row, cell in zip(first.tolist(), cells, strict=True)]
    return _Coded(names, first.tolist(), codes)


def probabilities(logits: np.ndarray, target: Target) -> np.ndarray:
    """Returns probabilities of logits (softmax, or sigmoid for multi_label), float64, of the same shape."""
    wide = np.asarray(logits, np.float64)
    if target.kind == "multi_label":
        return np.asarray(1 / (1 + np.exp(-wide)))
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def weights_of_classes(
    wanted: str | dict[str, float], table: Table, target: Target, data: Data
) -> tuple[float, ...] | None:
    """Returns a factor for each class, or None for no weighting.

    `balanced` is scikit-learn's: examples / (classes * examples of the class).

    Raises:
        DataError: if a weight names an unknown label, or the target has no classes.
    """
    if wanted == "none":
        return None
    if target.kind not in ("labels", "tags"):
        raise DataError(f"train.class_weights goes with single labels and tags, not with {target.kind}. Remove it.")
    if isinstance(wanted, dict):
        for name in wanted:
            if name not in target.labels:
                raise DataError(
                    f"train.class_weights: unknown label '{name}'.{nearest(name, target.labels)} "
                    f"Labels: {listed(target.labels)}."
                )
        return tuple(wanted.get(label, 1.0) for label in target.labels)
    counts = count(table, data, target.kind)
    total = sum(counts.values())
    return tuple(total / (len(target.labels) * counts[label]) if counts[label] else 1.0 for label in target.labels)


def refuse_unfit(train: Train, target: Target) -> None:
    """Refuses what a recipe asks of a training that its target does not have.

    Raises:
        DataError: if labels are to be smoothed, and there are none.
    """
    if train.label_smoothing and target.kind in ("values", "spans"):
        raise DataError(f"train.label_smoothing goes with labels and tags, not with {target.kind}. Remove it.")


def _column(data: Data) -> str:
    return data.target if isinstance(data.target, str) else ", ".join(data.target)


def _is_nan(cell: Any) -> bool:
    return isinstance(cell, float) and math.isnan(cell)


def _is_list(table: Table, data: Data) -> bool:
    return isinstance(next(table.cells(str(data.target)), None), list)


def _name(table: Table, column: str, row: int, label: Any) -> str:
    names = table.class_names.get(column)
    missing = label is None or (isinstance(label, str) and not label.strip()) or _is_nan(label)
    if missing or (names is not None and isinstance(label, int) and not 0 <= label < len(names)):
        raise DataError(
            f"{table.where(row)}: no label in column '{column}' (received {label!r}). Fill it in or remove the row."
        )
    return names[label] if names is not None and isinstance(label, int) else text_of(label)


def _flags(table: Table, columns: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(len(table))]
    for column in columns:
        for row, cell in enumerate(table.cells(column)):
            text = text_of(cell).lower()
            if text not in ("0", "1", "true", "false"):
                raise DataError(f"{table.where(row)}: column '{column}' has to be 0 or 1, received {cell!r}.")
            if text in ("1", "true"):
                found[row].append(column)
    return found


def _class_names(table: Table, data: Data, counts: Counter[str]) -> tuple[str, ...]:
    """The source's own order where it has one, the recipe's for several columns, else by number or by name."""
    if isinstance(data.target, list):
        return tuple(data.target)
    known = table.class_names.get(data.target)
    if known is not None and set(counts) <= set(known):
        return tuple(known)
    names = sorted(counts)
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return tuple(names)
    return tuple(sorted(names, key=float) if all(map(math.isfinite, numbers)) else names)


def _positive(data: Data, labels: tuple[str, ...]) -> int:
    if data.positive_label is None:
        return len(labels) - 1
    if data.positive_label not in labels:
        raise DataError(
            f"data.positive_label: '{data.positive_label}' is not a label.{nearest(data.positive_label, labels)} "
            f"Labels: {listed(labels)}."
        )
    return labels.index(data.positive_label)
