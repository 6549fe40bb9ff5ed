"""Work in a fresh process: one backend each, nothing left over from the work before."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from kft.errors import KftError, unknown

Say = Callable[[str], None]
# Each is called with the job and a way to say what it is doing, and returns JSON values.
WORKERS: dict[str, str] = {
    "parity": "kft.comparison.parity_worker:certify",
    "parity_cross": "kft.comparison.parity_worker:cross",
    **{f"bench {kind}": f"kft.comparison.bench.{kind}:measure" for kind in ("worker", "gemm", "transformers_worker")},
    "plan": "kft.comparison.plan_worker:measure",
    "plan_look": "kft.comparison.plan_worker:look",
}
SAID = "said: "


class ProcessFailed(KftError):
    """A process ended without a result; the others may go on."""

    exit_code = 1


def ask(worker: str, job: Mapping[str, Any], backend: str, say: Say | None = None) -> dict[str, Any]:
    """Does a piece of work in a fresh process and returns its result.

    Args:
        worker: one of WORKERS.
        job: JSON values; `started` (seconds since 1970) is added, so that the start of Python can be counted.
        backend: what keras runs on there; any name if the work needs none.
        say: hears what the process is doing, a line at a time.

    Raises:
        ProcessFailed: if the process fails; the message is the last line it left.
    """
    if worker not in WORKERS:
        raise KftError(unknown("worker", worker, WORKERS))
    with tempfile.TemporaryDirectory(prefix="kft-") as folder:
        result, errors = Path(folder) / "result.json", Path(folder) / "errors.txt"
        (Path(folder) / "job.json").write_text(json.dumps({**job, "started": time.time()}), encoding="utf8")
        command = [sys.executable, "-m", "kft.comparison.process", worker, folder]
        with errors.open("w", encoding="utf8") as stream:
            code = _watched(command, {**os.environ, **_environment(backend)}, stream, say or (lambda text: None))
        if code or not result.is_file():
            raise ProcessFailed(_reason(code, errors.read_text(encoding="utf8", errors="replace")))
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf8"))
    return found


def _environment(backend: str) -> dict[str, str]:
    known = {"KERAS_BACKEND": backend} if backend in ("tensorflow", "torch", "jax") else {}
    return {"TF_CPP_MIN_LOG_LEVEL": "2", **known}


def _watched(command: list[str], environment: dict[str, str], errors: IO[str], say: Say) -> int:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                if line.startswith(SAID):
                    say(line.removeprefix(SAID).rstrip())
            return child.wait()
        except BaseException:
            child.kill()
            raise


def _reason(code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if code < 0:
        return f"The process was killed by signal {-code}" + (" (out of memory?)." if code == -9 else ".")
    return lines[-1] if lines else f"The process ended with code {code} and no message."


def main() -> None:
    """Does what the arguments name: a worker and the folder with its job."""
    worker, folder = sys.argv[1], Path(sys.argv[2])
    module, _, name = WORKERS[worker].partition(":")
    lock = threading.Lock()

    def say(text: str) -> None:
        with lock:
            print(f"{SAID}{text}", flush=True)

    try:
        found = getattr(importlib.import_module(module), name)(
            json.loads((folder / "job.json").read_text(encoding="utf8")), say
        )
    except KftError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    (folder / "writing.json").write_text(json.dumps(found), encoding="utf8")
    (folder / "writing.json").replace(folder / "result.json")


if __name__ == "__main__":
    main()
