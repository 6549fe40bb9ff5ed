"""TF-Hub's models of images as Keras' own layers: the numbers are those of TensorFlow's own SavedModels.

The networks have the operations, the variables' names and the order of things that their makers' own code has: ResNet,
MobileNet and Inception that of slim, EfficientNet that of TensorFlow's model garden, BiT that of big_transfer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.backbones import folders, saved_model
from kft.errors import ModelError

pytestmark = pytest.mark.backend
MEAN, DEVIATION = [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]


class Network:
    """A network of TensorFlow's, whose variables are made when they are first asked for."""

    def __init__(self, tf: Any, network: Callable[[Network, Any], Any], size: int | None = None) -> None:
        self.tf, self.network, self.weights, self.rng = tf, network, dict[str, Any](), np.random.default_rng(0)
        spec = tf.TensorSpec([None, size, size, 3], tf.float32)
        self(tf.zeros((1, size or 32, size or 32, 3)))
        self.call = tf.function(lambda images, training=False: self(images), input_signature=[spec])

    def __call__(self, images: Any) -> Any:
        return self.network(self, images)

    def get(self, name: str, *shape: int) -> Any:
        if name not in self.weights:
            part = name.rpartition("/")[2]
            fan = np.prod(shape[:2] if part.startswith("depthwise") else shape[:-1])
            drawn = {
                "gamma": lambda: self.rng.uniform(0.5, 1.5, shape),
                "moving_variance": lambda: self.rng.uniform(0.5, 1.5, shape),
            }.get(part, lambda: self.rng.normal(0, (2 / fan) ** 0.5 if len(shape) > 1 else 0.2, shape))()
            trained = not part.startswith("moving")
            self.weights[name] = self.tf.Variable(drawn.astype(np.float32), name=name, trainable=trained)
        return self.weights[name]

    def conv(self, x: Any, name: str, channels: int, size: int = 1, stride: int = 1, padding: str = "SAME") -> Any:
        return self.tf.nn.conv2d(x, self.get(name, size, size, x.shape[-1], channels), stride, padding)

    def depthwise(self, x: Any, name: str, size: int, stride: int) -> Any:
        kernel = self.get(name, size, size, x.shape[-1], 1)
        return self.tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")

    def bias(self, x: Any, name: str) -> Any:
        return self.tf.nn.bias_add(x, self.get(name, x.shape[-1]))

    def norm(self, x: Any, name: str, epsilon: float, scaled: bool = True) -> Any:
        weights = {part: self.get(f"{name}/{part}", x.shape[-1]) for part in ("beta", "moving_mean", "moving_variance")}
        gamma = self.get(f"{name}/gamma", x.shape[-1]) if scaled else self.tf.ones(x.shape[-1])
        mean, variance = weights["moving_mean"], weights["moving_variance"]
        return self.tf.compat.v1.nn.fused_batch_norm(
            x, gamma, weights["beta"], mean, variance, epsilon, is_training=False
        )[0]


def resnet_v2(net: Network, images: Any) -> Any:
    """slim's, whose strides stand in the last unit of a block, padded beforehand."""
    tf, start = net.tf, "resnet_v2_50"
    x = tf.pad(images * 2.0 - 1.0, [[0, 0], [3, 3], [3, 3], [0, 0]])
    x = net.bias(net.conv(x, f"{start}/conv1/weights", 8, 7, 2, "VALID"), f"{start}/conv1/biases")
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for number, stride in ((1, 1), (2, 2)):
        unit = f"{start}/block1/unit_{number}/bottleneck_v2"
        preact = tf.nn.relu(net.norm(x, f"{unit}/preact", 1e-5))
        if number == 1:
            short = net.bias(net.conv(preact, f"{unit}/shortcut/weights", 16), f"{unit}/shortcut/biases")
        else:
            short = tf.nn.max_pool2d(x, 1, stride, "VALID")
        y = tf.nn.relu(net.norm(net.conv(preact, f"{unit}/conv1/weights", 4), f"{unit}/conv1/BatchNorm", 1e-5))
        y = tf.pad(y, [[0, 0], [1, 1], [1, 1], [0, 0]]) if stride > 1 else y
        y = net.conv(y, f"{unit}/conv2/weights", 4, 3, stride, "VALID" if stride > 1 else "SAME")
        y = tf.nn.relu(net.norm(y, f"{unit}/conv2/BatchNorm", 1e-5))
        x = short + net.bias(net.conv(y, f"{unit}/conv3/weights", 16), f"{unit}/conv3/biases")
    x = tf.nn.relu(net.norm(x, f"{start}/postnorm", 1e-5))
    return tf.squeeze(tf.reduce_mean(x, [1, 2], keepdims=True), [1, 2])


