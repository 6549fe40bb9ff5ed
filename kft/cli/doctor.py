"""`kft doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import click

from kft.cli import tables
from kft.cli.answer import Answer, answers
from kft.cli.watching import watcher


@click.command("doctor", short_help="Show versions, devices, caches and what is missing.")
@answers
def command() -> Answer:
    """Shows versions, the devices of each installed backend, caches, and what is missing with the line that installs it."""
    from kft import backend

    values: dict[str, Any] = {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "versions": backend.versions(),
        "backends": _backends(),
        "caches": _caches(),
        "missing": _missing(),
    }
    return Answer(values, lambda: _show(values))


def install_line(extra: str) -> str:
    """Returns the line that installs an extra."""
    return f'pip install "keras-finetune[{extra}]"'


def _backends() -> dict[str, dict[str, Any]]:
    """Asks each installed backend for its devices, in a process of its own."""
    import subprocess

    from kft import backend
    from kft.errors import BackendError
    from kft.recipe import BACKENDS

    progress = watcher()
    here = backend.installed()
    found: dict[str, dict[str, Any]] = {}
    for name in BACKENDS:
        entry: dict[str, Any] = {"installed": name in here, "devices": [], "error": None}
        if entry["installed"]:
            with progress.phase(f"start {name}"):
                try:
                    entry["devices"] = backend.probe(name)
                except BackendError as error:
                    entry["error"] = str(error)
                except subprocess.TimeoutExpired as error:
                    entry["error"] = f"The backend '{name}' did not start within {error.timeout:.0f} s."
        found[name] = entry
    return found


def _caches() -> dict[str, dict[str, Any]]:
    from kft.fetch import cache_folder

    home = Path.home()
    places = {
        "kft (KFT_CACHE)": cache_folder(),
        "Keras (KERAS_HOME)": Path(os.environ.get("KERAS_HOME", home / ".keras")),
        "Kaggle (KAGGLEHUB_CACHE)": Path(os.environ.get("KAGGLEHUB_CACHE", home / ".cache" / "kagglehub")),
        "Hugging Face (HF_HOME)": Path(os.environ.get("HF_HOME", home / ".cache" / "huggingface")),
        "TensorFlow Datasets (TFDS_DATA_DIR)": Path(os.environ.get("TFDS_DATA_DIR", home / "tensorflow_datasets")),
    }
    return {name: {"path": str(path), "bytes": _bytes(path)} for name, path in places.items()}


def _bytes(path: Path) -> int:
    """Returns the size of all files below a folder; links are not followed."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except OSError:  # gone since the walk began
                continue
    return total


def _missing() -> list[dict[str, str]]:
    from kft.backend import installed
    from kft.data import SOURCES
    from kft.recipe import BACKENDS
    from kft.tasks import TASKS

    here = installed()
    found = [
        {"name": name, "needed_for": f"backend {name}", "install": install_line(name)}
        for name in BACKENDS
        if name not in here
    ]
    for registry in (TASKS, SOURCES):
        for name, part in registry.parts().items():
            if lacking := part.missing():
                needed = f"{registry.kind} {name}"
                found.append({"name": ", ".join(lacking), "needed_for": needed, "install": install_line(part.extra)})
    return found


def _show(values: dict[str, Any]) -> None:
    click.echo(f"{values['platform']}, {values['processors']} processors\n")
    tables.show(["package", "version"], list(values["versions"].items()))
    click.echo()
    rows = [[name, _devices(entry)] for name, entry in values["backends"].items()]
    tables.show(["backend", "devices"], rows)
    click.echo()
    rows = [[name, tables.size(entry["bytes"]), entry["path"]] for name, entry in values["caches"].items()]
    tables.show(["cache", "size", "folder"], rows)
    click.echo()
    if values["missing"]:
        rows = [[entry["name"], entry["needed_for"], entry["install"]] for entry in values["missing"]]
        tables.show(["missing", "needed for", "type"], rows)
    else:
        click.echo("Nothing is missing.")


def _devices(entry: dict[str, Any]) -> str:
    if not entry["installed"]:
        return "not installed"
    return entry["error"] or ", ".join(entry["devices"])
