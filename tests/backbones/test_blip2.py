"""BLIP-2: what its queries read of an image, its tower for images, and what reads texts, as transformers computes them."""

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

IDS = np.array([[2, 7, 9, 1, 1, 1], [2, 8, 11, 12, 13, 3]], np.int32)
MASK = np.array([[1] * 3 + [0] * 3, [1] * 6], np.int32)
IMAGE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
QUERIES = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 16,
}
SOFT = {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2}
OPT = {
    "model_type": "opt",
    "hidden_size": 20,
    "ffn_dim": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 80,
    "word_embed_proj_dim": 20,
}
T5 = {
    "model_type": "t5",
    "d_model": 20,
    "d_kv": 5,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 80,
    "feed_forward_proj": "gated-gelu",
}
# Fields of the tower, of the queries, and of the language model, where there is one.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "opt": (IMAGE, QUERIES, OPT),
    "t5": (IMAGE | SOFT, QUERIES | SOFT | {"cross_attention_frequency": 3}, T5),
    "retrieval": (IMAGE, QUERIES | {"use_qformer_text_input": True}, None),
}
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@functools.cache
def published(kind: str) -> Any:
    """Returns transformers' random model."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    image, queries, text = KINDS[kind]
    config = transformers.Blip2Config(
        vision_config=image,
        qformer_config=queries,
        **({} if text is None else {"text_config": text}),
        num_query_tokens=6,  # more than the image has states
        image_text_hidden_size=8,
    )
    cls = transformers.Blip2ForImageTextRetrieval if text is None else transformers.Blip2ForConditionalGeneration
    model = cls(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def change(place: Path, part: str, values: dict[str, Any]) -> None:
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    config[part] |= values
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")


def shorten(place: Path, model: Any) -> None:
    """Leaves out of the parts' fields those that are as usual, as the published files do."""
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    for part in ("vision_config", "qformer_config", "text_config"):
        usual = type(getattr(model.config, part))().to_dict()
        config[part] = {k: v for k, v in config[part].items() if k == "model_type" or v != usual.get(k)}
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")


@pytest.fixture
def folder(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Any]]:
    def make(kind: str) -> tuple[Path, Any]:
        model = published(kind)
        model.save_pretrained(tmp_path)
        shorten(tmp_path, model)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        scales = {"image_mean": MEAN, "image_std": DEVIATION, "do_normalize": True}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(scales), encoding="utf8")
        return tmp_path, model

    return make


def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)


def pixels() -> Any:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    return torch.tensor(images().transpose(0, 3, 1, 2).copy())


