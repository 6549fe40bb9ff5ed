"""Any text encoder or image backbone of KerasHub serves the tasks: each here trains a step and has blocks to freeze."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kft.tasks import TASKS
from kft.tasks.targets import Target

pytestmark = pytest.mark.backend

NARROW = {"vocabulary_size": 80, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
TEXT: dict[str, dict[str, Any]] = {
    "BertBackbone": NARROW,
    "RobertaBackbone": NARROW,
    "XLMRobertaBackbone": NARROW,
    "DistilBertBackbone": NARROW,
    "ElectraBackbone": {
        "vocab_size": 80,
        "embedding_dim": 16,
        **{name: value for name, value in NARROW.items() if name != "vocabulary_size"},
    },
    "AlbertBackbone": {**NARROW, "embedding_dim": 8},
    "DebertaV3Backbone": {**NARROW, "bucket_size": 8},
    "FNetBackbone": {name: value for name, value in NARROW.items() if name != "num_heads"},
    "GPT2Backbone": NARROW,
}
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
}
IMAGE: dict[str, dict[str, Any]] = {
    "ResNetBackbone": {**RESNET, "image_shape": [32, 32, 3]},
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 1], "growth_rate": 8, "image_shape": [32, 32, 3]},
    "ViTBackbone": {
        "image_shape": [32, 32, 3],
        "patch_size": [16, 16],
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 16,
        "mlp_dim": 32,
    },
}
TARGET = Target("labels", ("no", "yes"))


def logits_after_a_step(model: Any, inputs: dict[str, np.ndarray], targets: np.ndarray) -> np.ndarray:
    """Trains one step and returns the logits."""
    import keras

    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = np.asarray(model.predict_on_batch(inputs))
    model.train_on_batch(inputs, targets)
    after = np.asarray(model.predict_on_batch(inputs))
    assert np.abs(after - before).max() > 0
    return after


def length_of_longest_run(name: str) -> int:
    """ALBERT's blocks share their weights in groups, and an image backbone's stacks have other names each."""
    return 1 if name in ("AlbertBackbone", "ResNetBackbone", "DenseNetBackbone") else 2


@pytest.mark.parametrize("name", TEXT)
def test_a_text_encoder_serves(name: str, vocabulary: Path, backend: str) -> None:
    import kft
    from kft.tasks import heads
    from kft.tuning import trainable

    config = {**TEXT[name], "max_sequence_length": 32}
    backbone = kft.load_backbone(pretrained=False, architecture=name, config=config, tokenizer=str(vocabulary))
    rng = np.random.default_rng(0)
    mask = np.arange(16)[None, :] < np.asarray([[16], [9]])
    every = {
        "token_ids": rng.integers(5, 80, (2, 16)).astype(np.int32) * mask,
        "padding_mask": mask.astype(np.int32),
        "segment_ids": np.zeros((2, 16), np.int32),
    }
    inputs = {name: every[name] for name in backbone.inputs}
    model = heads.build(TASKS.load("text_classification"), backbone, TARGET)
    assert logits_after_a_step(model, inputs, np.asarray([0, 1])).shape == (2, 2)
    tagger = heads.build(TASKS.load("token_classification"), backbone, TARGET)
    assert np.asarray(tagger.predict_on_batch(inputs)).shape == (2, 16, 2)
    assert len(trainable.blocks(backbone.model)) >= length_of_longest_run(name)


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_backbone_serves(name: str, backend: str) -> None:
    import kft
    from kft.tasks import heads
    from kft.tuning import trainable

    backbone = kft.load_backbone(pretrained=False, architecture=name, config=IMAGE[name])
    model = heads.build(TASKS.load("image_classification"), backbone, TARGET)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    assert logits_after_a_step(model, {"images": images}, np.asarray([0, 1])).shape == (2, 2)
    assert len(trainable.blocks(backbone.model)) >= length_of_longest_run(name)
