"""Prints how many operations a second a plain matrix product reaches, as one JSON line.

    python bench/gemm_peak.py --device gpu --precision bfloat16

`kft bench` measures the same in float32; a training in mixed precision has a higher limit, which this measures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable

from kft.comparison.bench.gemm import fastest

SHAPES = {"cpu": (1024, 2048), "gpu": (4096, 8192)}


def torch_product(size: int, device: str, precision: str) -> Callable[[], object] | None:
    import torch

    if device == "gpu" and not torch.cuda.is_available():
        return None
    place = "cuda" if device == "gpu" else "cpu"
    a, b = (torch.randn(size, size, device=place, dtype=getattr(torch, precision)) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        if device == "gpu":
            torch.cuda.synchronize()

    return product


def jax_product(size: int, device: str, precision: str) -> Callable[[], object] | None:
    import jax

    if not any(each.platform == device for each in jax.devices()):
        return None
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), dtype=precision) for seed in range(2))
    multiply = jax.jit(jax.numpy.matmul)
    return lambda: multiply(a, b).block_until_ready()


def tensorflow_product(size: int, device: str, precision: str) -> Callable[[], object] | None:
    import tensorflow

    if device == "gpu" and not tensorflow.config.list_physical_devices("GPU"):
        return None
    a, b = (tensorflow.cast(tensorflow.random.normal((size, size)), precision) for _ in range(2))
    return lambda: float(tensorflow.linalg.matmul(a, b)[0, 0])  # reading a value waits for the product


PRODUCTS = {"torch": torch_product, "jax": jax_product, "tensorflow": tensorflow_product}


def measure(device: str, precision: str, library: str | None = None) -> dict:
    """Returns the best speed over a few sizes, by the first library that sees the device."""
    for name, make in PRODUCTS.items():
        if library not in (None, name) or importlib.util.find_spec(name) is None:
            continue
        speeds = [
            2.0 * size**3 / fastest(product) for size in SHAPES[device] if (product := make(size, device, precision))
        ]
        if speeds:
            return {"operations_per_second": max(speeds), "library": name, "device": device, "precision": precision}
    sys.exit(f"No {device} is seen by {library or 'torch, jax or tensorflow'}; --device cpu measures the processor.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--library", choices=list(PRODUCTS), help="the first that is installed and sees the device")
    options = parser.parse_args()
    print(json.dumps(measure(options.device, options.precision, options.library)))


if __name__ == "__main__":
    main()
