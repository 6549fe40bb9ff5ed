"""`kft evaluate`: the metrics of a finished run."""

from __future__ import annotations

import click

from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher


@click.command("evaluate", short_help="Score a finished run.")
@click.argument("run")
@click.option(
    "--data", metavar="FILE", help="A file, folder or handle with the run's columns, instead of its own splits."
)
@click.option(
    "--backend", default="auto", metavar="NAME", help="tensorflow, torch, jax; auto: the run's own, if installed."
)
@answers
def command(run: str, data: str | None, backend: str) -> Answer:
    """Scores the model of RUN on its validation and test splits, or on other data."""
    from kft.api import load_run
    from kft.cli.run import show_report

    progress = watcher()
    with progress.phase("load run"):
        loaded = load_run(run, backend=backend)
    report = loaded.evaluate(data, progress)
    return Answer(report.dump(), lambda: show_report(report, []))
