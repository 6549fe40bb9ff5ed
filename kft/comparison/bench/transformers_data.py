"""Rows and targets of a recipe as transformers' own tools take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft.data.table import Splits, Table
from kft.recipe import Recipe, Stage
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Task

Row = dict[str, Any]
LEFT_OUT = -100  # the label that torch's cross-entropy does not count


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        recipe: with its input columns named.
        stage: the one stage that is trained.
        task: reads the input columns.
        target: what the labels mean.
        splits: raw.
        names: the metrics.
        runner: which of the references.
    """

    recipe: Recipe
    stage: Stage
    task: Task
    target: Target
    splits: Splits
    names: tuple[str, ...]
    runner: str


class Collator:
    """Pads a batch to its longest row, as transformers' own collator does, and keeps what it has padded.

    Attributes:
        seen: for each batch its length and the lengths of its rows.
    """

    def __init__(self, work: Job, tokenizer: Any) -> None:
        import transformers

        kind = "TokenClassification" if work.target.kind == "tags" else "WithPadding"
        self.inner = getattr(transformers, f"DataCollator{'For' if kind[0] == 'T' else ''}{kind}")(tokenizer)
        self.seen: list[tuple[int, list[int]]] = []

    def __call__(self, rows: Sequence[Row]) -> Any:
        lengths = [len(row["input_ids"]) for row in rows]
        self.seen.append((max(lengths), lengths))
        return self.inner(rows)


def encode(work: Job, table: Table, tokenizer: Any) -> list[Row]:
    """Returns a split tokenized by transformers, with labels."""
    columns = work.task.inputs(table, work.task.columns(table, work.recipe.data))
    wanted = targets_.encode(table, work.target, work.recipe.data)
    length = work.recipe.model.sequence_length
    if work.target.kind == "tags":
        encoded = tokenizer(columns, is_split_into_words=True, truncation=True, max_length=length)
        labels: list[Any] = [_aligned(encoded.word_ids(i), tags) for i, tags in enumerate(wanted)]
    else:
        encoded = tokenizer(*columns, truncation=True, max_length=length)
        single = work.target.kind == "labels"
        labels = [int(row[0]) if single else [float(value) for value in row] for row in wanted]
        labels = [row[0] for row in labels] if work.target.kind == "values" else labels
    names = list(encoded.keys())
    return [{**{name: encoded[name][i] for name in names}, "labels": label} for i, label in enumerate(labels)]


def _aligned(words: Sequence[int | None], tags: np.ndarray) -> list[int]:
    """The tag of a word stands at its first token."""
    before = [None, *words[:-1]]
    return [
        LEFT_OUT if word is None or word == last else int(tags[word]) for word, last in zip(words, before, strict=True)
    ]


def raw(work: Job, table: Table) -> list[Any]:
    """Returns the examples as a pipeline takes them: texts, pairs, or sentences whose words are parted by spaces."""
    columns = work.task.inputs(table, work.task.columns(table, work.recipe.data))
    if work.target.kind == "tags":
        return [" ".join(words) for words in columns]
    if len(columns) == 1:
        return list(columns[0])
    return [{"text": first, "text_pair": second} for first, second in zip(*columns, strict=True)]


def comparable(output: Any, target: Target) -> tuple[Any, Any]:
    """Returns truth and predictions as kft's metrics take them; both in the order of the Trainer's own evaluation."""
    logits, truth = np.asarray(output.predictions), np.asarray(output.label_ids)
    if target.kind == "tags":
        guesses, kept = logits.argmax(-1), truth != LEFT_OUT
        named = [
            [[target.labels[i] for i in row[keep]] for row, keep in zip(of, kept, strict=True)]
            for of in (truth, guesses)
        ]
        return named[0], named[1]
    if target.kind == "labels":
        return truth.reshape(-1), logits.argmax(-1)
    if target.kind == "multi_label":
        return truth.astype(int), (logits > 0).astype(int)
    return truth.reshape(-1), logits.reshape(-1)


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Returns some rows, drawn by a seed; all of them where there are no more."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[int(i)] for i in order[:count]]


def notes(work: Job, rows: Sequence[Row]) -> list[str]:
    """Returns what the reader of a comparison has to know of it."""
    found = ["its own head and pooling, and its own defaults where the recipe says nothing"]
    cut = sum(len(row["input_ids"]) >= work.recipe.model.sequence_length for row in rows)
    if work.target.kind == "tags" and cut:
        found.append(f"{cut} long sentences are cut and the words beyond are not judged; kft reads them in windows")
    return found
