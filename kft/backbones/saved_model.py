"""TensorFlow SavedModels as ordinary Keras models: read once, kept in the cache; nothing of them is run.

TensorFlow reads the files as data, in a process of its own. Of encoders the graph's names tell the family, and the copy has
Hugging Face's layout; of images' models the graph itself is read, and the copy lists Keras' own layers. The checkpoint has the
weights, and there is no TensorFlow in the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kft.backbones import saved_graph
from kft.backbones.vision import saved_images
from kft.errors import ModelError
from kft.fetch import cache_folder
from kft.rundir import make_folder

FILE = saved_graph.FILE
UNKNOWN = "unknown.json"  # in the cache in place of a model, where there is none of ours


def is_one(folder: Path) -> bool:
    """Says whether a folder holds a SavedModel."""
    return (folder / FILE).is_file()


def vocabulary(folder: Path) -> Path | None:
    """Returns the WordPiece vocabulary, or the SentencePiece model, among a SavedModel's assets, or None."""
    found = sorted([*(folder / "assets").glob("*vocab*.txt"), *(folder / "assets").glob("*.model")])
    return found[0] if len(found) == 1 else None


def folder_for(folder: Path) -> Path | None:
    """Returns the cached copy of a SavedModel as an ordinary model, or None where it cannot be one.

    It has a tokenizer's files where the SavedModel has a vocabulary among its assets, as TF-Hub's preprocessors do, and
    weights where it is an encoder in whose family Hugging Face's layout is known, or computes of images what layers do.

    Raises:
        ModelError: if a file is missing or broken, or TensorFlow is not installed.
    """
    index = folder / "variables" / "variables.index"
    if not index.is_file():
        raise ModelError(f"'{folder}' lacks {index.relative_to(folder)} beside {FILE}. Get the whole folder.")
    place = cache_folder() / "published" / _digest(folder)
    if not place.is_dir():
        make_folder(place, lambda temporary: _convert(folder, temporary))
    return None if (place / UNKNOWN).is_file() else place


def _digest(folder: Path) -> str:
    digest = hashlib.sha256(b"saved model 3")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:32]


