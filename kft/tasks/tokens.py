"""Token classification: a tag for each word; long sentences in windows, nothing cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from kft.data.encoded import Encoded, Ragged
from kft.data.table import Table
from kft.errors import DataError
from kft.recipe import Data
from kft.tasks import targets as targets_
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task


def columns(table: Table, data: Data) -> list[str]:
    """Returns the column of words: the one the recipe names, or `tokens`.

    Raises:
        DataError: if it is not there, or more than one is named.
    """
    names = data.inputs or ["tokens"]
    if len(names) != 1:
        raise DataError(f"data.inputs: one column of words, received {len(names)}: {', '.join(names)}.")
    table.arrow(names[0])
    return names


def words(table: Table, names: list[str]) -> list[list[str]]:
    """Returns the words of each sentence; a plain text is split at white space.

    Raises:
        DataError: for a sentence without words.
    """
    found = []
    for row, cell in enumerate(table.cells(names[0])):
        sentence = cell.split() if isinstance(cell, str) else list(cell or [])
        if not sentence:
            raise DataError(f"{table.where(row)}: empty text in column '{names[0]}'. Fill it in or remove it.")
        found.append([str(word) for word in sentence])
    return found


def windows(lengths: Sequence[int], room: int) -> list[tuple[int, int, int, int]]:
    """Cuts a sentence into windows that overlap by half, each word being owned by the one that sees most around it.

    Args:
        lengths: the number of tokens of each word.
        room: most tokens a window may have.

    Returns:
        For each window its first and last word, and the first and last word it owns, ends excluded.
    """
    ends = np.cumsum(lengths)
    starts = ends - np.asarray(lengths)
    if ends[-1] <= room:
        return [(0, len(lengths), 0, len(lengths))]
    spans, first = [], 0
    while True:
        last = max(int(np.searchsorted(ends, starts[first] + room, side="right")), first + 1)
        spans.append((first, last))
        if last >= len(lengths):
            break
        first = min(max(int(np.searchsorted(starts, starts[first] + room // 2)), first + 1), last)
    cuts = [0, *((left[1] + right[0] + 1) // 2 for left, right in itertools.pairwise(spans)), len(lengths)]
    return [(*span, cuts[i], cuts[i + 1]) for i, span in enumerate(spans)]


def encode(table: Table, encoding: Encoding, target: Target | None) -> Encoded:
    """Encodes sentences as `token_ids`; the tag of a word stands at its first token, all other weights are 0."""
    tokenizer = encoding.tokenizer
    assert tokenizer is not None
    template = tokenizer.template
    room = encoding.sequence_length - template.overhead(1)
    sentences = words(table, columns(table, encoding.data))
    tags = _tags(table, sentences, encoding, target)
    rows, heads, wanted, owners, whole = [], [], [], [], []
    for number, ids in enumerate(tokenizer.tokenize_words(sentences)):
        ids = [tokens[:room] for tokens in ids]  # a single word longer than a window keeps what fits
        lengths = [len(tokens) for tokens in ids]
        for first, last, own_first, own_last in windows(lengths, room):
            tokens = [token for word in ids[first:last] for token in word]
            row = np.asarray([*template.prefix, *tokens, *template.suffix], np.int32)
            at = len(template.prefix) + np.cumsum([0, *lengths[first : last - 1]])
            owned = at[own_first - first : own_last - first]
            marks, tagged = np.zeros(len(row), np.float32), np.zeros(len(row), np.int32)
            marks[owned] = 1
            tagged[owned] = tags[number][own_first:own_last]
            rows.append(row)
            heads.append(marks)
            wanted.append(tagged)
            owners.append(number)
            whole.append(len(row))
    sizes = np.asarray([len(row) for row in rows], np.int32)
    return Encoded(
        inputs={"token_ids": Ragged.of(rows, np.int32), "segment_starts": template.segment_starts(sizes, sizes)},
        targets=Ragged.of(wanted, np.int32),
        weights=Ragged.of(heads, np.float32),
        padding={"token_ids": tokenizer.pad_id},
        owners=np.asarray(owners, np.int32),
        lengths=np.asarray(whole, np.int32),
        longest=encoding.sequence_length,
    )


def _tags(table: Table, sentences: list[list[str]], encoding: Encoding, target: Target | None) -> Sequence[np.ndarray]:
    if target is None:
        return [np.zeros(len(sentence), np.int32) for sentence in sentences]
    tags = list(targets_.encode(table, target, encoding.data))
    for row, (sentence, found) in enumerate(zip(sentences, tags, strict=True)):
        if len(sentence) != len(found):
            raise DataError(f"{table.where(row)}: {len(sentence)} words but {len(found)} tags.")
    return tags


def join(logits: Sequence[np.ndarray], encoded: Encoded) -> list[np.ndarray]:
    """Returns for each sentence the logits of its words, shape (words, tags), each taken from the window that owns it."""
    assert isinstance(encoded.weights, Ragged) and encoded.owners is not None
    parts: dict[int, list[np.ndarray]] = {}
    for row, owner in enumerate(encoded.owners):
        parts.setdefault(int(owner), []).append(logits[row][: len(encoded.weights[row])][encoded.weights[row] > 0])
    return [np.concatenate(parts[owner]) for owner in sorted(parts)]


TOKEN_CLASSIFICATION = Task(
    name="token_classification",
    summary="a tag for each word, as in named entity recognition",
    modality="text",
    targets="tags",
    metrics={"tags": ("entity_f1", "entity_precision", "entity_recall", "token_accuracy")},
    columns=columns,
    inputs=words,
    encode=encode,
    head="tokens",
    join=join,
)
