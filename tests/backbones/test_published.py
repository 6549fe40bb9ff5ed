"""Checkpoints in Google's and OpenAI's layouts give what transformers computes with the same weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IDS = np.array([[2, 7, 9, 3, 0, 0], [2, 8, 11, 12, 13, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32)
WRITE = """
import sys, numpy, tensorflow
arrays = dict(numpy.load(sys.argv[1]))
names = sorted(arrays)
tensorflow.raw_ops.SaveV2(
    prefix=sys.argv[2], tensor_names=names, shape_and_slices=[""] * len(names), tensors=[arrays[name] for name in names]
)
"""


def write(arrays: dict[str, np.ndarray], prefix: Path) -> None:
    """Writes a checkpoint whose variables have names, as TensorFlow 1 did, in a process that has TensorFlow."""
    import subprocess
    import sys

    np.savez(prefix.parent / "arrays.npz", **arrays)
    command = [sys.executable, "-c", WRITE, str(prefix.parent / "arrays.npz"), str(prefix)]
    subprocess.run(command, check=True, capture_output=True)
    (prefix.parent / "arrays.npz").unlink()


def shaken(model: Any) -> Any:
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval()


def states(folder: Path) -> np.ndarray:
    import keras

    backbone = kft.load_backbone(str(folder))
    inputs = {"token_ids": IDS, "padding_mask": MASK, "segment_ids": np.zeros_like(IDS)}
    found = backbone.model({name: inputs[name] for name in backbone.inputs}, training=False)
    return keras.ops.convert_to_numpy(found["sequence_output"] if isinstance(found, dict) else found)


@pytest.fixture(scope="module")
def google(backend: str, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny random BERT as Google published its own, and transformers' model with the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = len((vocabulary / "vocab.txt").read_text(encoding="utf8").split())
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    values = {"vocab_size": words, "max_position_embeddings": 12, "hidden_act": "gelu", "type_vocab_size": 2, **sizes}
    model = shaken(transformers.BertModel(transformers.BertConfig(**values)))
    arrays = {"global_step": np.int64(3), "cls/predictions/output_bias": np.zeros(words, np.float32)}
    for name, tensor in model.state_dict().items():
        array, own = tensor.numpy(), re.sub(r"layer\.(\d+)", r"layer_\1", name).replace(".", "/")
        if own.endswith("LayerNorm/weight") or own.endswith("LayerNorm/bias"):
            own = own.replace("weight", "gamma").replace("bias", "beta")
        elif own.endswith("_embeddings/weight"):
            own = own.removesuffix("/weight")
        elif own.endswith("/weight"):
            own, array = own.removesuffix("weight") + "kernel", array.T
        arrays[f"bert/{own}"] = array
        if own.endswith("/kernel"):
            arrays[f"bert/{own}/adam_m"] = np.zeros_like(array)
    folder = tmp_path_factory.mktemp("uncased_L-2")
    write(arrays, folder / "bert_model.ckpt")
    (folder / "bert_config.json").write_text(json.dumps(values), encoding="utf8")
    (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return folder, model


def test_googles_bert(
    google: tuple[Path, Any], same: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    folder, model = google
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).last_hidden_state.numpy()
    found = states(folder)
    same("Google", "bert", found[MASK > 0], theirs[MASK > 0])
    # The second time nothing is converted.
    monkeypatch.setattr("kft.backbones.published._convert", None)
    np.testing.assert_array_equal(states(folder), found)
    tokenizer = kft.load_backbone(str(folder)).tokenizer
    assert tokenizer.tokenize(["THE film"]) == tokenizer.tokenize(["the film"])


@pytest.mark.usefixtures("once")
def test_a_folder_of_googles_that_is_not_whole(google: tuple[Path, Any], tmp_path: Path) -> None:
    folder = shutil.copytree(google[0], tmp_path / "copy")
    (folder / "vocab.txt").rename(folder / "words.txt")
    with pytest.raises(ModelError, match="lacks vocab.txt beside bert_config.json"):
        kft.load_backbone(str(folder))
    (folder / "words.txt").rename(folder / "vocab.txt")
    data = next(folder.glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match="TensorFlow cannot read the checkpoint"):
        kft.load_backbone(str(folder))
    next(folder.glob("*.index")).unlink()
    with pytest.raises(ModelError, match=r"must hold one checkpoint, NAME.ckpt.index .*there: bert_config.json"):
        kft.load_backbone(str(folder))


def test_openais_gpt2(same: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "he", "the", "<|endoftext|>"]
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(vocab_size=len(letters), n_positions=12, **sizes)
    model = shaken(transformers.GPT2Model(config))
    arrays = {}
    for name, tensor in model.state_dict().items():
        array, own = tensor.numpy(), re.sub(r"^h\.(\d+)\.", r"h\1.", name).replace(".", "/")
        norm = re.search(r"/?ln_\w+/", own)
        own = own.removesuffix("/weight") if own.startswith("wt") or own.startswith("wp") else own
        own = re.sub("/weight$", "/g" if norm else "/w", own)
        own = re.sub("/bias$", "/b", own)
        arrays[f"model/{own}"] = array[None] if own.endswith("/w") else array
    folder = tmp_path / "117M"
    folder.mkdir()
    write(arrays, folder / "model.ckpt")
    values = {"n_vocab": len(letters), "n_ctx": 12, **sizes}
    (folder / "hparams.json").write_text(json.dumps(values), encoding="utf8")
    (folder / "encoder.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf8")
    (folder / "vocab.bpe").write_text("#version: 0.2\nh e\nt he\n", encoding="utf8")
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK)).last_hidden_state.numpy()
    same("OpenAI", "gpt2", states(folder)[MASK > 0], theirs[MASK > 0])
    tokenizer = kft.load_backbone(str(folder)).tokenizer
    assert tokenizer.tokenize(["the cat"]) == [[letters.index(token) for token in ("the", "Ġ", "c", "a", "t")]]
