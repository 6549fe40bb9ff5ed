"""`kft plan`: expected time and peak memory of a recipe on each backend, before anything is trained."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher

if TYPE_CHECKING:
    from kft.comparison.plan import Plan, Row


@click.command("plan", short_help="Say how long a recipe takes on each backend, and how much memory.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--backends", metavar="NAMES", help="Which to measure, as torch,jax; else those that are installed.")
@answers
def command(recipe: str, overrides: tuple[str, ...], backends: str | None) -> Answer:
    """Measures what a recipe will take on each backend: time, peak memory, and which one to choose.

    Each backend does a few steps of the job's own shapes in a fresh process, one after another; nothing is kept but the
    figures, which `backend: auto` goes by. Early stopping is not foreseen: the time is that of all epochs.
    """
    from kft.comparison.plan import plan
    from kft.pipeline import load_recipe

    loaded, _ = load_recipe(recipe, overrides)
    names = [name.strip() for name in (backends or "").split(",") if name.strip()]
    found = plan(loaded, names, watcher())
    typed = f"kft run {shlex.join([recipe, *overrides])} --backend {found.pick}"
    return Answer(found.dump(), lambda: show(found, typed))


def show(found: Plan, typed: str) -> None:
    """Prints the table, the line that says which backend to take, and what to type."""
    gpu = any(row.gpu_bytes is not None for row in found.rows)
    notes = any(row.failed for row in found.rows)
    phases = next(list(row.seconds) for row in found.rows if not row.failed)
    head = ["backend", "expected", *phases, "memory", *(["GPU memory"] if gpu else []), "steps", "steps/s"]
    rows = [_cells(row, len(head) - 1, gpu) + ([row.failed] if notes else []) for row in found.rows]
    tables.show([*head, *(["note"] if notes else [])], rows, numbers=True)
    click.echo(f"\n{found.why}")
    click.echo(f"Type: {typed}")


def clock(seconds: float) -> str:
    """Returns seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def _cells(row: Row, width: int, gpu: bool) -> list[str]:
    if row.failed:
        return [row.backend, *["-"] * width]
    memory = [tables.size(row.host_bytes), *([tables.size(row.gpu_bytes or 0)] if gpu else [])]
    speed = row.steps / max(1e-9, row.seconds["train"])
    return [
        row.backend,
        clock(row.expected),
        *(f"{value:.1f} s" for value in row.seconds.values()),
        *memory,
        str(row.steps),
        f"{speed:.2f}",
    ]
