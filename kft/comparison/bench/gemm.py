"""The limit of this machine: how many operations a second a plain float32 matrix product reaches."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (2048, 768, 3072))
GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 1024, 4096))
SECONDS = 0.6  # a shape
Product = Callable[[], object]


def measure(job: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Measures the matrix product in this process, on the processor and on a GPU where there is one.

    Returns:
        `cpu` and `gpu`: operations a second, the best of a few shapes; `gpu` is None without one.
    """
    library = _library()
    cpu = max(_speed(_product(library, "cpu", shape), shape) for shape in SHAPES)
    gpu = _gpu_library(library)
    best = max(_speed(_product(gpu, "gpu", shape), shape) for shape in GPU_SHAPES) if gpu else None
    return {"cpu": cpu, "gpu": best, "library": gpu or library, "processor": processor()}


def _library() -> str:
    with contextlib.suppress(Exception):  # a broken torch is a row of the table, not the end of it
        importlib.import_module("torch")
        return "torch"
    return "numpy"


def _gpu_library(library: str) -> str | None:
    if library == "torch":
        import torch

        if torch.cuda.is_available():
            return "torch"
    if importlib.util.find_spec("jax"):
        with contextlib.suppress(Exception):
            import jax

            return "jax" if jax.devices()[0].platform == "gpu" else None
    return None


def _product(library: str, device: str, shape: tuple[int, int, int]) -> Product:
    rows, inner, columns = shape
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal(size, np.float32) for size in ((rows, inner), (inner, columns)))
    if library == "torch":
        return _torch_product(left, right, "cuda" if device == "gpu" else "cpu")
    if library == "jax":
        return _jax_product(left, right)
    into = np.empty((rows, columns), np.float32)
    return lambda: np.matmul(left, right, out=into)


def _torch_product(left: np.ndarray, right: np.ndarray, device: str) -> Product:
    import torch

    a, b = torch.from_numpy(left).to(device), torch.from_numpy(right).to(device)
    into = torch.empty((a.shape[0], b.shape[1]), device=device)

    def product() -> None:
        torch.mm(a, b, out=into)
        if device == "cuda":
            torch.cuda.synchronize()

    return product


def _jax_product(left: np.ndarray, right: np.ndarray) -> Product:
    import jax

    a, b = jax.device_put(left), jax.device_put(right)
    multiply = jax.jit(lambda x, y: jax.numpy.matmul(x, y, precision="float32"))
    return lambda: multiply(a, b).block_until_ready()


def _speed(product: Product, shape: tuple[int, int, int]) -> float:
    return 2.0 * shape[0] * shape[1] * shape[2] / fastest(product)


def fastest(product: Callable[[], Any]) -> float:
    """Returns the seconds of the fastest of many calls, the first one left out."""
    product()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return best


def processor() -> str:
    """Returns the name of this machine's processor."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf8").splitlines() if file.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
