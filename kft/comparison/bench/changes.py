"""What changed between two benches, beyond the noise of their repeats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kft.comparison.bench.figures import FIGURES, Figure, spread
from kft.comparison.bench.rows import measured, score
from kft.comparison.bench.summary import faster
from kft.errors import KftError

SMALLEST = 0.01
RULE = (
    f"A change counts where the ranges of the repeats do not overlap and the medians differ by {SMALLEST:.0%} or more."
)
FREE = ("output", "backend")  # fields of a recipe that change nothing a bench measures


def compare(first: str, second: str) -> dict[str, Any]:
    """Compares two benches figure by figure.

    Args:
        first: a `bench.json`, or the folder that has one; what was before.
        second: the same for what is now.

    Returns:
        `differences`: what else was not the same; `changes`: for each runner and figure both values, the ratio and a
        verdict; `summary`: a sentence.

    Raises:
        KftError: if one of them is no bench.
    """
    a, b = read(first), read(second)
    changes = [change for name in _common(a, b) for change in _changes(name, a, b)]
    return {
        "a": first,
        "b": second,
        "differences": list(differences(a, b)),
        "changes": changes,
        "summary": _summary(changes),
    }


def read(path: str) -> dict[str, Any]:
    """Returns what a `bench.json` holds.

    Raises:
        KftError: if there is none.
    """
    file = Path(path) / "bench.json" if Path(path).is_dir() else Path(path)
    try:
        found = json.loads(file.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise KftError(f"No bench at '{path}'. Give two bench.json, as `kft bench` writes them.") from None
    except (OSError, ValueError) as error:
        raise KftError(f"Cannot read '{file}': {error}. Give two bench.json, as `kft bench` writes them.") from None
    if not isinstance(found, dict) or not {"settings", "runners", "machine"} <= set(found):
        raise KftError(f"'{file}' is not of a bench. Give two bench.json, as `kft bench` writes them.")
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    """Yields what makes the two hard to compare: recipe, settings, machine, versions, runners."""
    one, other = (_flat({k: v for k, v in each["settings"]["recipe"].items() if k not in FREE}) for each in (a, b))
    for name in sorted({*one, *other}):
        if one.get(name) != other.get(name):
            yield f"recipe: {name} is {_text(one.get(name))} in A, {_text(other.get(name))} in B."
    for part, names in (("settings", ("steps", "repeats", "caches")), ("machine", ("processor", "cores"))):
        for name in names:
            if a[part][name] != b[part][name]:
                yield f"{part}: {name} is {_text(a[part][name])} in A, {_text(b[part][name])} in B."
    for name in sorted({*a["versions"], *b["versions"]}):
        if a["versions"].get(name) != b["versions"].get(name):
            yield f"version: {name} is {a['versions'].get(name, 'missing')} in A, {b['versions'].get(name, 'missing')} in B."
    for name in sorted({*measured(a)} ^ {*measured(b)}):
        yield f"runner: {name} has figures in {'A' if name in measured(a) else 'B'} only."


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _common(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [name for name in measured(a) if name in measured(b)]


def _changes(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    one, other = a["runners"][name], b["runners"][name]
    repeats = min(one["repeats"], other["repeats"])
    for figure in FIGURES:
        before, after = one["figures"].get(figure.name), other["figures"].get(figure.name)
        if before and after:
            yield _change(name, figure, before, after, repeats)
    for split, scores in one["quality"].items():
        for metric, before in scores.items():
            after = other["quality"].get(split, {}).get(metric)
            if before and after:
                yield _quality(name, f"{split} {metric}", before, after, repeats)


def _change(
    name: str, figure: Figure, before: Mapping[str, float], after: Mapping[str, float], repeats: int
) -> dict[str, Any]:
    return {
        "runner": name,
        "figure": figure.name,
        "title": figure.title,
        "a": spread(before, figure.unit),
        "b": spread(after, figure.unit),
        "ratio": _ratio(before, after),
        "verdict": judged(before, after, repeats, higher=figure.higher),
    }


def _quality(
    name: str, title: str, before: Mapping[str, float], after: Mapping[str, float], repeats: int
) -> dict[str, Any]:
    metric = title.partition(" ")[2]
    values = {"a": score(before), "b": score(after), "ratio": _ratio(before, after)}
    verdict = judged(before, after, repeats, higher=_is_higher_better(metric))
    return {"runner": name, "figure": title.replace(" ", "."), "title": title, **values, "verdict": verdict}


def _is_higher_better(metric: str) -> bool:
    from kft import metrics

    return metric != "loss" and metrics.higher_is_better(metric)


def _ratio(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    return f"{after['median'] / before['median']:.2f}" if before["median"] else "-"


def judged(before: Mapping[str, float], after: Mapping[str, float], repeats: int, *, higher: bool) -> str:
    """Says whether a figure became better or worse, or stayed within its noise."""
    if before == after:
        return "the same"
    if abs(after["median"] - before["median"]) < SMALLEST * abs(before["median"]):
        return "within the noise"
    if repeats < 2:
        return "one repeat cannot tell"
    rose = faster(after, before, repeats)
    if rose is None:
        return "within the noise"
    return "better" if rose == higher else "worse"


def _summary(changes: list[dict[str, Any]]) -> str:
    better, worse = ([c for c in changes if c["verdict"] == verdict] for verdict in ("better", "worse"))
    if not changes:
        return "The two benches have no runner in common."
    if any(change["verdict"] == "one repeat cannot tell" for change in changes):
        return "One repeat cannot tell a change from noise; run both with --repeats 3."
    if not better and not worse:
        return f"Nothing changed beyond the noise. {RULE}"
    return f"{len(better)} figures became better, {len(worse)} worse, beyond the noise. {RULE}"
