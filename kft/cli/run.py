"""`kft run`: a recipe from its file to a run folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher

if TYPE_CHECKING:
    from kft.pipeline import Report
    from kft.recipe import Recipe


@click.command("run", short_help="Train as a recipe says.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")
@click.option("--backend", metavar="NAME", help="tensorflow, torch, jax or auto.")
@click.option("--output", metavar="FOLDER", help="The run folder; it must not hold another run.")
@click.option("--seed", type=int, help="All random numbers, orders and splits come from it.")
@click.option("--dry-run", is_flag=True, help="Check and print the resolved recipe; train nothing.")
@click.option(
    "--resume",
    metavar="RUN",
    help="Go on with an interrupted run at the step it stopped at, with --backend on another one.",
)
@answers
def command(
    arguments: tuple[str, ...],
    backend: str | None,
    output: str | None,
    seed: int | None,
    dry_run: bool,
    resume: str | None,
) -> Answer:
    """Trains as a recipe says, evaluates and writes a run folder.

    Without RECIPE it runs the quickstart, a small text classifier. KEY=VALUE changes a field of the recipe, as in
    train.epochs=1.
    """
    changes = {"backend": backend, "output.directory": output, "seed": seed}
    given = {name: value for name, value in changes.items() if value is not None}
    if resume is not None:
        if arguments or dry_run or set(given) - {"backend"}:
            raise click.UsageError("--resume goes alone or with --backend: the run has a recipe of its own.")
        return _resume(resume, backend)
    recipe, name = load(arguments, given)
    return _dry_run(recipe) if dry_run else _run(recipe, name)


def load(arguments: tuple[str, ...], changes: dict[str, Any]) -> tuple[Recipe, str]:
    """Returns the recipe that the arguments name, the quickstart if they name none, and a name for its runs.

    Raises:
        RecipeError: if it cannot be read, or a field is unknown or of the wrong type.
    """
    from importlib.resources import as_file, files

    from kft.pipeline import load_recipe

    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        recipe, name = load_recipe(arguments[0], arguments[1:])
    else:
        with as_file(files("kft") / "recipes" / "quickstart.yaml") as file:
            recipe, name = load_recipe(file, arguments)
    return (recipe.changed(changes) if changes else recipe), name


def _run(recipe: Recipe, name: str) -> Answer:
    from kft import pipeline

    report = pipeline.run(recipe, watcher(), name=name)
    return Answer(report.dump(), lambda: show_report(report, next_steps(report, recipe)))


def _resume(path: str, backend: str | None) -> Answer:
    from kft import pipeline
    from kft import recipe as recipes

    report = pipeline.resume(path, watcher(), backend)
    recipe = recipes.load(report.run / "recipe.yaml")
    return Answer(report.dump(), lambda: show_report(report, next_steps(report, recipe)))


def _dry_run(recipe: Recipe) -> Answer:
    from kft.check import check
    from kft.cli.check import show_findings

    findings = check(recipe, watcher()).dump()

    def show() -> None:
        click.echo(recipe.dump())
        show_findings(findings)

    return Answer({**findings, "recipe": recipe.model_dump(mode="json")}, show)


def show_report(report: Report, following: list[str]) -> None:
    """Prints metrics, seconds, the run folder and what to type next."""
    tables.metrics(report.metrics)
    click.echo()
    tables.seconds(report.seconds)
    click.echo(f"\nRun folder: {report.run} (backend {report.backend})")
    if following:
        click.echo("Next, type:")
    for line in following:
        click.echo(f"  {line}")


def next_steps(report: Report, recipe: Recipe) -> list[str]:
    """Returns the commands that make use of a finished run."""
    run = shlex.quote(str(report.run))
    pair = len(recipe.data.inputs or []) == 2
    example = "photo.png" if recipe.task.startswith("image") else '"a text" "its partner"' if pair else '"some text"'
    return [f"kft predict {run} {example}", f"kft evaluate {run} --data FILE"]
