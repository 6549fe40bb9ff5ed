"""Question answering: the part of a context that answers a question; long contexts in windows, nothing cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kft.backbones.tokenizer import Template
from kft.data.encoded import Encoded, Ragged
from kft.data.table import Table
from kft.tasks import spans, text
from kft.tasks.spans import NONE, UNSEEN, Gold, columns
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task


def windows(tokens: int, room: int, shared: int) -> Iterator[tuple[int, int]]:
    """Cuts a context into windows.

    Args:
        tokens: of the context.
        room: most tokens a window may have.
        shared: tokens that a window has in common with the one before; at most half of it.

    Yields:
        For each window its first token and its last one, which is left out.
    """
    start, step = 0, room - min(shared, room // 2)
    while True:
        yield start, min(start + room, tokens)
        if start + room >= tokens:
            return
        start += step


def encode(table: Table, encoding: Encoding, target: Target | None) -> Encoded:
    """Encodes questions and contexts as `token_ids`, and where in its window each answer begins and ends.

    A question keeps at most half of a row. `beside` has what answers are read off: where each token stands in the context,
    the contexts themselves and the true answers, as UTF-8.
    """
    assert encoding.tokenizer is not None
    rows: list[np.ndarray] = []
    starts, offsets, wanted, owners = list[int](), list[np.ndarray](), list[tuple[int, int]](), list[int]()
    contexts, answers = list[str](), list[str]()
    for part in table.slices():
        asked, read = text.texts(part, columns(part, encoding.data))
        golds = [Gold(())] * len(part) if target is None else spans.read(part, str(encoding.data.target), read)
        for question, context, gold in zip(_asked(encoding, asked), _read(encoding, read), golds, strict=True):
            for ids, start, where, places in _windows(encoding, question, *context, gold):
                rows.append(ids)
                starts.append(start)
                offsets.append(where)
                wanted.append(places)
                owners.append(len(contexts))
            contexts.append(context[2])
            answers.append(json.dumps(gold.texts))
    lengths = np.asarray([len(row) for row in rows], np.int32)
    template = encoding.tokenizer.template
    return Encoded(
        inputs={
            "token_ids": Ragged.of(rows, np.int32),
            "segment_starts": template.segment_starts(np.asarray(starts, np.int32), lengths),
        },
        targets=None if target is None else np.asarray(wanted, np.int32).reshape(-1, 2),
        # A weight for each of both places: the loss is a mean over them.
        weights=None if target is None else np.ones((len(rows), 2), np.float32),
        padding={"token_ids": encoding.tokenizer.pad_id},
        owners=np.asarray(owners, np.int32),
        lengths=lengths,
        longest=encoding.sequence_length,
        beside={
            "offsets": Ragged.of(offsets, np.int32)
            if rows
            else Ragged(np.zeros((0, 2), np.int32), np.zeros(1, np.int64)),
            "contexts": _utf8(contexts),
            "answers": _utf8(answers),
        },
    )


def texts_beside(encoded: Encoded, name: str) -> Iterator[str]:
    """Gives the texts that `encode` keeps beside an example's rows."""
    kept = encoded.beside[name]
    assert isinstance(kept, Ragged)
    return (kept[row].tobytes().decode("utf-8") for row in range(len(kept)))


def _utf8(texts: Iterable[str]) -> Ragged:
    return Ragged.of([np.frombuffer(one.encode("utf-8"), np.uint8) for one in texts], np.uint8)


def _asked(encoding: Encoding, questions: Sequence[str]) -> list[list[int]]:
    assert encoding.tokenizer is not None
    most = (encoding.sequence_length - encoding.tokenizer.template.overhead(2)) // 2
    return [ids[:most] for ids in encoding.tokenizer.tokenize(questions)]


def _read(encoding: Encoding, contexts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray, str]]:
    """Gives each context's ids, where each token stands in it, and the context; several questions may have it."""
    assert encoding.tokenizer is not None
    different = list(dict.fromkeys(contexts))
    found = dict(zip(different, encoding.tokenizer.tokenize_with_offsets(different), strict=True))
    return ((*found[context], context) for context in contexts)


def _windows(
    encoding: Encoding, question: list[int], ids: list[int], offsets: np.ndarray, context: str, gold: Gold
) -> Iterator[tuple[np.ndarray, int, np.ndarray, tuple[int, int]]]:
    """Gives the rows of a question: ids, where the second segment starts, where each token stands, and the answer's tokens."""
    assert encoding.tokenizer is not None
    template = encoding.tokenizer.template
    head = [*template.prefix, *question, *template.between]
    room = encoding.sequence_length - len(head) - len(template.suffix)
    for first, last in windows(len(ids), room, encoding.overlap):
        row = np.asarray([*head, *ids[first:last], *template.suffix], np.int32)
        # Where a tokenizer has no special tokens, the question's first one.
        none = len(row) - 1 if template.suffix and not template.prefix else 0
        where = np.full((len(row), 2), UNSEEN, np.int32)
        seen = offsets[first:last]
        where[len(head) : len(head) + last - first] = np.where(seen[:, :1] < seen[:, 1:], seen, UNSEEN)
        where[none] = NONE
        places = spans.tokens_of(gold, len(head), offsets[first:last], none)
        yield row, _second(template, len(head), len(row)), where, places


def _second(template: Template, head: int, length: int) -> int:
    return head - len(template.between) + template.between_first if template.segments else length


QUESTION_ANSWERING = Task(
    name="question_answering",
    summary="the part of a context that answers a question, or that it has no answer",
    modality="text",
    targets="spans",
    metrics={"spans": ("answer_f1", "exact_match")},
    columns=columns,
    inputs=text.texts,
    encode=encode,
    head="spans",
    join=spans.join,
)
