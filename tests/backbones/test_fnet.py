"""FNet: the head that was published with it, and the variants that KerasHub's class does not compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "type_vocab_size": 3,
}


def test_a_published_head_and_the_pooler_give_the_logits_of_transformers(
    backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    import keras

    torch.manual_seed(0)
    config = transformers.FNetConfig(**SIZES, id2label={0: "negative", 1: "neutral", 2: "positive"})
    model = transformers.FNetForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    found = kft.load_backbone(str(tmp_path))
    assert found.inputs == ("token_ids", "segment_ids")
    assert (found.pooling, found.head.reads, found.head.labels) == (
        "pooled",
        "pooled",
        ("negative", "neutral", "positive"),
    )
    ids, segments = np.array([[2, 7, 9, 3, 11, 3]], np.int32), np.array([[0, 0, 0, 0, 1, 2]], np.int32)
    pooled = found.model({"token_ids": ids, "segment_ids": segments}, training=False)["pooled_output"]
    kernel, bias = found.head.weights["logits"]
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(ids), token_type_ids=torch.tensor(segments)).logits.numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(pooled) @ kernel + bias, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act in config.json is 'relu'; of fnet kft computes only 'gelu_new'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps in config.json is 1e-05; of fnet kft computes only 1e-12"),
        ({"use_tpu_fourier_optimizations": True}, "use_tpu_fourier_optimizations in config.json is True"),
    ],
)
def test_what_keras_hub_does_not_compute_is_refused(
    backend: str, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fnet", **SIZES, **change}), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))
