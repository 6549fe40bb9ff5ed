"""GLUE's and SuperGLUE's own metrics, by handle."""

from __future__ import annotations

import pytest

from kft.metrics import benchmark_metrics, check

CASES = {
    "glue/cola": ["matthews_correlation"],
    "glue/sst2": ["accuracy"],
    "glue/mrpc": ["f1", "accuracy"],
    "glue/qqp": ["f1", "accuracy"],
    "glue/stsb": ["pearson", "spearmanr"],
    "glue/mnli": ["accuracy"],
    "glue/mnli_matched": ["accuracy"],
    "glue/mnli_mismatched": ["accuracy"],
    "glue/qnli": ["accuracy"],
    "glue/rte": ["accuracy"],
    "glue/wnli": ["accuracy"],
    "glue/ax": ["matthews_correlation"],
    "super_glue/boolq": ["accuracy"],
    "super_glue/cb": ["f1_macro", "accuracy"],
    "super_glue/copa": ["accuracy"],
    "super_glue/rte": ["accuracy"],
    "super_glue/wic": ["accuracy"],
    "super_glue/wsc": ["accuracy"],
    "super_glue/wsc.fixed": ["accuracy"],
    "super_glue/axb": ["matthews_correlation"],
}
OWNERS = {"glue": "nyu-mll", "super_glue": "aps"}


@pytest.mark.parametrize("name", CASES)
def test_a_set_is_scored_as_its_benchmark_reports_it(name: str) -> None:
    owner = OWNERS[name.partition("/")[0]]
    assert benchmark_metrics(f"tfds://{name}") == CASES[name]
    assert benchmark_metrics(f"hf://datasets/{owner}/{name}") == CASES[name]
    check(CASES[name], "values" if name == "glue/stsb" else "labels")


def test_a_version_does_not_matter() -> None:
    assert benchmark_metrics("tfds://glue/mrpc:2.0.0") == ["f1", "accuracy"]


@pytest.mark.parametrize(
    "source",
    ["reviews.csv", "tfds://imdb_reviews", "tfds://glue", "tfds://glue/none", "hf://datasets/else/glue/mrpc"],
)
def test_another_source_has_no_benchmark(source: str) -> None:
    assert benchmark_metrics(source) is None
