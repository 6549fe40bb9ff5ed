"""BART: its published head on the last token, what is trained of it, and a saved model that is trained again."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

# A decoder that is unlike its encoder.
SIZES = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 64,
    "eos_token_id": 3,
    "decoder_start_token_id": 3,
}
LABELS = ("negative", "positive")
IDS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7], np.int32)
INPUTS = {"token_ids": IDS, "padding_mask": MASK}


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Any]:
    """The folder of a tiny random classifier, and transformers' model of it; a test may ask for other fields."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = (vocabulary / "vocab.txt").read_text(encoding="utf8").split()
    fields = {**SIZES, **getattr(request, "param", {})}
    config = transformers.BartConfig(**fields, vocab_size=len(words), id2label=dict(enumerate(LABELS)))
    model = transformers.BartForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    folder = tmp_path / "published"
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf8")
    return folder, model


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).logits
    return np.asarray(found)


def values(tensor: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(tensor))


def test_the_published_classifier_gives_its_logits(published: tuple[Path, Any], same: Callable[..., None]) -> None:
    folder, model = published
    backbone = kft.load_backbone(str(folder))
    assert backbone.pooling == "last" and backbone.head is not None and backbone.head.labels == LABELS
    same("Hugging Face", "bart head", kft.published_classifier(backbone).predict_on_batch(INPUTS), logits(model))


@pytest.mark.parametrize("published", [dict.fromkeys(("encoder_layers", "decoder_layers"), 1)], indirect=True)
def test_a_saved_model_has_nothing_of_kft_and_is_fine_tuned_on(
    published: tuple[Path, Any], quick: dict, tmp_path: Path
) -> None:
    import keras

    folder, theirs = published
    backbone, data = kft.load_backbone(str(folder), dropout=0.0), kft.load_data(quick["data"]["source"])
    assert data.labels == LABELS
    model = kft.build_model(data, backbone, dropout=0.0)
    file = tmp_path / "classifier.keras"
    model.save(file)
    with zipfile.ZipFile(file) as whole:
        assert not any(name in whole.read("config.json") for name in (b"kft", b"keras_hub"))
    saved = keras.saving.load_model(file, compile=False)
    before = saved.predict_on_batch(INPUTS)
    np.testing.assert_allclose(before, logits(theirs), atol=1e-4)
    saved.compile(keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    names = [weight.path for weight in saved.trainable_variables]
    start = [values(weight) for weight in saved.trainable_variables]
    saved.train_on_batch(INPUTS, wrong := before.argmin(axis=1))
    after = saved.predict_on_batch(INPUTS)
    assert (after - before)[[0, 1], wrong].min() > 0
    still = {
        name
        for name, old, new in zip(names, start, saved.trainable_variables, strict=True)
        if (old == values(new)).all()
    }
    assert not {name for name in still if "key/bias" not in name}  # a bias on all keys alike changes nothing


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        ("head", set()),
        ("top:1", {"decoder_block_1"}),
        ("top:2", {"decoder_block_0", "decoder_block_1"}),
    ],
)
def test_the_top_is_the_decoders_blocks_before_the_encoders(
    published: tuple[Path, Any], quick: dict, trainable: str, parts: set[str]
) -> None:
    backbone = kft.load_backbone(str(published[0]))
    model = kft.build_model(kft.load_data(quick["data"]["source"]), backbone, trainable=trainable)
    held = {layer.name for layer in backbone.model.layers if layer.trainable_variables}
    assert held == {layer.name for layer in backbone.model.layers if layer.weights and layer.name[:15] in parts}
    assert {layer.name for layer in model.layers if layer.trainable_variables} >= {"head_dense", "logits"}


def test_below_the_decoder_the_encoders_last_block_is_trained(published: tuple[Path, Any], quick: dict) -> None:
    backbone = kft.load_backbone(str(published[0]))
    kft.build_model(kft.load_data(quick["data"]["source"]), backbone, trainable="top:3")
    held = {layer.name[:15] for layer in backbone.model.layers if layer.trainable_variables}
    assert {"encoder_block_1", "decoder_block_0"} <= held
    assert not held & {"encoder_block_0", "token_embedding", "encoder_positio"}


def test_a_head_for_tokens_stands_on_the_states_alone(published: tuple[Path, Any], quick: dict) -> None:
    backbone = kft.load_backbone(str(published[0]))
    model = kft.build_model(kft.load_data(quick["data"]["source"]), backbone, pooling="first")
    assert {layer.name for layer in model.layers if layer.weights} == {"bart", "logits"}


def test_what_older_files_hold_besides_is_left_alone(published: tuple[Path, Any]) -> None:
    folder, model = published
    file = folder / "model.safetensors"
    weights = load_file(file)
    again = {f"model.{half}.embed_tokens.weight": weights["model.shared.weight"] for half in ("encoder", "decoder")}
    save_file({**weights, **again, "final_logits_bias": np.ones((1, 9), np.float32)}, file)
    found = kft.published_classifier(kft.load_backbone(str(folder))).predict_on_batch(INPUTS)
    np.testing.assert_allclose(found, logits(model), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation_function": "mish"}, "Unknown activation_function in config.json 'mish'"),
        ({"normalize_before": True}, "normalize_before in config.json is True; of bart kft computes only False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings in config.json is False"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop in config.json is 0.1"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id in config.json is None"),
    ],
)
def test_other_variants_are_refused(backend: str, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = {"model_type": "bart", "vocab_size": 40, **SIZES, **change}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))
