"""Gemma 3n as a whole, texts with images and sounds in them, and its part for images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IMAGE, SOUND, SIDE, OUTPUTS = 83, 92, 16, 24
NEAR, FULL = "sliding_attention", "full_attention"
TEXT: dict[str, Any] = {
    "vocab_size": 100,
    "vocab_size_per_layer_input": 80,
    "hidden_size": 16,
    "hidden_size_per_layer_input": 5,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 20,
    "layer_types": [NEAR, FULL],
    "num_kv_shared_layers": 0,
    "sliding_window": 4,
    "laurel_rank": 3,
    "altup_num_inputs": 2,
}
VISION: dict[str, Any] = {
    "architecture": "mobilenetv5_300m_enc",
    "hidden_size": OUTPUTS,
    "model_args": {"msfa_output_resolution": 2},
    "vocab_size": 8,
    "vocab_offset": 82,
    "rms_norm_eps": 1e-3,
}
AUDIO: dict[str, Any] = {
    "vocab_size": 10,
    "vocab_offset": 90,
    "input_feat_size": 8,
    "hidden_size": 16,
    "rms_norm_eps": 1e-3,
    "gradient_clipping": 1.5,
    "conf_attention_chunk_size": 3,
    "conf_attention_context_left": 4,
    "conf_attention_context_right": 1,
    "conf_attention_logit_cap": 2.0,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 1,
    "conf_conv_kernel_size": 3,
    "conf_reduction_factor": 2,
    "conf_residual_weight": 0.3,
    "sscp_conv_channel_size": [8, 4],
    "sscp_conv_group_norm_eps": 1e-2,
    "sscp_conv_kernel_size": [[3, 3], [3, 5]],
    "sscp_conv_stride_size": [[2, 2], [2, 1]],
}
WHOLE = {
    "text_config": TEXT,
    "vision_config": VISION,
    "audio_config": AUDIO,
    "image_token_id": IMAGE,
    "audio_token_id": SOUND,
    "vision_soft_tokens_per_image": 4,
    "audio_soft_tokens_per_image": 5,
}
# Tokens of images and sounds stand in the texts beside others of their kind, and beside those of words.
TEXTS = np.array(
    [
        [2, 7, 82, *[IMAGE] * 4, 85, 9, 88, 90, *[SOUND] * 5, 99, 93, 3, *[0] * 6],
        [2, 8, *[IMAGE] * 4, 11, *[IMAGE] * 4, 12, *[SOUND] * 5, 21, *[SOUND] * 5, 3, 0],
    ],
    np.int32,
)
# How many frames each sound has; the first text has one image and one sound, the second two.
FRAMES = np.array([[17, 0], [26, 20]])
REAL = [(0, 0), (1, 0), (1, 1)]
TOWER = "vision_tower.timm_model."


@pytest.fixture(autouse=True)
def small(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the name of the tower for images stand for a small one."""
    from kft.backbones.vision.mobilenet_v5_measures import VARIANTS, Attention, Edge, Inverted, MobileNetV5

    stages = (Edge(8, 2),), (Inverted(8, 2, 3, 5, 2), Attention(8, 2, 4))
    monkeypatch.setitem(VARIANTS, VISION["architecture"], MobileNetV5(stages, 8, OUTPUTS, (1, 2), same=True))


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Any]:
    """Saves a random model as transformers does, and returns its folder and the model without its head.

    The model has no tower for images, which would be timm's: its attribute `vision_tower.states` is what that gives. Its
    weights are in the folder, under timm's names.
    """
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    from kft.backbones import initial
    from kft.backbones.vision import mobilenet_v5
    from kft.backbones.vision.mobilenet_v5_measures import VARIANTS

    class Tower(torch.nn.Module):  # type: ignore[misc]
        states: Any = None

        def forward(self, pixel_values: Any, **options: Any) -> Any:
            assert len(pixel_values) == len(self.states)
            return SimpleNamespace(last_hidden_state=self.states.clone())

    theirs = transformers.models.gemma3n.modeling_gemma3n
    made = theirs.AutoModel.from_config
    monkeypatch.setattr(
        theirs.AutoModel,
        "from_config",
        lambda config: Tower() if config.model_type == "gemma3n_vision" else made(config),
    )
    torch.manual_seed(0)
    model = transformers.Gemma3nForConditionalGeneration(transformers.Gemma3nConfig(**WHOLE)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    rng, shape = np.random.default_rng(0), VARIANTS[VISION["architecture"]]
    tensors = load_file(tmp_path / "model.safetensors")
    with initial.undrawn():
        tower = mobilenet_v5.build(shape, (SIDE, SIDE))
    for place in mobilenet_v5.places(tower, shape):
        array = rng.normal(0.0, 0.3, place.outward(np.zeros(place.variable.shape, np.float32)).shape)
        tensors[f"model.{TOWER}{place.name}"] = array.astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, model.model


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "token_ids": TEXTS,
        "padding_mask": np.cumsum(TEXTS[:, ::-1], axis=1)[:, ::-1].clip(0, 1),
        "images": rng.random((2, 2, SIDE, SIDE, 3), np.float32),
        "audio_mel": rng.standard_normal((2, 2, 28, 8)).astype(np.float32),
        "audio_mel_mask": (np.arange(28) < FRAMES[..., None]).astype(np.int32),
    }


