"""What a metric has to know beside targets and predictions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """The classes that targets and predictions are numbers of.

    Attributes:
        labels: the names of the classes, in the order of their numbers; empty for values.
        positive: the number of the class that binary F1, precision and recall count.
    """

    labels: tuple[str, ...] = ()
    positive: int = 1
