"""Measures the time from `kft run` to its first training step: once with empty caches, and again with what that left.

    python bench/first_step.py examples/mrpc_minilm.yaml data.source=FOLDER data.test=test --backend torch

It types the real command and waits for the first line of the run's history; then it asks the run to stop. Fetched wheels
are there already, nothing encoded or compiled is. It prints one JSON object: seconds of the `first` and the `second` run.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

FETCHED = ("wheels", "renamed")
LONGEST = 1800.0


def measure(arguments: Sequence[str], backend: str) -> dict[str, Any]:
    """Returns `first` and `second`, the seconds to the first step of two runs, or `reason`.

    Args:
        arguments: a recipe and changes to it, as `kft run` takes them.
        backend: what to train on.
    """
    with tempfile.TemporaryDirectory(prefix="kft-first-step-") as name:
        folder = pathlib.Path(name)
        environment = environment_of(folder / "cache")
        try:
            first, second = (seconds(arguments, backend, folder / run, environment) for run in ("first", "second"))
        except RuntimeError as error:
            return {"reason": str(error)}
    return {"first": first, "second": second}


def environment_of(cache: pathlib.Path) -> dict[str, str]:
    """Makes a cache in which only what was fetched is there already, and returns the environment that names it."""
    from kft.fetch import cache_folder

    real = cache_folder().resolve()
    cache.mkdir()
    for part in FETCHED:
        (real / part).mkdir(parents=True, exist_ok=True)
        (cache / part).symlink_to(real / part)
    kept = {
        name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "JAX_COMPILATION_CACHE_DIR")
    }
    return {**kept, "KFT_CACHE": str(cache)}


def seconds(arguments: Sequence[str], backend: str, folder: pathlib.Path, environment: dict[str, str]) -> float:
    """Returns the seconds from the command to the first line of its history; the run is ended then.

    Raises:
        RuntimeError: if the run ends, or half an hour goes by, before that.
    """
    command = [sys.executable, "-m", "kft", "run", *arguments, "train.log_every=1"]
    command += ["--backend", backend, "--output", str(folder)]
    history, said = folder / "history.jsonl", folder.with_suffix(".txt")
    with said.open("w") as stream:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
        try:
            while child.poll() is None and time.perf_counter() - start < LONGEST:
                if history.is_file() and '"loss"' in history.read_text(encoding="utf8"):
                    return time.perf_counter() - start
                time.sleep(0.02)
        finally:
            _end(child)
    lines = [line for line in said.read_text(encoding="utf8", errors="replace").splitlines() if line.strip()]
    raise RuntimeError(lines[-1] if lines else f"the run ended with code {child.returncode} and no message")


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(60)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arguments", nargs="+", metavar="RECIPE KEY=VALUE")
    parser.add_argument("--backend", required=True, choices=["tensorflow", "torch", "jax"])
    options = parser.parse_args()
    found = measure(options.arguments, options.backend)
    print(json.dumps(found))
    sys.exit("reason" in found)


if __name__ == "__main__":
    main()
