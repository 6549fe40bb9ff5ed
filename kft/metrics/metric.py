"""A metric as a value: the function, what it serves, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kft.metrics.context import Context

Kind = Literal["labels", "multi_label", "values", "tags", "spans"]
KINDS: tuple[str, ...] = get_args(Kind)
Function = Callable[[Any, Any, Context], float]


@dataclass(frozen=True)
class Metric:
    """A function `(targets, predictions, context) -> float` and what a recipe has to know of it.

    Attributes:
        function: computes the value over a whole split.
        kinds: what it serves: `labels` (class numbers of shape (n,)), `multi_label` (0/1 arrays of shape
            (n, classes)), `values` (numbers of shape (n,)), `tags` (a list of tag names a sentence),
            `spans` (a list of true answers a question, and one answer).
        higher_is_better: false for errors.
        two_classes: whether it is defined for two classes only.
    """

    function: Function
    kinds: tuple[Kind, ...]
    higher_is_better: bool = True
    two_classes: bool = False

    def __call__(self, targets: Any, predictions: Any, context: Context) -> float:
        """Returns the metric over a whole split as a Python float."""
        return float(self.function(targets, predictions, context))


def metric(*kinds: Kind, higher_is_better: bool = True) -> Callable[[Function], Metric]:
    """Returns a decorator that makes a metric of a function."""
    return lambda function: Metric(function, kinds, higher_is_better)
