"""Tasks that say one thing of a text or a pair of texts: classification and regression."""

from __future__ import annotations

import numpy as np

from kft.backbones.tokenizer import pack
from kft.data.encoded import Encoded, Ragged
from kft.data.table import Table, refuse_other_than_text
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task, one_row_each

USUAL = (("text",), ("sentence",), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"))


def columns(table: Table, data: Data) -> list[str]:
    """Returns the one or two columns of text: those the recipe names, or the usual names.

    Raises:
        DataError: if they are not there, or more than two.
    """
    if data.inputs is None:
        for names in USUAL:
            if set(names) <= set(table.names):
                return list(names)
        raise DataError(
            f"data.inputs: name the column of text. {table.origin} has: {', '.join(table.names)}. "
            f"Type, for example: data.inputs=[{table.names[0]}]"
        )
    if len(data.inputs) > 2:
        raise DataError(
            f"data.inputs: one or two columns of text, received {len(data.inputs)}: {', '.join(data.inputs)}."
        )
    for name in data.inputs:
        table.arrow(name)
    return data.inputs


def texts(table: Table, names: list[str]) -> list[list[str]]:
    """Returns the columns of text.

    Raises:
        DataError: for a row that has no text at all, or a cell that is no text.
    """
    refuse_other_than_text(table, names)
    return _texts(table, names)


def _texts(table: Table, names: list[str]) -> list[list[str]]:
    found = [["" if cell is None else cell for cell in table.column(name)] for name in names]
    for row, cells in enumerate(zip(*found, strict=True)):
        if not any(cell.strip() for cell in cells):
            raise DataError(
                f"{table.where(row)}: empty text in column '{', '.join(names)}'. Fill it in or remove the row."
            )
    return found


def encode(table: Table, encoding: Encoding, target: Target | None) -> Encoded:
    """Encodes texts as `token_ids` and `segment_starts`, and their targets."""
    assert encoding.tokenizer is not None
    names = columns(table, encoding.data)
    refuse_other_than_text(table, names)
    packed = [pack(encoding.tokenizer, _texts(part, names), encoding.sequence_length) for part in table.slices()]
    ids, starts, whole = zip(*packed, strict=True)
    wanted = None
    if target is not None:
        rows = targets_.encode(table, target, encoding.data)
        wanted = np.asarray(rows) if len(rows) else np.zeros((0, 1), np.int32)
        wanted = wanted[:, 0] if target.kind == "labels" else wanted
    return Encoded(
        inputs={"token_ids": Ragged.joined(ids), "segment_starts": np.concatenate(starts)},
        targets=wanted,
        padding={"token_ids": encoding.tokenizer.pad_id},
        lengths=np.concatenate(whole),
        longest=encoding.sequence_length,
    )


CLASSIFICATION = Task(
    name="text_classification",
    summary="one label, or several, of a text or a pair of texts",
    modality="text",
    targets="labels",
    metrics={"labels": ("accuracy", "f1_macro"), "multi_label": ("f1_micro", "f1_macro", "accuracy")},
    columns=columns,
    inputs=texts,
    encode=encode,
    head="sequence",
    join=one_row_each,
)
REGRESSION = Task(
    name="text_regression",
    summary="a number for a text or a pair of texts",
    modality="text",
    targets="values",
    metrics={"values": ("pearson", "spearmanr", "mse")},
    columns=columns,
    inputs=texts,
    encode=encode,
    head="sequence",
    join=one_row_each,
)
