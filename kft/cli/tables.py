"""Prints values for a person: aligned columns, without colour or lines, so that other programs can read them too."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click


def show(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: bool = False) -> None:
    """Prints a table.

    Args:
        head: names of the columns.
        rows: cells; floats are shown with four digits after the point.
        numbers: whether all columns but the first hold numbers and stand to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(head):
        table.add_column(Text(name), justify="right" if numbers and place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000)
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def metrics(found: Mapping[str, Mapping[str, float]]) -> None:
    """Prints metrics, a line a split."""
    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    rows = [[split, *(scores.get(name, "") for name in names)] for split, scores in found.items()]
    show(["split", *names], rows, numbers=True)


def seconds(found: Mapping[str, float]) -> None:
    """Prints the seconds of each phase and of all."""
    rows = [[phase, f"{value:.1f}"] for phase, value in found.items()]
    show(["phase", "seconds"], [*rows, ["all", f"{sum(found.values()):.1f}"]], numbers=True)


def size(count: int) -> str:
    """Returns a number of bytes as people write it."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
