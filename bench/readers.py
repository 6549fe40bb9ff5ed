"""The README's table of what comes in: source, family and backend, with the largest difference that the tests see.

    python bench/readers.py

Runs the tests of pretrained models on each installed backend, and prints the table as Markdown. Truth is what a model's own
makers compute: transformers, timm, TensorFlow's own SavedModel, EfficientNet-PyTorch, the gguf package.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from kft import backend as backends

ROOT = Path(__file__).resolve().parents[1]


def seen(backend: str, arguments: list[str]) -> list[dict[str, object]]:
    """Runs the tests on a backend, and returns what they held against other programs.

    Raises:
        SystemExit: if a test fails: then there is no table.
    """
    with tempfile.TemporaryDirectory() as name:
        record = Path(name) / "seen.jsonl"
        environment = {**os.environ, "KFT_TEST_BACKEND": backend, "KFT_TEST_RECORD": str(record), "KFT_CACHE": name}
        command = [sys.executable, "-m", "pytest", "-q", "tests/backbones", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=False)
        if done.returncode:
            raise SystemExit(f"The tests on {backend} fail: no table.")
        return [json.loads(line) for line in record.read_text(encoding="utf8").splitlines()]


def table(found: list[dict[str, object]], names: list[str]) -> str:
    """Returns the table as Markdown."""
    largest: dict[tuple[object, object], dict[object, float]] = defaultdict(dict)
    for one in found:
        cell = largest[one["source"], one["family"]]
        cell[one["backend"]] = max(float(str(one["difference"])), cell.get(one["backend"], 0.0))
    lines = [f"| source | family | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for (source, family), cell in sorted(largest.items(), key=lambda item: tuple(map(str, item[0]))):
        values = (f"{cell[name]:.1e}" if name in cell else "-" for name in names)
        lines.append(f"| {source} | {family} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", default=",".join(sorted(backends.installed())), help="which, with commas between")
    parser.add_argument("arguments", nargs="*", help="for pytest, behind --")
    options = parser.parse_args()
    names = options.backends.split(",")
    found = [one for name in names for one in seen(name, options.arguments)]
    print(f"Seen on {datetime.date.today()}: the largest difference in float32.\n\n{table(found, names)}")


if __name__ == "__main__":
    main()
