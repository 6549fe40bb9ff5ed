"""The figures of a bench: what each is called, which way is better, and how it is read off a piece's result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["a second", "seconds", "share", "bytes", "count"]
Read = Callable[[Mapping[str, Any], Mapping[str, float]], "float | None"]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: in `bench.json`.
        title: for people.
        unit: decides how it is written.
        higher: whether a higher value is the better one.
        read: takes it from a piece's result and the speed of the matrix product by device.
    """

    name: str
    title: str
    unit: Unit
    higher: bool
    read: Read


def _rate(part: Mapping[str, Any] | None, what: str) -> float | None:
    if not part or not part.get(what) or not part["seconds"]:
        return None
    return float(part[what] / part["seconds"])


def _utilisation(found: Mapping[str, Any], peak: Mapping[str, float], steady: bool) -> float | None:
    """Useful operations a second over those of the matrix product; steady steps count by their share of the tokens."""
    train, limit = found["train"], peak.get("gpu" if "gpu" in found["device"][0] else "cpu")
    if not train["flop"] or not limit:
        return None
    operations = float(sum(train["flop"].values()))
    if not steady:
        return operations / float(train["seconds"]) / limit
    if not train["steady"] or not train["tokens"]:
        return None
    part = train["steady"]
    return float(operations * part["tokens"] / train["tokens"] / part["seconds"] / limit)


FIGURES: tuple[Figure, ...] = (
    Figure("train_examples", "training, examples/s", "a second", True, lambda f, _: _rate(f["train"], "examples")),
    Figure("train_tokens", "training, tokens/s", "a second", True, lambda f, _: _rate(f["train"], "tokens")),
    Figure(
        "steady_examples",
        "steady state, examples/s",
        "a second",
        True,
        lambda f, _: _rate(f["train"]["steady"], "examples"),
    ),
    Figure(
        "steady_tokens", "steady state, tokens/s", "a second", True, lambda f, _: _rate(f["train"]["steady"], "tokens")
    ),
    Figure("utilisation", "utilisation, whole training", "share", True, lambda f, peak: _utilisation(f, peak, False)),
    Figure(
        "steady_utilisation", "utilisation, steady state", "share", True, lambda f, peak: _utilisation(f, peak, True)
    ),
    Figure(
        "predict_examples", "prediction, examples/s", "a second", True, lambda f, _: _rate(f["predict"], "examples")
    ),
    Figure("predict_tokens", "prediction, tokens/s", "a second", True, lambda f, _: _rate(f["predict"], "tokens")),
    Figure("to_first_step", "command to first step", "seconds", False, lambda f, _: f["to_first_step"]),
    Figure("compile", "compile or trace", "seconds", False, lambda f, _: f["train"]["compile"]),
    Figure("first_step", "first step", "seconds", False, lambda f, _: f["train"]["first_step"]),
    Figure(
        "steady_step",
        "steady step",
        "seconds",
        False,
        lambda f, _: f["train"]["steady"] and f["train"]["steady"]["step"],
    ),
    Figure("train_seconds", "training", "seconds", False, lambda f, _: f["train"]["seconds"]),
    Figure("all_seconds", "all phases", "seconds", False, lambda f, _: float(sum(f["phases"].values()))),
    Figure("host_memory", "peak memory", "bytes", False, lambda f, _: f["memory"]["host"]),
    Figure("gpu_memory", "peak memory of the GPU", "bytes", False, lambda f, _: f["memory"]["gpu"]),
    Figure("shapes", "shapes of batches", "count", False, lambda f, _: f["train"]["shapes"]),
)
BY_NAME = {figure.name: figure for figure in FIGURES}


def written(value: float | None, unit: Unit) -> str:
    """Returns a value as people write it; `-` for none."""
    if value is None:
        return "-"
    scale, name = _scale(value, unit)
    return _number(value * scale, unit) + name


def spread(value: Mapping[str, float] | None, unit: Unit) -> str:
    """Returns a median in people's units, and the range of the repeats in the same unit where they differ."""
    if value is None:
        return "-"
    scale, name = _scale(value["median"], unit)
    middle, low, high = (_number(value[which] * scale, unit) for which in ("median", "low", "high"))
    return f"{middle}{name}" if low == high else f"{middle}{name} ({low} to {high})"


def compact(value: Mapping[str, float] | None, unit: Unit) -> str:
    """Returns a median in people's units, and half the range of the repeats as a share of it."""
    if value is None:
        return "-"
    half = (value["high"] - value["low"]) / 2
    share = f" ±{half / value['median']:.0%}" if half >= 0.005 * value["median"] > 0 else ""
    return written(value["median"], unit) + share


def _scale(value: float, unit: Unit) -> tuple[float, str]:
    if unit == "bytes":
        return (1e-9, " GB") if value >= 1e9 else (1e-6, " MB")
    if unit == "share":
        return 100.0, "%"
    if unit == "seconds":
        return (1.0, " s") if value >= 0.1 else (1000.0, " ms")
    return 1.0, ""


def _number(value: float, unit: Unit) -> str:
    if unit == "count":
        return f"{value:.0f}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
