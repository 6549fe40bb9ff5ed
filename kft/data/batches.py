"""Cuts encoded data into batches: a short ladder of lengths, and an order that only seed and epoch decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft.data.encoded import Array, Encoded, Ragged

STEP = 8  # rungs are multiples of this many tokens
RUNGS = 6  # each rung is one more shape to compile on jax
GROUP = 50  # batches are sorted by length within groups of so many
Batch = tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray]


def ladder(lengths: np.ndarray, most: int = RUNGS) -> tuple[int, ...]:
    """Returns the lengths to pad to: at most `most` rungs, chosen so that the fewest padding tokens are computed.

    Args:
        lengths: the lengths of all rows, in tokens.
        most: how many rungs there may be.

    Returns:
        Rungs in rising order, multiples of 8, the last one being no shorter than the longest row.
    """
    steps = np.maximum(-(-np.asarray(lengths) // STEP), 1)
    top = int(steps.max())
    below = np.concatenate([[0], np.cumsum(np.bincount(steps, minlength=top + 1)[1:])])  # rows of at most i steps
    cost = below * np.arange(top + 1)  # one rung at i for all rows up to i
    came: list[np.ndarray] = []
    for _ in range(most - 1):
        table = cost[None, :] + (below[:, None] - below[None, :]) * np.arange(top + 1)[:, None]
        table[np.triu_indices(top + 1, 1)] = np.iinfo(np.int64).max  # the rung before lies below
        came.append(table.argmin(axis=1))
        cost = table.min(axis=1)
    rungs, at = {top}, top
    for before in reversed(came):
        at = int(before[at])
        rungs.add(at)
    return tuple(STEP * rung for rung in sorted(rungs) if rung)


@dataclass(frozen=True)
class Batches:
    """The batches of a split, epoch by epoch.

    Every batch has exactly `batch_size` rows, so that no odd shape has to be compiled: the last one is filled up with
    rows of weight 0.

    Attributes:
        encoded: the split.
        batch_size: rows a batch.
        rungs: the lengths batches are padded to, or () where rows have one shape.
        multiple: pad to the batch's longest row instead, rounded up to a multiple of so many tokens; for backends that
            need not compile each shape.
        seed: decides the order together with the epoch.
        shuffle: false keeps rows of like length together and the order the same each epoch.
        inputs: the names of the inputs the model takes, or None for all there are.
        classes: number of classes to spread integer targets over as one-hot rows, or None.
        class_weights: a factor for each class's weight, or None.
    """

    encoded: Encoded
    batch_size: int
    rungs: tuple[int, ...] = ()
    multiple: int | None = None
    seed: int = 0
    shuffle: bool = True
    inputs: tuple[str, ...] | None = None
    classes: int | None = None
    class_weights: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return -(-len(self.encoded) // self.batch_size)

    def plan(self, epoch: int) -> list[tuple[np.ndarray, int]]:
        """Returns for each batch of an epoch its row numbers, shape (batch_size,) or fewer, and its length.

        The longest batch comes first, so that a lack of memory shows at once, and one of another length second: Keras
        looks at two batches to learn which dimensions vary.
        """
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.encoded)) if self.shuffle else np.arange(len(self.encoded))
        lengths = self.encoded.row_lengths
        lengths = np.zeros(len(self.encoded), np.int64) if lengths is None else lengths
        size = self.batch_size
        group = len(order) if not self.shuffle else size * max(1, min(GROUP, len(self) // 4))
        chunks = [order[start : start + group] for start in range(0, len(order), group)]
        order = np.concatenate([chunk[np.argsort(-lengths[chunk], kind="stable")] for chunk in chunks])
        rows = [order[start : start + size] for start in range(0, len(order), size)]
        partial = [rows.pop()] if len(rows[-1]) < size else []
        rows = [rows[i] for i in rng.permutation(len(rows))] if self.shuffle else rows
        rows += partial
        longest = np.asarray([lengths[batch].max() for batch in rows], np.int64)
        return [(rows[i], self._padded(int(longest[i]))) for i in self._longest_first(longest)]

    def _longest_first(self, longest: np.ndarray) -> list[int]:
        # The same on every backend, whatever it pads to.
        rungs = np.searchsorted(self.rungs, longest) if self.rungs else longest
        order = list(range(len(longest)))
        order.insert(0, order.pop(int(longest.argmax())))
        others = [
            place for values in (rungs, longest) for place, i in enumerate(order) if values[i] != values[order[0]]
        ]
        if others:
            order.insert(1, order.pop(others[0]))
        return order

    def _padded(self, longest: int) -> int:
        if not self.rungs:
            return 0
        if self.inputs is not None and "padding_mask" not in self.inputs:
            return self.rungs[-1]  # padding is text to such a model, as FNet: what it says must not hang on the batch
        if self.multiple is None:
            return self.rungs[int(np.searchsorted(self.rungs, longest))]
        padded = -(-longest // self.multiple) * self.multiple
        return padded if self.encoded.longest is None else min(padded, self.encoded.longest)

    def make(self, rows: np.ndarray, length: int) -> Batch:
        """Returns inputs by name, targets and weights of a batch, filled up to `batch_size` rows."""
        missing = self.batch_size - len(rows)
        index = np.concatenate([rows, np.resize(rows, missing)]) if missing else rows
        inputs = {name: self._cut(array, index, length, name) for name, array in self.encoded.inputs.items()}
        inputs = self._masks(inputs, index, length)
        targets = None if self.encoded.targets is None else self._cut(self.encoded.targets, index, length, "")
        weights = self._weights(targets, index, length)
        weights[len(rows) :] = 0
        if self.classes is not None and targets is not None:
            targets = np.eye(self.classes, dtype=np.float32)[targets]
        return inputs, targets, weights

    def _masks(self, inputs: dict[str, np.ndarray], index: np.ndarray, length: int) -> dict[str, np.ndarray]:
        tokens = self.encoded.inputs.get("token_ids")
        if isinstance(tokens, Ragged):
            positions = np.arange(length)
            mask = positions < tokens.lengths_of(index)[:, None]
            inputs["padding_mask"] = mask.astype(np.int32)
            if "segment_starts" in inputs:
                starts = inputs["segment_starts"].reshape(len(index), -1, 1)
                inputs["segment_ids"] = ((positions >= starts).sum(axis=1) * mask).astype(np.int32)
        return inputs if self.inputs is None else {name: inputs[name] for name in self.inputs}

    def _cut(self, array: Array, index: np.ndarray, length: int, name: str) -> np.ndarray:
        if isinstance(array, Ragged):
            return array.padded(index, length, self.encoded.padding.get(name, 0))
        found: np.ndarray = np.asarray(array[index])
        return found

    def _weights(self, targets: np.ndarray | None, index: np.ndarray, length: int) -> np.ndarray:
        if self.encoded.weights is not None:
            weights = self._cut(self.encoded.weights, index, length, "").astype(np.float32)
        else:
            weights = np.ones(len(index), np.float32)
        if self.class_weights is not None and targets is not None:
            weights = weights * np.asarray(self.class_weights, np.float32)[targets]
        return weights


def common_ladder(splits: Sequence[Encoded], most: int = RUNGS) -> tuple[int, ...]:
    """Returns one ladder for several splits, none of it beyond what a row may have, or () where their rows have one shape."""
    lengths: list[Any] = [split.row_lengths for split in splits if split.row_lengths is not None]
    if not lengths:
        return ()
    found, longest = ladder(np.concatenate(lengths), most), [split.longest for split in splits if split.longest]
    return tuple(min(rung, *longest) for rung in found) if longest else found
