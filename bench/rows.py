"""Measures many short rows on their way from a CSV file to batches: rows a second, and peak memory beyond a small file.

    python bench/rows.py
    python bench/rows.py --rows 1000000 --small 10000 --json rows.json

Both files hold random texts of about ten words and one of two labels. Each goes through a fresh process: load, study,
split, encode into an empty cache, and a few batches; no model, no weights and no backend. It exits with 1 if the large
file takes 300 MB more than the small one, or fewer than 20,000 of its rows are encoded in a second.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

MOST_MB, LEAST_ROWS = 300, 20_000
WORDS, BATCHES, BATCH_SIZE = 5000, 200, 32
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(WORDS)]


def write_vocabulary(folder: pathlib.Path, known: list[str]) -> None:
    """Writes a WordPiece vocabulary: most words are one token, the others several."""
    letters = [prefix + letter for letter in LETTERS for prefix in ("", "##")]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *known[: WORDS * 9 // 10]]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf8")


def write_rows(file: pathlib.Path, rows: int, known: list[str], rng: random.Random) -> None:
    with file.open("w", encoding="utf8") as opened:
        opened.write("text,label\n")
        for _ in range(rows):
            opened.write(f"{' '.join(rng.choices(known, k=rng.randint(5, 15)))},{rng.choice(('no', 'yes'))}\n")


def work(file: str, vocabulary: str) -> dict:
    """Takes a file to batches in this process; returns seconds by step, the number of rows and the peak in bytes."""
    from kft import pipeline
    from kft.backbones import tokenizer_files
    from kft.data import load
    from kft.data.batches import Batches, common_ladder
    from kft.recipe import Data
    from kft.tasks import TASKS, targets
    from kft.tasks.task import Encoding

    task, seconds, start = TASKS.load("text_classification"), {}, time.perf_counter()

    def step(name: str) -> None:
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()

    data = Data(source=file, inputs=["text"], validation=0.1)
    encoding = Encoding(data, tokenizer_files.load(pathlib.Path(vocabulary)))
    step("tokenizer")
    splits = load(data, seed=0)
    step("load and split")
    target = targets.study(splits, data, "labels")
    step("study")
    encoded = {name: pipeline.encode(task, table, encoding, target) for name, table in splits.items()}
    step("encode")
    batches = Batches(encoded["train"], BATCH_SIZE, common_ladder(list(encoded.values())), multiple=1)
    plan = batches.plan(0)
    step("plan")
    for rows, length in plan[:BATCHES]:
        batches.make(rows, length)
    step("batches")
    peak = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
    assert peak is not None
    return {"rows": sum(map(len, encoded.values())), "seconds": seconds, "peak": int(peak[1]) * 1024}


def measure(file: pathlib.Path, vocabulary: pathlib.Path) -> dict:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--work", str(file), str(vocabulary)]
        environment = {**os.environ, "KFT_CACHE": cache}
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment)
    found = json.loads(done.stdout)
    spent = sum(found["seconds"][name] for name in ("load and split", "study", "encode"))
    return {**found, "bytes": file.stat().st_size, "rows_per_second": found["rows"] / spent}


def show(found: list[dict]) -> None:
    steps = list(found[0]["seconds"])
    print(f"{'rows':>9} {'file MB':>8} {'rows/s':>8} {'peak MB':>8}   seconds: {', '.join(steps)}")
    for one in found:
        seconds = ", ".join(f"{one['seconds'][name]:.2f}" for name in steps)
        print(
            f"{one['rows']:>9,} {one['bytes'] / 1e6:>8.1f} {one['rows_per_second']:>8,.0f} {one['peak'] / 1e6:>8.0f}   {seconds}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=10_000)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work)))
        return
    rng, found = random.Random(0), []
    known = words(rng)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_vocabulary(folder / "vocabulary", known)
        for rows in (options.small, options.rows):
            write_rows(folder / f"{rows}.csv", rows, known, rng)
            found.append(measure(folder / f"{rows}.csv", folder / "vocabulary"))
    show(found)
    more = (found[1]["peak"] - found[0]["peak"]) / 1e6
    print(f"{options.rows:,} rows take {more:.0f} MB more than {options.small:,} (at most {MOST_MB})")
    if options.json:
        options.json.write_text(json.dumps({"files": found, "more_mb": more}, indent=2) + "\n", encoding="utf8")
    sys.exit(more > MOST_MB or found[1]["rows_per_second"] < LEAST_ROWS)


if __name__ == "__main__":
    main()
