"""Metrics of class numbers and of 0/1 arrays, as scikit-learn computes them; 0 where a ratio has no denominator."""

from __future__ import annotations

from typing import Any

import numpy as np

from kft.errors import KftError
from kft.metrics.context import Context
from kft.metrics.metric import Metric, metric


@metric("labels", "multi_label")
def accuracy(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the share of examples predicted right; of multi-label examples every class has to be right."""
    from sklearn import metrics

    return float(metrics.accuracy_score(targets, predictions))


@metric("labels")
def matthews_correlation(targets: Any, predictions: Any, context: Context) -> float:
    """Returns Matthews' correlation coefficient, from -1 to 1; 0 where only one class occurs."""
    from sklearn import metrics

    if len(np.union1d(targets, predictions)) < 2:
        return 0.0
    return float(metrics.matthews_corrcoef(targets, predictions))


def _averaged(score: str, average: str) -> Metric:
    def compute(targets: Any, predictions: Any, context: Context) -> float:
        from sklearn import metrics

        function = getattr(metrics, f"{score}_score")
        return float(function(targets, predictions, average=average, zero_division=0))

    return Metric(compute, ("labels", "multi_label"))


def _binary(score: str) -> Metric:
    def compute(targets: Any, predictions: Any, context: Context) -> float:
        from sklearn import metrics

        _refuse_more_than_two(score, targets, context)
        function = getattr(metrics, f"{score}_score")
        values = function(targets, predictions, labels=[context.positive], average=None, zero_division=0)
        return float(values[0])

    return Metric(compute, ("labels",), two_classes=True)


def _refuse_more_than_two(score: str, targets: Any, context: Context) -> None:
    several = np.ndim(targets) > 1
    if several or len(context.labels) > 2:
        received = "several labels an example" if several else f"{len(context.labels)} classes"
        raise KftError(
            f"Metric '{score}' is for two classes, received {received}. "
            f"Take {score}_macro, {score}_micro or {score}_weighted in train.metrics."
        )


f1 = _binary("f1")
f1_macro = _averaged("f1", "macro")
f1_micro = _averaged("f1", "micro")
f1_weighted = _averaged("f1", "weighted")
precision = _binary("precision")
precision_macro = _averaged("precision", "macro")
precision_micro = _averaged("precision", "micro")
precision_weighted = _averaged("precision", "weighted")
recall = _binary("recall")
recall_macro = _averaged("recall", "macro")
recall_micro = _averaged("recall", "micro")
recall_weighted = _averaged("recall", "weighted")
