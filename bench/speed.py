"""The rows of the Speed table: what each is measured against, what it is to reach, and what the pieces say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

from kft.comparison.bench.figures import BY_NAME

DEFAULT, GROUPED = "transformers", "transformers-grouped"
JOB = "MRPC, MiniLM, 3 epochs, batch 32, ≤ 128 tokens: examples/s over the whole training"
EACH_BACKEND = {"torch": 1.0, "jax": 0.9, "tensorflow": 0.8}
UTILISATION = {"torch": 0.70, "jax": 0.55}
FIRST_STEP = {"torch": 8.0, "jax": 10.0, "tensorflow": 20.0}
BLOCKS, TRAINED_BLOCKS = 6, 2  # of MiniLM-L6, and of `trainable: top:2`
MORE_MEMORY, ROWS_A_SECOND = 300e6, 20_000
PLAN_OFF = 0.25
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: is measured.
        against: what it is compared with.
        reach: what it is to reach, for people.
        values: one a repeat, in the unit of `goal`.
        goal: the number to reach.
        higher: whether to reach it is to be at or above it.
        unit: stands behind a value.
        note: what the values were made of, or why there are none.
    """

    what: str
    against: str
    reach: str
    values: Sequence[float] = ()
    goal: float = 0.0
    higher: bool = True
    unit: str = " x"
    note: str = ""

    @property
    def measured(self) -> str:
        """The median, and the range of the repeats where there are several, with the note."""
        if not self.values:
            return f"not measured{self.note and ': ' + self.note}"
        text = f"{number(median(self.values))}{self.unit}"
        if len(self.values) > 1:
            text += f" ({number(min(self.values))} to {number(max(self.values))})"
        return text + (self.note and f"; {self.note}")

    @property
    def reached(self) -> str:
        """Whether the median reaches the goal, and in how many repeats if they do not agree."""
        if not self.values:
            return "-"
        verdict = "yes" if self._reaches(median(self.values)) else "no"
        hits = sum(map(self._reaches, self.values))
        return verdict if hits in (0, len(self.values)) else f"{verdict} (in {hits} of {len(self.values)} repeats)"

    def _reaches(self, value: float) -> bool:
        return value >= self.goal if self.higher else value <= self.goal

    def dump(self) -> dict[str, Any]:
        """Returns the row as JSON values."""
        spread = None
        if self.values:
            spread = {"median": median(self.values), "low": min(self.values), "high": max(self.values)}
        return {**asdict(self), "spread": spread, "measured": self.measured, "reached": self.reached}


