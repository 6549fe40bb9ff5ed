"""The most memory that a process has held."""

from __future__ import annotations

import sys
from pathlib import Path


def host_peak() -> int:
    """Returns the most bytes of main memory this process has held at once.

    `ru_maxrss` is not asked where Linux says it better: a child starts with that of the process that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def gpu_peak(backend: str) -> int | None:
    """Returns the most bytes an active backend has held on its first GPU, or None where it has none."""
    if backend == "torch":
        import torch

        return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        device = jax.devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        return int(stats["peak_bytes_in_use"]) if stats else None
    import tensorflow

    if not tensorflow.config.list_physical_devices("GPU"):
        return None
    return int(tensorflow.config.experimental.get_memory_info("GPU:0")["peak"])
