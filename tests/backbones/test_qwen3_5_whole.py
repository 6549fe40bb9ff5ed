"""Qwen3.5 as a whole, and its part for images: states, training, a saved model, and what is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IMAGE, VIDEO = 70, 71
# Ten numbers of a head are turned, in five pairs: by place, row, column, place, row.
ROPE = {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.625, "mrope_section": [2, 2, 1]}
TEXT = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 24,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "rope_parameters": ROPE,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
EXPERTS = ("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts", "num_experts_per_tok")
ALONE = {"layer_types": ["full_attention"], "num_hidden_layers": 1}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
}
SIZE = (8, 12)  # of two rows of three squares
# Two images in the first text, and one in the second, which is shorter.
TEXTS = [
    [2, 7, *[IMAGE] * 6, 9, 10, 3, *[IMAGE] * 6, 5, 8],
    [2, 8, 11, *[IMAGE] * 6, 12, 5, 3, 4, *[0] * 6],
]
IDS = np.array(TEXTS, np.int32)
MASK = (IDS > 0).astype(np.int32)
GIVEN = [2, 1]
RAW = np.random.default_rng(0).integers(0, 256, (2, 2, *SIZE, 3)).astype(np.uint8)


def published(kind: str, place: Path, vocabulary: Path, head: bool = True, **changes: dict[str, Any]) -> Any:
    """Saves a random model as transformers does, and returns it without its head; a test without torch is skipped.

    Args:
        kind: model_type of the whole.
        place: where to.
        vocabulary: the folder of its tokens.
        head: whether it has its head.
        changes: of the configurations of `text` and `vision`.
    """
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = {name: value for name, value in TEXT.items() if kind == "qwen3_5_moe" or name not in EXPERTS}
    parts = {
        "text_config": {**text, **changes.get("text", {})},
        "vision_config": {**VISION, **changes.get("vision", {})},
    }
    config = transformers.AutoConfig.for_model(kind, **parts, image_token_id=IMAGE, video_token_id=VIDEO)
    config._attn_implementation = "eager"
    auto = "AutoModelForImageTextToText" if head else "AutoModel"
    model = getattr(transformers, auto).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(place)
    processor(model).save_pretrained(place)
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return model.model if head else model


def processor(model: Any) -> Any:
    """Returns what transformers makes of images what a model takes, as Qwen has it but for their size."""
    place = "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    made = pytest.importorskip(place, reason="this transformers has no such processor of images")
    vision = model.config.vision_config
    return made.Qwen2VLImageProcessorPil(
        do_resize=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
    )


def scaled(raw: np.ndarray, images: Any) -> np.ndarray:
    """Returns images as a backbone wants them."""
    return ((raw - np.array(images.mean)) / np.array(images.deviation)).astype(np.float32)


def numbers(tensor: Any) -> np.ndarray:
    import keras

    return np.asarray(keras.ops.convert_to_numpy(tensor))


def found(model: Any, images: np.ndarray, ids: np.ndarray = IDS, mask: np.ndarray = MASK) -> np.ndarray:
    inputs = {"images": images, "token_ids": ids, "padding_mask": mask}
    # Step by step JAX would compile each operation by itself.
    return numbers(model.predict_on_batch(inputs)["sequence_output"])


def theirs(model: Any, ids: np.ndarray = IDS, mask: np.ndarray = MASK) -> Any:
    """Returns transformers' states of the texts, as a tensor."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    raw = [image for images, count in zip(RAW, GIVEN, strict=True) for image in images[:count]]
    more = processor(model)(raw, return_tensors="pt")
    ids, mask = torch.tensor(ids).long(), torch.tensor(mask)
    types = (ids == IMAGE).int()
    return model(input_ids=ids, attention_mask=mask, mm_token_type_ids=types, use_cache=False, **more).last_hidden_state


def wanted(model: Any, ids: np.ndarray = IDS, mask: np.ndarray = MASK) -> np.ndarray:
    return theirs(model, ids, mask).detach().numpy()[mask == 1]


