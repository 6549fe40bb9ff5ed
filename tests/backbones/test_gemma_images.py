"""Gemma 3 and PaliGemma, which read images and texts: whole, and the parts of them that a task takes."""

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

IMAGE, MEAN, DEVIATION = 79, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
TEXT = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
GEMMA3 = {**TEXT, "num_hidden_layers": 6, "query_pre_attn_scalar": 4, "sliding_window": 5}
GEMMA2 = {**TEXT, "model_type": "gemma2", "query_pre_attn_scalar": 9, "attn_logit_softcapping": 0.5}
LINEAR = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 2,
    "vision_use_head": False,
}
# Two images in each text of Gemma 3's, where its tokens stand for them; with the other's they all stand before.
IDS = np.array([[2, *[IMAGE] * 4, 5, 6, *[IMAGE] * 4, 9, 3, 0], [2, 8, *[IMAGE] * 4, 11, *[IMAGE] * 4, 3, 5, 7]], "i4")
MASK = np.array([[1] * 13 + [0], [1] * 14], np.int32)
TOLD = np.array([[2, 5, 6, 9, 3, 8, 0, 0], [2, 8, 9, 11, 12, 3, 5, 7]], np.int32)
SEEN = np.array([[1] * 6 + [0] * 2, [1] * 8], np.int32)
ANSWERED = np.array([[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1]], np.int32)


def saved(config: Any, place: Path, vocabulary: Path, kind: str = "AutoModelForImageTextToText") -> Any:
    """Saves a random model as transformers does, and returns it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = getattr(transformers, kind).from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(place)
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    scales = {"image_mean": MEAN, "image_std": DEVIATION}
    (place / "preprocessor_config.json").write_text(json.dumps(scales), encoding="utf8")
    return model


def gemma3(place: Path, vocabulary: Path, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma3Config(
        text_config={**GEMMA3, **(text or {})},
        vision_config={**VISION, **vision},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
    )
    return saved(config, place, vocabulary)


def paligemma(place: Path, vocabulary: Path, text: dict[str, Any], **vision: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.PaliGemmaConfig(
        text_config=text,
        vision_config={**VISION, "patch_size": 8, **vision},
        projection_dim=16,
        image_token_index=IMAGE,
    )
    return saved(config, place, vocabulary)


def pixels(count: int) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3))
    return ((images / 255 - MEAN) / DEVIATION).astype(np.float32)


def numbers(tensor: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(tensor["sequence_output"] if isinstance(tensor, dict) else tensor))


def theirs(model: Any, ids: np.ndarray, mask: np.ndarray, types: np.ndarray, images: np.ndarray | None) -> np.ndarray:
    """Returns transformers' states of the tokens that are no padding."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    more = {} if images is None else {"pixel_values": torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))}
    ids, mask, types = (torch.tensor(array).long() for array in (ids, mask, types))
    with torch.no_grad():
        found = model.model(input_ids=ids, attention_mask=mask, token_type_ids=types, **more).last_hidden_state
    return np.asarray(found[mask == 1])


def mixed(model: Any) -> np.ndarray:
    """Returns what a whole Gemma 3 makes of two texts with two images each."""
    images = (IDS == IMAGE).astype(np.int32)
    places = np.stack([np.nonzero(row)[0] for row in images]).astype(np.int32)
    inputs = {"token_ids": IDS, "padding_mask": MASK, "vision_mask": images, "vision_indices": places}
    return numbers(model({**inputs, "images": pixels(4).reshape(2, 2, 16, 16, 3)}, training=False))[MASK == 1]


def told(model: Any) -> np.ndarray:
    """Returns what a whole PaliGemma makes of two images, what was asked, and the answer."""
    inputs = {"token_ids": TOLD, "padding_mask": SEEN, "response_mask": ANSWERED, "images": pixels(2)}
    found = numbers(model(inputs, training=False))
    return found[before(SEEN, found.shape[1], 1) == 1]


def before(array: np.ndarray, tokens: int, value: int) -> np.ndarray:
    """Returns an array with what stands for an image's tokens before it."""
    return np.concatenate([np.full((2, tokens - array.shape[1]), value, array.dtype), array], axis=1)