def called(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    found = model.predict_on_batch(inputs)
    return found if isinstance(found, dict) else {"sequence_output": found}


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_has_the_states_of_queries_and_what_they_are_projected_to(
    kind: str, folder: Callable[[str], tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    import transformers

    place, model = folder(kind)
    backbone = kft.load_backbone(str(place))
    assert backbone.modality == "image" and backbone.images.size == (16, 16)
    found = called(backbone.model, images())
    with torch.no_grad():
        if kind == "retrieval":
            name = "image_embeds"
            theirs = transformers.Blip2VisionModelWithProjection.from_pretrained(place).eval()
            wanted = theirs(pixels()).image_embeds
        else:
            name, theirs = "language_inputs", transformers.Blip2Model.from_pretrained(place).eval()
            states = theirs.get_qformer_features(pixels())
            np.testing.assert_allclose(found["sequence_output"], states.numpy(), atol=1e-5)
            wanted = model.language_projection(states)
    same("Hugging Face", f"blip-2, {kind}", found[name], wanted.numpy(), atol=1e-5)
    if kind == "retrieval":
        backbone.model.save(tmp_path / "model.keras")
        again = called(keras.models.load_model(tmp_path / "model.keras"), images())
        np.testing.assert_allclose(again[name], found[name], atol=1e-6)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_the_part_for_images_has_transformers_states(
    kind: str, folder: Callable[[str], tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    place, model = folder(kind)
    if kind == "t5":  # saved alone
        model.vision_model.save_pretrained(tmp_path / "alone")
        backbone = kft.load_backbone(str(tmp_path / "alone"))
    else:
        backbone = kft.load_backbone(str(place), part="image")
        np.testing.assert_allclose(backbone.images.mean, np.asarray(MEAN) * 255)
    with torch.no_grad():
        wanted = model.vision_model(pixels())
    found = called(backbone.model, images())
    assert backbone.modality == "image" and found["sequence_output"].shape == (3, 5, 16)
    same("Hugging Face", "blip-2, image", found["sequence_output"], wanted.last_hidden_state.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["pooled_output"], wanted.pooler_output.numpy(), atol=1e-5)


@pytest.mark.parametrize(("kind", "pooling"), [("opt", "last"), ("t5", "mean"), ("retrieval", "first")])
def test_the_part_for_texts_has_transformers_states(
    kind: str, pooling: str, folder: Callable[[str], tuple[Path, Any]], same: Callable[..., None]
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    import transformers

    place, _ = folder(kind)
    backbone = kft.load_backbone(str(place), part="text")
    assert backbone.modality == "text" and backbone.pooling == pooling
    inputs = {"input_ids": torch.tensor(IDS).long(), "attention_mask": torch.tensor(MASK)}
    with torch.no_grad():
        if kind == "retrieval":
            wanted = transformers.Blip2TextModelWithProjection.from_pretrained(place).eval()(**inputs)
        else:
            wanted = transformers.Blip2Model.from_pretrained(place).eval().get_text_features(**inputs)
    found, real = called(backbone.model, {"token_ids": IDS, "padding_mask": MASK}), MASK == 1
    same(
        "Hugging Face",
        f"blip-2, text, {kind}",
        found["sequence_output"][real],
        wanted.last_hidden_state.numpy()[real],
        atol=1e-5,
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of dark and light images."""
    pillow = pytest.importorskip("PIL.Image")
    for label, value in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(3):
            array = np.full((16, 16, 3), value + number, np.uint8)
            pillow.fromarray(array).save(tmp_path / "pictures" / label / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize(("part", "block"), [("image", "image_block_1"), ("whole", "query_block_2")])
def test_the_top_is_trained_for_labels_of_images(
    part: str, block: str, folder: Callable[[str], tuple[Path, Any]], pictures: Path
) -> None:
    import keras

    data = kft.load_data(str(pictures), task="image_classification", validation=0.34)
    backbone = kft.load_backbone(str(folder("opt")[0]), part=part)
    model = kft.build_model(data, backbone, trainable="top:1", dropout=0.0)
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = {weight.path: np.array(weight) for weight in backbone.model.weights}
    model.train_on_batch({"images": 127 + 40 * images()[:2]}, np.array([0, 1]))
    changed = {path for weight in backbone.model.weights if (before[path := weight.path] != np.array(weight)).any()}
    assert any(block in path for path in changed)
    assert all(block in path or "last_norm" in path for path in changed)


def test_weights_that_do_not_fit_are_named(folder: Callable[[str], tuple[Path, Any]]) -> None:
    place, _ = folder("retrieval")
    file = place / "model.safetensors"
    tensors = load_file(file)
    missing, more = "qformer.encoder.layer.2.crossattention.attention.key.bias", "vision_model.encoder.layers.2.mlp.x"
    save_file({name: array for name, array in tensors.items() if name != missing}, file)
    with pytest.raises(ModelError, match=f"has no weights for {missing}"):
        kft.load_backbone(str(place))
    kft.load_backbone(str(place), part="text")  # which needs none of these
    save_file({**tensors, more: tensors[missing]}, file)
    with pytest.raises(ModelError, match=f"find no place in a blip-2 model: {more}"):
        kft.load_backbone(str(place))
    change(place, "qformer_config", {"use_qformer_text_input": False})
    with pytest.raises(ModelError, match="has no weights for language_projection.weight"):
        kft.load_backbone(str(place))


@pytest.mark.parametrize(
    ("part", "field", "values", "said"),
    [
        ("whole", "vision_config", {"qkv_bias": False}, "qkv_bias in config.json is False"),
        ("image", "vision_config", {"image_size": [16, 8]}, r"image_size and patch_size in config.json are \[16, 8\]"),
        ("image", "vision_config", {"hidden_act": "gelo"}, "Unknown hidden_act in config.json 'gelo'"),
        ("whole", "qformer_config", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("whole", "text_config", {"model_type": "llama"}, "Unknown model_type of text_config in config.json 'llama'"),
        ("text", "text_config", {"model_type": "llama"}, "Unknown model_type of text_config in config.json 'llama'"),
    ],
)
def test_other_variants_are_refused(
    part: str, field: str, values: dict[str, Any], said: str, folder: Callable[[str], tuple[Path, Any]]
) -> None:
    place, _ = folder("opt")
    change(place, field, values)
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(place), part=part)
