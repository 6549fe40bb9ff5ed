"""MobileNetV5 in timm's folders, against numbers that timm gave, and against timm where it is installed."""

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

NAME, SIZE = "mobilenetv5_300m", (40, 56)
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
# A network with each kind of block, as timm writes down those of its own.
SMALL = [
    ["er_r1_k3_s2_e4_c8", "er_r1_k3_s1_e4_c8"],
    ["uir_r1_a3_k5_s2_e6_c8", "uir_r1_a5_k0_s1_e4_c8"],
    ["uir_r1_a5_k5_s2_e6_c16", "mqa_r1_k3_h2_v2_s1_d8_c16", "mqa_r1_k3_h4_s1_d4_c16", "uir_r1_a0_k0_s1_e1_c16"],
]
STEM, OUTPUTS = 16, 24
# What timm 1.0.31 gives for these, by what model_args say.
CASES: dict[str, tuple[dict[str, Any], list[list[float]]]] = {
    "usual": ({}, [[-1.28915, 0.146957, -0.547546, -0.333092], [-0.476902, 0.586709, -0.21757, -0.528932]]),
    "others": (
        {"pad_type": "same", "msfa_output_resolution": 2, "msfa_indices": [-1, -2]},
        [[-0.677966, 0.179996, -0.380796, -0.569518], [-0.763047, 0.269106, -0.27881, -0.353631]],
    ),
}


@pytest.fixture(autouse=True)
def small(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has timm's name stand for the small network."""
    from kft.backbones.vision import mobilenet_v5_measures

    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    stages = tuple(tuple(block(line) for line in stage) for stage in SMALL)
    monkeypatch.setitem(
        mobilenet_v5_measures.VARIANTS,
        NAME,
        mobilenet_v5_measures.MobileNetV5(stages, STEM, OUTPUTS, taken=(2, 3), resolution=5),
    )


def block(line: str) -> Any:
    """Returns a block as timm writes it down: its kind, and what it is measured by."""
    from kft.backbones.vision import mobilenet_v5_measures

    said = {letter: int(number) for letter, number in re.findall(r"_([a-z])(\d+)", line)}
    if line.startswith("er"):
        return mobilenet_v5_measures.Edge(said["c"], said["s"], said["e"])
    if line.startswith("uir"):
        return mobilenet_v5_measures.Inverted(said["c"], said["e"], said["a"], said["k"], said["s"])
    return mobilenet_v5_measures.Attention(said["c"], said["h"], said["d"], said.get("v", 1))


def arrays() -> dict[str, np.ndarray]:
    """Returns random weights of the small network by timm's names, with a head."""
    rng, found = np.random.default_rng(0), {}

    def convolution(name: str, *shape: int) -> None:
        found[f"{name}.weight"] = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)

    def scale(name: str, width: int) -> None:
        found[name] = rng.uniform(0.5, 1.5, width).astype(np.float32)

    def normed(name: str, *shape: int) -> None:
        convolution(f"{name}.conv", *shape)
        scale(f"{name}.bn.weight", shape[0])

    def edge(name: str, inputs: int, width: int) -> None:
        convolution(f"{name}.conv_exp", 4 * inputs, inputs, 3, 3)
        scale(f"{name}.bn1.weight", 4 * inputs)
        convolution(f"{name}.conv_pwl", width, 4 * inputs, 1, 1)
        scale(f"{name}.bn2.weight", width)

    def inverted(name: str, inputs: int, inner: int, width: int, start: int = 0, middle: int = 0) -> None:
        if start:
            normed(f"{name}.dw_start", inputs, 1, start, start)
        normed(f"{name}.pw_exp", inner, inputs, 1, 1)
        if middle:
            normed(f"{name}.dw_mid", inner, 1, middle, middle)
        normed(f"{name}.pw_proj", width, inner, 1, 1)
        if name.startswith("blocks"):
            scale(f"{name}.layer_scale.gamma", width)

    def attention(name: str, width: int, heads: int, size: int, fewer: bool) -> None:
        scale(f"{name}.norm.weight", width)
        convolution(f"{name}.attn.query.proj", heads * size, width, 1, 1)
        for part in ("key", "value"):
            if fewer:
                convolution(f"{name}.attn.{part}.down_conv", width, 1, 3, 3)
                scale(f"{name}.attn.{part}.norm.weight", width)
            convolution(f"{name}.attn.{part}.proj", size, width, 1, 1)
        convolution(f"{name}.attn.output.proj", width, heads * size, 1, 1)
        scale(f"{name}.layer_scale.gamma", width)

    normed("conv_stem", 16, 3, 3, 3)
    found["conv_stem.conv.bias"] = rng.normal(0, 0.2, 16).astype(np.float32)
    edge("blocks.0.0", 16, 8)
    edge("blocks.0.1", 8, 8)
    inverted("blocks.1.0", 8, 48, 8, 3, 5)
    inverted("blocks.1.1", 8, 32, 8, 5)
    inverted("blocks.2.0", 8, 48, 16, 5, 5)
    attention("blocks.2.1", 16, 2, 8, fewer=True)
    attention("blocks.2.2", 16, 4, 4, fewer=False)
    inverted("blocks.2.3", 16, 16, 16)
    inverted("msfa.ffn", 24, 48, OUTPUTS)
    scale("msfa.norm.weight", OUTPUTS)
    convolution("classifier", 4, OUTPUTS)
    found["classifier.bias"] = rng.normal(0, 0.2, 4).astype(np.float32)
    return found


def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, *SIZE, 3)).astype(np.float32)