def wanted(model: Any) -> np.ndarray:
    """Returns what transformers makes of the same as `told`."""
    ids, mask, types = (before(x, 12, value) for x, value in ((TOLD, IMAGE), (SEEN, 1), (ANSWERED, 0)))
    return theirs(model, ids, mask, types, pixels(2))


def change(place: Path, part: str, kept: tuple[str, ...]) -> None:
    """Leaves all but some fields of a part out of `config.json`, as the published ones do."""
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    config[part] = {name: value for name, value in config[part].items() if name in kept}
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")


def respelled(place: Path, *names: tuple[str, str]) -> None:
    """Gives weights the beginnings of names that another release of transformers has."""
    found = {}
    for name, array in load_file(place / "model.safetensors").items():
        start, other = next(pair for pair in names if name.startswith(pair[0]))
        found[other + name.removeprefix(start)] = array
    save_file(found, place / "model.safetensors")


OLDEST = (("vision_tower.", "vision_tower.vision_model."), ("", ""))
NEWER = (("language_model.model.", "model.language_model."), ("", "model."))
NEWEST = (("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower.vision_model."))


@pytest.mark.parametrize(
    ("text", "names"),
    [({}, None), ({"query_pre_attn_scalar": 9}, OLDEST), ({"rope_parameters": LINEAR}, NEWER)],
    ids=["as saved", "scaled queries", "linear rope"],
)
def test_gemma3_has_transformers_states(
    text: dict[str, Any], names: Any, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    model = gemma3(tmp_path, vocabulary, text)
    if names:
        respelled(tmp_path, *names)
    backbone = kft.load_backbone(str(tmp_path))
    assert (backbone.modality, backbone.pooling, backbone.images.size) == ("image_text", "last", (16, 16))
    np.testing.assert_allclose(backbone.images.mean, 255 * np.array(MEAN))
    mine = mixed(backbone.model)
    same("Hugging Face", "gemma3", mine, theirs(model, IDS, MASK, IDS == IMAGE, pixels(4)))
    if not names:
        backbone.model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(mixed(again), mine, atol=1e-6)


def test_gemma3_of_a_file_with_few_fields(
    backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    """What gemma-3-4b-it leaves out; the window is said there."""
    usual = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256}
    model = gemma3(tmp_path, vocabulary, {**usual, "num_hidden_layers": 1})
    kept = ("vocab_size", "hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "sliding_window")
    change(tmp_path, "text_config", kept)
    backbone = kft.load_backbone(str(tmp_path))
    same("Hugging Face", "gemma3", mixed(backbone.model), theirs(model, IDS, MASK, IDS == IMAGE, pixels(4)))


@pytest.mark.parametrize("text", [{**TEXT, "model_type": "gemma"}, GEMMA2], ids=["gemma", "gemma2"])
def test_paligemma_has_transformers_states(
    text: dict[str, Any], backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    model = paligemma(tmp_path, vocabulary, text)
    backbone = kft.load_backbone(str(tmp_path))
    assert (backbone.modality, backbone.pooling, backbone.images.size) == ("image_text", "last", (16, 16))
    same("Hugging Face", "paligemma", told(backbone.model), wanted(model))
    part = kft.load_backbone(str(tmp_path), part="text")
    assert (part.modality, part.inputs, part.images) == ("text", ("token_ids", "padding_mask"), None)
    mine = numbers(part.model({"token_ids": TOLD, "padding_mask": SEEN}, training=False))
    same("Hugging Face", "paligemma, text", mine[SEEN == 1], theirs(model, TOLD, SEEN, np.zeros_like(TOLD), None))
    for whole in (backbone.model, part.model) if text is GEMMA2 else ():
        whole.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        for weight, loaded in zip(whole.weights, again.weights, strict=True):
            np.testing.assert_array_equal(numbers(weight.value), numbers(loaded.value))


@pytest.mark.parametrize(
    "names", [None, OLDEST, NEWER, (*NEWEST, ("", "model."))], ids=["saved", "old", "new", "newest"]
)
def test_parts_of_gemma3_are_found_by_each_name(
    names: Any, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    model = gemma3(tmp_path, vocabulary)
    if names:
        respelled(tmp_path, *names)
    image = kft.load_backbone(str(tmp_path), part="image")
    assert (image.modality, image.pooling, image.images.size, image.tokenizer) == ("image", "mean", (16, 16), None)
    with torch.no_grad():
        seen = model.model.vision_tower(torch.tensor(pixels(2).transpose(0, 3, 1, 2).copy())).last_hidden_state
    same("Hugging Face", "gemma3, image", numbers(image.model(pixels(2), training=False)), np.asarray(seen))
    text = kft.load_backbone(str(tmp_path), part="text")
    assert text.modality == "text" and text.images is None


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({}, "auto"),
        ({"hidden_act": "gelu", "layer_norm_eps": 1e-3, "num_channels": 1, "vision_use_head": True}, "auto"),
        ({"vision_use_head": True}, "image"),
    ],
    ids=["alone", "other fields", "of a siglip"],
)
def test_the_tower_alone_has_transformers_states(
    changed: dict[str, Any], part: str, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(**{**VISION, "num_hidden_layers": 2, **changed})
    images = pixels(2)[..., : config.num_channels]
    if part == "image":
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
        config = transformers.SiglipConfig(text_config=text, vision_config=config.to_dict())
    model = saved(config, tmp_path, vocabulary, "AutoModel")
    with torch.no_grad():
        tower = getattr(model, "vision_model", model)
        seen = tower(torch.tensor(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    backbone = kft.load_backbone(str(tmp_path), part=part)
    same("Hugging Face", "siglip_vision_model", numbers(backbone.model(images, training=False)), np.asarray(seen))
    with pytest.raises(ModelError, match="takes images of 16 by 16 pixels only"):
        kft.load_backbone(str(tmp_path), part=part, image_size=32)


@pytest.mark.parametrize("part", ["text", "image"])
def test_parts_are_trained(part: str, backend: str, vocabulary: Path, tmp_path: Path) -> None:
    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target
    from kft.tuning import trainable

    paligemma(tmp_path, vocabulary, GEMMA2)
    backbone = kft.load_backbone(str(tmp_path), part=part)
    model = heads.build(TASKS.load(f"{part}_classification"), backbone, Target("labels", ("no", "yes")))
    trainable.apply(model, backbone, "top:1")
    assert 0 < len(model.trainable_weights) < len(model.weights)
    names = [weight.path for weight in backbone.model.weights]
    assert names and not any(("image_encoder" if part == "text" else "decoder") in name for name in names)
    inputs: Any = {"token_ids": TOLD, "padding_mask": SEEN} if part == "text" else {"images": pixels(2)}
    model.compile("sgd", "mse")
    before, wanted = numbers(model.trainable_weights[0].value), np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert np.isfinite(model.train_on_batch(inputs, wanted))
    assert (numbers(model.trainable_weights[0].value) != before).any()


@pytest.mark.parametrize("kind", ["gemma3", "paligemma"])
def test_each_tensor_has_its_place(kind: str, backend: str, vocabulary: Path, tmp_path: Path) -> None:
    if kind == "gemma3":
        gemma3(tmp_path, vocabulary)
    else:
        paligemma(tmp_path, vocabulary, GEMMA2)
    file = tmp_path / "model.safetensors"
    tensors, name = load_file(file), "vision_tower.encoder.layers.0.mlp.fc2.bias"
    save_file({**tensors, "multi_modal_projector.more.weight": np.ones((2, 2), np.float32)}, file)
    with pytest.raises(ModelError, match=r"find no place in a .*multi_modal_projector.more.weight"):
        kft.load_backbone(str(tmp_path))
    save_file({own: array for own, array in tensors.items() if own != name}, file)
    with pytest.raises(ModelError, match="has no weights for .*encoder.layers.0.mlp.fc2.bias"):
        kft.load_backbone(str(tmp_path))
