"""What SAM 3 sees images with, as a part of its model: transformers' numbers, and training on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

# Patches that see a window of them, and those that see the whole image; positions that are laid side by side and cut off.
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "global_attn_indexes": [1],
    "pretrain_image_size": 12,
    "layer_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0},
}
PART = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TEXT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.fixture
def published(backend: str, tmp_path: Path) -> tuple[Path, Any]:
    """The folder of a tiny random detector, and transformers' own part that sees."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Sam3Config(
        vision_config={"backbone_config": {"model_type": "sam3_vit_model", **VISION}, "fpn_hidden_size": 16},
        text_config={"model_type": "clip_text_model", **TEXT},
        mask_decoder_config={"hidden_size": 16, "num_attention_heads": 2},
        **dict.fromkeys(("geometry_encoder_config", "detr_encoder_config", "detr_decoder_config"), PART),
    )
    model = transformers.Sam3Model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    processor = {"image_processor": {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.5]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor), encoding="utf8")
    return tmp_path, model.vision_encoder


def pixels(size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)


def states(model: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict_on_batch(images))


def wanted(model: Any, images: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        found = model(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).last_hidden_state.numpy()
    side = images.shape[1] // VISION["patch_size"]
    return np.asarray(found.reshape(len(images), side, side, -1))


def as_video(place: Path) -> None:
    """Makes a folder one of a detector and what follows its finds through a video, as SAM 3 was published."""
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    whole = {"model_type": "sam3_video", "detector_config": config, "tracker_config": {}}
    (place / "config.json").write_text(json.dumps(whole), encoding="utf8")
    weights = {f"detector_model.{name}": array for name, array in load_file(place / "model.safetensors").items()}
    weights["tracker_model.no_memory_embedding"] = np.ones((1, 1, 16), np.float32)
    save_file(weights, place / "model.safetensors")


@pytest.mark.parametrize("video", [True, False], ids=["video", "detector"])
def test_the_part_for_images_has_transformers_states(
    published: tuple[Path, Any], video: bool, same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    place, theirs = published
    if video:
        as_video(place)
    backbone = kft.load_backbone(str(place), part="image")
    assert backbone.modality == "image" and backbone.images.size == (32, 32)
    assert backbone.images.mean == pytest.approx((127.5, 102.0, 76.5)) and backbone.head is None
    same("Hugging Face", "sam3, image", states(backbone.model, pixels()), wanted(theirs, pixels()))
    if video:
        backbone.model.save(tmp_path / "seen.keras")
        again = keras.saving.load_model(tmp_path / "seen.keras", compile=False)
        np.testing.assert_array_equal(states(again, pixels()), states(backbone.model, pixels()))


def test_another_size_lays_positions_anew(published: tuple[Path, Any]) -> None:
    import transformers

    place, theirs = published
    with pytest.raises(ModelError, match="windows of 4 patches do not cut 5 patches a side without a rest"):
        kft.load_backbone(str(place), part="image", image_size=20)
    config = theirs.config
    config.backbone_config.image_size = 16
    smaller = transformers.Sam3VisionModel(config).eval()
    smaller.load_state_dict(theirs.state_dict())
    found = kft.load_backbone(str(place), part="image", image_size=16)
    assert found.images.size == (16, 16)
    np.testing.assert_allclose(states(found.model, pixels(16)), wanted(smaller, pixels(16)), atol=1e-4)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of dark and light images."""
    images = pytest.importorskip("PIL.Image")
    for label, value in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(4):
            array = np.full((32, 32, 3), value + number, np.uint8)
            images.fromarray(array).save(tmp_path / "pictures" / label / f"{number}.png")
    return tmp_path / "pictures"


def test_the_top_is_trained_for_labels_of_images(published: tuple[Path, Any], pictures: Path) -> None:
    import keras

    data = kft.load_data(str(pictures), task="image_classification", validation=0.25)
    backbone = kft.load_backbone(str(published[0]), part="image")
    model = kft.build_model(data, backbone, trainable="top:1", dropout=0.0)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = {weight.path: np.array(weight) for weight in backbone.model.weights}
    given = {"images": 127 + 40 * pixels()}
    losses = [float(model.train_on_batch(given, np.array([0, 1]))) for _ in range(2)]
    assert losses[1] < losses[0]
    changed = {path for weight in backbone.model.weights if (before[path := weight.path] != np.array(weight)).any()}
    assert changed and all("layer_2" in path for path in changed)


def change(place: Path, values: dict[str, Any]) -> None:
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    config["vision_config"]["backbone_config"] |= values
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")


def test_what_is_left_over_or_missing_is_named(published: tuple[Path, Any]) -> None:
    place, _ = published
    weights = load_file(place / "model.safetensors")
    more = {"vision_encoder.backbone.layers.0.layer_scale1.lambda1": np.ones(16, np.float32)}
    save_file({**weights, **more}, place / "model.safetensors")
    with pytest.raises(ModelError, match="find no place in a sam3_vision_model model: backbone.layers.0.layer_scale1"):
        kft.load_backbone(str(place), part="image")
    weights.pop("vision_encoder.backbone.layers.2.attention.k_proj.bias")
    save_file(weights, place / "model.safetensors")
    with pytest.raises(ModelError, match="has no weights for backbone.layers.2.attention.k_proj.bias"):
        kft.load_backbone(str(place), part="image")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"hidden_act": "relu"}, "hidden_act in config.json is 'relu'; of sam3_vision_model kft computes only 'gelu'"),
        ({"layer_scale_init_value": 0.1}, "layer_scale_init_value in config.json is 0.1"),
        ({"attention_dropout": 0.1}, "attention_dropout in config.json is 0.1"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type in config.json is 'linear'"),
    ],
)
def test_other_variants_are_refused(published: tuple[Path, Any], values: dict[str, Any], said: str) -> None:
    change(published[0], values)
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(published[0]), part="image")


def test_the_whole_is_refused_in_one_line_that_names_its_part(published: tuple[Path, Any]) -> None:
    with pytest.raises(
        ModelError, match="is a sam3, which kft does not read as a whole.*Type: model.part=image"
    ) as caught:
        kft.load_backbone(str(published[0]))
    assert "\n" not in str(caught.value)
