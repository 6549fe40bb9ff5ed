"""The value that says what a task is; pipeline, check and predict read it, nothing inherits from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from kft.backbones.tokenizer import Tokenizer
from kft.data.encoded import Encoded
from kft.data.table import Table, Targets
from kft.errors import ModelError
from kft.recipe import Data, Recipe
from kft.tasks.targets import Target


@dataclass(frozen=True)
class Encoding:
    """What turns raw columns into arrays.

    Attributes:
        data: the recipe's data section.
        tokenizer: for text.
        sequence_length: most tokens a row may have.
        image_size: height and width of images, or None to take the first image's own.
        channels: 3, or 1 for grey images.
        stride: tokens that two windows of a long context have in common, or None for a third of a row.
    """

    data: Data
    tokenizer: Tokenizer | None = None
    sequence_length: int = 128
    image_size: tuple[int, int] | None = None
    channels: int = 3
    stride: int | None = None

    @classmethod
    def of_texts(cls, recipe: Recipe, tokenizer: Tokenizer | None) -> Encoding:
        """Returns what a recipe says of texts."""
        return cls(recipe.data, tokenizer, recipe.model.sequence_length, stride=recipe.model.stride)

    @property
    def overlap(self) -> int:
        """How many tokens two windows of a long context have in common."""
        return self.sequence_length // 3 if self.stride is None else self.stride

    def key(self) -> dict[str, Any]:
        """Returns what the encoded result depends on, beside the data itself."""
        return {
            "inputs": self.data.inputs,
            "target": self.data.target,
            "label_separator": self.data.label_separator,
            "tokenizer": self.tokenizer.digest if self.tokenizer else None,
            "sequence_length": self.sequence_length,
            "image_size": self.image_size,
            "channels": self.channels,
            "stride": self.stride,
        }

    def without_target(self) -> Encoding:
        """Returns the encoding for data to predict."""
        return replace(self, data=self.data.model_copy(update={"target": ""}))


@dataclass(frozen=True)
class Task:
    """A kind of job.

    Attributes:
        name: its name in a recipe.
        summary: one line for `kft list tasks`.
        modality: text or image.
        targets: what is predicted.
        metrics: the metrics reported if neither recipe nor benchmark names others, by kind of target; the first one says
            which epoch is best.
        columns: the input columns of a table that a recipe does not name, or a DataError.
        inputs: reads the input columns of a table, or a DataError with the place of what cannot be used.
        encode: table, encoding and target (None to predict) to arrays.
        head: which of `kft.tasks.heads` stands on the backbone.
        join: logits of rows to logits of examples, where an example may have several rows.
    """

    name: str
    summary: str
    modality: Literal["text", "image"]
    targets: Targets
    metrics: dict[str, tuple[str, ...]]
    columns: Callable[[Table, Data], list[str]]
    inputs: Callable[[Table, list[str]], Any]
    encode: Callable[[Table, Encoding, Target | None], Encoded]
    head: Literal["sequence", "tokens", "spans", "image"]
    join: Callable[[Sequence[np.ndarray], Encoded], list[np.ndarray]]

    def refuse_other(self, modality: str) -> None:
        """Refuses a backbone for what the task does not read.

        Raises:
            ModelError: if its modality is another than the task's.
        """
        if modality != self.modality:
            raise ModelError(
                f"The task {self.name} needs a backbone for {self.modality}; this one is for {modality}. Give another "
                f"model.preset: `kft list models --task {self.name}` shows some."
            )


def one_row_each(logits: Sequence[np.ndarray], encoded: Encoded) -> list[np.ndarray]:
    """Returns the logits as they are: an example is a row."""
    return list(logits)
