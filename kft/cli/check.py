"""`kft check`: everything that can be known of a recipe before a backend loads."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher


@click.command("check", short_help="Check a recipe and its data; train nothing.")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@answers
def command(recipe: str, overrides: tuple[str, ...]) -> Answer:
    """Checks a recipe: fields, handles, files, columns, labels, lengths. Nothing is trained, no backend is loaded."""
    from kft.check import check
    from kft.pipeline import load_recipe

    loaded, _ = load_recipe(recipe, overrides)
    findings = check(loaded, watcher()).dump()

    def show() -> None:
        show_findings(findings)
        click.echo(f"\nNothing stands in the way. Type: kft run {shlex.join([recipe, *overrides])}")

    return Answer(findings, show)


def show_findings(findings: Mapping[str, Any]) -> None:
    """Prints what a check found."""
    click.echo(f"task {findings['task']}, backend {findings['backend']}")
    for name, value in findings["model"].items():
        click.echo(f"model {name}: {value}")
    if findings["splits"]:
        click.echo()
        _show_splits(findings["splits"])
    for head, field in (("label", "labels"), ("questions", "answers")):
        if any(split.get(field) for split in findings["splits"].values()):
            click.echo()
            _show_counts(findings["splits"], head, field)
    for note in findings["notes"]:
        click.echo(f"\nNote: {note}")


def _show_splits(splits: Mapping[str, Mapping[str, Any]]) -> None:
    points = list(dict.fromkeys(point for split in splits.values() for point in split.get("length", {})))
    rows = [[name, split["examples"], *_lengths(split, points)] for name, split in splits.items()]
    more = [*(f"tokens {point}" for point in points), "truncated"] if points else []
    tables.show(["split", "examples", *more], rows, numbers=True)


def _lengths(split: Mapping[str, Any], points: list[str]) -> list[Any]:
    if "length" not in split:
        return [""] * (len(points) + 1) if points else []
    return [*(split["length"].get(point, "") for point in points), f"{split['truncated']:.1%}"]


def _show_counts(splits: Mapping[str, Mapping[str, Any]], head: str, field: str) -> None:
    names = list(dict.fromkeys(name for split in splits.values() for name in split.get(field, {})))
    rows = [[name, *(split.get(field, {}).get(name, 0) for split in splits.values())] for name in names]
    tables.show([head, *splits], rows, numbers=True)
