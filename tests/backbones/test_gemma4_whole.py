"""Gemma 4 as a whole: texts with images and sounds in them."""

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

IMAGE, SOUND = 70, 71
TEXT: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 4,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 80,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "patch_size": 2,
    "pooling_kernel_size": 2,
    "position_embedding_size": 9,
    "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0},
}
AUDIO = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "attention_chunk_size": 3,
    "attention_context_left": 4,
    "subsampling_conv_channels": [8, 4],
    "output_proj_dims": 12,
    "residual_weight": 0.3,
    "attention_logit_cap": 2.0,
}
WHOLE = {
    "text_config": {**TEXT, "num_kv_shared_layers": 1},
    "vision_config": {**VISION, "use_clipped_linears": True},
    "audio_config": AUDIO,
    **{"image_token_id": IMAGE, "video_token_id": 72, "audio_token_id": SOUND},
}
# Images, by patches across and down, and sounds, by frames, of each of two texts.
IMAGES, SOUNDS = [[(4, 2)], [(2, 4), (4, 4)]], [[22], [30]]
TEXTS = [
    [2, 7, IMAGE, IMAGE, 9, *[SOUND] * 6, 3, *[0] * 8],
    [2, 8, IMAGE, IMAGE, 11, *[IMAGE] * 4, 12, *[SOUND] * 8, 21, 3],
]


