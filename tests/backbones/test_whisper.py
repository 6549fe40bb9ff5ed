"""Whisper: states of encoder and decoder are transformers' own, and no task takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft import recipe as recipes
from kft.check import check
from kft.errors import ModelError

pytestmark = pytest.mark.backend

SIZES = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_mel_bins": 5,
    "max_source_positions": 6,
    "max_target_positions": 10,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> tuple[Path, Any]:
    """The folder of a tiny random model, and transformers' model of it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return tmp_path, model.model


def test_both_states_are_those_of_transformers(
    published: tuple[Path, Any], same: Callable[..., None], tmp_path: Path
) -> None:
    import keras
    import torch

    folder, model = published
    sound = np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)
    ids, mask = np.array([[2, 7, 9, 0], [2, 8, 11, 12]]), np.array([[1, 1, 1, 0], [1] * 4])
    with torch.no_grad():
        wanted = model(
            input_features=torch.tensor(sound.transpose(0, 2, 1)),
            decoder_input_ids=torch.tensor(ids),
            decoder_attention_mask=torch.tensor(mask),
        )
    backbone = kft.load_backbone(str(folder))
    assert (backbone.modality, backbone.preprocessor) == ("audio", backbone.tokenizer)
    inputs = {"encoder_features": sound, "decoder_token_ids": ids, "decoder_padding_mask": mask}
    backbone.model.save(tmp_path / "whisper.keras")
    again = keras.saving.load_model(tmp_path / "whisper.keras", compile=False)
    found = {name: keras.ops.convert_to_numpy(x) for name, x in again(inputs, training=False).items()}
    same("Hugging Face", "whisper", found["encoder_sequence_output"], wanted.encoder_last_hidden_state.numpy())
    real = mask.astype(bool)
    same("Hugging Face", "whisper", found["decoder_sequence_output"][real], wanted.last_hidden_state.numpy()[real])


def test_a_task_on_it_is_refused_before_anything_is_written(
    published: tuple[Path, Any], tiny: dict, variant: Callable[..., dict], backend: str, tmp_path: Path
) -> None:
    changes = {
        "backend": backend,
        "model": {"preset": str(published[0]), "sequence_length": 8},
        "output.directory": str(tmp_path / "run"),
    }
    recipe = variant(tiny, changes)
    said = "text_classification needs a backbone for text; this one is for audio. Give another model.preset"
    with pytest.raises(ModelError, match=said):
        check(recipes.validate(recipe, "recipe"))
    with pytest.raises(ModelError, match=said):
        kft.run(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder_layers": 1}, "encoder_layers in config.json is 2 and decoder_layers 1; KerasHub computes only"),
        ({"scale_embedding": True}, "scale_embedding in config.json is True; of whisper kft computes only False"),
    ],
)
def test_what_keras_hub_computes_otherwise_is_refused(
    backend: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = {"model_type": "whisper", **SIZES, **change}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))
