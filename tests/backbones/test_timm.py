"""Vision transformers, ConvNeXt and MobileNetV3 in timm's folders, against transformers' models and KerasHub's classifier."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

SIZE, MEAN, DEVIATION = 64, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(backend: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.float32)


def written(folder: Path, name: str, arrays: dict[str, np.ndarray], classifier: str, **config: Any) -> str:
    """Writes a folder as timm does, and returns its path."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    settings = {"input_size": [3, SIZE, SIZE], "mean": MEAN, "std": DEVIATION, "classifier": classifier}
    found = {"architecture": name, "num_classes": 4, "pretrained_cfg": settings, **config}
    (folder / "config.json").write_text(json.dumps(found), encoding="utf8")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "model.safetensors")
    return str(folder)


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Returns a model's output in inference."""
    # Compiled in one piece: jax compiles what is called directly operation by operation, which takes ten times as long.
    found: np.ndarray = model.predict_on_batch({"images": images})
    return found


def answers(model: Any, images: np.ndarray) -> np.ndarray:
    """Returns the logits of a model of transformers'."""
    import torch

    values = (images / 255 - np.array(MEAN)) / np.array(DEVIATION)
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor(values.transpose(0, 3, 1, 2).astype(np.float32))).logits.numpy()
    return found


def shaken(kind: str, config: dict[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns a model of transformers' none of whose weights is as it was made, and these by name."""
    torch = pytest.importorskip("torch", reason="transformers' models need torch")
    transformers = pytest.importorskip("transformers", reason="transformers, to compare with")
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(num_labels=4, **config)
    model = getattr(transformers, f"{kind}ForImageClassification")(made).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * (0.2 if value.numel() == max(value.shape) else 0.02))
    return model, {name: value.detach().numpy() for name, value in model.state_dict().items()}


def renamed(arrays: dict[str, np.ndarray], names: tuple[tuple[str, str], ...]) -> dict[str, np.ndarray]:
    """Returns arrays under other names, by patterns and what takes their place."""
    found = {}
    for name, array in arrays.items():
        for pattern, other in names:
            name = re.sub(pattern, other, name)
        found[name] = array
    return found


def vit() -> tuple[Any, dict[str, np.ndarray]]:
    """Returns a vision transformer of transformers' with the measures of timm's smallest, and its weights by timm's names."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 192}
    model, arrays = shaken("ViT", {**sizes, "image_size": SIZE, "patch_size": 16, "layer_norm_eps": 1e-6})
    found = renamed(
        arrays,
        (
            (r"^vit\.embeddings\.cls_token$", "cls_token"),
            (r"^vit\.embeddings\.position_embeddings$", "pos_embed"),
            (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
            (r"^vit\.layers\.", "blocks."),
            (r"layernorm_before", "norm1"),
            (r"layernorm_after", "norm2"),
            (r"attention\.o_proj", "attn.proj"),
            (r"^vit\.layernorm", "norm"),
            (r"^classifier", "head"),
        ),
    )
    for name in [name for name in found if ".attention.q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        found[name.replace("attention.q_proj", "attn.qkv")] = np.concatenate(parts)
    return model, found


def convnext(kind: str, pixelwise: bool) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns the smallest ConvNeXt as transformers computes it, and its weights by timm's names."""
    sizes = {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2], "layer_norm_eps": 1e-6}
    model, arrays = shaken(kind, sizes if kind == "ConvNextV2" else {**sizes, "layer_scale_init_value": 0.5})
    found = renamed(
        arrays,
        (
            (rf"^{kind.lower()}\.", ""),
            (r"^embeddings\.patch_embeddings", "stem.0"),
            (r"^embeddings\.layernorm", "stem.1"),
            (r"^encoder\.", ""),
            (r"downsampling_layer", "downsample"),
            (r"\.layers\.", ".blocks."),
            (r"dwconv", "conv_dw"),
            (r"\.layernorm\.", ".norm."),
            (r"pwconv", "mlp.fc"),
            (r"\.grn\.", ".mlp.grn."),
            (r"layer_scale_parameter", "gamma"),
            (r"^layernorm", "head.norm"),
            (r"^classifier", "head.fc"),
        ),
    )
    for name, array in found.items():
        if ".mlp.grn." in name:
            found[name] = array.reshape(-1)
        elif pixelwise and re.search(r"mlp\.fc\d\.weight", name):
            found[name] = array[:, :, None, None]
    return model, found


