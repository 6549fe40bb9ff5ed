"""The tables of a bench, as text; terminal and page show the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kft.comparison.bench.figures import FIGURES, compact, spread

Table = tuple[list[str], list[list[str]]]
PHASES = (
    "import",
    "load data",
    "load model",
    "encode",
    "build",
    "frozen part",
    "compile",
    "train",
    "evaluate",
    "save",
)


def measured(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the runners that have figures."""
    return {name: row for name, row in found["runners"].items() if row["reason"] is None}


def figures(found: Mapping[str, Any], *, narrow: bool = False) -> Table:
    """Returns each figure that some runner has, as median and range, or narrower as median and spread."""
    write, head = (compact, "median ± half the range") if narrow else (spread, "median (range)")
    runners = measured(found)
    lines = []
    quick = found["settings"]["steps"] is not None
    for figure in FIGURES:
        if quick and figure.name in WHOLE:
            continue
        values = [row["figures"][figure.name] for row in runners.values()]
        if any(values):
            lines.append([figure.title, *(write(value, figure.unit) for value in values)])
    return [head, *runners], lines


def phases(found: Mapping[str, Any]) -> Table:
    """Returns the median seconds of each phase, a column a runner."""
    runners = measured(found)
    names = [name for name in PHASES if any(row["phases"].get(name) for row in runners.values())]
    lines = [
        [NAMES.get(name, name), *(f"{row['phases'].get(name, 0.0):.1f}" for row in runners.values())] for name in names
    ]
    if lines:
        lines.append(["all", *(f"{sum(row['phases'].values()):.1f}" for row in runners.values())])
    return ["seconds", *runners], lines


# Few steps have as much compiling to make up for as the whole training: over all of them these would mislead.
WHOLE = ("train_examples", "train_tokens", "utilisation", "train_seconds", "all_seconds")
NAMES = {"compile": "compile or trace", "train": "train, the rest"}


def quality(found: Mapping[str, Any]) -> Table:
    """Returns the metrics of each split after the whole training, a column a runner."""
    runners = measured(found)
    named = dict.fromkeys(
        (split, metric) for row in runners.values() for split, scores in row["quality"].items() for metric in scores
    )
    lines = []
    for split, metric in named:
        values = [row["quality"].get(split, {}).get(metric) for row in runners.values()]
        lines.append([f"{split} {metric}", *(score(value) for value in values)])
    return ["quality", *runners], lines


def score(value: Mapping[str, float] | None) -> str:
    """Returns a metric with its range where repeats differ."""
    if value is None:
        return "-"
    if f"{value['low']:.4f}" == f"{value['high']:.4f}":
        return f"{value['median']:.4f}"
    return f"{value['median']:.4f} ({value['low']:.4f} to {value['high']:.4f})"


def reasons(found: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    """Returns the runners without figures, those of one reason together, with the reason."""
    said: dict[str, list[str]] = {}
    for name, row in found["runners"].items():
        if row["reason"] is not None:
            said.setdefault(row["reason"], []).append(name)
    return [(", ".join(names), reason) for reason, names in said.items()]


def notes(found: Mapping[str, Any]) -> list[str]:
    """Returns what a reader has to know to read the figures aright."""
    settings = found["settings"]
    lines = [found["rule"]]
    if settings["steps"] is not None:
        lines.append(
            f"A quick look: {settings['steps']} training steps, in which every length comes as often as in the whole "
            "training; quality is left out."
        )
    else:
        lines.append("All train every epoch and are judged by their last weights.")
    if settings["caches"] == "fresh":
        lines.append("Every process began with empty caches: nothing encoded, nothing compiled.")
    peak = found["matrix_product"]
    speeds = ", ".join(
        f"{value / 1e9:,.0f} GFLOP/s ({device})" for device, value in peak["operations_per_second"].items()
    )
    if speeds:
        lines.append(
            f"Utilisation: the matrix products the job cannot do without, no padding, over the {speeds} that a plain "
            f"float32 product reached in the same run ({peak['library']})."
        )
    lines.append("Prediction counts from raw examples to logits, the second time, with everything compiled.")
    said: dict[str, list[str]] = {}
    for name, row in found["runners"].items():
        for note in row["notes"]:
            said.setdefault(note, []).append(name)
    return lines + [f"{', '.join(names)}: {note}" for note, names in said.items()]