def number(value: float) -> str:
    """Returns a number with about three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def of_repeats(found: Found, runner: str, figure: str) -> dict[int, float]:
    """Returns a figure of a runner by repeat."""
    peak = found["matrix_product"]["operations_per_second"]
    mine = [piece for piece in found["pieces"] if piece["runner"] == runner and "figures" in piece]
    values = {piece["repeat"]: BY_NAME[figure].read(piece["figures"], peak) for piece in mine}
    return {repeat: value for repeat, value in values.items() if value is not None}


def ratios(
    found: Found, runner: str, references: Sequence[str], figure: str, choose: Callable[..., float] = max
) -> list[float]:
    """Returns a runner's figure over that of the references in the same repeat, which ran beside it.

    Args:
        found: a `bench.json`.
        runner: a backend.
        references: those of them that have the figure are compared with.
        figure: its name.
        choose: which of several references counts.
    """
    beside = [of_repeats(found, name, figure) for name in references]
    return [
        value / choose(others)
        for repeat, value in of_repeats(found, runner, figure).items()
        if (others := [each[repeat] for each in beside if repeat in each])
    ]


def training(found: Found | None) -> list[Row]:
    """Returns the rows about the speed of training, from the bench of it."""
    figure = rate_of(found)
    best = best_of(found, figure)
    name = f"{JOB}, the best backend ({best or 'none yet'})"
    rows = [
        _ratio(found, best, [DEFAULT], figure, Row(name, "transformers Trainer, its defaults", "≥ 1.6 x", goal=1.6)),
        _ratio(
            found,
            best,
            [GROUPED],
            figure,
            Row("the same", "transformers Trainer, grouped by length, fused AdamW", "≥ 1.25 x", goal=1.25),
        ),
    ]
    for backend, goal in EACH_BACKEND.items():
        row = Row(f"the same, {backend}", "the better of the two", f"≥ {goal} x", goal=goal)
        rows.append(_ratio(found, backend, [DEFAULT, GROUPED], figure, row))
    return [*rows, *(_utilisation(found, backend, goal) for backend, goal in UTILISATION.items())]


def rate_of(found: Found | None) -> str:
    """Returns the figure that tells training speed: of few steps only the steady ones say anything."""
    return "steady_examples" if found is not None and found["settings"]["steps"] is not None else "train_examples"


def best_of(found: Found | None, figure: str) -> str | None:
    """Returns the backend with the highest median of a figure, or None where none has it."""
    if found is None:
        return None
    values = {name: list(of_repeats(found, name, figure).values()) for name in found["settings"]["backends"]}
    known = {name: median(each) for name, each in values.items() if each}
    return max(known, key=lambda name: known[name]) if known else None


def _ratio(
    found: Found | None,
    runner: str | None,
    references: Sequence[str],
    figure: str,
    row: Row,
    choose: Callable[..., float] = max,
) -> Row:
    if found is None:
        return row
    if runner is None:
        return replace(row, note="no backend came to its end")
    values = ratios(found, runner, references, figure, choose)
    if not values:
        return replace(row, note=_why_not(found, [runner, *references]))
    mine = median(of_repeats(found, runner, figure).values())
    others = [median(each.values()) for name in references if (each := of_repeats(found, name, figure))]
    scale, unit = (1e-6, "MB") if BY_NAME[figure].unit == "bytes" else (1.0, "examples/s")
    note = f"{number(mine * scale)} against {number(choose(others) * scale)} {unit}"
    return replace(row, values=values, note=note)


def _why_not(found: Found, runners: Sequence[str]) -> str:
    reasons = {name: found["runners"].get(name, {"reason": "not among its runners"})["reason"] for name in runners}
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items() if reason) or "no figure"


def _utilisation(found: Found | None, backend: str, goal: float) -> Row:
    what = f"useful matrix FLOP (no padding counted) over the measured GEMM peak, {backend}"
    row = Row(what, "limit 1.00", f"≥ {goal:.2f}", goal=goal, unit="")
    if found is None:
        return row
    quick = found["settings"]["steps"] is not None
    values = list(of_repeats(found, backend, "steady_utilisation" if quick else "utilisation").values())
    steady = list(of_repeats(found, backend, "steady_utilisation").values())
    if not values:
        return replace(row, note=_why_not(found, [backend]))
    note = "" if quick or not steady else f"whole training; {number(median(steady))} in the steady state"
    return replace(row, values=values, note=note)


def frozen(found: Found | None, trainable: str, backends: Sequence[str]) -> list[Row]:
    """Returns the rows of a training with a frozen part, one a backend, from the bench of it.

    What the first epoch needs more is the frozen part, computed once. By operations a block's forward pass counts one and
    its backward pass two, so of `top:N` the ratio cannot exceed (frozen + 3 N) / (3 N).
    """
    head = trainable == "head"
    goal = 20.0 if head else (BLOCKS - TRAINED_BLOCKS + 3 * TRAINED_BLOCKS) / (3 * TRAINED_BLOCKS)
    reach = "≥ 20 x" if head else f"≥ {goal:.2f} x, as {BLOCKS - TRAINED_BLOCKS} frozen blocks of {BLOCKS} allow"
    rows = []
    for backend in backends:
        row = Row(
            f"`trainable: {trainable}`, {backend}, second epoch on",
            "the first epoch, with what is computed once",
            reach,
        )
        row = replace(row, goal=goal)
        rows.append(row if found is None else replace(row, **_epochs(found, backend)))
    return rows


def _epochs(found: Found, backend: str) -> dict[str, Any]:
    figures = [p["figures"] for p in found["pieces"] if p["runner"] == backend and "figures" in p]
    once = [each["phases"].get("frozen part", 0.0) for each in figures]
    first = [part + each["train"]["epochs"][0] for part, each in zip(once, figures, strict=True)]
    later = [fmean(each["train"]["epochs"][1:]) for each in figures]
    if not figures:
        return {"note": _why_not(found, [backend])}
    note = f"{number(median(first))} s, of them {number(median(once))} s for the frozen part, then {number(median(later))} s"
    return {"values": [a / b for a, b in zip(first, later, strict=True)], "note": note}


def predict(found: Found | None) -> list[Row]:
    """Returns the rows about prediction, from the bench of the training."""
    figure, against = "predict_examples", "transformers pipeline, batched"
    best = best_of(found, figure)
    what = "predict, mixed lengths: examples/s"
    first = Row(f"{what}, the best backend ({best or 'none yet'})", against, "≥ 1.5 x", goal=1.5)
    rows = [_ratio(found, best, [DEFAULT, GROUPED], figure, first)]
    for backend in EACH_BACKEND:
        row = Row(f"predict, {backend}", against, "≥ 1.0 x", goal=1.0)
        rows.append(_ratio(found, backend, [DEFAULT, GROUPED], figure, row))
    return rows


def start(pieces: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """Returns the rows about the time to the first training step.

    Args:
        pieces: by backend, what `first_step.measure` returned in each repeat.
    """
    rows = []
    for backend, goal in FIRST_STEP.items():
        row = Row(
            f"command to first training step, {backend}, second run of the same recipe",
            "first run, with empty caches",
            f"≤ {goal:.0f} s",
            goal=goal,
            higher=False,
            unit=" s",
        )
        done = [piece for piece in pieces.get(backend, ()) if "second" in piece]
        failed = [piece["reason"] for piece in pieces.get(backend, ()) if "reason" in piece]
        note = f"first run {number(median(p['first'] for p in done))} s" if done else next(iter(failed), "")
        rows.append(replace(row, values=[piece["second"] for piece in done], note=note))
    return rows


def memory(found: Found | None) -> list[Row]:
    """Returns the rows about peak memory, from the bench of the training: on a GPU its memory counts."""
    gpu = found is not None and any(of_repeats(found, name, "gpu_memory") for name in (DEFAULT, GROUPED))
    figure = "gpu_memory" if gpu else "host_memory"
    rows = []
    for backend in EACH_BACKEND:
        what = f"peak memory of training, {backend}{' (GPU)' if gpu else ''}"
        row = Row(what, "transformers Trainer, the smaller of the two", "≤ 1.0 x", goal=1.0, higher=False)
        rows.append(_ratio(found, backend, [DEFAULT, GROUPED], figure, row, min))
    return rows


def many_rows(found: Found | None) -> list[Row]:
    """Returns the rows about many examples, from what `bench/rows.py` has written."""
    large, against = ("1,000,000 rows", "10,000 rows")
    if found is not None:
        against, large = (f"{each['rows']:,} rows" for each in found["files"])
    more = Row(f"{large}: peak memory", against, "+ ≤ 300 MB", goal=MORE_MEMORY / 1e6, higher=False, unit=" MB more")
    speed = Row(f"{large}: encode, short rows a second", "-", "≥ 20,000", goal=ROWS_A_SECOND, unit="")
    if found is None:
        return [more, speed]
    peaks = " and ".join(f"{each['peak'] / 1e6:,.0f}" for each in found["files"])
    return [
        replace(more, values=[found["more_mb"]], note=f"{peaks} MB"),
        replace(speed, values=[found["files"][-1]["rows_per_second"]], note="loading, studying and encoding"),
    ]


def plan(found: Found | None, backends: Sequence[str]) -> list[Row]:
    """Returns the rows about `kft plan`, from what `bench/plan_accuracy.py` has written."""
    rows = []
    for backend in backends:
        said = (found or {}).get(backend)
        for name, planned, happened in _planned(said):
            values = [abs(planned / happened - 1)] if happened else []
            note = f"planned {number(planned)}, then {number(happened)} {name[1]}" if happened else ""
            row = Row(f"`kft plan`, {backend}: {name[0]}", "the run", "within 0.25 of it", goal=PLAN_OFF, higher=False)
            rows.append(replace(row, values=values, unit=" off", note=note))
    return rows


def _planned(said: Mapping[str, Any] | None) -> list[tuple[tuple[str, str], float, float]]:
    seconds, memory_ = ("seconds of the whole run", "s"), ("peak memory", "MB")
    if said is None:
        return [(seconds, 0.0, 0.0), (memory_, 0.0, 0.0)]
    planned = said["plan"]
    return [
        (seconds, planned["expected"], said["seconds"]),
        (memory_, planned["peak_memory"]["host"] / 1e6, said["peak"] / 1e6),
    ]


def markdown(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| what | against | reach | measured | reached |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [row.what, row.against, row.reach, row.measured, row.reached]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
