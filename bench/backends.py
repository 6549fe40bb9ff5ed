"""Compares all backends over three small jobs - text, tagging, image - and writes one page.

    pip install -e ".[torch,jax,tensorflow,bench]"
    python bench/backends.py --output FOLDER
    python bench/backends.py --output FOLDER --steps 8 --repeats 1      # a quick look
    python bench/backends.py --output FOLDER --gpu                      # larger jobs in mixed_bfloat16, on a GPU

Each job goes through `kft bench`, in FOLDER/text, FOLDER/tagging and FOLDER/image. The same command again goes on where
it was interrupted. FOLDER/index.html then has all of it and needs no other file.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import one_page
from jobs import JOBS
from table import bench, interrupt

from kft import backend, rundir
from kft.cli.watching import watcher
from kft.comparison.bench import rows
from kft.comparison.bench.figures import BY_NAME, spread
from kft.comparison.bench.settings import Settings, backends_of
from kft.errors import BackendError, KftError
from kft.progress import Progress

HERE = Path(__file__).resolve().parent
SHOWN = ("steady_examples", "predict_examples", "compile", "host_memory", "gpu_memory")


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        print(compare(options, watcher()))
    except KftError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("Interrupted; what was measured is kept. Type the same command to go on.", file=sys.stderr)
        sys.exit(1)


def arguments() -> argparse.Namespace:
    """Returns what was typed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the benches and the page")
    parser.add_argument("--backends", help="as in torch,jax; all three without it")
    parser.add_argument("--jobs", default=",".join(JOBS), help=f"of {','.join(JOBS)}")
    parser.add_argument("--repeats", type=int, default=3, help="processes each (3)")
    parser.add_argument("--steps", type=int, help="a quick look: so many training steps, no quality")
    parser.add_argument("--gpu", action="store_true", help="larger batches, mixed_bfloat16, and the GPU's own limit")
    return parser.parse_args()


def compare(options: argparse.Namespace, progress: Progress) -> str:
    """Runs the benches that are not done, writes the page and returns what to print.

    Raises:
        KftError: if the arguments name nothing that can be compared here.
    """
    names, folder = backends_of(options.backends), options.output
    notes: list[str] = []
    if options.gpu:
        names, notes = with_gpu(names)
    wanted = [name.strip() for name in options.jobs.split(",") if name.strip()]
    if not wanted or not set(wanted) <= set(JOBS):
        raise KftError(f"Received --jobs {options.jobs}; known are {', '.join(JOBS)}, as in --jobs text,image")
    with rundir.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if options.gpu:
        notes.append(limit_of_gpu(folder))
    for name in wanted:
        progress.note(f"job {wanted.index(name) + 1} of {len(wanted)}: {name}")
        try:
            recipe = JOBS[name](folder / "data", gpu=options.gpu)
            bench(Settings(recipe, name, names, (), options.repeats, options.steps), folder / name, progress)
        except KftError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            notes.append(f"{name}: {error}")
    found = {name: read for name in JOBS if (read := rundir.read_json(folder / name / "bench.json"))}
    if not found:
        raise KftError("; ".join(notes))
    return report(found, notes, folder)


def report(found: Mapping[str, Mapping[str, Any]], notes: Sequence[str], folder: Path) -> str:
    """Writes the page and returns the table and where the page is."""
    from kft.cli.tables import show

    head, lines = overview(found)
    lines_said = [*(f"{name}: {each['verdict']['headline']}" for name, each in found.items()), *notes]
    print("\n".join(lines_said), end="\n\n")
    show(head, lines)
    title = "TensorFlow, PyTorch and JAX over three small jobs"
    try:
        return f"\nPage: {one_page.write(folder / 'index.html', title, lines_said, [(head, lines)], found)}"
    except KftError as error:
        return f"\n{error}"


def overview(found: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the table over all jobs: a row a figure and job, a column a backend."""
    names = list(dict.fromkeys(name for each in found.values() for name in each["runners"]))
    lines = []
    for job, each in found.items():
        quick = each["settings"]["steps"] is not None
        for figure in SHOWN if quick else ("train_examples", *SHOWN):
            values = {name: row["figures"][figure] for name, row in rows.measured(each).items()}
            if any(values.values()):
                unit = BY_NAME[figure].unit
                lines.append([job, BY_NAME[figure].title, *(spread(values.get(name), unit) for name in names)])
        head, scores = rows.quality(each)
        at = {name: head.index(name) for name in names if name in head}
        lines += [[job, line[0], *(line[at[name]] if name in at else "-" for name in names)] for line in scores]
    return ["job", "median (range)", *names], lines


def with_gpu(names: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the backends that see a GPU, and a sentence about each of the others.

    Raises:
        BackendError: if none does.
    """
    seen, notes = [], []
    for name in names:
        try:
            devices = backend.probe(name) if name in backend.installed() else []
        except (BackendError, subprocess.TimeoutExpired) as error:
            devices, reason = [], str(error)
        else:
            reason = "sees no GPU" if name in backend.installed() else "is not installed"
        if any(device.startswith("gpu") for device in devices):
            seen.append(name)
        else:
            notes.append(f"{name} {reason}: left out.")
    if not seen:
        raise BackendError(
            f"No GPU is seen by {', '.join(names)}. Install a backend for it, as in "
            'pip install -e ".[jax-gpu,bench]", or leave --gpu out to compare on the processor.'
        )
    return tuple(seen), notes


def limit_of_gpu(folder: Path) -> str:
    """Measures the GPU's matrix product in both precisions, once, and returns a sentence about it."""
    piece, found = folder / "gemm_peak.json", rundir.read_json(folder / "gemm_peak.json")
    for precision in ("float32", "bfloat16"):
        if precision not in found:
            command = [sys.executable, str(HERE / "gemm_peak.py"), "--device", "gpu", "--precision", precision]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"The GPU's matrix product was not measured: {(done.stderr.strip().splitlines() or ['-'])[-1]}"
            found[precision] = json.loads(done.stdout)
    rundir.write_json(piece, found)
    speeds = {name: each["operations_per_second"] / 1e12 for name, each in found.items()}
    return (
        f"The GPU's matrix product reaches {speeds['bfloat16']:.1f} TFLOP/s in bfloat16 and {speeds['float32']:.1f} in "
        "float32; utilisation below is over the float32 one, so in mixed_bfloat16 it is to be multiplied by "
        f"{speeds['float32'] / speeds['bfloat16']:.2f}."
    )


if __name__ == "__main__":
    main()
