"""Falcon's kinds, with texts so long that positions are rounded, its published head, and saved models."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft

pytestmark = pytest.mark.backend

TOKENS, REAL = 300, 271
# A number of heads that is no power of two, whose slopes are made otherwise.
SIZES = {"vocab_size": 60, "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 12}
NEW = {"new_decoder_architecture": True, "num_kv_heads": 3}
ROPE = {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0}
# For each kind the head it is published with, and its fields.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rw": ("Model", {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}),
    "40b": ("ForCausalLM", {**NEW, "layer_norm_epsilon": 1e-2, "ffn_hidden_size": 40}),
    "new-alibi": ("Model", {**NEW, "alibi": True, "bias": True, "activation": "gelu_new"}),
    "one-key-apart": (
        "ForTokenClassification",
        {"parallel_attn": False, "activation": "relu", "bias": True, "rope_parameters": ROPE},
    ),
}


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes the folder of a tiny random model, and transformers' model of it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")

    def make(head: str, **fields: Any) -> tuple[Path, Any]:
        torch.manual_seed(0)
        model = getattr(transformers, f"Falcon{head}")(transformers.FalconConfig(**{**SIZES, **fields})).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
        folder = tmp_path / "published"
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        return folder, model

    return make


def inputs() -> tuple[np.ndarray, np.ndarray]:
    mask = np.ones((2, TOKENS), np.int32)
    mask[0, REAL:] = 0
    return np.random.default_rng(0).integers(3, 60, mask.shape).astype(np.int32) * mask, mask


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_texts_states_are_those_of_transformers(
    published: Callable[..., tuple[Path, Any]], same: Callable[..., None], kind: str
) -> None:
    import torch

    head, fields = KINDS[kind]
    folder, model = published(head, **fields)
    ids, mask = inputs()
    with torch.no_grad():
        wanted = getattr(model, "transformer", model)(torch.tensor(ids), attention_mask=torch.tensor(mask))
    # Compiled, since a compiler may leave out what is rounded on the way.
    found = kft.load_backbone(str(folder)).model.predict_on_batch({"token_ids": ids, "padding_mask": mask})
    real = mask.astype(bool)
    same("Hugging Face", f"falcon-{kind}", found["sequence_output"][real], wanted.last_hidden_state.numpy()[real])


def test_its_published_head_reads_the_last_real_token_and_a_saved_model_loads_without_kft(
    published: Callable[..., tuple[Path, Any]], tmp_path: Path
) -> None:
    import keras
    import torch

    folder, model = published("ForSequenceClassification", **NEW, num_ln_in_parallel_attn=1, pad_token_id=0)
    backbone = kft.load_backbone(str(folder))
    assert backbone.head is not None and backbone.head.reads == backbone.pooling == "last"
    kft.published_classifier(backbone).save(tmp_path / "classifier.keras")
    again = keras.saving.load_model(tmp_path / "classifier.keras", compile=False)
    ids, mask = inputs()
    with torch.no_grad():
        wanted = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    found = again.predict_on_batch({"token_ids": ids, "padding_mask": mask})
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    with zipfile.ZipFile(tmp_path / "classifier.keras") as file:
        assert b"kft" not in file.read("config.json")
