"""Which metrics the GLUE and SuperGLUE benchmarks report for each of their sets, in the benchmarks' order."""

from __future__ import annotations

_GLUE = {
    "cola": ("matthews_correlation",),
    "sst2": ("accuracy",),
    "mrpc": ("f1", "accuracy"),
    "qqp": ("f1", "accuracy"),
    "stsb": ("pearson", "spearmanr"),
    "mnli": ("accuracy",),
    "mnli_matched": ("accuracy",),
    "mnli_mismatched": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "wnli": ("accuracy",),
    "ax": ("matthews_correlation",),
}
_SUPER_GLUE = {
    "boolq": ("accuracy",),
    "cb": ("f1_macro", "accuracy"),
    "copa": ("accuracy",),
    "rte": ("accuracy",),
    "wic": ("accuracy",),
    "wsc": ("accuracy",),
    "wsc.fixed": ("accuracy",),
    "axb": ("matthews_correlation",),
}
_BENCHMARKS = {
    "tfds://glue/": _GLUE,
    "tfds://super_glue/": _SUPER_GLUE,
    "hf://datasets/nyu-mll/glue/": _GLUE,
    "hf://datasets/aps/super_glue/": _SUPER_GLUE,
}


def benchmark_metrics(source: str) -> list[str] | None:
    """Returns the metrics a benchmark reports for one of its sets, or None for any other source.

    Args:
        source: a handle, as in `tfds://glue/mrpc`; a version after a colon is left out of account.
    """
    for prefix, sets in _BENCHMARKS.items():
        if source.startswith(prefix):
            names = sets.get(source.removeprefix(prefix).partition(":")[0].rstrip("/"))
            return None if names is None else list(names)
    return None
