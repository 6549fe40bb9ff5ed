"""Activates one of Keras' backends, and says what this machine has."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from kft.errors import BackendError, unknown
from kft.fetch import cache_folder
from kft.recipe import BACKENDS

PREFERENCE = ("torch", "jax", "tensorflow")


def installed() -> list[str]:
    """Returns the backends that are installed here, the one kft would take first being first."""
    if importlib.util.find_spec("keras") is None:
        return []
    return [name for name in PREFERENCE if importlib.util.find_spec(name) is not None]


def choose(name: str) -> str:
    """Returns the backend a name stands for; `auto` takes KERAS_BACKEND, else the first that is installed.

    It measures nothing: which backend a recipe with `backend: auto` trains on says `kft.comparison.plan.backend_for`.

    Raises:
        BackendError: if it is unknown or not installed; the message has the line that installs it.
    """
    here = installed()
    if name == "auto":
        name = os.environ.get("KERAS_BACKEND") or (here[0] if here else "")
    if not name:
        raise BackendError(
            'No backend is installed here. Type: pip install "keras-finetune[jax]" (or torch, tensorflow).'
        )
    if name not in BACKENDS:
        raise BackendError(unknown("backend", name, BACKENDS))
    if name not in here:
        raise BackendError(
            f"The backend '{name}' is not installed here (installed: {', '.join(here) or 'none'}). "
            f'Type: pip install "keras-finetune[{name}]"'
        )
    return name


def active() -> str | None:
    """Returns the backend of the keras this process has imported, or None."""
    keras = sys.modules.get("keras")
    return str(keras.backend.backend()) if keras is not None and hasattr(keras, "backend") else None


def activate(name: str) -> str:
    """Makes keras run on a backend for the rest of this process and imports it.

    keras is imported before anything can import TensorFlow: on torch the two crash in the other order. KerasHub is
    imported without TensorFlow on jax and torch, which saves seconds and memory.

    Args:
        name: tensorflow, torch, jax or auto.

    Returns:
        The backend's name.

    Raises:
        BackendError: if it is not installed, or keras runs on another one already.
    """
    name = choose(name)
    now = active()
    if now not in (None, name):
        raise BackendError(
            f"Received backend '{name}', but keras already runs on '{now}' in this process, and it cannot change. "
            f"Call kft.use_backend('{name}') before importing keras, or set KERAS_BACKEND={name}."
        )
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if name == "jax":
        _import_jax()
    importlib.import_module("keras")
    with without_tensorflow():
        importlib.import_module("keras_hub")
    return name


def _import_jax() -> None:
    """Imports jax and makes it keep what it compiles for the next process, in a folder that only this user may write.

    What lies there is run as code, so a folder that somebody else could have filled is left alone.
    """
    # Where etils is installed, jax reads its cache through it, and etils imports TensorFlow for that.
    with contextlib.nullcontext() if "jax" in sys.modules else _refused("etils"):
        jax = importlib.import_module("jax")
    if jax.config.jax_compilation_cache_dir is not None or "JAX_ENABLE_COMPILATION_CACHE" in os.environ:
        return  # somebody has an opinion of their own
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


class _Refuse(importlib.abc.MetaPathFinder):
    """Makes imports fail as if what they ask for were not installed."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in self._names:
            raise ImportError(f"{fullname} is kept out on this backend")


@contextlib.contextmanager
def without_tensorflow() -> Iterator[None]:
    """Keeps TensorFlow from being imported in the block, unless it is the active backend or was imported before.

    KerasHub imports it for conveniences of its own (tf.data, remote file systems) wherever it is installed.
    """
    if active() == "tensorflow":
        yield
        return
    with _refused("tensorflow", "tensorflow_text"):
        yield


@contextlib.contextmanager
def _refused(*names: str) -> Iterator[None]:
    finder = _Refuse(*names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def devices() -> list[str]:
    """Returns what the active backend computes on, as `cpu` or `gpu: NAME`."""
    name = active()
    if name == "torch":
        import torch

        if torch.cuda.is_available():
            return [f"gpu: {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
        return ["cpu"]
    if name == "jax":
        import jax

        return [
            device.platform if device.platform == "cpu" else f"gpu: {device.device_kind}" for device in jax.devices()
        ]
    import tensorflow

    return [f"gpu: {gpu.name}" for gpu in tensorflow.config.list_physical_devices("GPU")] or ["cpu"]


def versions() -> dict[str, str]:
    """Returns the versions of what a run depends on, of those that are installed."""
    names = (
        "keras-finetune",
        "keras",
        "keras-hub",
        "tensorflow",
        "torch",
        "jax",
        "numpy",
        "tokenizers",
        "scikit-learn",
    )
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def probe(name: str, seconds: float = 120) -> list[str]:
    """Returns the devices of a backend, asked in a process of its own so that this one stays free to choose.

    Raises:
        BackendError: if the backend does not start; the message has its last line.
    """
    code = (
        f"from kft import backend; import json, sys; backend.activate({name!r}); "
        "print('devices:' + json.dumps(backend.devices()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("devices:"):
            found: list[str] = json.loads(line.removeprefix("devices:"))
            return found
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise BackendError(f"The backend '{name}' is installed but does not start: {last}")
