"""Answers as spans of a context: which tokens they are, and back from logits to text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft.data.encoded import Encoded, Ragged
from kft.data.table import Table, refuse_other_than_text
from kft.errors import DataError
from kft.recipe import Data

# Longest answer in tokens, as BERT's own program for SQuAD has it (Devlin et al. 2019, run_squad.py).
LONGEST = 30
USUAL = ("question", "context")
# Where an answer's place is not said; far enough from any place that white space before the answer makes no difference.
UNSAID = -(10**9)


@dataclass(frozen=True)
class Gold:
    """What a question's true answers are.

    Attributes:
        texts: of all answers; none where the context does not answer the question.
        start: where the first answer begins, in characters of the context; -1 where there is none.
        end: where it ends.
    """

    texts: tuple[str, ...]
    start: int = -1
    end: int = -1


@dataclass(frozen=True)
class Answer:
    """What a model says of a question.

    Attributes:
        text: a part of the context; empty where the model says that there is no answer.
        start: where it begins, in characters of the context.
        end: where it ends.
        probability: of its first token times that of its last one, in the window it was found in.
    """

    text: str
    start: int
    end: int
    probability: float


def read(table: Table, column: str, contexts: Sequence[str]) -> list[Gold]:
    """Returns the true answers of each row.

    A cell has lists `text` and `answer_start` as SQuAD has them, or is a list of such answers, a text, a list of texts, or
    nothing where there is no answer. A text without a place stands where the context has it first.

    Raises:
        DataError: for a cell that is none of these, or an answer that is not in its context; the message has its place.
    """
    return [_gold(table, row, column, cell, contexts[row]) for row, cell in enumerate(table.cells(column))]


def unanswered(table: Table, data: Data) -> int:
    """Sees to it that all true answers of a split are in their contexts, and returns how many questions have none.

    Raises:
        DataError: for what `read` refuses.
    """
    names = columns(table, data)
    refuse_other_than_text(table, names)
    cells, contexts = table.cells(str(data.target)), table.cells(names[1])
    pairs = enumerate(zip(cells, contexts, strict=True))
    return sum(_gold(table, row, str(data.target), cell, context or "").start < 0 for row, (cell, context) in pairs)


def columns(table: Table, data: Data) -> list[str]:
    """Returns the columns of questions and contexts: those the recipe names, or `question` and `context`.

    Raises:
        DataError: if they are not there, or not two.
    """
    names = data.inputs or list(USUAL)
    if len(names) != 2:
        raise DataError(
            f"data.inputs: a column of questions and one of contexts, received {len(names)}: {', '.join(names)}."
        )
    for name in names:
        table.arrow(name)
    return names


def _gold(table: Table, row: int, column: str, cell: Any, context: str) -> Gold:
    answers = _answers(cell)
    if answers is None:
        raise DataError(
            f"{table.where(row)}: column '{column}' has to hold answers, received {str(cell)[:60]!r}. Give a text, or "
            '{"text": [...], "answer_start": [...]} as SQuAD has it.'
        )
    # White space around an answer is no part of it, as it is none of a token.
    answers = [(own.strip(), start + len(own) - len(own.lstrip())) for own, start in answers if own.strip()]
    if not answers:
        return Gold(())
    own, start = answers[0]
    at = _place(context, own, start)
    if at < 0:
        raise DataError(
            f"{table.where(row)}: the answer '{own[:60]}' is not in the context. An answer is a part of it, letter by letter; "
            "correct it or remove the row."
        )
    return Gold(tuple(one for one, _ in answers), at, at + len(own))


def _answers(cell: Any) -> list[tuple[str, int]] | None:
    """Returns texts and where they begin, or `UNSAID`; None for what holds no answers."""
    if cell is None:
        return []
    if isinstance(cell, str):
        return [(cell, UNSAID)]
    if isinstance(cell, dict):
        texts, starts = cell.get("text"), cell.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], starts if isinstance(starts, list) else [starts]
        if not isinstance(texts, list):
            return None
        starts = (
            [UNSAID] * len(texts) if not isinstance(starts, list) else [UNSAID if at is None else at for at in starts]
        )
        whole = all(isinstance(one, str) for one in texts) and all(isinstance(at, int) for at in starts)
        return list(zip(texts, starts, strict=True)) if whole and len(starts) == len(texts) else None
    if isinstance(cell, list):
        found = [_answers(one) for one in cell]
        return None if None in found else [answer for one in found if one is not None for answer in one]
    return None


def _place(context: str, text: str, start: int) -> int:
    """Returns where an answer stands: where it is said to, else where the context has it next to that."""
    if start < 0:
        return context.find(text)
    if context[start : start + len(text)] == text:
        return start
    places = [at for at in (context.find(text, start), context.rfind(text, 0, start + len(text))) if at >= 0]
    return min(places, key=lambda at: abs(at - start), default=-1)


def tokens_of(gold: Gold, first: int, offsets: np.ndarray, none: int) -> tuple[int, int]:
    """Returns the first and last token of an answer in a window; that of no answer where the window has not all of it.

    Args:
        gold: the answer.
        first: the window's first token of the context.
        offsets: where each of the window's tokens of the context begins and ends, in characters, shape (tokens, 2).
        none: the token that stands for no answer.
    """
    if gold.start < 0 or not len(offsets) or offsets[0, 0] > gold.start or offsets[-1, 1] < gold.end:
        return none, none
    # The first token that ends behind where the answer begins, and the last one that begins before it ends.
    start = int(np.searchsorted(offsets[:, 1], gold.start, side="right"))
    end = int(np.searchsorted(offsets[:, 0], gold.end, side="left")) - 1
    return first + start, first + max(start, end)


def join(logits: Sequence[np.ndarray], encoded: Encoded) -> list[np.ndarray]:
    """Returns for each example what its windows say of their tokens.

    Returns:
        An array a question, shape (tokens of all windows, 5): the number of the window, the logits that an answer begins and
        ends at the token, and where the token begins and ends in the context; -1 twice for the one that stands for no answer.
    """
    offsets = encoded.beside["offsets"]
    assert encoded.owners is not None and isinstance(offsets, Ragged)
    parts: dict[int, list[np.ndarray]] = {}
    for row, owner in enumerate(encoded.owners):
        spans, windows = offsets[row], parts.setdefault(int(owner), [])
        seen = np.flatnonzero(spans[:, 0] != UNSEEN)
        scores = np.asarray(logits[row], np.float64)[:, seen].T
        windows.append(np.hstack([np.full((len(seen), 1), len(windows)), scores, spans[seen]]))
    return [np.concatenate(parts[owner]) for owner in sorted(parts)]


# Where a token is no part of the context, and where it stands for no answer.
UNSEEN, NONE = -2, -1


def loss(logits: Sequence[np.ndarray], encoded: Encoded) -> float:
    """Returns the mean over windows of the cross-entropies of first and last token, in float64, padding left out."""
    lengths, targets = encoded.row_lengths, np.asarray(encoded.targets)
    assert lengths is not None
    total = 0.0
    for row, wanted in enumerate(targets):
        wide = np.asarray(logits[row], np.float64)[:, : lengths[row]]
        top = wide.max(axis=-1)
        sums = top + np.log(np.exp(wide - top[:, None]).sum(axis=-1))
        total += float(np.mean(sums - wide[np.arange(2), wanted]))
    return total / len(targets)


def best(tokens: np.ndarray, context: str, *, unanswerable: bool) -> Answer:
    """Returns the best answer to a question: the span with the largest sum of both logits over all its windows.

    Args:
        tokens: what `join` gave for the question.
        context: of the question.
        unanswerable: whether there may be none: then that is said where its own sum is larger in each window, as BERT's own
            program for SQuAD 2.0 does (Devlin et al. 2019, run_squad.py).
    """
    found, score = Answer("", -1, -1, 0.0), -np.inf
    none, said = np.inf, 0.0
    for number in range(int(tokens[-1, 0]) + 1):
        window = tokens[tokens[:, 0] == number]
        inside, outside = window[window[:, 3] != NONE], window[window[:, 3] == NONE]
        first, last, sum_ = _best_pair(inside[:, 1], inside[:, 2])
        if sum_ > score:
            score, start, end = sum_, int(inside[first, 3]), _with_accents(context, int(inside[last, 4]))
            found = Answer(context[start:end], start, end, _share(window, sum_))
        if (sum_ := float(outside[:, 1:3].sum())) < none:
            none, said = sum_, _share(window, sum_)
    return Answer("", -1, -1, said) if unanswerable and none > score else found


def _with_accents(context: str, end: int) -> int:
    """Returns the end of an answer with the accents that stand apart from its last letter: many tokenizers leave them out."""
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return end


def _best_pair(begins: np.ndarray, ends: np.ndarray) -> tuple[int, int, float]:
    """Returns the places of the first and last token of the best span of at most `LONGEST` tokens, and its sum."""
    found = (0, 0, -np.inf)
    for more in range(min(LONGEST, len(begins))):
        sums = begins[: len(begins) - more] + ends[more:]
        at = int(sums.argmax())
        if sums[at] > found[2]:
            found = (at, at + more, float(sums[at]))
    return found


def _share(window: np.ndarray, sum_: float) -> float:
    """Returns the probability of a pair of tokens with a sum of logits, among all pairs of a window."""
    logits = window[:, 1:3]
    top = logits.max(axis=0)
    return float(np.exp(sum_ - (top + np.log(np.exp(logits - top).sum(axis=0))).sum()))
