"""ModernBERT's heads, each with a dense layer and a normalization below the last one, give transformers' logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IDS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7], np.int32)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SPECIAL = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)
LABELS = {0: "bad", 1: "good", 2: "fine"}
OTHERWISE = {
    "classifier_pooling": "mean",
    "classifier_activation": "gelu_new",
    "norm_eps": 1e-3,
    "classifier_bias": True,
    "norm_bias": True,
}


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes the folder of a tiny random model with a head, and transformers' model of it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    words = len((vocabulary / "vocab.txt").read_text(encoding="utf8").split())

    def make(head: str, **changes: Any) -> tuple[Path, Any]:
        torch.manual_seed(0)
        config = transformers.ModernBertConfig(vocab_size=words, **SIZES, **SPECIAL, **changes)
        model = getattr(transformers, f"ModernBertFor{head}")(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.3)
        model.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        return tmp_path, model

    return make


def theirs(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()


def ours(model: Any) -> np.ndarray:
    import keras

    return keras.ops.convert_to_numpy(model({"token_ids": IDS, "padding_mask": MASK}, training=False))


@pytest.mark.parametrize("changes", [{}, OTHERWISE], ids=["usual", "otherwise"])
@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_a_published_head_gives_its_logits(
    published: Callable[..., tuple[Path, Any]], head: str, changes: dict[str, Any]
) -> None:
    place, model = published(head, id2label=LABELS, **changes)
    backbone = kft.load_backbone(str(place))
    assert backbone.head is not None and backbone.head.labels == tuple(LABELS.values())
    found, wanted = ours(kft.published_classifier(backbone)), theirs(model)
    real = MASK.astype(bool) if head == "TokenClassification" else slice(None)
    assert wanted[real].std() > 0.1
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-4)


@pytest.mark.parametrize(
    ("task", "kind", "head"),
    [
        ("text_classification", "labels", "SequenceClassification"),
        ("token_classification", "tags", "TokenClassification"),
    ],
)
def test_a_fresh_head_stands_on_that_of_pretraining_as_in_transformers(
    published: Callable[..., tuple[Path, Any]], task: str, kind: Any, head: str
) -> None:
    import keras
    import torch
    import transformers

    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target

    place, _ = published("MaskedLM")
    backbone = kft.load_backbone(str(place))
    with pytest.raises(ModelError, match="published without a head that kft reads"):
        kft.published_classifier(backbone)
    model = heads.build(TASKS.load(task), backbone, Target(kind, ("bad", "good")))
    other = getattr(transformers, f"ModernBertFor{head}").from_pretrained(place, num_labels=2).eval()
    with torch.no_grad():
        other.classifier.weight.copy_(torch.tensor(keras.ops.convert_to_numpy(model.get_layer("logits").kernel).T))
        other.classifier.bias.zero_()
    real = MASK.astype(bool) if head == "TokenClassification" else slice(None)
    np.testing.assert_allclose(ours(model)[real], theirs(other)[real], atol=1e-4)


def test_an_activation_of_the_head_that_nobody_knows_is_refused(published: Callable[..., tuple[Path, Any]]) -> None:
    place, _ = published("SequenceClassification")
    file = place / "config.json"
    values = json.loads(file.read_text(encoding="utf8")) | {"classifier_activation": "gelo"}
    file.write_text(json.dumps(values), encoding="utf8")
    with pytest.raises(ModelError, match="Unknown classifier_activation in config.json 'gelo'. Did you mean 'gelu'"):
        kft.load_backbone(str(place))
