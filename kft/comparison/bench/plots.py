"""The plots of a bench as SVG to stand in a page; text and lines take the page's own colour, so they suit light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from kft.comparison.bench.rows import NAMES, PHASES, measured

COLOURS = {
    "tensorflow": "#e08a1e",
    "torch": "#d6402b",
    "jax": "#3b82d6",
    "transformers": "#8a63c9",
    "transformers-grouped": "#2f9e77",
}
PHASE_COLOURS = (
    "#7f8c9b",
    "#a3b1bf",
    "#5b7fa6",
    "#7fb3d5",
    "#9ccfc4",
    "#8f7fb5",
    "#e0a458",
    "#3f8f6b",
    "#b07aa1",
    "#c9b458",
)
INK = "#010203"  # stands for the page's own colour until the SVG is written
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
}
WIDTH = 7.6


def every(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns title and SVG of each plot that the figures of a bench allow."""
    kinds: tuple[tuple[str, Callable[[Mapping[str, Any]], Figure | None]], ...] = (
        ("Training speed", speed),
        ("Prediction speed", prediction),
        ("Where the seconds go", phases),
        ("Loss over seconds of training", losses),
        ("Quality beside speed", quality),
    )
    drawn = []
    with matplotlib.rc_context(STYLE):
        for title, draw in kinds:
            figure = draw(found)
            if figure is not None:
                drawn.append((title, svg(figure, title)))
    return drawn


def svg(figure: Figure, title: str) -> str:
    """Returns a figure as an SVG element that can stand in HTML as it is."""
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):  # names inside two plots of a page are not to meet
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href").replace(INK, "currentColor")
    text = re.sub(r'(id="|url\(#|href="#)', lambda match: f"{match[1]}{_slug(title)}-", text)
    text = re.sub(
        r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', text, count=1
    )
    return text


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def speed(found: Mapping[str, Any]) -> Figure | None:
    """Draws training examples/s of each runner, over all and in the steady state, with their ranges."""
    names = {"train_examples": "whole training", "steady_examples": "steady state"}
    if found["settings"]["steps"] is not None:
        names.pop("train_examples")
    return _bars(measured(found), names, _unit(found))


def _unit(found: Mapping[str, Any]) -> str:
    several = found["settings"]["repeats"] > 1
    return "examples/s, median; the line is the range of the repeats" if several else "examples/s, one repeat"


def prediction(found: Mapping[str, Any]) -> Figure | None:
    """Draws prediction examples/s of each runner with their ranges."""
    return _bars(measured(found), {"predict_examples": "prediction"}, _unit(found))


def _bars(runners: Mapping[str, Any], figures: Mapping[str, str], label: str) -> Figure | None:
    rows = [(name, row["figures"]) for name, row in runners.items() if any(row["figures"][f] for f in figures)]
    if not rows:
        return None
    figure, axes = _axes(0.5 + 0.34 * len(rows) * len(figures) + 0.2 * len(rows))
    place = {name: -at for at, (name, _) in enumerate(rows)}
    high = 0.8 / len(figures)
    for number, (kind, title) in enumerate(figures.items()):
        for name, values in rows:
            value = values[kind]
            if value is None:
                continue
            at = place[name] + 0.4 - high * (number + 0.5)
            axes.barh(at, value["median"], high * 0.88, color=colour(name), alpha=1.0 if number == 0 else 0.55)
            if value["low"] < value["high"]:
                error = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
                axes.errorbar(value["median"], at, xerr=error, color=INK, capsize=3, linewidth=1)
            words = f"{value['median']:,.0f}" if value["median"] >= 100 else f"{value['median']:.1f}"
            words += f" {title}" if len(figures) > 1 else ""
            axes.annotate(words, (value["high"], at), (6, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(list(place.values()), list(place))
    axes.set_xlabel(label)
    axes.set_xlim(0, 1.35 * max(values[kind]["high"] for _, values in rows for kind in figures if values[kind]))
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    return figure


def phases(found: Mapping[str, Any]) -> Figure | None:
    """Draws the seconds of all phases of each runner, one on top of the other."""
    runners = measured(found)
    if not runners:
        return None
    figure, axes = _axes(0.9 + 0.45 * len(runners))
    names = list(runners)
    left = [0.0] * len(names)
    for phase, shade in zip(PHASES, PHASE_COLOURS, strict=True):
        seconds = [runners[name]["phases"].get(phase, 0.0) for name in names]
        if any(seconds):
            axes.barh(
                [-at for at in range(len(names))], seconds, 0.6, left=left, color=shade, label=NAMES.get(phase, phase)
            )
            left = [before + more for before, more in zip(left, seconds, strict=True)]
    axes.set_yticks([-at for at in range(len(names))], names)
    axes.set_xlabel("seconds, medians of the repeats")
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=5, fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def losses(found: Mapping[str, Any]) -> Figure | None:
    """Draws the training loss of each runner's first repeat over the seconds of its training."""
    curves = _curves(found)
    if not curves:
        return None
    figure, axes = _axes(2.9)
    for name, points in curves.items():
        seconds, values = zip(*points, strict=True)
        axes.plot(seconds, values, color=colour(name), linewidth=1.4, label=name)
    axes.set_xlabel("seconds since the training began")
    axes.set_ylabel("loss")
    axes.grid()
    figure.legend(loc="outside upper center", ncols=5, fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def _curves(found: Mapping[str, Any]) -> dict[str, Sequence[tuple[float, float]]]:
    curves: dict[str, Sequence[tuple[float, float]]] = {}
    for piece in sorted(found["pieces"], key=lambda piece: piece["repeat"]):
        points = piece.get("figures", {}).get("train", {}).get("losses", [])
        if len(points) > 2:
            curves.setdefault(piece["runner"], points)
    return {name: curves[name] for name in found["runners"] if name in curves}


def quality(found: Mapping[str, Any]) -> Figure | None:
    """Draws the first metric of validation, or of test, of every runner over its speed."""
    points = quality_points(found)
    if not points:
        return None
    figure, axes = _axes(2.6)
    for name, (_, speed_, value) in points.items():
        error = [[[each["median"] - each["low"]], [each["high"] - each["median"]]] for each in (speed_, value)]
        axes.errorbar(
            speed_["median"],
            value["median"],
            xerr=error[0],
            yerr=error[1],
            fmt="o",
            color=colour(name),
            capsize=2,
            label=name,
        )
    axes.set_xlabel("training, examples/s")
    axes.set_ylabel(next(iter(points.values()))[0])
    axes.set_xlim(left=0)
    axes.margins(y=0.3)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid()
    figure.legend(loc="outside upper center", ncols=5, fontsize=9, handlelength=1.2, columnspacing=1.2)
    return figure


def quality_points(found: Mapping[str, Any]) -> dict[str, tuple[str, Mapping[str, float], Mapping[str, float]]]:
    """Returns for each runner with quality the metric's title, the spread of its speed and that of the metric."""
    points = {}
    for name, row in measured(found).items():
        for split, scores in row["quality"].items():
            metric = next((metric for metric in scores if metric != "loss"), None)
            if metric and scores[metric] and row["figures"]["train_examples"]:
                points[name] = (f"{split} {metric}", row["figures"]["train_examples"], scores[metric])
                break
    return points


def colour(name: str) -> str:
    """Returns the colour of a runner, the same in every plot."""
    return COLOURS.get(name, "#888888")


def _axes(height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()
