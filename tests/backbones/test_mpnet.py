"""MPNet: distances beyond the last bucket, its published head, and a saved model that loads without kft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
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
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 302,
    "layer_norm_eps": 1e-3,
}


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> tuple[Path, Any]:
    """The folder of a tiny random classifier, and transformers' model of it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.MPNetForSequenceClassification(transformers.MPNetConfig(**SIZES)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    folder = tmp_path / "published"
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return folder, model


def test_every_distance_has_the_bias_of_transformers(published: tuple[Path, Any]) -> None:
    import keras
    import torch

    folder, model = published
    ids = np.random.default_rng(0).integers(2, 40, (1, 300)).astype(np.int32)
    found = kft.load_backbone(str(folder)).model({"token_ids": ids, "padding_mask": np.ones_like(ids)}, training=False)
    with torch.no_grad():
        wanted = model.mpnet(input_ids=torch.tensor(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found["sequence_output"]), wanted, atol=1e-4)


LOADED = """
import sys, keras, numpy
model = keras.saving.load_model(sys.argv[1], compile=False)
ids = numpy.array([[2, 7, 9, 3, 1], [2, 8, 4, 5, 3]], "int32")
numpy.save(sys.argv[2], keras.ops.convert_to_numpy(model({"token_ids": ids, "padding_mask": ids != 1})))
assert not any(name.split(".")[0] in ("kft", "keras_hub") for name in sys.modules)
"""


def test_a_run_with_its_published_head_gives_its_logits_and_loads_without_kft(
    published: tuple[Path, Any], tiny: dict, variant: Callable[..., dict], backend: str, tmp_path: Path
) -> None:
    import torch

    folder, model = published
    changes = {
        "backend": backend,
        "model": {"preset": str(folder), "sequence_length": 24},
        "train.epochs": 1,
        "train.learning_rate": 1e-12,
        "train.weight_decay": 0.0,
        "output.directory": str(tmp_path / "run"),
    }
    run = kft.run(variant(tiny, changes)).run
    file = next(run.rglob("*.keras"))
    program, answer = tmp_path / "program.py", tmp_path / "answer.npy"
    program.write_text(LOADED, encoding="utf8")
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": ""}
    subprocess.run([sys.executable, str(program), str(file), str(answer)], check=True, env=environment, cwd=tmp_path)
    ids = np.array([[2, 7, 9, 3, 1], [2, 8, 4, 5, 3]])
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(ids != 1)).logits.numpy()
    np.testing.assert_allclose(np.load(answer), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu_new"}, "Unknown hidden_act in config.json 'gelu_new'.*Available: gelu, relu"),
        ({"relative_attention_num_buckets": 16}, "relative_attention_num_buckets in config.json is 16"),
    ],
)
def test_other_variants_are_refused(backend: str, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpnet", **SIZES, **change}), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))
