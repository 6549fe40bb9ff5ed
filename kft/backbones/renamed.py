"""Weights that were saved without a head, under the names that KerasHub looks for.

transformers names the weights of `ViTModel` otherwise than those of `ViTForImageClassification`, whose encoder has the
prefix `vit.`, and those of a decoder without its head otherwise than with it; KerasHub knows the second kind only.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from kft.backbones.folders import ModelFolder
from kft.fetch import cache_folder
from kft.rundir import make_folder

PREFIXES = {"vit": "vit.", **dict.fromkeys(("llama", "mistral", "mixtral", "qwen2", "qwen3", "smollm3"), "model.")}


def folder_for(folder: ModelFolder) -> Path:
    """Returns the folder that KerasHub can read: the model's own, or a copy in the cache with other names."""
    prefix = PREFIXES.get(str(folder.config.get("model_type")))
    files = sorted(folder.path.glob("*.safetensors"))
    if folder.format != "hugging_face" or prefix is None or not files:
        return folder.path
    if any(name.startswith(prefix) for file in files for name in _names(file)):
        return folder.path
    key = hashlib.sha256(f"{folder.sha256} {folder.path.resolve()}".encode()).hexdigest()[:32]
    place = cache_folder() / "renamed" / key
    if not (place / "config.json").exists():
        _write(folder.path, files, prefix, place)
    return place


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="numpy") as tensors:
        return list(tensors.keys())


def _write(source: Path, files: list[Path], prefix: str, place: Path) -> None:
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        with safe_open(file, framework="numpy") as found:
            tensors |= {prefix + name: found.get_tensor(name) for name in _names(file)}

    def make(folder: Path) -> None:
        save_file(tensors, str(folder / "model.safetensors"))
        shutil.copyfile(source / "config.json", folder / "config.json")

    make_folder(place, make)
