"""Random weights that NumPy draws: Keras' distributions, and the same numbers on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kft

pytestmark = pytest.mark.backend

SHAPE = (200, 300)
INITIALIZERS = {
    "TruncatedNormal": {"mean": 0.1, "stddev": 0.02},
    "RandomNormal": {"mean": -0.2, "stddev": 0.5},
    "RandomUniform": {"minval": -0.3, "maxval": 0.1},
    "GlorotUniform": {},
    "GlorotNormal": {},
    "HeUniform": {},
    "HeNormal": {},
    "LecunUniform": {},
    "LecunNormal": {},
    "VarianceScaling": {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"},
}


def statistics(values: np.ndarray) -> list[float]:
    return [float(values.mean()), float(values.std()), *np.quantile(values, [0.001, 0.25, 0.75, 0.999])]


@pytest.mark.parametrize("name", INITIALIZERS)
@pytest.mark.parametrize("shape", [SHAPE, (3, 3, 60, 80)], ids=["matrix", "convolution"])
def test_the_distributions_are_those_of_keras(backend: str, name: str, shape: tuple[int, ...]) -> None:
    import keras

    from kft.backbones import initial

    initializer = getattr(keras.initializers, name)(seed=1, **INITIALIZERS[name])
    theirs = np.asarray(keras.ops.convert_to_numpy(initializer(shape)))
    ours = initial.sample(initializer, shape, np.random.default_rng(0))
    assert ours.shape == shape
    np.testing.assert_allclose(statistics(ours), statistics(theirs), atol=0.15 * theirs.std())


def test_orthogonal_is_orthogonal(backend: str) -> None:
    import keras

    from kft.backbones import initial

    for shape in ((6, 4), (4, 6), (2, 3, 4)):
        found = initial.sample(keras.initializers.Orthogonal(gain=2.0), shape, np.random.default_rng(0))
        matrix = found.reshape(-1, shape[-1])
        product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
        np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


def test_the_numbers_are_numpys(backend: str) -> None:
    import keras

    from kft.backbones import initial

    layer = keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0.5, 2.0))
    layer.build((None, 2))
    initial.draw([layer], 7)
    expected = np.random.default_rng([7, 0]).normal(0.5, 2.0, (2, 3))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.kernel), expected.astype(np.float32))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer.bias), np.zeros(3))


def layers_of(name: str) -> Any:
    import keras_hub

    text = {
        "vocabulary_size": 500,
        "num_layers": 2,
        "num_heads": 2,
        "hidden_dim": 32,
        "intermediate_dim": 64,
        "max_sequence_length": 128,
    }
    image = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64, 64],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
        "image_shape": (16, 16, 3),
    }
    return getattr(keras_hub.models, name)(**(image if name == "ResNetBackbone" else text))


@pytest.mark.parametrize("name", ["BertBackbone", "RobertaBackbone", "DistilBertBackbone", "ResNetBackbone"])
def test_each_weight_of_a_backbone_keeps_its_distribution(backend: str, name: str) -> None:
    import keras

    from kft.backbones import initial

    model = layers_of(name)
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]
    initial.draw([model], 0)
    redrawn = 0
    for weight, old in zip(model.weights, before, strict=True):
        new = np.asarray(keras.ops.convert_to_numpy(weight))
        if old.min() == old.max() or not weight.trainable:
            np.testing.assert_array_equal(new, old, err_msg=weight.path)
            continue
        redrawn += 1
        assert (new != old).mean() > 0.99, weight.path
        few = 4 / np.sqrt(new.size)  # what chance does to the deviation of so few numbers
        assert new.std() == pytest.approx(old.std(), rel=0.02 + few), weight.path
    assert redrawn >= 5


def test_a_seed_decides_every_number(backend: str) -> None:
    import keras

    from kft.backbones import initial

    def numbers(seed: int) -> list[np.ndarray]:
        model = layers_of("BertBackbone")
        initial.draw([model], seed)
        return [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]

    one, same, other = numbers(3), numbers(3), numbers(4)
    assert all((left == right).all() for left, right in zip(one, same, strict=True))
    assert any((left != right).any() for left, right in zip(one, other, strict=True))


# Written down once: each backend's environment has to arrive at them.
GOLDEN: dict[str, list[float]] = {
    "token_embedding/embeddings": [0.002514604479074478, -0.002642097184434533, 0.012808453291654587],
    "transformer_layer_0/self_attention_layer/query/kernel": [
        -0.002561447210609913,
        -0.007616613991558552,
        0.006357748992741108,
    ],
    "logits/kernel": [-0.016038628295063972, -0.026487179100513458, -0.00496723223477602],
}


def test_the_numbers_written_down_here_come_out(backend: str, quick: dict) -> None:
    import keras

    options = {name: quick["model"][name] for name in ("architecture", "config", "tokenizer")}
    backbone = kft.load_backbone(pretrained=False, **options)
    model = kft.build_model(kft.load_data(quick["data"]["source"]), backbone, seed=5)
    found = {
        weight.path: keras.ops.convert_to_numpy(weight).ravel()[:3].tolist()
        for weight in model.weights
        if weight.path in GOLDEN
    }
    for path, numbers in GOLDEN.items():
        assert found[path] == pytest.approx(numbers, rel=1e-6), path
