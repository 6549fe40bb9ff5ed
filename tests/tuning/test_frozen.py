"""A frozen part that is computed once against one that is computed in every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.backend

BERT = {
    "vocabulary_size": 100,
    "num_layers": 3,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "max_sequence_length": 64,
    "dropout": 0.1,
}
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
    "image_shape": [8, 8, 3],
}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in CoNLL columns, some of them longer than a window."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("tagged") / "tags.conll"
    words = ["good", "bad", "film", "book", "quite"]
    rows = [
        [f"{w}\t{'B-X' if w == 'good' else 'O'}" for w in rng.choice(words, rng.integers(2, 30))] for _ in range(60)
    ]
    file.write_text("\n\n".join("\n".join(row) for row in rows) + "\n", encoding="utf8")
    return file


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures of two classes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    for label, level in (("dark", 60), ("light", 180)):
        (folder / label).mkdir()
        for number in range(20):
            values = rng.normal(level, 30, (8, 8, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(values).save(folder / label / f"{number}.png")
    return folder


def trained(recipe: dict, folder: Path) -> tuple[list[float], list[np.ndarray], dict]:
    """Trains and returns the losses, the weights of the kept model and the metrics."""
    import kft

    report = kft.run({**recipe, "output": {"directory": str(folder)}})
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf8").splitlines()]
    weights = [np.asarray(array) for array in kft.load_run(folder).model.get_weights()]
    return [line["loss"] for line in lines if "loss" in line], weights, report.metrics


CASES: dict[str, dict[str, Any]] = {
    "head": {"model.trainable": "head"},
    "top:2, mean": {"model.trainable": "top:2", "model.pooling": "mean"},
    "top:1, pooled, accumulating": {
        "model.trainable": "top:1",
        "model.pooling": "pooled",
        "train.gradient_accumulation": 2,
    },
}


def check_equal(recipe: dict, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kft.tuning import frozen

    monkeypatch.setenv("KFT_CACHE", str(folder / "cache"))
    computed = []
    fill = frozen._fill
    monkeypatch.setattr(frozen, "_fill", lambda *arguments: (computed.append(1), fill(*arguments))[1])
    once = trained(recipe, folder / "once")
    assert len(computed) == 2  # train and validation
    again = trained(recipe, folder / "again")
    assert len(computed) == 2  # from the disk
    assert again[0] == once[0]
    monkeypatch.setattr(frozen, "cut", lambda *arguments: None)
    plain = trained(recipe, folder / "plain")
    assert len(once[0]) > 3 and len(set(once[0])) > 2
    np.testing.assert_allclose(once[0], plain[0], rtol=1e-4, atol=1e-5)
    for left, right in zip(once[1], plain[1], strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    for split in plain[2]:
        assert once[2][split] == pytest.approx(plain[2][split], abs=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_text(
    case: str, tiny: dict, variant: Callable[..., dict], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**BERT, "vocabulary_size": tiny["model"]["config"]["vocabulary_size"]}
    # Without dropout above the cut: the same numbers would be drawn for other shapes of batch on some backends.
    changes = {"model.config": {**config, "dropout": 0.0}, "train.epochs": 3, "backend": backend, **CASES[case]}
    check_equal(variant(tiny, changes), tmp_path, monkeypatch)


@pytest.mark.parametrize("pooling", ["mean", "pooled"])
def test_an_encoder_in_hugging_faces_layout(
    tiny: dict,
    hugging_face: Path,
    variant: Callable[..., dict],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pooling: str,
) -> None:
    model = {"preset": str(hugging_face), "pretrained": False, "pooling": pooling, "trainable": "top:2"}
    changes = {"model": {**model, "sequence_length": 48, "head_dropout": 0.0}, "train.epochs": 2, "backend": backend}
    check_equal(variant(tiny, changes), tmp_path, monkeypatch)


def test_tags(
    tiny: dict,
    tagged: Path,
    variant: Callable[..., dict],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {
        "task": "token_classification",
        "data": {"source": str(tagged), "test": 0.2, "inputs": ["tokens"], "target": "tags"},
        "model.trainable": "top:1",
        "model.sequence_length": 16,
        "train.epochs": 2,
        "train.batch_size": 8,
        "backend": backend,
    }
    check_equal(variant(tiny, changes), tmp_path, monkeypatch)


def test_images(pictures: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = {
        "task": "image_classification",
        "backend": backend,
        "model": {
            "pretrained": False,
            "architecture": "ResNetBackbone",
            "config": RESNET,
            "trainable": "top:1",
            "head_dropout": 0.0,
        },
        "data": {"source": str(pictures)},
        "train": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1},
    }
    check_equal(recipe, tmp_path, monkeypatch)


def test_augmented_images_are_not_kept(
    pictures: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kft

    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    kft.run(
        {
            "task": "image_classification",
            "backend": backend,
            "model": {"pretrained": False, "architecture": "ResNetBackbone", "config": RESNET, "trainable": "head"},
            "data": {"source": str(pictures)},
            "train": {"epochs": 2, "batch_size": 8, "augmentation": {"flip": "horizontal"}},
            "output": {"directory": str(tmp_path / "run")},
        }
    )
    assert (tmp_path / "cache" / "encoded").is_dir() and not (tmp_path / "cache" / "frozen").exists()


def test_a_stage_that_trains_all_follows_one_that_trains_the_head(
    tiny: dict, variant: Callable[..., dict], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{"trainable": "head", "epochs": 2, "learning_rate": 1e-2}, {"trainable": "all", "epochs": 1}]
    check_equal(
        variant(tiny, {"train.stages": stages, "train.epochs": None, "backend": backend}), tmp_path, monkeypatch
    )
