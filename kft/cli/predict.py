"""`kft predict`: labels and probabilities, values, or answers, of new examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kft.cli.answer import Answer, answers, as_text
from kft.cli.watching import watcher
from kft.errors import DataError, RunFolderError

if TYPE_CHECKING:
    from kft.api import Run

Record = dict[str, Any]


@click.command("predict", short_help="Predict texts, images or the rows of a file.")
@click.argument("run")
@click.argument("examples", nargs=-1, metavar="[TEXT]...")
@click.option("--input", "source", metavar="FILE", help="A file with the run's input columns, instead of TEXT.")
@click.option(
    "--output", metavar="FILE.jsonl", help="Write a JSON object a line there; a file that exists is left alone."
)
@click.option(
    "--backend", default="auto", metavar="NAME", help="tensorflow, torch, jax; auto: the run's own, if installed."
)
@answers
def command(run: str, examples: tuple[str, ...], source: str | None, output: str | None, backend: str) -> Answer:
    """Predicts each TEXT with the model of RUN.

    A run on pairs of texts takes them two by two; a run on images takes image files.
    """
    if bool(examples) == (source is not None):
        raise click.UsageError("Give either texts or --input FILE.")
    if output is not None:
        refuse_taken(Path(output))
    from kft.api import load_run

    progress = watcher()
    with progress.phase("load run"):
        loaded = load_run(run, backend=backend)
    given = inputs_of(loaded, examples)
    with progress.phase("predict"):
        records = loaded.predict(given, progress) if source is None else loaded.predict_file(source, progress)
    names = [" | ".join(one) if isinstance(one, tuple) else one for one in given] or [
        f"row {n + 1}" for n in range(len(records))
    ]
    return _answer(loaded, records, names, output)


def inputs_of(run: Run, examples: Sequence[str]) -> list[Any]:
    """Returns the examples as a run takes them: one by one, or in pairs.

    Raises:
        DataError: if one of a pair is missing.
    """
    names = run.recipe.data.inputs or []
    if len(names) != 2:
        return list(examples)
    if len(examples) % 2:
        raise DataError(
            f"This run reads pairs ({names[0]}, {names[1]}), received {len(examples)} text(s). "
            'Give them two by two: kft predict RUN "first" "second"'
        )
    return list(zip(examples[::2], examples[1::2], strict=True))


def refuse_taken(path: Path) -> None:
    """Refuses a file that exists or has no folder, before the work begins.

    Raises:
        RunFolderError: with what to type instead.
    """
    if path.is_dir():
        raise RunFolderError(
            f"--output: '{path}' is a folder. Give a file, as in --output {path / 'predictions.jsonl'}"
        )
    if path.is_file():
        raise RunFolderError(
            f"--output: '{path}' exists; nothing was changed. Give another --output, or remove it first."
        )
    if not path.parent.is_dir():
        raise RunFolderError(f"--output: no folder at '{path.parent}'. Make it first, or give another --output.")


def write(path: Path, records: Sequence[Record]) -> None:
    """Writes a JSON object a line, whole or not at all.

    Raises:
        RunFolderError: if it cannot be written.
    """
    from kft import rundir

    text = "".join(as_text(record) + "\n" for record in records)
    if path.exists():  # a device or a pipe, which no other file may replace
        with rundir.explained(path):
            path.write_text(text, encoding="utf8")
    else:
        rundir.write_text(path, text)


def _answer(run: Run, records: list[Record], names: list[str], output: str | None) -> Answer:
    values: dict[str, Any] = {"run": str(run.folder.path), "backend": run.backend, "examples": len(records)}
    if output is None:
        return Answer({**values, "predictions": records}, lambda: click.echo("\n".join(_lines(records, names))))
    write(Path(output), records)
    return Answer({**values, "output": output}, lambda: click.echo(f"Wrote {len(records)} predictions to {output}"))


def _lines(records: Sequence[Record], names: Sequence[str]) -> Iterator[str]:
    said = [_said(record) for record in records]
    width = max((len(label) for label, _ in said), default=0)
    for (label, probability), name in zip(said, names, strict=True):
        yield f"{label:<{width}}  {probability + '  ' if probability else ''}{' '.join(name.split())}"


def _said(record: Record) -> tuple[str, str]:
    """Returns what was predicted, and the probability of it where there is one for the example as a whole."""
    if "answer" in record:
        return " ".join(record["answer"].split()) or "(no answer)", f"{record['probability']:.4f}"
    if "value" in record:
        return f"{record['value']:.4f}", ""
    label, probabilities = record["label"], record["probabilities"]
    if isinstance(label, str):
        return label, f"{probabilities[label]:.4f}"
    if isinstance(probabilities, dict):
        return ", ".join(f"{name} {probabilities[name]:.4f}" for name in label) or "none", ""
    return " ".join(label), ""