def written(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> str:
    """Writes a folder as timm does, and returns its path."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    settings = {"input_size": [3, *SIZE], "mean": MEAN, "std": DEVIATION, "classifier": "classifier"}
    found = {"architecture": NAME, "num_classes": 4, "pretrained_cfg": settings, **config}
    (folder / "config.json").write_text(json.dumps(found), encoding="utf8")
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def logits(model: Any) -> np.ndarray:
    found: np.ndarray = model.predict_on_batch({"images": images()})
    return found


def of_timm(changes: dict[str, Any]) -> np.ndarray:
    """Returns timm's logits; a test where it is not installed is skipped."""
    torch = pytest.importorskip("torch", reason="timm runs on torch")
    pytest.importorskip("torchvision", reason="timm, to compare with, needs torchvision")
    theirs = pytest.importorskip("timm.models.mobilenetv5", reason="timm, to compare with")
    from timm.models._efficientnet_builder import decode_arch_def

    defaults = {"msfa_output_resolution": 5, "layer_scale_init_value": 1e-5}
    model = theirs.MobileNetV5(
        decode_arch_def(SMALL), 4, stem_size=STEM, num_features=OUTPUTS, **{**defaults, **changes}
    )
    model.load_state_dict({name: torch.tensor(array) for name, array in arrays().items()})
    values = ((images() / 255 - np.array(MEAN)) / np.array(DEVIATION)).astype(np.float32)
    with torch.no_grad():
        found: np.ndarray = model.eval()(torch.tensor(values.transpose(0, 3, 1, 2))).numpy()
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_that_timm_gave(
    case: str, backend: str, tmp_path: Path, same: Callable[..., None]
) -> None:
    import keras

    changes, wanted = CASES[case]
    backbone = kft.load_backbone(written(tmp_path / "folder", arrays(), model_args=changes))
    assert backbone.images is not None and backbone.images.size == SIZE
    classifier = kft.published_classifier(backbone)
    same("timm folder", "MobileNetV5", logits(classifier), np.array(wanted, np.float32))
    if case == "others" and backend != "jax":  # which would compile it once more
        classifier.save(tmp_path / "again.keras")
        again = keras.saving.load_model(tmp_path / "again.keras")
        np.testing.assert_allclose(logits(again), wanted, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_timm_still_gives_them(case: str, backend: str) -> None:
    changes, wanted = CASES[case]
    np.testing.assert_allclose(of_timm(changes), wanted, atol=1e-4)


def test_the_measures_are_those_of_timm(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kft.backbones.vision import mobilenet_v5_measures

    found = {
        name: [len(stage) for stage in shape.stages]
        for name, shape in mobilenet_v5_measures.VARIANTS.items()
        if name != NAME
    }
    assert found == {"mobilenetv5_300m_enc": [3, 5, 37, 39], "mobilenetv5_base": [3, 5, 16, 15]}
    pytest.importorskip("torchvision", reason="timm, to compare with, needs torchvision")
    theirs = pytest.importorskip("timm.models.mobilenetv5", reason="timm, to compare with")
    for name in found:
        seen: list[Any] = []

        def note(lines: Any, seen: list[Any] = seen, **more: Any) -> None:
            seen.extend(lines)
            raise StopIteration

        monkeypatch.setattr(theirs, "decode_arch_def", note)
        with pytest.raises(StopIteration):
            theirs._gen_mobilenet_v5(name)
        stages = tuple(tuple(block(line) for line in stage) for stage in seen)
        assert stages == mobilenet_v5_measures.VARIANTS[name].stages


def test_images_of_another_size_are_taken(backend: str, tmp_path: Path) -> None:
    backbone = kft.load_backbone(written(tmp_path / "folder", arrays()), image_size=32)
    assert backbone.images is not None and backbone.images.size == (32, 32)
    assert tuple(backbone.model.input.shape) == (None, 32, 32, 3)
    assert tuple(backbone.model.output.shape) == (None, 5, 5, OUTPUTS)


def test_weights_and_config_of_one_network_only_are_taken(backend: str, tmp_path: Path) -> None:
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"channel_multiplier": 0.5}, "model_args in config.json changes timm's .* by channel_multiplier"),
        ({"pad_type": "valid"}, "pad_type in config.json is 'valid'"),
        ({"msfa_indices": [1, 4]}, r"msfa_indices in config.json is \[1, 4\], but there are 4 stages"),
        (
            {"msfa_indices": 3},
            r"msfa\.ffn\.pw_exp\.conv\.weight has the shape \(48, 24, 1, 1\), but config\.json asks for",
        ),
    )
    for change, said in changes:
        with pytest.raises(ModelError, match=said):
            kft.load_backbone(written(tmp_path / "folder", arrays(), model_args=change))
    less = {name: array for name, array in arrays().items() if name != "conv_stem.conv.bias"}
    with pytest.raises(ModelError, match=r"has no weights for conv_stem\.conv\.bias"):
        kft.load_backbone(written(tmp_path / "folder", less))
    more = {**arrays(), "blocks.2.3.dw_end.bn.weight": np.ones(16, np.float32)}
    with pytest.raises(ModelError, match=r"find no place in a timm mobilenetv5_300m: blocks\.2\.3\.dw_end"):
        kft.load_backbone(written(tmp_path / "folder", more))


def test_a_network_without_weights_has_blocks_to_train_from_the_top(backend: str, tmp_path: Path) -> None:
    from kft.tuning import trainable

    backbone = kft.load_backbone(written(tmp_path / "folder", {}), pretrained=False, dropout=0.1)
    trainable.apply(backbone.model, backbone, "top:1")
    # Eight blocks; the last one has five weights, and four layers and a normalization stand above it.
    assert len(trainable.blocks(backbone.model)) == 8
    assert len(backbone.model.trainable_weights) == 5 + 5
