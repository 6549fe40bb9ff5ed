"""Checkpoints as Google published BERT and OpenAI GPT-2, put once into Hugging Face's layout, in the cache.

TensorFlow reads them, in a process of its own: the backend's need not import it, and the second time nobody does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kft.errors import ModelError
from kft.fetch import cache_folder
from kft.rundir import make_folder

# Counters and the moments of the optimizer, which BERT's own checkpoints hold beside the weights.
TRAINING = re.compile(r"(^|/)(global_step|adam_m|adam_v|Adam|Adam_1|beta[12]_power|_CHECKPOINTABLE_OBJECT_GRAPH)(/|$)")


@dataclass(frozen=True)
class Layout:
    """How somebody publishes checkpoints.

    Attributes:
        config: the file that tells the layout, with the model's measures.
        tokenizer: the tokenizer's files, and what Hugging Face calls them.
        fields: makes `config.json` of the measures.
        tensor: gives a variable's new name and value, or None for one that is left out.
    """

    config: str
    tokenizer: dict[str, str]
    fields: Callable[[dict[str, Any]], dict[str, Any]]
    tensor: Callable[[str, np.ndarray], tuple[str, np.ndarray] | None]


def _bert_fields(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "model_type": "bert", "architectures": ["BertForPreTraining"], "layer_norm_eps": 1e-12}


def _bert_tensor(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    if not name.startswith("bert/"):
        return None  # the heads of pretraining
    found = re.sub(r"layer_(\d+)", r"layer.\1", name).replace("/", ".")
    for end, other in (
        (".kernel", ".weight"),
        (".gamma", ".weight"),
        (".beta", ".bias"),
        ("_embeddings", "_embeddings.weight"),
    ):
        if found.endswith(end):
            return found.removesuffix(end) + other, array.T if end == ".kernel" else array
    return found, array


def _gpt2_fields(values: dict[str, Any]) -> dict[str, Any]:
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    found = {names.get(name, name): value for name, value in values.items()}
    more = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new"}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    return {**found, **more, **dropout, "n_ctx": values["n_ctx"], "layer_norm_epsilon": 1e-5}


def _gpt2_tensor(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    found = re.sub(r"^model/", "transformer/", name)
    found = re.sub(r"/h(\d+)/", r"/h/\1/", found)
    for end, other in (
        ("/w", "/weight"),
        ("/b", "/bias"),
        ("/g", "/weight"),
        ("/wte", "/wte/weight"),
        ("/wpe", "/wpe/weight"),
    ):
        if found.endswith(end):
            found = found.removesuffix(end) + other
            break
    return found.replace("/", "."), array[0] if array.ndim == 3 else array  # a convolution of width 1


LAYOUTS = (
    Layout("bert_config.json", {"vocab.txt": "vocab.txt"}, _bert_fields, _bert_tensor),
    Layout("hparams.json", {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}, _gpt2_fields, _gpt2_tensor),
)


def layout_of(folder: Path) -> Layout | None:
    """Returns the layout of a folder, or None where it is neither of these."""
    return next((layout for layout in LAYOUTS if (folder / layout.config).is_file()), None)


def folder_for(folder: Path, layout: Layout) -> Path:
    """Returns the cached copy of a folder in Hugging Face's layout, which is made where it is not there.

    Raises:
        ModelError: if a file is missing or broken, or TensorFlow is not installed.
    """
    prefix = checkpoint(folder)
    missing = [name for name in layout.tokenizer if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"'{folder}' lacks {', '.join(missing)} beside {layout.config}. Get the whole folder.")
    place = cache_folder() / "published" / _digest(folder, prefix, layout)
    if not (place / "config.json").is_file():
        make_folder(place, lambda temporary: _convert(folder, prefix, layout, temporary))
    return place


def checkpoint(folder: Path) -> Path:
    """Returns the path of a folder's checkpoint as TensorFlow names it, without the files' endings.

    Raises:
        ModelError: if there is none, or more than one.
    """
    found = sorted(folder.glob("*.index"))
    if len(found) != 1:
        there = ", ".join(file.name for file in found) or ", ".join(
            sorted(entry.name for entry in folder.iterdir())[:12]
        )
        raise ModelError(f"'{folder}' must hold one checkpoint, NAME.ckpt.index and NAME.ckpt.data-…; there: {there}.")
    return found[0].with_suffix("")


def _digest(folder: Path, prefix: Path, layout: Layout) -> str:
    digest = hashlib.sha256(b"1")
    for file in sorted(
        [*folder.glob(f"{prefix.name}.*"), folder / layout.config, *(folder / n for n in layout.tokenizer)]
    ):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def _convert(folder: Path, prefix: Path, layout: Layout, place: Path) -> None:
    try:
        fields = layout.fields(json.loads((folder / layout.config).read_text(encoding="utf8")))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"Cannot read '{folder / layout.config}': {error}. Get the file again.") from None
    command = [sys.executable, "-m", "kft.backbones.published", str(prefix), layout.config, str(place)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise ModelError(f"TensorFlow cannot read the checkpoint '{prefix}': {lines[-1][:200]}.")
    for name, other in layout.tokenizer.items():
        shutil.copyfile(folder / name, place / other)
    if layout.config == "bert_config.json":
        lower = {"do_lower_case": not _cased(place / "vocab.txt"), "tokenizer_class": "BertTokenizer"}
        (place / "tokenizer_config.json").write_text(json.dumps(lower), encoding="utf8")
    (place / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf8")


def _cased(vocabulary: Path) -> bool:
    """Says whether a vocabulary has capital letters: the checkpoint does not say it."""
    words = vocabulary.read_text(encoding="utf8").splitlines()
    return any(word != word.lower() for word in words if not word.startswith("["))


def _variables(prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    import tensorflow

    reader = tensorflow.train.load_checkpoint(prefix)
    for name in sorted(reader.get_variable_to_shape_map()):
        if not TRAINING.search(name):
            yield name, reader.get_tensor(name)


def main() -> None:
    """Writes a checkpoint's weights as `model.safetensors`: its path, the name of its layout's file, the folder."""
    from safetensors.numpy import save_file

    prefix, config, place = sys.argv[1:]
    layout = next(layout for layout in LAYOUTS if layout.config == config)
    found = [layout.tensor(name, array) for name, array in _variables(prefix)]
    tensors = {name: np.ascontiguousarray(array) for name, array in filter(None, found)}
    save_file(tensors, str(Path(place) / "model.safetensors"), metadata={"format": "pt"})


if __name__ == "__main__":
    main()
