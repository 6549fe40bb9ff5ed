"""`kft init`: a commented recipe to edit."""

from __future__ import annotations

from pathlib import Path

import click

from kft.cli.answer import Answer, answers


@click.command("init", short_help="Print or write a commented recipe to edit.")
@click.argument("task")
@click.option("--output", metavar="FILE", help="Write it there; a file that exists is left alone.")
@answers
def command(task: str, output: str | None) -> Answer:
    """Prints a recipe for TASK (one of `kft list tasks`) with every field, its default and its meaning."""
    from kft.cli.template import recipe_text

    text = recipe_text(task, output or "recipe.yaml")
    values = {"task": task, "output": output, "recipe": text}
    if output is None:
        return Answer(values, lambda: click.echo(text, nl=False))
    _write(Path(output), text)
    return Answer(values, lambda: click.echo(f"Wrote {output}. Edit it, then type: kft check {output}"))


def _write(path: Path, text: str) -> None:
    from kft import rundir
    from kft.errors import RunFolderError

    if path.exists():
        raise RunFolderError(f"'{path}' exists; nothing was changed. Give another --output, or remove it first.")
    if not path.parent.is_dir():
        raise RunFolderError(f"No folder at '{path.parent}' to write '{path.name}' to. Give another --output.")
    rundir.write_text(path, text)
