"""Which parts of a model are trained, and that the rest stands still and drops nothing out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 64],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
    "image_shape": [8, 8, 3],
}


@pytest.fixture
def bert(backend: str, quick: dict) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        options = {name: quick["model"][name] for name in ("architecture", "tokenizer")}
        config = {**quick["model"]["config"], "num_layers": 3, **changes}
        return kft.load_backbone(pretrained=False, config=config, **options)

    return make


@pytest.fixture
def resnet(backend: str) -> Any:
    return kft.load_backbone(pretrained=False, architecture="ResNetBackbone", config=RESNET)


@pytest.fixture
def data(quick: dict) -> Any:
    return kft.load_data(quick["data"]["source"])


def inputs(rows: int = 4) -> dict[str, np.ndarray]:
    ids = np.arange(rows * 8, dtype=np.int32).reshape(rows, 8) % 30
    return {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}


def trained(layer: Any) -> set[str]:
    return {weight.path.split("/")[0] for weight in layer.trainable_variables}


def test_all_of_bert_that_is_read_is_trained(bert: Callable[..., Any], data: Any) -> None:
    backbone = bert()
    kft.build_model(data, backbone, trainable="all", pooling="pooled")
    assert trained(backbone.model) == {weight.path.split("/")[0] for weight in backbone.model.weights}
    kft.build_model(data, backbone, trainable="all", pooling="mean")
    assert {weight.path.split("/")[0] for weight in backbone.model.weights} - trained(backbone.model) == {
        "pooled_dense"
    }


def test_head_trains_the_head_alone(bert: Callable[..., Any], data: Any) -> None:
    backbone = bert()
    model = kft.build_model(data, backbone, trainable="head")
    assert not backbone.model.trainable_variables
    assert trained(model) == {"logits"}


@pytest.mark.parametrize(("wanted", "blocks"), [("top:1", {2}), ("top:2", {1, 2}), ("top:3", {0, 1, 2})])
def test_top_trains_the_uppermost_blocks_and_what_stands_on_them(
    bert: Callable[..., Any], data: Any, wanted: str, blocks: set[int]
) -> None:
    backbone = bert()
    model = kft.build_model(data, backbone, trainable=wanted)
    assert trained(model) == {f"transformer_layer_{i}" for i in blocks} | {"pooled_dense", "logits"}


def test_more_blocks_than_there_are_is_an_error(bert: Callable[..., Any], data: Any) -> None:
    with pytest.raises(ModelError, match=r"top:4, but .* has 3 blocks. Allowed: top:1 to top:3"):
        kft.build_model(data, bert(), trainable="top:4")


def test_blocks_are_the_repeated_layers_lowest_first(bert: Callable[..., Any]) -> None:
    from kft.tuning import trainable

    assert trainable.blocks(bert().model) == [f"transformer_layer_{i}" for i in range(3)]


def test_what_is_frozen_drops_nothing_out(bert: Callable[..., Any], data: Any) -> None:
    import keras

    backbone = bert(dropout=0.5)
    kft.build_model(data, backbone, trainable="head")

    def states(training: bool) -> np.ndarray:
        found = backbone.model(inputs(), training=training)["sequence_output"]
        return np.asarray(keras.ops.convert_to_numpy(found))

    np.testing.assert_array_equal(states(True), states(False))
    kft.build_model(data, backbone, trainable="all")
    assert np.abs(states(True) - states(False)).max() > 0.1


def test_dropout_rates_come_back(bert: Callable[..., Any], data: Any) -> None:
    import keras

    from kft.tuning import trainable

    backbone = bert(dropout=0.25)
    model = kft.build_model(data, backbone)

    def rates() -> list[float]:
        return [layer.rate for layer in backbone.model._flatten_layers() if isinstance(layer, keras.layers.Dropout)]

    before = rates()
    assert before and set(before) == {0.25}
    trainable.apply(model, backbone, "head")
    assert set(rates()) == {0.0}
    trainable.apply(model, backbone, "top:1")
    assert set(rates()) == {0.0, 0.25}
    trainable.apply(model, backbone, "all")
    assert rates() == before


@pytest.fixture
def pictures(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for label, level in (("dark", 40), ("light", 210)):
        (folder / label).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8, 3), level + i, np.uint8)).save(folder / label / f"{i}.png")
    return kft.load_data(str(folder), task="image_classification", validation=0)


def test_a_frozen_resnet_keeps_weights_and_statistics(resnet: Any, pictures: Any) -> None:
    import keras

    model = kft.build_model(pictures, resnet, trainable="head", dropout=0.0)
    before = [keras.ops.convert_to_numpy(weight).copy() for weight in resnet.model.weights]
    head = [keras.ops.convert_to_numpy(weight).copy() for weight in model.get_layer("logits").weights]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss)
    model.fit(kft.encode(pictures, resnet, batch_size=8)["train"], epochs=1, shuffle=False, verbose=0)
    for weight, old in zip(resnet.model.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), old)
    assert any(
        (keras.ops.convert_to_numpy(weight) != old).any()
        for weight, old in zip(model.get_layer("logits").weights, head, strict=True)
    )


def test_the_blocks_of_a_resnet_are_its_residual_blocks(resnet: Any) -> None:
    from kft.tuning import trainable

    assert [name.rpartition("_block")[0] for name in trainable.blocks(resnet.model)] == ["stack0", "stack1"]


def test_the_top_of_a_resnet(resnet: Any, pictures: Any) -> None:
    kft.build_model(pictures, resnet, trainable="top:1")
    assert {layer.name.partition("_")[0] for layer in resnet.model.layers if layer.trainable_variables} == {"stack1"}
    assert all(layer.trainable for layer in resnet.model.layers if layer.name.startswith("stack1"))
    with pytest.raises(ModelError, match="has 2 blocks"):
        kft.build_model(pictures, resnet, trainable="top:3")