def of_transformers(model: Any, given: dict[str, np.ndarray], seen: np.ndarray) -> np.ndarray:
    """Returns transformers' states, given those of images, shape (images, rows, columns, width)."""
    import torch

    model.vision_tower.states = torch.tensor(seen.transpose(0, 3, 1, 2))
    images, sounds, heard = (
        torch.tensor(np.stack([given[name][spot] for spot in REAL]))
        for name in ("images", "audio_mel", "audio_mel_mask")
    )
    with torch.no_grad():
        states = model(
            input_ids=torch.tensor(given["token_ids"]).long(),
            attention_mask=torch.tensor(given["padding_mask"]),
            pixel_values=images,
            input_features=sounds,
            input_features_mask=heard.bool(),
        ).last_hidden_state
    return np.asarray(states)


def test_the_whole_reads_images_and_sounds_as_transformers_does(
    published: tuple[Path, Any], same: Callable[..., None]
) -> None:
    import keras

    place, model = published
    tower = kft.load_backbone(str(place), part="image", image_size=SIDE)
    assert tower.modality == "image" and tower.pooling == "mean" and tower.images is not None
    assert tower.images.size == (SIDE, SIDE) and tower.images.deviation == (255.0,)
    backbone, given = kft.load_backbone(str(place), image_size=SIDE), inputs()
    assert backbone.modality == "image_text" and set(backbone.inputs) == set(given)
    seen = np.asarray(tower.model.predict_on_batch(np.stack([given["images"][spot] for spot in REAL])))
    wanted, real = of_transformers(model, given, seen), given["padding_mask"] == 1
    states = np.asarray(backbone.model.predict_on_batch(given)["sequence_output"])
    same("Hugging Face", "gemma3n", states[real], wanted[real])
    # What no token is for counts for nothing.
    given["images"][0, 1], given["audio_mel"][0, 1] = 5.0, 5.0
    np.testing.assert_allclose(np.asarray(backbone.model.predict_on_batch(given)["sequence_output"]), states, atol=1e-5)
    # A text whose tokens are for no whole image has no states; the other keeps its own.
    given["token_ids"] = np.where((np.arange(TEXTS.shape[1]) == 3) & (np.arange(2)[:, None] == 0), 7, TEXTS)
    odd = np.asarray(backbone.model.predict_on_batch(given)["sequence_output"])
    assert np.isnan(odd[0]).all()
    np.testing.assert_allclose(odd[1][real[1]], states[1][real[1]], atol=1e-5)
    given["token_ids"] = TEXTS
    if keras.backend.backend() != "jax":  # which would compile it once more
        backbone.model.save(place / "model.keras")
        again = keras.models.load_model(place / "model.keras")
        np.testing.assert_allclose(np.asarray(again.predict_on_batch(given)["sequence_output"]), states, atol=1e-5)


