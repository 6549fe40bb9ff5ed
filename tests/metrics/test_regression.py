"""Metrics of values are SciPy's and scikit-learn's numbers, without their warnings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as truth

from kft.errors import RunFailed
from kft.metrics import Context, score

NONE = Context()
EXPECTED = {
    "pearson": lambda targets, predictions: stats.pearsonr(targets, predictions).statistic,
    "spearmanr": lambda targets, predictions: stats.spearmanr(targets, predictions).statistic,
    "mse": truth.mean_squared_error,
    "rmse": truth.root_mean_squared_error,
    "mae": truth.mean_absolute_error,
    "r2": truth.r2_score,
}


def _draw() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    targets = np.round(generator.uniform(0, 5, 150), 1)  # rounded, so that ranks are tied
    return targets, targets + generator.normal(0, 1, 150)


@pytest.mark.parametrize("name", EXPECTED)
def test_values_are_scipys_and_scikit_learns(name: str) -> None:
    targets, predictions = _draw()
    found = score([name], targets, predictions, NONE)[name]
    assert type(found) is float
    assert found == pytest.approx(EXPECTED[name](targets, predictions), abs=1e-12)


@pytest.mark.parametrize("name", EXPECTED)
def test_float32_predictions_in_a_column_count_as_values(name: str) -> None:
    targets, predictions = _draw()
    column = predictions.astype(np.float32)[:, None]
    expected = EXPECTED[name](targets, column[:, 0].astype(np.float64))
    assert score([name], targets, column, NONE)[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["pearson", "spearmanr"])
@pytest.mark.filterwarnings("error")
def test_the_correlation_of_a_constant_is_nan_in_silence(name: str) -> None:
    assert math.isnan(score([name], [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], NONE)[name])


@pytest.mark.parametrize("name", ["pearson", "spearmanr", "r2"])
@pytest.mark.filterwarnings("error")
def test_one_value_alone_has_no_correlation(name: str) -> None:
    assert math.isnan(score([name], [1.0], [2.0], NONE)[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_predictions_that_are_not_finite_are_told(name: str) -> None:
    with pytest.raises(RunFailed, match="2 of 3 predictions are not finite numbers.*learning_rate"):
        score([name], [1.0, 2.0, 3.0], [1.0, math.nan, math.inf], NONE)