def resnet_v1(net: Network, images: Any) -> Any:
    """slim's, a classifier, for images as VGG's are: on the scale 0 to 255, ImageNet's mean taken off."""
    tf, start = net.tf, "module/resnet_v1_50"
    x = images * 255.0 - tf.constant([123.68, 116.78, 103.94])
    x = tf.nn.relu(net.norm(net.conv(x, f"{start}/conv1/weights", 8, 7, 2), f"{start}/conv1/BatchNorm", 1e-5))
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    unit = f"{start}/block1/unit_1/bottleneck_v1"
    short = net.norm(net.conv(x, f"{unit}/shortcut/weights", 16), f"{unit}/shortcut/BatchNorm", 1e-5)
    y = tf.nn.relu(net.norm(net.conv(x, f"{unit}/conv1/weights", 4), f"{unit}/conv1/BatchNorm", 1e-5))
    y = tf.nn.relu(net.norm(net.conv(y, f"{unit}/conv2/weights", 4, 3), f"{unit}/conv2/BatchNorm", 1e-5))
    x = tf.nn.relu(short + net.norm(net.conv(y, f"{unit}/conv3/weights", 16), f"{unit}/conv3/BatchNorm", 1e-5))
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    return tf.squeeze(net.bias(net.conv(x, f"{start}/logits/weights", 5), f"{start}/logits/biases"), [1, 2])


def mobilenet_v2(net: Network, images: Any) -> Any:
    """slim's, which pools the one size that it takes."""
    tf, start = net.tf, "MobilenetV2"
    x = images * 2.0 - 1.0
    x = tf.nn.relu6(net.norm(net.conv(x, f"{start}/Conv/weights", 8, 3, 2), f"{start}/Conv/BatchNorm", 1e-3))
    for number, stride in enumerate((2, 1)):
        block = f"{start}/expanded_conv_{number}" if number else f"{start}/expanded_conv"
        y = net.conv(x, f"{block}/expand/weights", 16)
        y = tf.nn.relu6(net.norm(y, f"{block}/expand/BatchNorm", 1e-3))
        y = net.depthwise(y, f"{block}/depthwise/depthwise_weights", 3, stride)
        y = tf.nn.relu6(net.norm(y, f"{block}/depthwise/BatchNorm", 1e-3))
        y = net.norm(net.conv(y, f"{block}/project/weights", 8), f"{block}/project/BatchNorm", 1e-3)
        x = y + x if stride == 1 else y
    x = tf.nn.relu6(net.norm(net.conv(x, f"{start}/Conv_1/weights", 24), f"{start}/Conv_1/BatchNorm", 1e-3))
    x = tf.nn.avg_pool2d(x, x.shape[1:3], 1, "VALID")
    return tf.squeeze(x, [1, 2])


def mobilenet_v3(net: Network, images: Any) -> Any:
    """slim's, with hard swish, hard gates, and a layer above the pooling."""
    tf, start = net.tf, "MobilenetV3"

    def swish(x: Any) -> Any:
        return x * tf.nn.relu6(x + np.float32(3)) * np.float32(1.0 / 6.0)

    x = images * 2.0 - 1.0
    x = swish(net.norm(net.conv(x, f"{start}/Conv/weights", 8, 3, 2), f"{start}/Conv/BatchNorm", 1e-3))
    block = f"{start}/expanded_conv"
    y = net.depthwise(x, f"{block}/depthwise/depthwise_weights", 5, 1)
    y = tf.nn.relu(net.norm(y, f"{block}/depthwise/BatchNorm", 1e-3))
    gate = tf.reduce_mean(y, [1, 2], keepdims=True)
    excite = f"{block}/squeeze_excite"
    gate = tf.nn.relu(net.bias(net.conv(gate, f"{excite}/Conv/weights", 4), f"{excite}/Conv/biases"))
    gate = net.bias(net.conv(gate, f"{excite}/Conv_1/weights", 8), f"{excite}/Conv_1/biases")
    y = y * (tf.nn.relu6(gate + 3) * 0.16667)
    x = net.norm(net.conv(y, f"{block}/project/weights", 8), f"{block}/project/BatchNorm", 1e-3) + x
    x = swish(net.norm(net.conv(x, f"{start}/Conv_1/weights", 16), f"{start}/Conv_1/BatchNorm", 1e-3))
    x = tf.reduce_mean(x, [1, 2], keepdims=True)
    return tf.squeeze(swish(net.bias(net.conv(x, f"{start}/Conv_2/weights", 24), f"{start}/Conv_2/biases")), [1, 2])