def published(values: dict[str, Any], place: Path, vocabulary: Path) -> Any:
    """Saves a random model as transformers does, and returns it without its head; a test without torch is skipped."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)  # with 0 the last bit of a weight is seen in the fourth digit of a state
    model = transformers.Gemma4ForConditionalGeneration(transformers.Gemma4Config(**values)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        for name, buffer in model.named_buffers():
            if name.endswith(("layer_scalar", "std_bias", "std_scale")):
                buffer.add_(torch.randn_like(buffer) * 0.1)
            if name.endswith(("put_min", "put_max")):  # beyond which inputs and outputs are clipped
                buffer.fill_(-0.9 if name.endswith("min") else 1.1)
    model.save_pretrained(place)
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return model.model


def change(place: Path, values: dict[str, Any]) -> None:
    config = {**json.loads((place / "config.json").read_text(encoding="utf8")), **values}
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")


def inputs(sounds: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.array(TEXTS, np.int32)
    spots = np.full((2, 2, 16, 2), -1, np.int32)
    for row, images in enumerate(IMAGES):
        for number, (across, down) in enumerate(images):
            spots[row, number, : across * down] = [(x, y) for y in range(down) for x in range(across)]
    found = {
        "token_ids": ids if sounds else np.where(ids == SOUND, 13, ids),
        "padding_mask": np.cumsum(ids[:, ::-1], axis=1)[:, ::-1].clip(0, 1),
        "pixel_values": rng.random((2, 2, 16, 12), np.float32) * (spots[..., :1] >= 0),
        "pixel_position_ids": spots,
    }
    if sounds:
        found["audio_mel"] = rng.standard_normal((2, 1, 32, 8)).astype(np.float32)
        frames = np.array(SOUNDS)
        found["audio_mel_mask"] = (np.arange(32) < frames[..., None]).astype(np.int32)
    return found


def of_transformers(model: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    real = (given["pixel_position_ids"] >= 0).any((2, 3))
    ids = torch.tensor(given["token_ids"]).long()
    more: dict[str, Any] = {}
    if "audio_mel" in given:
        more["input_features"] = torch.tensor(given["audio_mel"][:, 0])
        more["input_features_mask"] = torch.tensor(given["audio_mel_mask"][:, 0]).bool()
    with torch.no_grad():
        states = model(
            input_ids=ids,
            attention_mask=torch.tensor(given["padding_mask"]),
            pixel_values=torch.tensor(given["pixel_values"][real]),
            image_position_ids=torch.tensor(given["pixel_position_ids"][real]).long(),
            mm_token_type_ids=(ids == IMAGE).long(),
            **more,
        ).last_hidden_state
    return np.asarray(states)[given["padding_mask"] == 1]


@pytest.mark.parametrize("sounds", [True, False], ids=["sounds", "images"])
def test_the_whole_reads_images_and_sounds_as_transformers_does(
    sounds: bool, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    larger = {
        **WHOLE,
        "text_config": {**TEXT, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"},
        "vision_config": {**VISION, "standardize": True},
        "audio_config": None,
    }
    model = published(WHOLE if sounds else larger, tmp_path, vocabulary)
    change(tmp_path, {"vision_soft_tokens_per_image": 4})
    backbone = kft.load_backbone(str(tmp_path))
    given = inputs(sounds)
    assert backbone.modality == "image_text" and set(backbone.inputs) == set(given)

    def states(mine: Any) -> np.ndarray:
        # Step by step JAX would compile each operation by itself.
        output = mine.predict_on_batch(given) if backend == "jax" else mine(given, training=False)
        found = keras.ops.convert_to_numpy(output["sequence_output"])
        return np.asarray(found)[given["padding_mask"] == 1]

    same("Hugging Face", "gemma4", states(backbone.model), of_transformers(model, given))
    if backend != "jax":  # which would compile it once more
        backbone.model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(states(again), states(backbone.model), atol=1e-6)
    text = kft.load_backbone(str(tmp_path), part="text")
    words = {"token_ids": np.arange(8, 20, dtype=np.int32)[None], "padding_mask": np.ones((1, 12), np.int32)}
    with torch.no_grad():
        alone = model.language_model(torch.tensor(words["token_ids"]).long()).last_hidden_state
    mine = keras.ops.convert_to_numpy(text.model(words, training=False)["sequence_output"])
    same("Hugging Face", "gemma4, text", np.asarray(mine), alone.numpy())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_config": None}, "has no vision_config.* Type: model.part=text"),
        (
            {"text_config": {**TEXT, "use_bidirectional_attention": "vision"}},
            "sliding_window in config.json is 6, less than the 280 tokens of an image.* Type: model.part=text",
        ),
        ({"vision_config": {**VISION, "head_dim": 4}}, "head_dim in config.json is 4"),
        ({"vision_config": {**VISION, "hidden_activation": "gelu"}}, "hidden_activation in config.json is 'gelu'"),
        ({"vision_config": {**VISION, "rope_parameters": {"rope_type": "yarn"}}}, "rope_type in config.json is 'yarn'"),
        ({"vision_config": {**VISION, "pooling_kernel_size": 1}}, "pooling_kernel_size in config.json is 1"),
        ({"audio_config": {**AUDIO, "attention_context_right": 1}}, "attention_context_right in config.json is 1"),
        ({"audio_config": {**AUDIO, "attention_context_left": 3}}, "attention_context_left in config.json is 3"),
        ({"audio_config": {**AUDIO, "use_clipped_linears": False}}, "use_clipped_linears in config.json is False"),
        ({"audio_config": {**AUDIO, "rms_norm_eps": 1e-3}}, "rms_norm_eps in config.json is 0.001"),
    ],
)
def test_what_is_computed_otherwise_is_refused(
    changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma4", **WHOLE, **changes}), encoding="utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    with pytest.raises(ModelError, match=said) as caught:
        kft.load_backbone(str(tmp_path), pretrained=False)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_is_not_there_is_named(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    published(WHOLE, tmp_path, vocabulary)
    tensors, name = load_file(tmp_path / "model.safetensors"), "vision_tower.encoder.layers.0.mlp.up_proj.output_max"
    tensors.pop(f"model.{name}")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=f"has no weights for {name}"):
        kft.load_backbone(str(tmp_path))
    with pytest.raises(ModelError, match="model.image_size: .* takes patches, of images of any size"):
        kft.load_backbone(str(tmp_path), pretrained=False, image_size=64)
