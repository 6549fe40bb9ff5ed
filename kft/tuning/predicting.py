"""Logits of a whole split, in the split's order. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kft.data.batches import Batches
from kft.progress import Progress
from kft.tuning import shapes


def logits(model: Any, batches: Batches, progress: Progress | None = None) -> list[np.ndarray]:
    """Returns a model's outputs for each row of a split, in order, float32.

    Args:
        model: gives logits.
        batches: cut without shuffling.
        progress: hears of each batch.

    Returns:
        For each row an array of shape (outputs,), or (tokens, tags), or (2, tokens) for an answer's first and last token, as long
        as its batch was padded.
    """
    found: list[np.ndarray] = [np.zeros(0)] * len(batches.encoded)
    plan = batches.plan(0)
    for done, (rows, length) in enumerate(plan, 1):
        for some, inputs in pieces(batches, rows, length):
            outputs = np.asarray(model.predict_on_batch(inputs), np.float32)
            for row, output in zip(some, outputs, strict=False):
                found[int(row)] = output
        if progress is not None:
            progress.advance(done, len(plan))
    return found


def pieces(batches: Batches, rows: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Gives the row numbers and inputs of a batch, in pieces as large as the backend predicts fastest.

    Args:
        batches: makes the batch.
        rows: its row numbers.
        length: tokens a row.
    """
    inputs, _, _ = batches.make(rows, length)
    size = shapes.rows_at_once(batches.batch_size, length)
    for start in range(0, len(rows), size):
        yield rows[start : start + size], {name: array[start : start + size] for name, array in inputs.items()}
