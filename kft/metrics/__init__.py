"""Metrics over a whole split, the same numbers on each backend: scikit-learn's, SciPy's and seqeval's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kft.errors import DataError, KftError, listed, nearest, unknown
from kft.metrics.benchmarks import benchmark_metrics
from kft.metrics.context import Context
from kft.metrics.metric import KINDS, Metric
from kft.registry import Part, Registry

__all__ = [
    "KINDS",
    "METRICS",
    "Context",
    "Metric",
    "benchmark_metrics",
    "check",
    "higher_is_better",
    "metrics_for",
    "score",
]

_CLASSIFICATION = {
    "accuracy": "share of examples predicted right; multi-label: every class right",
    "f1": "F1 of the positive label, two classes",
    "f1_macro": "F1, mean of the classes",
    "f1_micro": "F1, all decisions counted together",
    "f1_weighted": "F1, mean of the classes by their frequency",
    "precision": "precision of the positive label, two classes",
    "precision_macro": "precision, mean of the classes",
    "precision_micro": "precision, all decisions counted together",
    "precision_weighted": "precision, mean of the classes by their frequency",
    "recall": "recall of the positive label, two classes",
    "recall_macro": "recall, mean of the classes",
    "recall_micro": "recall, all decisions counted together",
    "recall_weighted": "recall, mean of the classes by their frequency",
    "matthews_correlation": "Matthews' correlation coefficient",
}
_REGRESSION = {
    "pearson": "Pearson's correlation; nan for constant values",
    "spearmanr": "Spearman's rank correlation; nan for constant values",
    "mse": "mean squared error",
    "rmse": "square root of the mean squared error",
    "mae": "mean absolute error",
    "r2": "coefficient of determination",
}
_TAGGING = {
    "entity_f1": "F1 of whole entities, as seqeval counts them",
    "entity_precision": "precision of whole entities, as seqeval counts them",
    "entity_recall": "recall of whole entities, as seqeval counts them",
    "token_accuracy": "share of words whose tag is right",
}
_ANSWERING = {
    "answer_f1": "F1 of an answer's words, as SQuAD's own program counts it",
    "exact_match": "share of answers that are right as a whole, as SQuAD's own program counts it",
}
_MODULES = {
    "classification": _CLASSIFICATION,
    "regression": _REGRESSION,
    "tagging": _TAGGING,
    "answering": _ANSWERING,
}

METRICS = Registry(
    "metric",
    "kft.metrics",
    {
        name: Part(f"kft.metrics.{module}:{name}", summary)
        for module, summaries in _MODULES.items()
        for name, summary in summaries.items()
    },
)


def score(names: Sequence[str], targets: Any, predictions: Any, context: Context) -> dict[str, float]:
    """Computes metrics over a whole split.

    Args:
        names: metrics of one kind, in the order wanted.
        targets: class numbers (n,), 0/1 arrays (n, classes), values (n,), a list of tag names a sentence, or a
            list of true answers a question.
        predictions: of the same kind and shape; one answer a question.
        context: the classes and the positive one.

    Returns:
        A Python float for each name.

    Raises:
        KftError: if a name is unknown or does not fit the number of classes.
        DataError: if there is nothing to score, or targets and predictions differ in number.
    """
    if len(targets) != len(predictions) or len(targets) == 0:
        raise DataError(
            f"Nothing to score: received {len(targets)} targets and {len(predictions)} predictions; "
            "at least one of each, and as many of the one as of the other, are needed."
        )
    return {name: _load(name)(targets, predictions, context) for name in names}


def higher_is_better(name: str) -> bool:
    """Returns whether a larger value of a metric is the better one.

    Raises:
        KftError: if there is no metric of that name.
    """
    return _load(name).higher_is_better


def metrics_for(kind: str, num_classes: int | None = None) -> list[str]:
    """Returns the names of the metrics that serve a kind of task.

    Args:
        kind: `labels`, `multi_label`, `values`, `tags` or `spans`.
        num_classes: where known, leaves out those for two classes only if there are more.

    Raises:
        KftError: if there is no such kind.
    """
    if kind not in KINDS:
        raise KftError(unknown("kind of metric", kind, KINDS))
    return [name for name in METRICS if _fits(_load(name), kind, num_classes)]


def check(names: Sequence[str], kind: str, num_classes: int | None = None) -> None:
    """Refuses metrics that a task cannot report, before anything is trained.

    Args:
        names: the metrics asked for.
        kind: `labels`, `multi_label`, `values`, `tags` or `spans`.
        num_classes: the number of classes, where known.

    Raises:
        KftError: naming the first one that is unknown or does not fit, and those that do.
    """
    allowed = metrics_for(kind, num_classes)
    for name in names:
        if name not in allowed:
            classes = f" with {num_classes} classes" if num_classes else ""
            state = f"does not fit {kind}{classes}" if name in METRICS else "is unknown"
            raise KftError(
                f"Metric '{name}' {state}.{nearest(name, allowed)} "
                f"Available for {kind}{classes}: {listed(allowed, most=len(allowed))}."
            )


def _fits(metric: Metric, kind: str, num_classes: int | None) -> bool:
    return kind in metric.kinds and not (metric.two_classes and num_classes is not None and num_classes > 2)


def _load(name: str) -> Metric:
    loaded = METRICS.load(name)
    if not isinstance(loaded, Metric):
        raise KftError(
            f"The metric '{name}' at {METRICS[name].path} is a {type(loaded).__name__}, not a kft.metrics.Metric. "
            "Make it one in the package that adds it."
        )
    return loaded
