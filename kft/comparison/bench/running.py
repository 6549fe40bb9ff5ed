"""Runs the pieces of a bench one after another; each one that is done is a file, so that the whole can be resumed."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from kft import backend as backends
from kft import rundir
from kft.check import check
from kft.comparison import process
from kft.comparison.bench import reference, summary
from kft.comparison.bench.settings import PEAK, Piece, Settings, recipe_values
from kft.errors import KftError, RunFailed, RunFolderError, nearest
from kft.progress import Progress


def start(settings: Settings, folder: Path, progress: Progress) -> dict[str, Any]:
    """Begins a bench in a folder and runs it to its end.

    Returns:
        What `bench.json` holds.

    Raises:
        KftError: if the recipe cannot be used, or the folder holds something, before anything is written.
        RunFailed: if it was interrupted, or no runner came to its end.
    """
    refuse_occupied(folder)
    check(settings.recipe.changed({"backend": "auto", "output.directory": None}), progress)
    with rundir.explained(folder):
        (folder / "pieces").mkdir(parents=True, exist_ok=True)
    rundir.write_json(folder / "settings.json", settings.dump())
    rundir.write_text(folder / "recipe.yaml", settings.recipe.dump())
    return _run(settings, folder, progress)


def resume(path: str | Path, progress: Progress) -> dict[str, Any]:
    """Goes on with a bench: runs what is not done yet, and what failed.

    Raises:
        RunFolderError: if there is no bench in the folder, or its data have changed.
    """
    folder = Path(path)
    if not (folder / "settings.json").is_file():
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise RunFolderError(
            f"No bench at '{path}'.{nearest(folder.name, beside)} Its folder has settings.json; `kft bench` makes one."
        )
    settings = Settings.read(rundir.read_json(folder / "settings.json"))
    check(settings.recipe.changed({"backend": "auto", "output.directory": None}), progress)
    return _run(settings, folder, progress)


def refuse_occupied(folder: Path) -> None:
    """Refuses an output folder that holds something.

    Raises:
        RunFolderError: with what to type instead.
    """
    if (folder / "settings.json").is_file() and (folder / "pieces").is_dir():
        raise RunFolderError(
            f"The output folder '{folder}' holds another bench; nothing was changed. Give another --output, or go on "
            f"with it: kft bench --resume {folder}"
        )
    rundir.refuse_occupied(folder)


def pieces_of(folder: Path, settings: Settings) -> dict[Piece, dict[str, Any]]:
    """Returns what the pieces that are done or failed have left."""
    found = {piece: rundir.read_json(folder / "pieces" / f"{piece.name}.json") for piece in settings.pieces}
    return {piece: values for piece, values in found.items() if values}


def _run(settings: Settings, folder: Path, progress: Progress) -> dict[str, Any]:
    missing = missing_of(settings)
    try:
        for piece in settings.pieces:
            done = pieces_of(folder, settings)
            if piece.runner in missing or "figures" in done.get(piece, {}) or _is_hopeless(piece, done):
                continue
            result = _piece(piece, settings, folder, progress, _left(settings, missing, done))
            rundir.write_json(folder / "pieces" / f"{piece.name}.json", result)
    except KeyboardInterrupt:
        raise RunFailed(f"Interrupted; what was measured is kept. Type: kft bench --resume {folder}") from None
    finally:
        shutil.rmtree(folder / "working", ignore_errors=True)
    return _close(settings, folder, missing)


def _close(settings: Settings, folder: Path, missing: Mapping[str, str]) -> dict[str, Any]:
    done = pieces_of(folder, settings)
    _refuse_changed(done, folder)
    found = summary.summarise(settings, done, missing)
    found["machine"] = machine(done)
    found["date"] = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    rundir.write_json(folder / "bench.json", found)
    reasons = [row["reason"] for row in found["runners"].values() if row["reason"]]
    if len(reasons) == len(found["runners"]):
        raise RunFailed(f"Nothing could be measured: {reasons[0].rstrip('.')}. Then type: kft bench --resume {folder}")
    return found


def missing_of(settings: Settings) -> dict[str, str]:
    """Returns the runners that cannot run here, each with the reason."""
    found = {}
    for name in settings.backends:
        try:
            backends.choose(name)
        except KftError as error:
            found[name] = str(error)
    reason = reference.refusal(settings.recipe, steps=settings.steps)
    return found | (dict.fromkeys(settings.references, reason) if reason else {})


def _is_hopeless(piece: Piece, done: Mapping[Piece, Mapping[str, Any]]) -> bool:
    """A runner that failed in this very call is not tried again; one that failed before a resume is."""
    mine = [values for other, values in done.items() if other.runner == piece.runner]
    failed = [values for values in mine if "reason" in values and values["by"] == os.getpid()]
    return bool(failed) and len(failed) == len(mine)


def _piece(piece: Piece, settings: Settings, folder: Path, progress: Progress, left: str) -> dict[str, Any]:
    working = folder / "working"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    job = {
        "recipe": recipe_values(settings.recipe),
        "backend": piece.runner,
        "steps": settings.steps,
        "caches": settings.caches,
        "folder": str(working.resolve()),
    }
    title = f"{piece.runner}, {piece.repeat} of {settings.repeats}"
    if left:
        progress.note(left)
    begun = time.time()
    with progress.phase(title), _terminable():
        try:
            figures = process.ask(_worker(piece), job, piece.runner, _listener(progress))
        except process.ProcessFailed as error:
            progress.note(f"{piece.runner} failed: {error}")
            return {"reason": str(error), "by": os.getpid(), "began": begun}
    return {"figures": figures, "seconds": time.time() - begun, "began": begun}


def _worker(piece: Piece) -> str:
    if piece.runner == PEAK:
        return "bench gemm"
    return "bench transformers_worker" if piece.runner.startswith("transformers") else "bench worker"


def _listener(progress: Progress) -> process.Say:
    phase = ""

    def hear(text: str) -> None:
        nonlocal phase
        try:
            said = json.loads(text)
        except ValueError:
            return
        phase = said.get("phase", phase)
        if "done" in said:
            progress.advance(said["done"], said["total"], f"{phase}  {said['note']}".rstrip())

    return hear


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes a polite kill end the bench as Ctrl-C does, with its process."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _left(settings: Settings, missing: Mapping[str, str], done: Mapping[Piece, Mapping[str, Any]]) -> str:
    """Says how long the rest may take, by what pieces of the same runner took, else by the mean of all."""
    took = {piece: float(values["seconds"]) for piece, values in done.items() if "figures" in values}
    rest = [piece for piece in settings.pieces if piece.runner not in missing and piece not in took]
    known = [seconds for piece, seconds in took.items() if piece.runner != PEAK]
    if not known:
        return ""
    of = {
        piece.runner: [seconds for other, seconds in took.items() if other.runner == piece.runner] or known
        for piece in rest
    }
    seconds = sum(fmean(of[piece.runner]) for piece in rest)
    amount = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    return f"{len(took)} of {len(took) + len(rest)} pieces done, about {amount} left"


def _refuse_changed(done: Mapping[Piece, Mapping[str, Any]], folder: Path) -> None:
    digests = {json.dumps(values["figures"]["data"]) for values in done.values() if "data" in values.get("figures", {})}
    if len(digests) > 1:
        raise RunFolderError(
            f"The data changed while the bench at '{folder}' was running: its pieces cannot be compared. Start a new bench."
        )


def machine(done: Mapping[Piece, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what the bench ran on: processor, cores, memory, and the devices of each runner."""
    import platform

    from kft.comparison.bench.gemm import processor

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [
        (piece.runner, values["figures"]) for piece, values in done.items() if "device" in values.get("figures", {})
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "processor": processor(),
        "cores": cores,
        "memory": memory,
        "system": platform.platform(),
        "devices": {runner: figures["device"] for runner, figures in found},
    }
