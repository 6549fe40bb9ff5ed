"""What a run folder holds, and how it is written so that a crash never leaves half a file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kft.errors import RunFolderError, nearest

STATES = ("running", "complete", "interrupted", "failed")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe; it runs again as it is."""
        return self.path / "recipe.yaml"

    @property
    def labels(self) -> Path:
        """What the outputs mean."""
        return self.path / "labels.json"

    @property
    def history(self) -> Path:
        """Losses and validation metrics, one JSON object a line."""
        return self.path / "history.jsonl"

    @property
    def report(self) -> Path:
        """Metrics, seconds, versions, device, seed and digests."""
        return self.path / "report.json"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model.keras"

    @property
    def saved_model(self) -> Path:
        """The graph of a model that TensorFlow computes; others have none."""
        return self.path / "saved_model"

    @property
    def preprocessing(self) -> Path:
        """The tokenizer's files, or the size of images."""
        return self.path / "preprocessing"

    @property
    def checkpoint(self) -> Path:
        """The state of an unfinished training."""
        return self.path / "checkpoint"

    @property
    def best(self) -> Path:
        """The best weights of an unfinished training."""
        return self.path / "best.safetensors"

    @property
    def state(self) -> str:
        """One of running, complete, interrupted, failed."""
        found: str = read_json(self.path / "state.json").get("state", "running")
        return found

    def set_state(self, state: str) -> None:
        """Records how the run stands."""
        write_json(self.path / "state.json", {"state": state})


def refuse_occupied(path: Path) -> None:
    """Refuses an output folder that holds something.

    Raises:
        RunFolderError: with what to type instead.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "another run" if (path / "recipe.yaml").exists() else "other files"
        more = f", or go on with it: kft run --resume {path}" if (path / "checkpoint").exists() else ""
        raise RunFolderError(
            f"The output folder '{path}' holds {kind}; nothing was changed. Give another --output{more}."
        )


def create(path: Path) -> RunFolder:
    """Makes the folder of a new run.

    Raises:
        RunFolderError: if it holds something already, or cannot be written.
    """
    refuse_occupied(path)
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(path)
        folder.set_state("running")
    return folder


def open_run(path: str | Path, *, trained: bool = True) -> RunFolder:
    """Returns an existing run folder.

    Args:
        path: the folder.
        trained: whether it has to hold a model.

    Raises:
        RunFolderError: if there is none, or it has no model yet.
    """
    folder = RunFolder(Path(path))
    if not folder.recipe.is_file():
        beside = [p.name for p in folder.path.parent.iterdir() if p.is_dir()] if folder.path.parent.is_dir() else []
        raise RunFolderError(
            f"No run at '{path}'.{nearest(folder.path.name, beside)} A run folder has recipe.yaml; `kft run` makes one."
        )
    if trained and not folder.model.is_file():
        raise RunFolderError(
            f"The run at '{path}' has no model yet (it is {folder.state}). Type: kft run --resume {path}"
        )
    return folder


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns a disk's refusal into one line."""
    try:
        yield
    except Exception as error:
        if _is_full(error):
            free = free_bytes(path)
            raise RunFolderError(
                f"The disk is full: cannot write to '{path}' ({free / 1e6:.0f} MB free). Free some space or give another --output."
            ) from None
        if not isinstance(error, OSError):
            raise
        raise RunFolderError(f"Cannot write to '{path}': {error.strerror or error}. Give another --output.") from None


def _is_full(error: Exception) -> bool:
    """Safetensors and HDF5 say a full disk in words of their own."""
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def free_bytes(path: Path) -> int:
    """Returns the free space of the disk a path is, or would be, on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to; on success the file takes its real name at once."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with explained(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(place: Path, make: Callable[[Path], None]) -> None:
    """Has a folder filled under another name beside it, and moves it there: it appears whole or not at all.

    Args:
        place: the folder; if another process was quicker, its copy stays.
        make: fills the folder it is given.

    Raises:
        RunFolderError: if the disk is full or cannot be written.
    """
    with explained(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
        try:
            make(temporary)
            take_place(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def take_place(temporary: Path, place: Path) -> None:
    """Moves a finished folder to its place; if another process was quicker, its copy stays.

    Raises:
        OSError: if it cannot be moved.
    """
    try:
        temporary.replace(place)
    except OSError:
        if not place.is_dir():
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf8")


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object a JSON file holds, or {} if there is no file."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
    return found


class History:
    """The lines of `history.jsonl`, added as they come."""

    def __init__(self, path: Path, step: int = 0) -> None:
        """Goes on after a step: what was written beyond it belongs to a training that is repeated."""
        kept = [line for line in read_history(path) if line.get("step", 0) <= step] if step else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self.path = path

    def add(self, **values: Any) -> None:
        """Writes one line."""
        with explained(self.path), self.path.open("a", encoding="utf8") as stream:
            stream.write(json.dumps(values) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a history; a line that a crash cut off is left out."""
    found = []
    if path.is_file():
        for line in path.read_text(encoding="utf8").splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found
