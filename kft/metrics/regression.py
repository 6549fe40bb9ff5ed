"""Metrics of values, in float64, as SciPy and scikit-learn compute them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kft.errors import RunFailed
from kft.metrics.context import Context
from kft.metrics.metric import metric


@metric("values")
def pearson(targets: Any, predictions: Any, context: Context) -> float:
    """Returns Pearson's correlation coefficient; nan for constant values or fewer than two, where it is undefined."""
    return _correlation("pearsonr", targets, predictions)


@metric("values")
def spearmanr(targets: Any, predictions: Any, context: Context) -> float:
    """Returns Spearman's rank correlation; nan for constant values or fewer than two, where it is undefined."""
    return _correlation("spearmanr", targets, predictions)


@metric("values", higher_is_better=False)
def mse(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the mean squared error."""
    from sklearn import metrics

    return float(metrics.mean_squared_error(*_values(targets, predictions)))


@metric("values", higher_is_better=False)
def rmse(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the square root of the mean squared error."""
    from sklearn import metrics

    return float(metrics.root_mean_squared_error(*_values(targets, predictions)))


@metric("values", higher_is_better=False)
def mae(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the mean absolute error."""
    from sklearn import metrics

    return float(metrics.mean_absolute_error(*_values(targets, predictions)))


@metric("values")
def r2(targets: Any, predictions: Any, context: Context) -> float:
    """Returns the coefficient of determination; nan for fewer than two values, where it is undefined."""
    from sklearn import metrics

    truth, guess = _values(targets, predictions)
    return float(metrics.r2_score(truth, guess)) if len(truth) > 1 else float("nan")


def _correlation(name: str, targets: Any, predictions: Any) -> float:
    from scipy import stats

    truth, guess = _values(targets, predictions)
    if len(truth) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return float(getattr(stats, name)(truth, guess).statistic)


def _values(targets: Any, predictions: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    truth = np.asarray(targets, np.float64).reshape(-1)
    guess = np.asarray(predictions, np.float64).reshape(-1)
    if wrong := int(np.sum(~np.isfinite(guess))):
        raise RunFailed(
            f"{wrong} of {len(guess)} predictions are not finite numbers. "
            "Train again with a lower train.learning_rate, or with train.precision=float32."
        )
    return truth, guess
