"""What was measured is remembered for this machine, these versions and jobs of the same shape."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from kft import backend as backends
from kft import rundir
from kft.comparison.plan_costs import Costs
from kft.errors import KftError
from kft.fetch import cache_folder
from kft.recipe import Recipe

FORMAT = 2
# What one step, one evaluation or one saving depends on; how many there are is no part of it.
TRAIN_FIELDS = (
    "batch_size",
    "evaluation_batch_size",
    "optimizer",
    "clip_norm",
    "label_smoothing",
    "gradient_accumulation",
    "precision",
    "best_weights",
    "metrics",
    "augmentation",
)


def machine() -> dict[str, Any]:
    """Returns what tells this machine from others: processor, cores that may be used, GPUs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": _gpus(),
        "system": platform.system(),
    }


def key(recipe: Recipe, backend: str) -> dict[str, Any]:
    """Returns all that the costs of a recipe on a backend depend on; the number of rows and epochs is not among it."""
    versions = backends.versions()
    names = ("python", "keras-finetune", "keras", "keras-hub", backend)
    train = recipe.train.model_dump(mode="json")
    return {
        "format": FORMAT,
        "machine": machine(),
        "versions": {name: versions.get(name) for name in names},
        "backend": backend,
        "task": recipe.task,
        "model": recipe.model.model_dump(mode="json"),
        "trainable": [[stage.trainable, stage.trainable == "all" or stage.epochs > 1] for stage in recipe.stages],
        "train": {name: train[name] for name in TRAIN_FIELDS},
    }


def file_of(recipe: Recipe, backend: str) -> Path:
    """Returns the file that remembers what a recipe's parts cost on a backend."""
    text = json.dumps(key(recipe, backend), sort_keys=True)
    return cache_folder() / "plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def remember(recipe: Recipe, backend: str, costs: Costs) -> None:
    """Writes down what was measured; a cache that cannot be written is no reason to stop."""
    file = file_of(recipe, backend)
    with contextlib.suppress(OSError, KftError):
        file.parent.mkdir(parents=True, exist_ok=True)
        rundir.write_json(file, {"key": key(recipe, backend), "costs": costs.dump()})


def recall(recipe: Recipe, backend: str) -> Costs | None:
    """Returns what was measured before, or None if nothing was."""
    try:
        return Costs.read(rundir.read_json(file_of(recipe, backend))["costs"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or of another version
        return None


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(encoding="utf8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
    return []
