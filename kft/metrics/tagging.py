"""Metrics of tagged sentences, as seqeval computes them in its default mode, over all entity types together."""

from __future__ import annotations

import warnings
from typing import Any

from kft.metrics.context import Context
from kft.metrics.metric import metric


@metric("tags")
def entity_f1(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the F1 of entities, an entity being right if its type and both ends are; 0 where there is none."""
    return _entities("f1_score", targets, predictions)


@metric("tags")
def entity_precision(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the share of predicted entities that are right; 0 where none is predicted."""
    return _entities("precision_score", targets, predictions)


@metric("tags")
def entity_recall(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the share of true entities that are predicted right; 0 where there is none."""
    return _entities("recall_score", targets, predictions)


@metric("tags")
def token_accuracy(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the share of words whose tag is right, `O` counted."""
    from seqeval import metrics

    return float(metrics.accuracy_score(targets, predictions))


def _entities(score: str, targets: Any, predictions: Any) -> float:
    from seqeval import metrics

    with warnings.catch_warnings():
        # seqeval warns of each tag outside the B-, I-, O scheme; its count is the same with or without the warning
        warnings.filterwarnings("ignore", message=".* seems not to be NE tag", category=UserWarning)
        return float(getattr(metrics, score)(targets, predictions, average="micro", zero_division=0))
