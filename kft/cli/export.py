"""`kft export`: hands a finished run on in another tool's format."""

from __future__ import annotations

from pathlib import Path

import click

from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher


@click.command("export", short_help="Hand a finished run on in another format.")
@click.argument("run")
@click.option("--format", "form", default="huggingface", metavar="NAME", help="huggingface: what transformers opens.")
@click.option("--output", metavar="FOLDER", help="Where to write; RUN/huggingface without it.")
@click.option("--backend", default="auto", metavar="NAME", help="tensorflow, torch, jax: what to read the model with.")
@answers
def command(run: str, form: str, output: str | None, backend: str) -> Answer:
    """Writes the model of RUN as transformers reads it: configuration, weights, tokenizer and a model card."""
    from kft.api import load_run

    progress = watcher()
    with progress.phase("load run"):
        loaded = load_run(run, backend=backend)
    place = Path(output) if output is not None else Path(run) / form
    with progress.phase("export"):
        files = loaded.export(place, form)
    values = {"run": str(run), "format": form, "folder": str(place), "files": files}
    return Answer(values, lambda: click.echo(f"Wrote {', '.join(files)}\nFolder: {place}"))
