"""`kft bench`: the same job on each backend, side by side."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher
from kft.errors import KftError

OWN = ("--backends", "--against", "--repeats", "--steps", "--output", "--seed", "--caches")


@click.command("bench", short_help="Measure a recipe on each backend, and beside other tools.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")
@click.option("--backends", metavar="NAMES", help="As in torch,jax; without it tensorflow,torch,jax.")
@click.option("--against", metavar="TOOLS", help="Run the same job with other tools too: transformers.")
@click.option("--repeats", type=click.IntRange(1), help="Processes each, to tell speed from noise (3).")
@click.option("--steps", type=click.IntRange(1), help="A quick look: so many training steps, no quality.")
@click.option("--output", metavar="FOLDER", help="Where the results go; it must not hold another bench.")
@click.option("--seed", type=int, help="The recipe's seed; the order of the processes comes from it too.")
@click.option(
    "--caches",
    type=click.Choice(["fresh", "kept"]),
    help="fresh: every process begins with nothing encoded or compiled (default); kept: with what is there.",
)
@click.option("--resume", metavar="FOLDER", help="Go on with an interrupted bench.")
@click.option("--compare", nargs=2, metavar="A.json B.json", help="Say what changed between two benches.")
@answers
def command(arguments: tuple[str, ...], resume: str | None, compare: tuple[str, str] | None, **given: Any) -> Answer:
    """Trains, evaluates and predicts as a recipe says on each backend, in fresh processes, and compares.

    Without RECIPE it takes the quickstart. KEY=VALUE changes a field of the recipe, as in train.epochs=1. It writes
    bench.json and bench.html, a page to show around.
    """
    set_ = {name: value for name, value in given.items() if value is not None}
    if (resume or compare) and (arguments or set_ or (resume and compare)):
        raise click.UsageError(f"{'--resume' if resume else '--compare'} goes alone.")
    if compare:
        return _compare(*compare)
    if resume:
        from kft.comparison.bench import running

        return _answer(running.resume(resume, watcher()), Path(resume))
    return _start(arguments, **set_)


def _start(arguments: tuple[str, ...], seed: int | None = None, output: str | None = None, **given: Any) -> Answer:
    from kft.cli.run import load
    from kft.comparison.bench import running
    from kft.comparison.bench.settings import Settings, backends_of, references_of

    recipe, name = load(arguments, {} if seed is None else {"seed": seed})
    settings = Settings(
        recipe,
        name,
        backends_of(given.pop("backends", None)),
        references_of(given.pop("against", None)),
        seed=recipe.seed,
        **given,
    )
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = Path(output) if output else Path("runs") / f"bench-{name}-{now}"
    return _answer(running.start(settings, folder, watcher()), folder)


def _answer(found: Mapping[str, Any], folder: Path) -> Answer:
    page = _page(found, folder)
    return Answer({**found, "folder": str(folder)}, lambda: show(found, folder, page))


def _page(found: Mapping[str, Any], folder: Path) -> str:
    """Writes the page; the measurements are not to be lost for want of what draws them."""
    from kft.comparison.bench import page

    try:
        return f"Page: {page.write(found, folder / 'bench.html')}"
    except KftError as error:
        return str(error)


def show(found: Mapping[str, Any], folder: Path, page: str) -> None:
    """Prints the verdict and the tables of a bench."""
    from kft.comparison.bench import rows

    click.echo(found["verdict"]["headline"])
    for sentence in found["verdict"]["sentences"]:
        click.echo(sentence)
    for head, lines in (rows.figures(found, narrow=True), rows.phases(found), rows.quality(found)):
        if lines:
            click.echo()
            tables.show(head, lines, numbers=True)
    for name, reason in rows.reasons(found):
        click.echo(f"\n{name}: {reason}")
    click.echo()
    for note in rows.notes(found):
        click.echo(f"Note: {note}")
    click.echo(f"Results: {folder / 'bench.json'}\n{page}")
    click.echo(f"After a change, type: kft bench --compare {shlex.quote(str(folder / 'bench.json'))} OTHER/bench.json")


def _compare(first: str, second: str) -> Answer:
    from kft.comparison.bench import changes

    found = changes.compare(first, second)

    def display() -> None:
        for difference in found["differences"]:
            click.echo(f"Different: {difference}")
        if found["differences"]:
            click.echo()
        lines = [[c["runner"], c["title"], c["a"], c["b"], c["ratio"], c["verdict"]] for c in found["changes"]]
        tables.show(["runner", "figure", "A", "B", "B/A", "verdict"], lines)
        click.echo(f"\n{found['summary']}")

    return Answer(found, display)
