"""gpt-oss with its experts packed in four bits, and graphs that are drawn for decoders: saved, strict, evenly read or not."""

from __future__ import annotations

import copy
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.backbones import mxfp4
from kft.backbones.tensors import Tensors
from kft.errors import ModelError

IDS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7], np.int32)
WIDTH, INNER, EXPERTS = 64, 32, 6
SIZES = {
    "vocab_size": 80,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "sliding_window": 3,
    "pad_token_id": 0,
}


def packed(seed: int, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random blocks and scales of an array of experts' kernels."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (EXPERTS, outputs, inputs // 32, 16), dtype=np.uint8)
    return blocks, rng.integers(117, 122, blocks.shape[:-1], dtype=np.uint8)


def theirs(blocks: np.ndarray, scales: np.ndarray) -> Any:
    torch = pytest.importorskip("torch", reason="transformers' decoding, to compare with, runs on torch")
    pytest.importorskip("transformers")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    return convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales), dtype=torch.float32)


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[[], tuple[Path, Any]]:
    """Makes a folder as gpt-oss is published, and transformers' model of it with the same weights unpacked."""

    def make() -> tuple[Path, Any]:
        torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.GptOssConfig(**SIZES)
        config._attn_implementation = "eager"
        model = transformers.GptOssForCausalLM(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
                weight.copy_(weight.to(torch.bfloat16))
        place = tmp_path / "published"
        # A copy: its rotary frequencies are halved too, which are no weights and would stay so.
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(place)
        shapes = {"gate_up_proj": (2 * INNER, WIDTH), "down_proj": (WIDTH, INNER)}
        tensors = dict(model.state_dict())
        for number, block in enumerate(model.model.layers):
            for seed, (name, shape) in enumerate(shapes.items()):
                blocks, scales = packed(10 * number + seed, *shape)
                with torch.no_grad():
                    getattr(block.mlp.experts, name).copy_(theirs(blocks, scales))
                whole = f"model.layers.{number}.mlp.experts.{name}"
                tensors.pop(whole)
                tensors |= {f"{whole}_blocks": torch.tensor(blocks), f"{whole}_scales": torch.tensor(scales)}
        from safetensors.torch import save_file as save_tensors

        halved = {
            name: (array if array.dtype == torch.uint8 else array.to(torch.bfloat16)).contiguous()
            for name, array in tensors.items()
        }
        save_tensors(halved, place / "model.safetensors")
        # As OpenAI's own file says it, in the fields of its time.
        values = json.loads((place / "config.json").read_text(encoding="utf8"))
        rope = values.pop("rope_parameters")
        values |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        values["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens"]}
        (place / "config.json").write_text(json.dumps(values), encoding="utf8")
        (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        return place, model.model

    return make


def states(model: Any, ids: np.ndarray = IDS, mask: np.ndarray = MASK) -> np.ndarray:
    import keras

    found = model({"token_ids": ids, "padding_mask": mask}, training=False)["sequence_output"]
    return np.asarray(keras.ops.convert_to_numpy(found))


def test_four_bits_are_decoded_as_transformers_does() -> None:
    blocks, scales = packed(0, 3, 64)
    scales[0, 0] = 0, 250
    found = np.empty((EXPERTS, 64, 3), np.float32)
    for one in zip(blocks, scales, found, strict=True):
        mxfp4.decode(*one)
    np.testing.assert_array_equal(found, theirs(blocks, scales).numpy())


def test_the_values_are_those_of_the_specification() -> None:
    blocks = np.array([[[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]], np.uint8)
    wanted, found = [0, 0.5, 1, 1.5, 2, 3, 4, 6], np.empty((16, 1), np.float32)
    for scale, factor in ((127, 1.0), (128, 2.0), (0, 2.0**-127)):
        mxfp4.decode(blocks, np.array([[scale]], np.uint8), found)
        np.testing.assert_array_equal(found[:, 0], np.array([*wanted, *(-number for number in wanted)]) * factor)


def test_one_expert_is_decoded_at_a_time() -> None:
    blocks = np.zeros((32, 128, 4, 16), np.uint8)
    readers = {"w_blocks": lambda: blocks, "w_scales": lambda: blocks[..., 0]}
    tensors = mxfp4.decoded(Tensors(readers, Path("here")))
    tracemalloc.start()
    try:
        found = tensors["w"]
        assert found.shape == (32, 128, 128)
        assert tracemalloc.get_traced_memory()[1] < 1.3 * found.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("blocks", "scales", "said"),
    [
        (np.zeros((2, 3, 1, 16), np.uint8), np.full((2, 3, 1), 255, np.uint8), "has the scale 255"),
        (np.zeros((2, 3, 1, 16), np.uint8), np.zeros((2, 3), np.uint8), "of shape .2, 3.; MXFP4 has uint8"),
        (np.zeros((2, 3, 1, 16), np.int8), np.zeros((2, 3, 1), np.uint8), "w_blocks is int8"),
    ],
)
def test_what_is_no_mxfp4_is_refused(blocks: np.ndarray, scales: np.ndarray, said: str) -> None:
    tensors = mxfp4.decoded(Tensors({"w_blocks": lambda: blocks, "w_scales": lambda: scales}, Path("here")))
    with pytest.raises(ModelError, match=said):
        tensors["w"]


@pytest.mark.backend
def test_packed_experts_give_what_transformers_gives_unpacked(
    published: Callable[[], tuple[Path, Any]], same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")

    place, theirs = published()
    with torch.no_grad():
        wanted = theirs(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()
    backbone = kft.load_backbone(str(place))
    found = states(backbone.model)
    same("Hugging Face", "gpt_oss", found[MASK == 1], wanted[MASK == 1])
    assert backbone.pooling == "last"
    backbone.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(states(again), found, atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        assert not any(name in file.read("config.json") for name in (b"kft", b"keras_hub"))


@pytest.mark.backend
def test_a_packed_tensor_that_is_not_there_is_named(published: Callable[[], tuple[Path, Any]]) -> None:
    place, _ = published()
    from safetensors import safe_open

    file = place / "model.safetensors"
    with safe_open(file, framework="pt") as whole:
        tensors = {name: whole.get_tensor(name) for name in whole.keys()}  # noqa: SIM118
    tensors.pop("model.layers.1.mlp.experts.down_proj_scales")
    from safetensors.torch import save_file as save_tensors

    save_tensors(tensors, file)
    with pytest.raises(ModelError, match="has no weights for layers.1.mlp.experts.down_proj"):
        kft.load_backbone(str(place))


@pytest.mark.backend
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_tokens_that_all_go_to_the_same_experts_are_all_read(backend: str, tokens: int) -> None:
    import keras

    from kft.backbones.families.experts import routed

    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, routed(inputs, "block_0", 5, 2, 6, lambda x: x[..., :3] * x[..., 3:]))
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=tuple(variable.shape)))
    router = model.get_layer("block_0_router")
    x = rng.normal(size=(2, tokens, 4)).astype(np.float32)
    tables = {
        f"{part}_{kind}": keras.ops.convert_to_numpy(model.get_layer(f"block_0_experts_{part}_{kind}").embeddings)
        for part in ("inner", "outer")
        for kind in ("kernel", "bias")
    }
    for bias in (np.zeros(5), np.array([0, 50, 0, 0, 49])):
        router.bias.assign(bias)
        scores = x @ keras.ops.convert_to_numpy(router.kernel) + bias
        chosen = np.argsort(-scores, axis=-1)[..., :2]
        weights = np.exp(np.take_along_axis(scores, chosen, -1))
        weights /= weights.sum(-1, keepdims=True)
        wanted = np.zeros_like(x)
        for place in np.ndindex(chosen.shape):
            expert, token = chosen[place], x[place[:2]]
            inner = token @ tables["inner_kernel"][expert].reshape(4, 6) + tables["inner_bias"][expert]
            outer = (inner[:3] * inner[3:]) @ tables["outer_kernel"][expert].reshape(3, 4) + tables["outer_bias"][
                expert
            ]
            wanted[place[:2]] += weights[place] * outer
        found = keras.ops.convert_to_numpy(model(x))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


DRAWN = {
    "llama": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}},
    "phi3": {"sliding_window": 3, "rope_theta": 50.0},
    "gpt_neox": {"hidden_act": "gelu", "rotary_pct": 0.5},
}


@pytest.mark.backend
@pytest.mark.parametrize("kind", DRAWN)
def test_what_kerashub_leaves_out_is_saved(kind: str, backend: str, vocabulary: Path, tmp_path: Path) -> None:
    import keras

    config = {**SIZES, "head_dim": None, "model_type": kind, "max_position_embeddings": 32, **DRAWN[kind]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf8")
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    model = kft.load_backbone(str(tmp_path), pretrained=False).model
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    inputs = {"token_ids": IDS, "padding_mask": MASK}
    mine, other = (keras.tree.flatten(one(inputs, training=False))[0] for one in (model, again))
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (other, mine)), atol=1e-6)
