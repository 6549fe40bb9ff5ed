"""Compares what `kft plan` says with what then happens: seconds and peak memory of whole runs, one backend after another.

    python bench/plan_accuracy.py examples/mrpc_minilm.yaml data.source=FOLDER data.test=test
    python bench/plan_accuracy.py RECIPE KEY=VALUE… --backends torch,jax --output accuracy.json

Nothing else should run on the machine. It exits with 1 if a figure is off by more than 25 %.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ALLOWED = 0.25


def plan(arguments: list[str], backends: str | None) -> dict:
    chosen = ["--backends", backends] if backends else []
    done = subprocess.run(
        [sys.executable, "-m", "kft", "plan", *arguments, *chosen, "--json"], stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)["backends"]


def run(arguments: list[str], backend: str) -> tuple[float, int, dict]:
    """Returns seconds from command to end, peak bytes of the process and the report of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "kft", "run", *arguments, "--backend", backend, "--output", f"{folder}/run"]
        start = time.perf_counter()
        with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as child:
            peak = _watch(child)
            seconds = time.perf_counter() - start
            assert child.stdout is not None
            if child.returncode:
                sys.exit(f"the run on {backend} ended with {child.returncode}")
            return seconds, peak, json.loads(child.stdout.read())


def _watch(child: subprocess.Popen) -> int:
    """Waits for a process; returns the largest resident set it was seen to have had."""
    status, peak = pathlib.Path(f"/proc/{child.pid}/status"), 0
    while child.poll() is None:
        try:
            if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text()):
                peak = int(found[1]) * 1024
        except OSError:
            break
        time.sleep(0.2)
    child.wait()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arguments", nargs="+", metavar="RECIPE KEY=VALUE")
    parser.add_argument("--backends")
    parser.add_argument("--output", type=pathlib.Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    os.environ.pop("KERAS_BACKEND", None)
    found, worst = {}, 0.0
    print("backend     seconds: plan    run  ratio   memory MB: plan    run  ratio", flush=True)
    for backend, said in plan(options.arguments, options.backends).items():
        if "failed" in said:
            print(f"{backend:<11} {said['failed']}")
            continue
        seconds, peak, report = run(options.arguments, backend)
        planned = said["peak_memory"]["host"]
        time_ratio, memory_ratio = said["expected"] / seconds, planned / peak
        worst = max(worst, abs(time_ratio - 1), abs(memory_ratio - 1))
        found[backend] = {"plan": said, "seconds": seconds, "peak": peak, "phases": report["seconds"]}
        print(
            f"{backend:<11} {said['expected']:>13.1f} {seconds:>6.1f} {time_ratio:>6.2f}   "
            f"{planned / 1e6:>15.0f} {peak / 1e6:>6.0f} {memory_ratio:>6.2f}",
            flush=True,
        )
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf8")
    sys.exit(worst > ALLOWED)


if __name__ == "__main__":
    main()
