"""What the pieces of a bench say together: median and spread of each figure, and which runner is faster, if any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from kft.comparison.bench.figures import FIGURES
from kft.comparison.bench.figures import spread as said
from kft.comparison.bench.settings import PEAK, Piece, Settings

RULE = (
    "A runner is called faster only if its slowest repeat beats the other's fastest one. "
    "One repeat cannot tell speed from noise."
)
Results = Mapping[Piece, Mapping[str, Any]]


def summarise(settings: Settings, done: Results, missing: Mapping[str, str]) -> dict[str, Any]:
    """Returns what `bench.json` holds, but for machine and date.

    Args:
        settings: what was to be compared.
        done: what the pieces have left.
        missing: runners that cannot run here, with the reason.
    """
    peaks = [values["figures"] for piece, values in done.items() if piece.runner == PEAK and "figures" in values]
    peak = {device: max(speeds) for device in ("cpu", "gpu") if (speeds := [p[device] for p in peaks if p[device]])}
    runners = {name: _row(name, settings, done, missing, peak) for name in settings.runners}
    return {
        "format": 1,
        "settings": settings.dump(),
        "rule": RULE,
        "verdict": verdict(runners, settings),
        "matrix_product": {"operations_per_second": peak, "library": peaks[0]["library"] if peaks else None},
        "runners": runners,
        "pieces": [{"runner": piece.runner, "repeat": piece.repeat, **values} for piece, values in done.items()],
        "versions": _versions(done),
    }


def spread(values: Sequence[float | None]) -> dict[str, float] | None:
    """Returns median, lowest and highest of some values, or None where there are none."""
    known = [value for value in values if value is not None]
    return {"median": median(known), "low": min(known), "high": max(known)} if known else None


def _row(
    name: str, settings: Settings, done: Results, missing: Mapping[str, str], peak: Mapping[str, float]
) -> dict[str, Any]:
    mine = [values for piece, values in done.items() if piece.runner == name]
    found = [values["figures"] for values in mine if "figures" in values]
    failed = [values["reason"] for values in mine if "reason" in values]
    reason = None if found else missing.get(name) or (failed[0] if failed else "It was not run.")
    notes = [f"{len(failed)} of {settings.repeats} repeats failed: {failed[0]}"] if found and failed else []
    return {
        "reason": reason,
        "repeats": len(found),
        "notes": list(dict.fromkeys([*notes, *(note for figures in found for note in figures.get("notes", []))])),
        "figures": {figure.name: spread([figure.read(figures, peak) for figures in found]) for figure in FIGURES},
        "phases": _medians([figures["phases"] for figures in found]),
        "quality": _quality([figures["quality"] for figures in found if figures.get("quality")]),
    }


def _medians(phases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in phases for name in each)
    return {name: median(each.get(name, 0.0) for each in phases) for name in names}


def _quality(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float] | None]]:
    splits = found[0] if found else {}
    return {
        split: {name: spread([each[split].get(name) for each in found]) for name in scores}
        for split, scores in splits.items()
    }


def _versions(done: Results) -> dict[str, str]:
    found: dict[str, str] = {}
    for values in done.values():
        found |= values.get("figures", {}).get("versions", {})
    return found


def faster(one: Mapping[str, float] | None, other: Mapping[str, float] | None, repeats: int) -> bool | None:
    """Says whether one spread lies wholly above the other (True), below (False), or whether nobody can tell (None)."""
    if one is None or other is None or repeats < 2:
        return None
    if one["low"] > other["high"]:
        return True
    return False if one["high"] < other["low"] else None


def verdict(runners: Mapping[str, Mapping[str, Any]], settings: Settings) -> dict[str, Any]:
    """Returns the sentences that the figures allow.

    A quick look is judged by its steady steps: it has as much compiling as the whole training, and few steps to make up
    for it.

    Returns:
        `headline`: of the fastest training; `sentences`: of each comparison that a reader will ask for; `winner`: a
        runner's name, or None where there is none or none can be told.
    """
    figure = "train_examples" if settings.steps is None else "steady_examples"
    ran = {name: row for name, row in runners.items() if row["figures"][figure]}
    order = sorted(ran, key=lambda name: -_median(ran[name], figure))
    if not order:
        return {"headline": "Nothing could be measured.", "winner": None, "sentences": []}
    headline, winner = _headline(order, ran, figure)
    best = next((name for name in order if name in settings.backends), None)
    sentences = [_pair(best, name, ran, figure, "trains") for name in settings.references if name in ran and best]
    predicting = sorted(ran, key=lambda name: -_median(ran[name], "predict_examples"))
    ours = [name for name in predicting if name in settings.backends]
    others = [name for name in predicting if name not in ours[:1]]
    if ours and others:
        # The references predict alike: their pipeline is the same.
        beside = next((name for name in settings.references if name in ran), others[0])
        sentences.append(_pair(ours[0], beside, ran, "predict_examples", "predicts"))
    return {"headline": headline, "winner": winner, "sentences": sentences}


def _headline(order: Sequence[str], ran: Mapping[str, Mapping[str, Any]], figure: str) -> tuple[str, str | None]:
    best, rate = order[0], _said(ran[order[0]], figure)
    if len(order) == 1:
        return f"{best} trains {rate} examples/s; there is nothing to compare it with.", None
    second = max(order[1:], key=lambda name: ran[name]["figures"][figure]["high"])
    beside = f"{best} {rate} and {second} {_said(ran[second], figure)} examples/s"
    repeats = min(ran[name]["repeats"] for name in order)
    if repeats < 2:
        return f"One repeat cannot tell speed from noise: {beside}.", None
    if faster(ran[best]["figures"][figure], ran[second]["figures"][figure], repeats):
        ratio = _ratio(best, order[1], ran, figure)
        return f"{best} trains fastest: {rate} examples/s, {ratio} times {order[1]}.", best
    return f"Too noisy to name a winner: {beside} overlap.", None


def _pair(one: str, other: str, ran: Mapping[str, Mapping[str, Any]], figure: str, does: str) -> str:
    spreads = ran[one]["figures"][figure], ran[other]["figures"][figure]
    repeats = min(ran[one]["repeats"], ran[other]["repeats"])
    if None in spreads:
        return f"{one} {does}; {other} has no figure to compare it with."
    ratio = f"{_ratio(one, other, ran, figure)} times as fast as {other}"
    said = f"{_said(ran[one], figure)} against {_said(ran[other], figure)} examples/s"
    if repeats < 2:
        return f"In one repeat {one} {does} {ratio} ({said})."
    if faster(*spreads, repeats) is None:
        return f"{one} {does} about as fast as {other}: the repeats overlap ({said})."
    return f"{one} {does} {ratio} ({said})."


def _median(row: Mapping[str, Any], figure: str) -> float:
    found = row["figures"][figure]
    return float(found["median"]) if found else 0.0


def _ratio(one: str, other: str, ran: Mapping[str, Mapping[str, Any]], figure: str) -> str:
    return f"{_median(ran[one], figure) / _median(ran[other], figure):.2f}"


def _said(row: Mapping[str, Any], figure: str) -> str:
    return said(row["figures"][figure], "a second")