def _convert(folder: Path, place: Path) -> None:
    command = [sys.executable, "-m", "kft.backbones.saved_model", str(folder), str(place)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise ModelError(f"TensorFlow cannot read the SavedModel '{folder}': {lines[-1][:200]}.")


# What follows runs in the process that has TensorFlow.

# ALBERT has one block, without a number.
BLOCK = r"(?:^|/)(?:(?:transformer/)?layer_(\d+)|transformer)/"
DENSE = {
    "self_attention/query": "attention.self.query",
    "self_attention/key": "attention.self.key",
    "self_attention/value": "attention.self.value",
    "self_attention/attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
NORMS = {
    "self_attention_layer_norm": "attention.output.LayerNorm",
    "output_layer_norm": "output.LayerNorm",
}
TABLES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embeddings": "embeddings.token_type_embeddings",
}
# What Hugging Face calls the parts of ALBERT's one block, and what is beside it.
ALBERT = {
    "attention.self.": "attention.",
    "attention.output.dense": "attention.dense",
    "attention.output.LayerNorm": "attention.LayerNorm",
    "intermediate.dense": "ffn",
    "output.dense": "ffn_output",
    "output.LayerNorm": "full_layer_layer_norm",
}
BESIDE = {"embeddings_project.": "encoder.embedding_hidden_mapping_in.", "pooler.dense.": "pooler."}
ALBERTS_BLOCK = "encoder.albert_layer_groups.0.albert_layers.0."
QUERY = "transformer/self_attention/query/kernel"
# TensorFlow numbers the scopes of a layer that is passed again.
QUERIES = re.compile(r"(^|/)self_attention(_\d+)?/query(_\d+)?/")
PARTS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


@dataclass(frozen=True)
class Contents:
    """What a SavedModel's files say.

    Attributes:
        weights: reads each variable of the root object, by the name it had when it was made.
        flags: the root object's own variables of one value.
        operations: the kinds of all operations in its graphs.
        passes: how often the graph that does it most often computes attention's queries.
    """

    weights: Mapping[str, Callable[[], np.ndarray]]
    flags: Mapping[str, Any]
    operations: frozenset[str]
    passes: int = 0


def contents(found: saved_graph.Files) -> Contents:
    """Returns what tells an encoder's family."""
    nodes, keys, meta = found.objects, found.keys, found.meta

    def read(number: int) -> Callable[[], np.ndarray]:
        return lambda: found.read(number)

    root = found.children(0)
    listed = nodes[root["variables"]].children if "variables" in root else []
    weights = {nodes[child.node_id].variable.name: read(child.node_id) for child in listed if child.node_id in keys}
    flags = {
        name: read(number)()
        for name, number in root.items()
        if number in keys and nodes[number].WhichOneof("kind") == "variable" and not nodes[number].variable.shape.dim
    }
    functions = [node.op for function in meta.graph_def.library.function for node in function.node_def]
    passes = [
        sum(node.op == "Einsum" and bool(QUERIES.search(node.name)) for node in function.node_def)
        for function in meta.graph_def.library.function
    ]
    operations = frozenset([*functions, *(node.op for node in meta.graph_def.node)])
    return Contents(weights, flags, operations, max(passes, default=0))


def tensor(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Returns a variable of TensorFlow's BERT under Hugging Face's name, or None for one that has no place there.

    The names are those of `official.nlp.modeling.networks.BertEncoder` in TensorFlow's model garden, of which TF-Hub's BERT,
    small BERT, BERT experts and ELECTRA are made.
    """
    path, _, part = name.partition(":")[0].rpartition("/")
    if found := re.search(BLOCK + "(.+)$", path):
        number, layer = found[1] or "0", found[2]
        if layer in NORMS:
            return f"encoder.layer.{number}.{NORMS[layer]}.{PARTS[part]}", array
        if layer in DENSE:
            # Attention's kernels part the heads: (width, heads, size), and (heads, size, width) behind it.
            wide = array.reshape(-1, array.shape[-1]) if layer.endswith("attention_output") else _two(array)
            return f"encoder.layer.{number}.{DENSE[layer]}.{PARTS[part]}", wide.T if part == "kernel" else array.ravel()
        return None
    last = path.rpartition("/")[2]
    if last in TABLES and part == "embeddings":
        return f"{TABLES[last]}.weight", array
    if path.endswith("embeddings/layer_norm"):
        return f"embeddings.LayerNorm.{PARTS[part]}", array
    dense = {"embedding_projection": "embeddings_project", "pooler_transform": "pooler.dense"}.get(last)
    return None if dense is None else (f"{dense}.{PARTS[part]}", array.T if part == "kernel" else array)


def _two(array: np.ndarray) -> np.ndarray:
    return array.reshape(len(array), -1)


def encoder(found: Contents) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Returns `config.json` and the weights of a SavedModel in Hugging Face's layout, or None where it is no such encoder."""
    tensors: dict[str, np.ndarray] = {}
    heads, albert = 0, False
    for name, read in found.weights.items():
        array = read()
        if array.dtype.kind != "f":
            continue  # a flag, as whether to put texts into lower case
        if name.partition(":")[0].endswith(("layer_0/self_attention/query/kernel", QUERY)):
            heads = array.shape[1]
        albert = albert or name.partition(":")[0].endswith(QUERY)
        place = tensor(name, array)
        if place is None:
            return None
        tensors[place[0]] = np.ascontiguousarray(place[1])
    layers = len([name for name in tensors if name.endswith("attention.output.dense.weight")])
    if not layers or not heads or "embeddings.word_embeddings.weight" not in tensors:
        return None
    projected = "embeddings_project.weight" in tensors
    if albert and not (projected and found.passes):
        return None
    if projected and not albert:  # ELECTRA, whose pooler nobody trained
        tensors = {name: array for name, array in tensors.items() if not name.startswith("pooler.")}
    words = tensors["embeddings.word_embeddings.weight"].shape
    config = {
        "model_type": "electra" if projected else "bert",
        "architectures": ["ElectraModel" if projected else "BertModel"],
        "vocab_size": words[0],
        "hidden_size": len(tensors["encoder.layer.0.attention.output.dense.bias"]),
        "num_hidden_layers": found.passes if albert else layers,
        "num_attention_heads": heads,
        "intermediate_size": len(tensors["encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(tensors["embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
        # The model garden's gelu is the tanh form, unless a graph has the error function.
        "hidden_act": "gelu" if "Erf" in found.operations else "gelu_new",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        **({"embedding_size": words[1]} if projected else {}),
    }
    if albert:
        config |= {
            "model_type": "albert",
            "architectures": ["AlbertModel"],
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        }
        tensors = {_of_albert(name): array for name, array in tensors.items()}
    return config, tensors


def _of_albert(name: str) -> str:
    """Returns what a weight that BERT has too is called in ALBERT."""
    start = "encoder.layer.0."
    if not name.startswith(start):
        return next((new + name.removeprefix(old) for old, new in BESIDE.items() if name.startswith(old)), name)
    part = name.removeprefix(start)
    return ALBERTS_BLOCK + next(new + part.removeprefix(old) for old, new in ALBERT.items() if part.startswith(old))


def lowercases(found: Contents, words: Path) -> bool:
    """Says whether texts are to be put into lower case: by a flag, by the graph, or by what is in the vocabulary."""
    if "do_lower_case" in found.flags:
        return bool(found.flags["do_lower_case"])
    if any(name.startswith(("RegexSplit", "WordpieceTokenize", "FastWordpiece")) for name in found.operations):
        return "CaseFoldUTF8" in found.operations
    lines = words.read_text(encoding="utf8").splitlines()
    return all(word == word.lower() for word in lines if not word.startswith("["))


def convert(folder: Path, place: Path) -> None:
    """Writes what is known of a SavedModel.

    Args:
        folder: the SavedModel's.
        place: the folder to write to.
    """
    from safetensors.numpy import save_file

    files, words = saved_graph.files(folder), vocabulary(folder)
    found = contents(files)
    known = encoder(found) or saved_images.read(files)
    if known is not None:
        config, tensors = known
        save_file(tensors, str(place / "model.safetensors"), metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps(config, indent=2), encoding="utf8")
    if words is not None and words.suffix == ".model":
        shutil.copyfile(words, place / "spiece.model")
        options = {"do_lower_case": bool(found.flags.get("do_lower_case", True)), "tokenizer_class": "AlbertTokenizer"}
        (place / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf8")
    elif words is not None:
        shutil.copyfile(words, place / "vocab.txt")
        options = {"do_lower_case": lowercases(found, words), "tokenizer_class": "BertTokenizer"}
        (place / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf8")
    if known is None and words is None:
        (place / UNKNOWN).write_text(json.dumps({"variables": list(found.weights)}), encoding="utf8")


if __name__ == "__main__":
    sys.setrecursionlimit(100_000)  # a graph is as deep as its network
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
