"""MetaCLIP 2: its towers for images and for texts, and the whole that compares them, as transformers computes them."""

from __future__ import annotations

import functools
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

END = 3
IDS = np.array([[2, 7, 9, END, 0, 0], [2, 8, 11, 12, 13, END]], np.int32)
MASK = np.array([[1] * 4 + [0] * 2, [1] * 6], np.int32)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "layer_norm_eps": 1e-3,
}
TEXT = {**SIZES, "vocab_size": 80, "max_position_embeddings": 12, "eos_token_id": END, "pad_token_id": 0}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8, "num_attention_heads": 4}
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@functools.cache
def published(activation: str) -> Any:
    """Returns transformers' random model."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    act = {"hidden_act": activation}
    config = transformers.MetaClip2Config(text_config=TEXT | act, vision_config=IMAGE | act, projection_dim=8)
    model = transformers.MetaClip2Model(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.fixture
def folder(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    def make(activation: str = "quick_gelu") -> tuple[Path, Any]:
        model = published(activation)
        model.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        scales = {"image_mean": MEAN, "image_std": DEVIATION, "do_normalize": True}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(scales), encoding="utf8")
        return tmp_path, model

    return make


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)


def called(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    import keras

    return {name: keras.ops.convert_to_numpy(value) for name, value in model(inputs, training=False).items()}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_whole_compares_images_with_texts(
    activation: str, folder: Callable[..., tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    place, model = folder(activation)
    backbone = kft.load_backbone(str(place))
    assert backbone.modality == "image_text"
    inputs = {"images": images(), "token_ids": IDS, "padding_mask": MASK}
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(IDS).long(),
            attention_mask=torch.tensor(MASK),
            pixel_values=torch.tensor(images().transpose(0, 3, 1, 2).copy()),
        )
    found = called(backbone.model, inputs)
    for name in ("image_embeds", "text_embeds"):
        np.testing.assert_allclose(found[name], wanted[name].numpy(), atol=1e-5)
    same("Hugging Face", "metaclip_2", found["logits_per_image"], wanted.logits_per_image.numpy())
    backbone.model.save(tmp_path / "model.keras")
    again = called(keras.models.load_model(tmp_path / "model.keras"), inputs)
    np.testing.assert_allclose(again["logits_per_image"], found["logits_per_image"], atol=1e-6)


@pytest.mark.parametrize("alone", [False, True], ids=["of the whole", "saved alone"])
def test_a_part_has_transformers_states(
    alone: bool, folder: Callable[..., tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    place, model = folder()
    places = dict.fromkeys(("text", "image"), place)
    if alone:
        for name, part in (("text", model.text_model), ("image", model.vision_model)):
            places[name] = tmp_path / name
            part.save_pretrained(places[name])
            (places[name] / "vocab.txt").write_bytes((place / "vocab.txt").read_bytes())
    text, image = (kft.load_backbone(str(places[name]), part="auto" if alone else name) for name in ("text", "image"))
    assert (text.modality, text.pooling, image.modality) == ("text", "last", "image")
    with torch.no_grad():
        read = model.text_model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK))
        seen = model.vision_model(torch.tensor(images().transpose(0, 3, 1, 2).copy()))
    states = called(text.model, {"token_ids": IDS, "padding_mask": MASK})["sequence_output"]
    same("Hugging Face", "metaclip_2, text", states[MASK == 1], read.last_hidden_state.numpy()[MASK == 1])
    found = called(image.model, images())
    np.testing.assert_allclose(found["sequence_output"], seen.last_hidden_state.numpy(), atol=1e-5)
    same("Hugging Face", "metaclip_2, image", found["pooled_output"], seen.pooler_output.numpy())
    if not alone:
        assert image.images is not None and image.images.size == (16, 16)
        np.testing.assert_allclose(image.images.mean, np.asarray(MEAN) * 255)


def test_a_task_takes_its_part(folder: Callable[..., tuple[Path, Any]], reviews: Path, tmp_path: Path) -> None:
    place, _ = folder()
    recipe = {
        "task": "text_classification",
        "model": {"preset": str(place), "sequence_length": 8, "trainable": "top:1"},
        "data": {"source": str(reviews), "limit": 16},
        "train": {"epochs": 1, "batch_size": 8},
        "output": {"directory": str(tmp_path / "run")},
    }
    assert np.isfinite(kft.run(recipe).metrics["validation"]["loss"])
    names = {weight.path for weight in kft.load_run(tmp_path / "run").model.weights}
    assert any("text_block_1" in name for name in names) and not any("image" in name for name in names)


def test_what_does_not_fit_is_named(folder: Callable[..., tuple[Path, Any]]) -> None:
    place, _ = folder()
    file = place / "model.safetensors"
    tensors = load_file(file)
    name = "vision_model.encoder.layers.1.mlp.fc1.bias"
    save_file({other: array for other, array in tensors.items() if other != name}, file)
    with pytest.raises(ModelError, match=f"has no weights for {name}"):
        kft.load_backbone(str(place))
    kft.load_backbone(str(place), part="text")  # which needs none of these
    save_file({**tensors, "vision_model.encoder.layers.2.mlp.fc1.bias": tensors[name]}, file)
    with pytest.raises(ModelError, match=r"find no place in a metaclip_2.*encoder\.layers\.2\.mlp\.fc1\.bias"):
        kft.load_backbone(str(place), part="image")
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    config["vision_config"]["hidden_act"] = "gelo"
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(ModelError, match="Unknown hidden_act in config.json 'gelo'. Did you mean 'gelu'"):
        kft.load_backbone(str(place))
