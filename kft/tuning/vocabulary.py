"""Trains only those rows of an embedding table whose tokens occur in the data. Import after `backend.activate`.

A token that no text has gets no gradient; weight decay is all that reaches its row, and takes the same share of every such
row. So the rows that occur are trained in a table of their own, with one row more, of ones, that no text reads: what
becomes of it becomes of all others. That is the same training as with the whole table, as long as the optimizer treats each
number by itself, and it spares gradient, moments and update of all the rest: 31 % of the weights of a small BERT on a few
thousand sentences, most of a multilingual model's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kft.data.encoded import Encoded, Ragged
from kft.tuning import checkpoint, frozen

TOKENS = "token_ids"
ROW_BY_ROW = ("adamw", "adam", "sgd", "lion")  # Adafactor's moments are means over rows and columns
LEAST = 500_000  # numbers that must be spared
CHUNK = 1 << 22


@dataclass(frozen=True)
class Occurring:
    """A model whose table holds the rows that occur.

    Attributes:
        whole: the whole model's embedding layer.
        layer: the layer that takes its place.
        tokens: the ids that occur, rising, shape (rows,).
        model: takes and gives what the whole model does, and shares all its other layers.
    """

    whole: Any
    layer: Any
    tokens: np.ndarray
    model: Any

    @property
    def variables(self) -> list[Any]:
        """The variables that the whole model lacks."""
        return [self.layer.embeddings]

    def gather(self) -> None:
        """Takes the rows from the whole table, and begins the row of ones anew."""
        rows = checkpoint.array_of(self.whole.embeddings)[self.tokens]
        self.layer.embeddings.assign(np.concatenate([rows, np.ones_like(rows[:1])]))

    def array_of(self, variable: Any) -> np.ndarray:
        """Returns a variable of the whole model as it is now, the table with what was trained of it."""
        array = checkpoint.array_of(variable)
        if variable is not self.whole.embeddings:
            return array
        rows = checkpoint.array_of(self.layer.embeddings)
        table: np.ndarray = array * rows[-1]
        table[self.tokens] = rows[:-1]
        return table

    def settle(self) -> None:
        """Puts what was trained into the whole table."""
        self.whole.embeddings.assign(self.array_of(self.whole.embeddings))


class _Places(keras.layers.Layer):  # type: ignore[misc]
    """Turns token ids into rows of the table; the ids that do not occur are the last row."""

    def __init__(self, tokens: np.ndarray, vocabulary_size: int) -> None:
        super().__init__(name="places", trainable=False, autocast=False)
        places = np.full(vocabulary_size, len(tokens), np.int32)
        places[tokens] = np.arange(len(tokens), dtype=np.int32)
        self.places = self.add_weight(
            shape=places.shape, dtype="int32", trainable=False, name="places", initializer="zeros"
        )
        self.places.assign(places)

    def call(self, token_ids: Any) -> Any:
        """Returns the rows, int32, in the shape of the ids."""
        return keras.ops.take(self.places, token_ids, axis=0)


def occurring(model: Any, inner: Any, splits: Iterable[Encoded]) -> Occurring | None:
    """Returns a model with a table of the tokens that occur, or None where little would be spared or more reads the table.

    Args:
        model: backbone and head.
        inner: the backbone's `keras.Model`.
        splits: all that the model will be given.
    """
    whole = _table(model, inner)
    if whole is None:
        return None
    vocabulary_size, width = whole.embeddings.shape
    tokens = _tokens(splits, vocabulary_size)
    if (vocabulary_size - len(tokens) - 1) * width < LEAST:
        return None
    (x,) = whole._inbound_nodes[0].output_tensors
    upper = frozen.above(model, inner, [x])
    if upper is None or TOKENS in upper.input:
        return None
    layer = keras.layers.Embedding(len(tokens) + 1, width, dtype=whole.dtype_policy, name="occurring_embedding")
    given = {name: keras.Input(t.shape[1:], dtype=t.dtype, name=name) for name, t in model.input.items()}
    rows = layer(_Places(tokens, vocabulary_size)(given[TOKENS]))
    read = {name: given.get(name, rows) for name in upper.input}
    return Occurring(whole, layer, tokens, keras.Model(given, upper(read), name=model.name))


def _table(model: Any, inner: Any) -> Any:
    """Returns the embedding layer that alone reads the token ids, and reads nothing else, or None."""
    if not isinstance(model.input, dict) or not isinstance(inner.input, dict) or TOKENS not in inner.input:
        return None
    ids = inner.input[TOKENS]
    readers = [node for node in frozen.nodes(inner) if any(t is ids for t in node.arguments.keras_tensors)]
    readers = [node for node in readers if not node.is_input]
    table = readers[0].operation if len(readers) == 1 else None
    if not isinstance(table, keras.layers.Embedding) or not table.trainable_variables or table.mask_zero:
        return None
    alone = sum(node.operation is table for node in frozen.nodes(inner)) == 1 and len(table.weights) == 1
    return table if alone and not table.lora_enabled and table.embeddings_regularizer is None else None


def _tokens(splits: Iterable[Encoded], vocabulary_size: int) -> np.ndarray:
    """Returns the ids that occur in some splits, padding among them, rising."""
    seen = np.zeros(vocabulary_size, bool)
    for split in splits:
        ids = split.inputs[TOKENS]
        values = ids.values if isinstance(ids, Ragged) else ids.reshape(-1)
        for start in range(0, len(values), CHUNK):
            seen[values[start : start + CHUNK]] = True
        seen[split.padding.get(TOKENS, 0)] = True
    return np.flatnonzero(seen)