def test_the_part_for_images_is_trained(published: tuple[Path, Any]) -> None:
    import keras

    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target

    backbone = kft.load_backbone(str(published[0]), part="image", image_size=SIDE)
    model = heads.build(TASKS.load("image_classification"), backbone, Target("labels", ("cat", "dog")))
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.float32)
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in backbone.model.trainable_weights]
    model.train_on_batch({"images": images}, np.asarray([0, 1]))
    for weight, old in zip(backbone.model.trainable_weights, before, strict=True):
        new = keras.ops.convert_to_numpy(weight)
        assert np.isfinite(new).all() and np.abs(new - old).max() > 0, weight.path


def changed(place: Path, vocabulary: Path, **changes: Any) -> None:
    """Writes a configuration with changes in its parts, or of its own fields."""
    config: dict[str, Any] = {"model_type": "gemma3n", **WHOLE}
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_soft_tokens_per_image": 9}, "vision_soft_tokens_per_image in config.json is 9; .* only 4"),
        ({"vision_config": {"hidden_size": 32}}, "hidden_size in config.json is 32; of gemma3n_vision .* only 24"),
        ({"vision_config": {"architecture": "resnet50"}}, "Unknown architecture in config.json 'resnet50'"),
        (
            {"vision_config": {"model_args": {"channel_multiplier": 0.5}}},
            "Unknown model_args in config.json 'channel_multiplier'. .*msfa_output_resolution",
        ),
        ({"vision_config": {"model_args": {"in_chans": 1}}}, "Unknown model_args in config.json 'in_chans'"),
        (
            {"audio_config": {"sscp_conv_kernel_size": [[3, 3]]}},
            "sscp_conv_kernel_size in config.json is .* two layers",
        ),
        ({"audio_config": {"vocab_offset": 200}}, "vocab_size in config.json is 100, .* none of the 10 of sounds"),
        ({"text_config": {"altup_coef_clip": 1.0}}, "altup_coef_clip in config.json is 1.0"),
    ],
)
def test_what_is_not_computed_is_refused(
    changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    changed(tmp_path, vocabulary, **changes)
    with pytest.raises(ModelError, match=said) as caught:
        kft.load_backbone(str(tmp_path), pretrained=False, image_size=SIDE)
    assert "\n" not in str(caught.value)


def test_tensors_without_a_place_and_places_without_a_tensor_are_named(published: tuple[Path, Any]) -> None:
    place, _ = published
    tensors = load_file(place / "model.safetensors")
    for name in (f"{TOWER}conv_stem.conv.bias", "audio_tower.conformer.0.attention.attn.per_dim_scale"):
        less = {known: array for known, array in tensors.items() if known != f"model.{name}"}
        save_file(less, place / "model.safetensors")
        with pytest.raises(ModelError, match=f"has no weights for {name}"):
            kft.load_backbone(str(place), image_size=SIDE)
    save_file({**tensors, f"model.{TOWER}blocks.1.2.gamma": np.ones(8, np.float32)}, place / "model.safetensors")
    for options in ({}, {"part": "image"}):
        with pytest.raises(ModelError, match=r"weights that find no place in a .*blocks\.1\.2\.gamma"):
            kft.load_backbone(str(place), image_size=SIDE, **options)


def test_a_model_without_a_head_is_read(published: tuple[Path, Any]) -> None:
    place, _ = published
    tensors = load_file(place / "model.safetensors")
    save_file({name.removeprefix("model."): array for name, array in tensors.items()}, place / "model.safetensors")
    whole, text = kft.load_backbone(str(place), image_size=SIDE), kft.load_backbone(str(place), part="text")
    tower = kft.load_backbone(str(place), part="image", image_size=SIDE)
    assert whole.model.count_params() > text.model.count_params() + tower.model.count_params()
