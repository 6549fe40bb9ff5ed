"""`kft parity`: a certificate that the backends compute the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers, as_text
from kft.cli.run import load
from kft.cli.watching import watcher

if TYPE_CHECKING:
    from kft.comparison.parity import Certificate
    from kft.comparison.parity_verdict import Difference, Item

DISAGREES = "kft.parity.disagrees"


def _ends_with_one(function: Callable[..., Any]) -> Callable[..., None]:
    """Ends with exit code 1, after the answer was printed, if the backends disagree."""

    @functools.wraps(function)
    def command(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)
        context = click.get_current_context()
        if context.meta.get(DISAGREES):
            context.exit(1)

    return command


@click.command("parity", short_help="Certify that the backends compute the same.")
@click.argument("arguments", nargs=-1, metavar="[RECIPE] [KEY=VALUE]...")
@click.option("--backends", metavar="NAMES", help="At least two, as torch,jax; without it all that are installed.")
@click.option("--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps to train.")
@click.option("--seed", type=int, help="All random numbers, orders and splits come from it.")
@click.option("--output", metavar="FILE", help="Also write the certificate to a JSON file.")
@_ends_with_one
@answers
def command(
    arguments: tuple[str, ...], backends: str | None, steps: int, seed: int | None, output: str | None
) -> Answer:
    """Certifies that the backends compute the same: same weights, same batches, same dropout masks.

    Compares the outputs of each layer, the loss, the gradient of each weight, the optimizer, the losses of some steps,
    the final logits and metrics; then goes on with each backend's checkpoint on another one. Names the first layer that
    differs. Exits with 1 if the backends differ or one of them fails. Without RECIPE it takes the quickstart.
    """
    from kft.comparison import parity

    names = parity.chosen(backends)
    file = None if output is None else _file(output)
    recipe, _ = load(arguments, {} if seed is None else {"seed": seed})
    certificate = parity.parity(recipe, names, steps, watcher())
    click.get_current_context().meta[DISAGREES] = not certificate.agrees
    if file is not None:
        from kft.rundir import write_text

        write_text(file, as_text(certificate.dump()) + "\n")
    return Answer(certificate.dump(), lambda: show(certificate, file))


def _file(output: str) -> Path:
    """Refuses a place that cannot be written before anything is computed."""
    file = Path(output)
    if file.is_dir() or not file.parent.is_dir():
        reason = "is a folder" if file.is_dir() else f"lies in '{file.parent}', which is no folder"
        raise click.UsageError(f"--output {output} {reason}. Give the name of a JSON file.")
    return file


def show(certificate: Certificate, file: Path | None = None) -> None:
    """Prints a certificate: a line an item, the crossings, what failed, and the verdict."""
    if certificate.items:
        others = certificate.backends[1:]
        click.echo(
            f"Largest difference from {certificate.reference}; {certificate.steps} steps in float32, "
            f"{certificate.dropouts} dropouts fed with the same masks"
        )
        head = ["", "parts", "allowed", *others, "verdict"]
        tables.show(head, [_row(item, others) for item in certificate.items])
    if (fast := certificate.fast) is not None:
        click.echo(
            "\nThe fast path that `kft run` takes through encoder blocks, dropout off, against Keras' own on the same backend"
        )
        paths = [[backend, *_row(fast, [backend])[1:]] for backend in fast.differences]
        tables.show(["backend", "parts", "allowed", "difference", "verdict"], paths)
    if certificate.crossings:
        click.echo("\nA checkpoint goes on on another backend; its losses against those of a training left alone")
        rows: list[list[Any]] = [
            [crossing.source, crossing.target, crossing.step, *_row(crossing.item, [crossing.target])[1:]]
            for crossing in certificate.crossings
        ]
        tables.show(["began on", "went on on", "at step", "steps", "allowed", "difference", "verdict"], rows)
    click.echo()
    for backend, reason in certificate.failures.items():
        click.echo(f"{backend} failed: {reason}")
    if file is not None:
        click.echo(f"Certificate: {file}")
    click.echo(certificate.verdict)


def _row(item: Item, others: list[str]) -> list[str]:
    allowed = f"{item.tolerance:.0e} {item.unit}" if item.tolerance else item.unit
    cells = [_cell(item, item.differences[backend]) for backend in others]
    wrong = [name for name in others if not item.differences[name].agrees]
    verdict = f"DIFFERS: {wrong[0]} first in {item.differences[wrong[0]].first}" if wrong else "agrees"
    return [item.name, str(item.count), allowed, *cells, verdict]


def _cell(item: Item, found: Difference) -> str:
    if not item.tolerance:
        return "equal" if found.agrees else "differs"
    return f"{found.largest:.1e}" if found.largest else "0"