def efficientnet(net: Network, images: Any) -> Any:
    """The model garden's, each layer a function that is called."""
    tf = net.tf

    def layer(x: Any, name: str, channels: int, size: int = 1, stride: int = 1, activation: str = "silu") -> Any:
        @tf.function
        def called(x: Any) -> Any:
            if channels:
                x = net.conv(x, f"{name}_conv2d/kernel", channels, size, stride)
            else:
                x = net.depthwise(x, f"{name}_conv2d/depthwise_kernel", size, stride)
            x = net.norm(x, f"{name}_bn", 1e-3)
            return {"silu": tf.nn.silu, "": tf.identity}[activation](x)

        return called(x)

    def gated(x: Any, block: str) -> Any:
        gate = tf.reshape(tf.reduce_mean(x, [1, 2]), [tf.shape(x)[0], 1, 1, x.shape[-1]])
        gate = tf.nn.silu(
            net.bias(net.conv(gate, f"{block}/se_reduce_conv2d/kernel", 2), f"{block}/se_reduce_conv2d/bias")
        )
        gate = net.bias(
            net.conv(gate, f"{block}/se_expand_conv2d/kernel", x.shape[-1]), f"{block}/se_expand_conv2d/bias"
        )
        return x * tf.sigmoid(gate)

    x = (images * 255.0 - tf.constant(MEAN, shape=(1, 1, 3))) / tf.constant(DEVIATION, shape=(1, 1, 3))
    x = layer(x, "stem", 8, 3, 2)
    for number, stride in enumerate((2, 1)):
        block = f"stack_0/block_{number}"
        y = layer(x, f"{block}/expand", 16)
        y = gated(layer(y, f"{block}/depthwise", 0, 5, stride), block)
        y = layer(y, f"{block}/project", 8, activation="")
        x = y + x if number else y
    return tf.reduce_mean(layer(x, "top", 24), [1, 2])