def test_vision_transformer_gives_the_logits_of_transformers(
    images: np.ndarray, tmp_path: Path, same: Callable[..., None]
) -> None:
    import keras

    model, arrays = vit()
    backbone = kft.load_backbone(written(tmp_path / "vit", "test_vit", arrays, "head"))
    assert backbone.images is not None and backbone.images.size == (SIZE, SIZE)
    assert tuple(backbone.model.output.shape) == (None, 17, 64)
    classifier, wanted = kft.published_classifier(backbone), answers(model, images)
    same("timm folder", "ViT", logits(classifier, images), wanted)
    assert np.ptp(wanted) > 0.1
    classifier.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(logits(again, images), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "name", "pixelwise"), [("ConvNext", "convnext_atto", True), ("ConvNextV2", "convnextv2_atto", False)]
)
def test_convnext_gives_the_logits_of_transformers(
    images: np.ndarray, kind: str, name: str, pixelwise: bool, tmp_path: Path, same: Callable[..., None]
) -> None:
    import keras

    model, arrays = convnext(kind, pixelwise)
    backbone = kft.load_backbone(written(tmp_path / "convnext", name, arrays, "head.fc"))
    classifier, wanted = kft.published_classifier(backbone), answers(model, images)
    spread = float(np.abs(wanted).max())
    same(
        "timm folder", "ConvNeXt" if pixelwise else "ConvNeXt V2", logits(classifier, images) / spread, wanted / spread
    )
    assert np.ptp(wanted) > 0.1
    classifier.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(logits(again, images) / spread, wanted / spread, atol=1e-4)


def test_weights_and_config_of_one_network_only_are_taken(backend: str, tmp_path: Path) -> None:
    _, arrays = vit()
    names = ["daisy", "palace", "boat", "owl"]
    made = {"num_classes": 4, "in_chans": 3, "global_pool": "token", "img_size": [SIZE, SIZE]}
    backbone = kft.load_backbone(
        written(tmp_path / "named", "test_vit", arrays, "head", label_names=names, model_args=made)
    )
    assert backbone.head is not None and list(backbone.head.labels) == names
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        (
            {"model_args": {"img_size": 80}},
            r"pos_embed has the shape \(1, 17, 64\), but config\.json asks for \(26, 64\)",
        ),
        ({"model_args": {"in_chans": 1}}, "images of 1 channels and a mean of 3"),
        ({"model_args": {"img_size": 72}}, "72 by 72 pixels, which patches of 16 do not fill"),
        (
            {"model_args": {"init_values": 1e-5, "drop_rate": 0.1}},
            "model_args in config.json changes .* by init_values",
        ),
        ({"global_pool": "avg"}, "global_pool in config.json is 'avg'; of test_vit kft knows only 'token'"),
        ({"architecture": "vit_tiny_patch16_224"}, r"has no weights for blocks\.6\.norm1\.weight, .* and 92 more"),
        ({"architecture": "vit_base_patch16_clip_224"}, "kft has no backbone for. Allowed: .*vit_ and deit_"),
    )
    for change, said in changes:
        place = written(tmp_path / "other", "test_vit", arrays, "head", **change)
        with pytest.raises(ModelError, match=said):
            kft.load_backbone(place)
    with pytest.raises(ModelError, match=r"takes images of 64 by 64 pixels only"):
        kft.load_backbone(str(tmp_path / "named"), image_size=32)
    more = {**arrays, "blocks.5.ls1.gamma": np.ones(64, np.float32)}
    with pytest.raises(ModelError, match=r"find no place in a timm test_vit: blocks\.5\.ls1\.gamma"):
        kft.load_backbone(written(tmp_path / "other", "test_vit", more, "head"))
    less = {name: array for name, array in arrays.items() if name != "blocks.5.mlp.fc2.bias"}
    with pytest.raises(ModelError, match=r"has no weights for blocks\.5\.mlp\.fc2\.bias"):
        kft.load_backbone(written(tmp_path / "other", "test_vit", less, "head"))


