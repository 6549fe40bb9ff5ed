"""Metrics of a model on a split: NumPy and scikit-learn over the whole of it, so the same number on each backend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft import metrics
from kft.data.batches import Batches
from kft.data.encoded import Encoded, Ragged
from kft.metrics.context import Context
from kft.progress import Progress
from kft.tasks import spans
from kft.tasks.questions import texts_beside
from kft.tasks.targets import Target, probabilities
from kft.tasks.task import Task
from kft.tuning import predicting, shapes


@dataclass(frozen=True)
class Evaluator:
    """Knows how to score a model on any split of a run.

    Attributes:
        task: joins rows to examples.
        target: says what the outputs mean.
        names: the metrics.
        rungs: the lengths batches are padded to.
        batch_size: rows a batch.
        inputs: the model's inputs.
    """

    task: Task
    target: Target
    names: tuple[str, ...]
    rungs: tuple[int, ...]
    batch_size: int
    inputs: tuple[str, ...]

    def logits(self, model: Any, encoded: Encoded, progress: Progress | None = None) -> list[np.ndarray]:
        """Returns the logits of each example, in order."""
        return self.task.join(self.rows(model, encoded, progress), encoded)

    def rows(self, model: Any, encoded: Encoded, progress: Progress | None = None) -> list[np.ndarray]:
        """Returns the logits of each row, of which an example may have several."""
        batches = Batches(encoded, self.batch_size, self.rungs, shapes.multiple(), shuffle=False, inputs=self.inputs)
        return predicting.logits(model, batches, progress)

    def score(self, model: Any, encoded: Encoded, progress: Progress | None = None) -> dict[str, float]:
        """Returns the loss and the metrics of a split, by name."""
        rows = self.rows(model, encoded, progress)
        logits = self.task.join(rows, encoded)
        context = Context(labels=self.target.labels, positive=self.target.positive)
        if self.target.kind == "spans":
            true = [json.loads(text) for text in texts_beside(encoded, "answers")]
            said = [record["answer"] for record in records(logits, self.target, encoded)]
            return {"loss": spans.loss(rows, encoded), **metrics.score(self.names, true, said, context)}
        truth = self.truth(encoded)
        found = metrics.score(self.names, *self._comparable(truth, logits), context)
        return {"loss": loss(truth, logits, self.target), **found}

    def truth(self, encoded: Encoded) -> list[np.ndarray]:
        """Returns the targets of each example: an index, flags, a value, or an index a word."""
        if isinstance(encoded.targets, Ragged):
            rows = [encoded.targets[row].astype(np.int32)[:, None] for row in range(len(encoded))]
            return [tags[:, 0] for tags in self.task.join(rows, encoded)]
        assert encoded.targets is not None
        return list(np.asarray(encoded.targets))

    def _comparable(self, truth: list[np.ndarray], logits: list[np.ndarray]) -> tuple[Any, Any]:
        kind = self.target.kind
        if kind == "tags":
            labels = self.target.labels
            named = [[labels[i] for i in tags] for tags in truth]
            return named, [[labels[i] for i in row.argmax(-1)] for row in logits]
        if kind == "labels":
            return np.asarray(truth), np.asarray([row.argmax(-1) for row in logits])
        if kind == "multi_label":
            return np.asarray(truth).astype(int), (np.asarray(logits) > 0).astype(int)
        return np.asarray(truth)[:, 0], np.asarray(logits)[:, 0]


def loss(truth: Sequence[np.ndarray], logits: Sequence[np.ndarray], target: Target) -> float:
    """Returns the mean loss over examples, or words, in float64: cross-entropy, or the squared error of values."""
    if target.kind == "values":
        return float(np.mean((np.asarray(truth, np.float64) - np.asarray(logits, np.float64)) ** 2))
    if target.kind == "multi_label":
        wide, flags = np.asarray(logits, np.float64), np.asarray(truth, np.float64)
        return float(np.mean(np.logaddexp(0, wide) - wide * flags))
    rows = np.concatenate(logits) if target.kind == "tags" else np.asarray(logits)
    wanted = np.concatenate(truth) if target.kind == "tags" else np.asarray(truth)
    wide = rows.astype(np.float64)
    top = wide.max(axis=-1)
    log_sum = top + np.log(np.exp(wide - top[:, None]).sum(axis=-1))
    return float(np.mean(log_sum - wide[np.arange(len(wide)), wanted]))


def records(logits: Sequence[np.ndarray], target: Target, encoded: Encoded) -> list[dict[str, Any]]:
    """Returns a prediction for each example: `label` and `probabilities` by label, `value`, or `answer`.

    Of several labels and of tags, `label` is a list; of tags, `probabilities` is a list too, one a word. Beside an `answer`,
    which is empty where there is none, stand its `probability` and where it starts and ends in the context, in characters.
    """
    if target.kind == "spans":
        pairs = zip(logits, texts_beside(encoded, "contexts"), strict=True)
        return [_answer(spans.best(tokens, context, unanswerable=target.unanswerable)) for tokens, context in pairs]
    if target.kind == "values":
        return [{"value": float(row[0])} for row in logits]
    names = target.labels
    found: list[dict[str, Any]] = []
    for row in logits:
        share = probabilities(row, target)
        if target.kind == "tags":
            tags = [names[i] for i in share.argmax(-1)]
            found.append({"label": tags, "probabilities": [_by_name(names, word) for word in share]})
        elif target.kind == "multi_label":
            chosen = [name for name, p in zip(names, share, strict=True) if p > 0.5]
            found.append({"label": chosen, "probabilities": _by_name(names, share)})
        else:
            found.append({"label": names[int(share.argmax())], "probabilities": _by_name(names, share)})
    return found


def _answer(found: spans.Answer) -> dict[str, Any]:
    place = {"start": found.start, "end": found.end} if found.text else {}
    return {"answer": found.text, "probability": found.probability, **place}


def _by_name(names: Sequence[str], share: np.ndarray) -> dict[str, float]:
    return {name: float(p) for name, p in zip(names, share, strict=True)}
