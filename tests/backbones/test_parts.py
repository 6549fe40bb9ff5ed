"""Parts of models that read more than one kind of input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IDS = np.array([[2, 7, 9, 3, 0, 0], [2, 8, 11, 12, 13, 3]], np.int32)
MASK = np.array([[1] * 4 + [0] * 2, [1] * 6], np.int32)
TEXT = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 24,
    "query_pre_attn_scalar": 4,
    "sliding_window": 3,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def gemma(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A Gemma 3 that reads images and texts, and transformers' own part for texts."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("gemma3")
    config = transformers.Gemma3Config(
        text_config=TEXT, vision_config=VISION, mm_tokens_per_image=4, image_token_index=79
    )
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(place)
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return place, model.model.language_model


def test_the_part_for_texts_has_transformers_states(
    gemma: tuple[Path, Any], backend: str, same: Any, tmp_path: Path
) -> None:
    import keras
    import torch

    place, theirs = gemma
    backbone = kft.load_backbone(str(place), part="text")
    assert (
        backbone.modality == "text" and backbone.pooling == "last" and backbone.inputs == ("token_ids", "padding_mask")
    )
    mine = backbone.model({"token_ids": IDS, "padding_mask": MASK}, training=False)
    with torch.no_grad():
        states = theirs(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).last_hidden_state
    same(
        "Hugging Face",
        "gemma3, text",
        np.asarray(keras.ops.convert_to_numpy(mine))[MASK == 1],
        states.numpy()[MASK == 1],
    )


def test_a_task_takes_the_part_that_it_reads(
    gemma: tuple[Path, Any], reviews: Path, backend: str, tmp_path: Path
) -> None:
    recipe = {
        "task": "text_classification",
        "model": {"preset": str(gemma[0]), "sequence_length": 8},
        "data": {"source": str(reviews), "limit": 16},
        "train": {"epochs": 1, "batch_size": 8},
        "output": {"directory": str(tmp_path / "run")},
    }
    report = kft.run(recipe)
    assert np.isfinite(report.metrics["validation"]["loss"])
    names = {weight.path for weight in kft.load_run(tmp_path / "run").model.weights}
    assert names and not any("vision" in name for name in names)


def test_a_part_that_is_not_there_is_one_line(gemma: tuple[Path, Any], backend: str, tmp_path: Path) -> None:
    place, _ = gemma
    (tmp_path / "vocab.txt").write_bytes((place / "vocab.txt").read_bytes())
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "text_config": None}), encoding="utf8")
    with pytest.raises(ModelError, match="has no text_config, which a gemma3 has"):
        kft.load_backbone(str(tmp_path), part="text")


def test_a_model_that_reads_texts_has_no_part_for_images(backend: str, vocabulary: Path) -> None:
    with pytest.raises(ModelError, match="model.part: 'BertBackbone' reads text, it has no part for image"):
        kft.load_backbone(
            architecture="BertBackbone",
            pretrained=False,
            part="image",
            tokenizer=str(vocabulary),
            config={
                "vocabulary_size": 80,
                "num_layers": 1,
                "num_heads": 2,
                "hidden_dim": 16,
                "intermediate_dim": 24,
            },
        )
