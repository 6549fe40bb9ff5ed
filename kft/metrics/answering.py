"""Metrics of answers as SQuAD's own program counts them (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250; 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from kft.metrics.context import Context
from kft.metrics.metric import metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_MARKS = str.maketrans("", "", string.punctuation)


@metric("spans")
def exact_match(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the share of answers that are one of the true ones, case, articles and punctuation aside."""
    return _mean(targets, predictions, lambda true, said: float(_plain(true) == _plain(said)))


@metric("spans")
def answer_f1(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the mean F1 of the words that an answer has in common with the true one it is most like."""
    return _mean(targets, predictions, _overlap)


def _mean(targets: Sequence[Sequence[str]], predictions: Sequence[str], score: Callable[[str, str], float]) -> float:
    """Returns the mean of the best scores; a question without true answers has the empty one."""
    pairs = zip(targets, predictions, strict=True)
    best = [max(score(true, said) for true in _answered(every)) for every, said in pairs]
    return sum(best) / len(best)


def _answered(texts: Sequence[str]) -> list[str]:
    """Returns the true answers of which something is left; if nothing is, the empty one, which says that there is none."""
    return [text for text in texts if _plain(text)] or [""]


def _overlap(true: str, said: str) -> float:
    wanted, found = _plain(true).split(), _plain(said).split()
    if not wanted or not found:
        return float(wanted == found)
    common = sum((Counter(wanted) & Counter(found)).values())
    return 2 * common / (len(wanted) + len(found))


def _plain(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_MARKS)).split())