def bit(net: Network, images: Any) -> Any:
    """big_transfer's, with standardized kernels and normalization by groups."""
    tf = net.tf

    def conv(x: Any, name: str, channels: int, size: int = 1, stride: int = 1) -> Any:
        kernel = net.get(f"{name}/standardized_conv2d/kernel", size, size, x.shape[-1], channels)
        mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
        x = tf.pad(x, [[0, 0], [size // 2] * 2, [size // 2] * 2, [0, 0]])
        return tf.nn.conv2d(x, (kernel - mean) / tf.sqrt(variance + 1e-10), stride, "VALID")

    def norm(x: Any, name: str) -> Any:
        own, shape = [4, x.shape[-1] // 4], tf.shape(x)
        y = tf.reshape(x, tf.concat([shape[:-1], own], axis=-1))
        mean, variance = tf.nn.moments(y, [1, 2, 4], keepdims=True)
        gamma, beta = (tf.reshape(net.get(f"{name}/{part}", x.shape[-1]), own) for part in ("gamma", "beta"))
        return tf.nn.relu(tf.reshape(tf.nn.batch_normalization(y, mean, variance, beta, gamma, 1e-5), shape))

    x = conv(images * 2.0 - 1.0, "resnet/root_block", 16, 7, 2)
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    for number in (1, 2):
        unit = f"resnet/block{number}/unit01"
        y = norm(x, f"{unit}/a/group_norm")
        short = conv(y, f"{unit}/a/proj", 32 * number, stride=number)
        y = norm(conv(y, f"{unit}/a", 8 * number), f"{unit}/b/group_norm")
        y = norm(conv(y, f"{unit}/b", 8 * number, 3, number), f"{unit}/c/group_norm")
        x = conv(y, f"{unit}/c", 32 * number) + short
    return tf.reduce_mean(norm(x, "resnet/group_norm"), [1, 2])


def inception(net: Network, images: Any) -> Any:
    """A block of slim's, whose normalizations have no factor."""
    tf, start = net.tf, "InceptionV3/Mixed_5b"
    x = (images - 0.5) * 2.0
    one = tf.nn.relu(net.norm(net.conv(x, f"{start}/Branch_0/weights", 4), f"{start}/Branch_0/BatchNorm", 1e-3, False))
    two = tf.nn.avg_pool2d(one, 3, 1, "SAME")
    three = tf.nn.max_pool2d(tf.tanh(one), 3, 2, "VALID")
    two = net.conv(two, f"{start}/Branch_3/weights", 6, 3, 2, "VALID")
    return tf.reduce_mean(tf.concat([two, three], axis=3), [1, 2])


FAMILIES: dict[str, tuple[Callable[[Network, Any], Any], int | None]] = {
    "ResNet v2": (resnet_v2, None),
    "ResNet v1": (resnet_v1, None),
    "MobileNet V2": (mobilenet_v2, 32),
    "MobileNet V3": (mobilenet_v3, None),
    "EfficientNet": (efficientnet, None),
    "BiT": (bit, None),
    "Inception": (inception, None),
}


@pytest.fixture(scope="module")
def published(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    """Saves a family's network as TF-Hub has them; gives its folder, and what TensorFlow loads of it."""
    import tensorflow as tf

    root, kept = tmp_path_factory.mktemp("images"), dict[str, Any]()

    def make(family: str) -> tuple[Path, Any]:
        if family not in kept:
            kept[family] = saved(tf, *FAMILIES[family], root / family.replace(" ", "-"))
        return kept[family]

    return make


def saved(tf: Any, network: Callable[[Network, Any], Any], size: int | None, folder: Path) -> tuple[Path, Any]:
    net = Network(tf, network, size)
    made = tf.train.Checkpoint()
    made.__call__ = net.call
    made.variables = list(net.weights.values())
    made.trainable_variables = [variable for variable in made.variables if variable.trainable]
    made.regularization_losses = []
    tf.saved_model.save(made, str(folder))
    return folder, tf.saved_model.load(str(folder))


def read(folder: Path, place: Path) -> Path:
    """Reads a SavedModel here, and not in a process of its own, which takes seconds to begin."""
    place.mkdir()
    saved_model.convert(folder, place)
    return place


def pixels(height: int = 32, width: int = 32, count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, height, width, 3)).astype(np.float32)


def features(backbone: Any, images: np.ndarray) -> np.ndarray:
    import keras

    scaled = (images - np.array(backbone.images.mean)) / np.array(backbone.images.deviation)
    return keras.ops.convert_to_numpy(backbone.model(scaled.astype(np.float32), training=False))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "ResNet v1"])
def test_a_model_gives_what_its_graph_gives(
    family: str, published: Callable[[str], tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    folder, theirs = published(family)
    backbone = kft.load_backbone(str(read(folder, tmp_path / "read")))
    fixed = FAMILIES[family][1] is not None  # which Keras' layers are not
    assert backbone.images.size == ((32, 32) if fixed else None) and backbone.head is None
    images = pixels() if fixed else pixels(45, 38)
    same("TF-Hub, native", family, features(backbone, images), theirs(images / 255).numpy(), atol=2e-5)


def test_a_published_classifier_gives_its_logits(
    published: Callable[[str], tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    folder, theirs = published("ResNet v1")
    backbone = kft.load_backbone(str(read(folder, tmp_path / "read")))
    images = pixels(33, 47)
    found = kft.published_classifier(backbone)({"images": images}, training=False)
    wanted = theirs(images / 255).numpy()
    size = abs(wanted).max()  # hundreds, of images on a scale to 255
    same("TF-Hub, native", "ResNet v1", keras.ops.convert_to_numpy(found) / size, wanted / size, atol=2e-5)


def test_it_is_found_by_its_handle_and_trained(
    published: Callable[[str], tuple[Path, Any]], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras
    from PIL import Image

    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))
    folder, _ = published("MobileNet V2")
    assert folders.locate(str(folder)).format == "layers"
    assert folders.locate(str(folder), bridge=True).format == "saved_model"
    for label, level in (("dark", 60), ("light", 180)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(16):
            values = np.random.default_rng(number).normal(level, 30, (32, 32, 3)).clip(0, 255).astype("uint8")
            Image.fromarray(values).save(tmp_path / "pictures" / label / f"{number}.png")
    report = kft.run(
        {
            "task": "image_classification",
            "backend": backend,
            "model": {"preset": str(folder)},
            "data": {"source": str(tmp_path / "pictures"), "validation": 0.25},
            "train": {"epochs": 6, "batch_size": 8, "learning_rate": 0.01},
            "output": {"directory": str(tmp_path / "run")},
        }
    )
    assert report.metrics["validation"]["accuracy"] > 0.9
    before = {name: value.numpy() for name, value in _variables(folder).items()}
    trained = {w.path: keras.ops.convert_to_numpy(w) for w in kft.load_run(report.run).model.weights}
    kernel = next(value for path, value in trained.items() if path.endswith("MobilenetV2_Conv/kernel"))
    assert 1e-4 < abs(kernel - before["MobilenetV2/Conv/weights"]).max() < 0.5


def _variables(folder: Path) -> dict[str, Any]:
    import tensorflow as tf

    return {variable.name.partition(":")[0]: variable for variable in tf.saved_model.load(str(folder)).variables}


def test_it_is_saved_as_keras_own_layers(published: Callable[[str], tuple[Path, Any]], tmp_path: Path) -> None:
    import keras

    backbone = kft.load_backbone(str(read(published("EfficientNet")[0], tmp_path / "read")))
    backbone.model.save(tmp_path / "saved.keras")
    assert "kft" not in json.dumps(backbone.model.get_config())
    loaded = keras.saving.load_model(tmp_path / "saved.keras", safe_mode=True)
    images = pixels() / 255
    one, other = (keras.ops.convert_to_numpy(model(images, training=False)) for model in (loaded, backbone.model))
    np.testing.assert_allclose(one, other, atol=1e-6)


def odd_ones(tf: Any) -> dict[str, Callable[[Network, Any], Any]]:
    def normalized_by_neighbours(net: Network, images: Any) -> Any:
        return tf.reduce_mean(tf.nn.local_response_normalization(net.conv(images, "conv/kernel", 4, 3)), [1, 2])

    def in_training_mode(net: Network, images: Any) -> Any:
        x = net.conv(images, "conv/kernel", 4, 3)
        return tf.reduce_mean(tf.compat.v1.nn.fused_batch_norm(x, tf.ones(4), tf.zeros(4))[0], [1, 2])

    def with_a_weight_used_twice(net: Network, images: Any) -> Any:
        x = net.conv(net.conv(images, "conv/kernel", 3, 3), "conv/kernel", 3, 3)
        return tf.reduce_mean(x, [1, 2])

    def blue_first(net: Network, images: Any) -> Any:
        return tf.reduce_mean(net.conv(tf.reverse(images, [-1]), "conv/kernel", 4, 3), [1, 2])

    def unevenly_averaged(net: Network, images: Any) -> Any:
        return tf.reduce_mean(tf.nn.avg_pool2d(net.conv(images, "conv/kernel", 4, 3), 3, 2, "SAME"), [1, 2])

    return {
        own.__name__: own
        for own in (normalized_by_neighbours, in_training_mode, with_a_weight_used_twice, blue_first, unevenly_averaged)
    }


@pytest.mark.parametrize(
    "name",
    ["normalized_by_neighbours", "in_training_mode", "with_a_weight_used_twice", "blue_first", "unevenly_averaged"],
)
def test_what_no_layer_computes_is_left_to_the_bridge(backend: str, name: str, tmp_path: Path) -> None:
    import tensorflow as tf

    folder, _ = saved(tf, odd_ones(tf)[name], None, tmp_path / "odd")
    assert [file.name for file in read(folder, tmp_path / "read").iterdir()] == [saved_model.UNKNOWN]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "broken",
    [
        {"size": None, "channels": 3, "layers": 3, "head": None},
        {"channels": 3, "layers": [], "head": None},
        {
            "size": None,
            "channels": 3,
            "layers": [{"layer": "Add", "options": {}, "name": "one", "inputs": [9], "weights": {}}],
            "head": None,
        },
    ],
)
def test_a_broken_list_of_layers_is_one_line(broken: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": "layers", **broken}), encoding="utf8")
    with pytest.raises(ModelError, match="Keras cannot draw the layers that config.json lists in"):
        kft.load_backbone(str(tmp_path))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    "layer",
    [{"layer": "TFSMLayer", "options": {"filepath": "x"}}, {"layer": "Dense", "options": {"kernel_initializer": {}}}],
)
def test_a_folder_names_no_layer_that_loads_something(layer: dict[str, Any], tmp_path: Path) -> None:
    one = {**layer, "name": "one", "inputs": [0], "weights": {}}
    config = {"format": "layers", "size": None, "channels": 3, "layers": [one], "head": None}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(ModelError, match="Unknown layer in config.json|are to be numbers, words and lists"):
        kft.load_backbone(str(tmp_path))