def test_a_network_without_weights_has_layers_to_train_from_the_top(backend: str, tmp_path: Path) -> None:
    from kft.tuning import trainable

    found = {}
    for name in ("test_vit", "convnext_atto"):
        backbone = kft.load_backbone(written(tmp_path / name, name, {}, ""), pretrained=False, dropout=0.1)
        trainable.apply(backbone.model, backbone, "top:1")
        found[name] = len(trainable.blocks(backbone.model)), len(backbone.model.trainable_weights)
    # A block's weights, and those of the last normalization: a block of ConvNeXt has two for each of four layers, and a scale.
    assert found == {"test_vit": (6, 16 + 2), "convnext_atto": (12, 9 + 2)}


def mobile() -> dict[str, np.ndarray]:
    """Returns random weights of timm's mobilenetv3_small_050, with its head."""
    from kft.backbones.vision.measures import channels

    rng, found = np.random.default_rng(0), {}

    def convolution(name: str, *shape: int, bias: bool = False) -> None:
        found[f"{name}.weight"] = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        if bias:
            found[f"{name}.bias"] = rng.normal(0, 0.2, shape[0]).astype(np.float32)

    def norm(name: str, width: int) -> None:
        for part in ("bias", "running_mean"):
            found[f"{name}.{part}"] = rng.normal(0, 0.2, width).astype(np.float32)
        for part in ("weight", "running_var"):
            found[f"{name}.{part}"] = rng.uniform(0.5, 1.5, width).astype(np.float32)

    def squeezed(name: str, width: int, narrow: int) -> None:
        convolution(f"{name}.se.conv_reduce", narrow, width, 1, 1, bias=True)
        convolution(f"{name}.se.conv_expand", width, narrow, 1, 1, bias=True)

    convolution("conv_stem", 16, 3, 3, 3)
    norm("bn1", 16)
    convolution("blocks.0.0.conv_dw", 16, 1, 3, 3)
    norm("blocks.0.0.bn1", 16)
    squeezed("blocks.0.0", 16, 8)
    convolution("blocks.0.0.conv_pw", 8, 16, 1, 1)
    norm("blocks.0.0.bn2", 8)
    inputs = 8
    stages = ((16, 3, (40, 56)), (24, 5, (64, 144, 144)), (24, 5, (72, 72)), (48, 5, (144, 288, 288)))
    for stage, (width, kernel, expansions) in enumerate(stages, 1):
        for place, expanded in enumerate(expansions):
            name = f"blocks.{stage}.{place}"
            convolution(f"{name}.conv_pw", expanded, inputs, 1, 1)
            convolution(f"{name}.conv_dw", expanded, 1, kernel, kernel)
            convolution(f"{name}.conv_pwl", width, expanded, 1, 1)
            for number, size in enumerate((expanded, expanded, width), 1):
                norm(f"{name}.bn{number}", size)
            if stage > 1:
                squeezed(name, expanded, channels(expanded / 4))
            inputs = width
    convolution("blocks.5.0.conv", 288, 48, 1, 1)
    norm("blocks.5.0.bn1", 288)
    convolution("conv_head", 1024, 288, 1, 1, bias=True)
    convolution("classifier", 4, 1024, bias=True)
    return found


def test_mobilenet_gives_the_logits_of_keras_hub(images: np.ndarray, tmp_path: Path, same: Callable[..., None]) -> None:
    import keras_hub

    from kft import backend

    arrays = mobile()
    place = written(tmp_path / "mobile", "mobilenetv3_small_050", arrays, "classifier", num_features=1024)
    classifier = kft.published_classifier(kft.load_backbone(place))
    with backend.without_tensorflow():
        whole = keras_hub.models.MobileNetImageClassifier.from_preset(place, preprocessor=None)
    values = ((images / 255 - np.array(MEAN)) / np.array(DEVIATION)).astype(np.float32)
    wanted = whole.predict_on_batch(values)
    same("timm folder", "MobileNetV3", logits(classifier, images), wanted)
    assert np.ptp(wanted) > 0.1
    del arrays["conv_head.bias"]
    with pytest.raises(ModelError, match=r"has no weights for conv_head\.bias"):
        kft.load_backbone(written(tmp_path / "mobile", "mobilenetv3_small_050", arrays, "classifier"))