@pytest.fixture(scope="module")
def dense(backend: str, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder of a model without experts, transformers' own, and kft's, whose graph is compiled once."""
    place = tmp_path_factory.mktemp("qwen3_5")
    return place, published("qwen3_5", place, vocabulary), kft.load_backbone(str(place), config={"image_size": SIZE})


def test_the_whole_has_transformers_states(
    dense: tuple[Path, Any, Any], backend: str, same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    _, model, backbone = dense
    assert (backbone.modality, backbone.pooling, backbone.images.size) == ("image_text", "last", SIZE)
    assert set(backbone.inputs) == {"images", "token_ids", "padding_mask"}
    images = scaled(RAW, backbone.images)
    mine = found(backbone.model, images)
    same("Hugging Face", "qwen3_5", mine[MASK == 1], wanted(model))
    if backend != "jax":  # which would compile it once more
        backbone.model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(found(again, images), mine, atol=1e-6)
        with zipfile.ZipFile(tmp_path / "model.keras") as file:
            assert not any(name in file.read("config.json") for name in (b"kft", b"keras_hub"))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("qwen3_5", {**ALONE, "rope_parameters": {"rope_type": "yarn", "rope_theta": 9.0, "factor": 2.0}}),
        ("qwen3_5_moe", {"tie_word_embeddings": True, "rope_parameters": {**ROPE, "mrope_section": [3, 1, 1]}}),
    ],
)
def test_other_wholes_have_transformers_states(
    kind: str, changes: dict[str, Any], backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    model = published(kind, tmp_path, vocabulary, kind == "qwen3_5_moe", text=changes)
    backbone = kft.load_backbone(str(tmp_path), config={"image_size": SIZE})
    same("Hugging Face", kind, found(backbone.model, scaled(RAW, backbone.images))[MASK == 1], wanted(model))


def test_padding_before_a_text_counts_nothing(dense: tuple[Path, Any, Any], backend: str) -> None:
    _, model, backbone = dense
    ids, mask = np.stack([IDS[0], np.roll(IDS[1], 6)]), np.stack([MASK[0], np.roll(MASK[1], 6)])
    mine = found(backbone.model, scaled(RAW, backbone.images), ids, mask)
    np.testing.assert_allclose(mine[mask == 1], wanted(model, ids, mask), atol=1e-4)


def test_a_text_whose_tokens_do_not_fit_its_images_has_no_states(dense: tuple[Path, Any, Any], backend: str) -> None:
    """Transformers refuses the whole batch, which a graph cannot."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    _, model, backbone = dense
    images, words = scaled(RAW, backbone.images), np.where(IDS == IMAGE, 6, IDS)
    for tokens in (8, 18):  # two are left over; an image is missing
        ids = words.copy()
        ids[0, 1 : 1 + tokens] = IMAGE
        mine = found(backbone.model, images, ids)
        assert np.isnan(mine[0]).all() and np.isfinite(mine[1]).all()
    # A text without images is read as if there were none beside it.
    with torch.no_grad():
        alone = model.language_model(torch.tensor(words[1:]).long()).last_hidden_state
    np.testing.assert_allclose(mine[1][MASK[1] == 1], alone.numpy()[0][MASK[1] == 1], atol=1e-4)


def test_a_step_of_training_is_transformers_own(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    """Gradients of all weights count, those of the tower and of its learned places too; the texts' part has a test of its own."""
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    model = published("qwen3_5", tmp_path, vocabulary, text=ALONE)
    backbone = kft.load_backbone(str(tmp_path), config={"image_size": SIZE})
    images, mine, rate = scaled(RAW, backbone.images), backbone.model, 0.3
    full = np.ones_like(IDS)  # since what stands at padding is no one's
    inputs = {"images": images, "token_ids": IDS, "padding_mask": full}
    targets = np.random.default_rng(1).normal(size=(*IDS.shape, 16)).astype(np.float32)
    mine.compile(keras.optimizers.SGD(rate), {"sequence_output": "mse"})
    step = torch.optim.SGD(model.parameters(), rate)
    before, seen = [numbers(weight.value) for weight in mine.trainable_weights], []
    for _ in range(2):
        mine.reset_metrics()
        own = ((theirs(model, IDS, full) - torch.tensor(targets)) ** 2).mean()
        seen.append((mine.train_on_batch(inputs, {"sequence_output": targets}), own.item()))
        step.zero_grad()
        own.backward()
        step.step()
    np.testing.assert_allclose(*zip(*seen, strict=True), rtol=1e-5)
    assert seen[1][0] < 0.99 * seen[0][0]
    for weight, old in zip(mine.trainable_weights, before, strict=True):
        assert (numbers(weight.value) != old).any(), weight.path
    if backend != "jax":  # which would compile once more
        after = found(mine, images, IDS, full).reshape(-1, 16)
        np.testing.assert_allclose(after, wanted(model, IDS, full), atol=1e-4)


# The part for images


@pytest.mark.parametrize(
    ("kind", "size", "changes"),
    [
        ("qwen3_5", (8, 8), {}),
        ("qwen3_5_moe", (12, 12), {"num_position_embeddings": 27, "hidden_act": "gelu", "temporal_patch_size": 1}),
        ("qwen3_5", SIZE, {"rope_parameters": {"rope_type": "axial", "rope_theta": 9.0}, "out_hidden_size": 12}),
        ("qwen3_5", (18, 6), {"spatial_merge_size": 3, "depth": 2, "temporal_patch_size": 3}),
    ],
    ids=["learned places", "stretched", "oblong", "squares of nine"],
)
def test_the_part_for_images_has_transformers_states(
    kind: str,
    size: tuple[int, int],
    changes: dict[str, Any],
    backend: str,
    vocabulary: Path,
    same: Callable[..., None],
    tmp_path: Path,
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    raw = np.random.default_rng(1).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    model = published(kind, tmp_path, vocabulary, vision=changes)
    square, asked = size[0] == size[1], {}
    if not square:
        asked = {"config": {"image_size": size}}
    elif size != (8, 8):
        asked = {"image_size": size[0]}
    backbone = kft.load_backbone(str(tmp_path), part="image", **asked)
    assert (backbone.modality, backbone.pooling, backbone.images.size) == ("image", "mean", size)
    assert backbone.inputs == ("images",) and backbone.tokenizer is None
    inputs = processor(model)(list(raw), return_tensors="pt")
    with torch.no_grad():
        states = model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
    mine = numbers(backbone.model.predict_on_batch(scaled(raw, backbone.images)))
    same("Hugging Face", f"{kind}, image", mine, states.numpy().reshape(mine.shape))


def test_a_task_trains_the_part_for_images(dense: tuple[Path, Any, Any], backend: str) -> None:
    from kft.tasks import TASKS, heads
    from kft.tasks.targets import Target
    from kft.tuning import trainable

    place, _, whole = dense
    backbone = kft.load_backbone(str(place), part="image", image_size=8)
    assert 0 < len(backbone.model.weights) < len(whole.model.weights)
    task = heads.build(TASKS.load("image_classification"), backbone, Target("labels", ("no", "yes")))
    trainable.apply(task, backbone, "top:1")
    assert 0 < len(task.trainable_weights) < len(task.weights)
    task.compile("sgd", "mse")
    before = numbers(task.trainable_weights[0].value)
    inputs = {"images": scaled(RAW[:, 0, :, :8], backbone.images)}
    assert np.isfinite(task.train_on_batch(inputs, np.eye(2, dtype=np.float32)))
    assert (numbers(task.trainable_weights[0].value) != before).any()


def test_an_image_is_seen_in_half_precision(dense: tuple[Path, Any, Any], backend: str) -> None:
    """Learned places are stretched in single precision all the same."""
    import keras

    place, _, _ = dense
    states = []
    for precision in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(precision)
        backbone = kft.load_backbone(str(place), part="image", config={"image_size": SIZE})
        seen = backbone.model.predict_on_batch(scaled(RAW[0], backbone.images))
        states.append(np.asarray(seen, np.float32))
    assert 0 < np.abs(states[0] - states[1]).max() < 0.05 * np.abs(states[0]).max()


# Configurations


def test_published_values_are_read(backend: str) -> None:
    """Those of Qwen3.5-27B; what it leaves out is as transformers has it."""
    from kft.backbones.families.qwen3_5_whole import arguments

    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_interleaved": True}
    text = {
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 24,
        "num_key_value_heads": 4,
        "intermediate_size": 17408,
        "vocab_size": 248320,
        "linear_num_value_heads": 48,
        "attn_output_gate": True,
        "mtp_num_hidden_layers": 1,
        "rope_parameters": {**rope, "mrope_section": [11, 11, 10]},
    }
    vision = {"model_type": "qwen3_5", "out_hidden_size": 5120, "deepstack_visual_indexes": []}
    found = arguments({"model_type": "qwen3_5", "text_config": text, "vision_config": vision})
    assert (found["image_token"], found["image_size"], found["sections"]) == (248_056, 768, (11, 11, 10))
    assert len(found["turning"].frequencies) == 32 and found["vision"]["wavelength"] == 10_000.0


def test_the_lower_blocks_of_the_tower_can_be_had_alone(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    published("qwen3_5", tmp_path, vocabulary, vision={"depth": 2})
    counts = []
    for count in (1, 2):
        model = kft.load_backbone(str(tmp_path), part="image", config={"num_layers": count}).model
        counts.append(sum(layer.name.endswith("_feedforward_norm") for layer in model.layers))
    assert counts == [1, 2]


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("vision_config", {"hidden_act": "mish"}, "Unknown hidden_act in config.json 'mish'"),
        ("vision_config", {"patch_size": [2, 4]}, r"patch_size in config.json is \[2, 4\]"),
        ("vision_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type in config.json is 'yarn'"),
        ("vision_config", {"head_dim": 4}, "head_dim in config.json is 4"),
        ("vision_config", {"out_hidden_size": 12}, "out_hidden_size in config.json is 12; .* computes only 16"),
        ("text_config", {"attn_output_gate": False}, "attn_output_gate in config.json is False"),
        ("text_config", {"rope_parameters": {"mrope_section": [2, 3]}}, r"mrope_section in config.json is \[2, 3\]"),
        (
            "text_config",
            {
                "rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 2, "long_factor": [2.0] * 2},
                "max_position_embeddings": 64,
            },
            "rope_type in config.json is 'longrope'",
        ),
    ],
)
def test_other_variants_are_refused(
    part: str, changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    config: dict[str, Any] = {"model_type": "qwen3_5", "text_config": TEXT, "vision_config": VISION}
    config[part] = {**config[part], **changes}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    with pytest.raises(ModelError, match=said) as caught:
        kft.load_backbone(str(tmp_path), pretrained=False)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_not_made_of_whole_squares_is_refused(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    config = {"model_type": "qwen3_5", "text_config": TEXT, "vision_config": VISION}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    for part in ("image", "whole"):
        with pytest.raises(ModelError, match="images of 10 by 10 pixels are not made of whole squares of 4 pixels"):
            kft.load_backbone(str(tmp_path), pretrained=False, part=part, image_size=10)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("visual.blocks.0.attn.qkv.bias", "has no weights for visual.blocks.0.attn.qkv.bias"),
        ("visual.merger.linear_fc2.weight", "has no weights for visual.merger.linear_fc2.weight"),
        ("language_model.norm.weight", "has no weights for language_model.norm.weight"),
        ("visual.blocks.1.norm1.weight", "find no place in a qwen3_5 model: model.visual.blocks.1.norm1.weight"),
        ("visual.deepstack_merger_list.0.norm.bias", "find no place in a qwen3_5 model: model.visual.deepstack_merger"),
    ],
)
def test_tensors_and_places_that_do_not_fit_are_named(
    name: str, said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    published("qwen3_5", tmp_path, vocabulary)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if tensors.pop(f"model.{name}", None) is None:
        tensors[f"model.{name}"] = np.ones(16, np.float32)
    save_file(tensors, file)
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(tmp_path))
