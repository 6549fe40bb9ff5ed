"""Families with a table of kft's own give what transformers gives, with padding in the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

IDS = np.array([[2, 7, 9, 3, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3]], np.int32)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0], [1] * 7], np.int32)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BART = {
    **dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32),
    "d_model": 16,
    "max_position_embeddings": 32,
    "eos_token_id": 3,
}
GPT_OSS = {
    **SIZES,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "sliding_window": 3,
    "swiglu_limit": 0.5,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 50.0,
        "factor": 4.0,
        "beta_fast": 1.0,
        "beta_slow": 0.2,
        "truncate": False,
        "original_max_position_embeddings": 8,
    },
}
# For each case the classes of transformers and the configuration; a field that is no argument is left out.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deberta-v3": (
        "DebertaV2",
        {
            **SIZES,
            "max_position_embeddings": 32,
            "relative_attention": True,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "position_buckets": 4,
            "pos_att_type": ["p2c", "c2p"],
            "type_vocab_size": 0,
            "layer_norm_eps": 1e-7,
            "pooler_hidden_size": 16,
        },
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            **SIZES,
            "max_position_embeddings": 32,
            "relative_attention": True,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "position_buckets": 4,
            "pos_att_type": "p2c|c2p",
            "conv_kernel_size": 3,
            "conv_act": "gelu",
            "attention_head_size": 8,
        },
    ),
    "deberta": (
        "Deberta",
        {
            **SIZES,
            "max_position_embeddings": 32,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": "c2p|p2c",
        },
    ),
    "fnet": (
        "FNet",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            "type_vocab_size": 3,
        },
    ),
    "mobilebert": (
        "MobileBert",
        {
            **SIZES,
            "embedding_size": 8,
            "intra_bottleneck_size": 12,
            "num_feedforward_networks": 3,
            "max_position_embeddings": 32,
            "hidden_act": "relu",
        },
    ),
    **{
        case: ("Bart", {**BART, **more})
        for case, more in (
            ("bart", {}),
            (
                "bart-other",
                {
                    "activation_function": "relu",
                    "scale_embedding": True,
                    "decoder_layers": 1,
                    "decoder_attention_heads": 4,
                    "decoder_ffn_dim": 20,
                    "decoder_start_token_id": 5,
                },
            ),
        )
    },
    "mpnet": ("MPNet", {**SIZES, "max_position_embeddings": 32, "layer_norm_eps": 1e-3}),
    **{
        case: (
            "ModernBert",
            {
                **SIZES,
                "num_hidden_layers": 3,
                "global_attn_every_n_layers": 2,
                "local_attention": 4,
                "norm_eps": 1e-3,
                "rope_parameters": {
                    kind: {"rope_type": "default", "rope_theta": base}
                    for kind, base in (("full_attention", 50.0), ("sliding_attention", 20.0))
                },
                **dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0),
                **dict.fromkeys(biases, True),
            },
        )
        for case, biases in (("modernbert", ()), ("modernbert-biases", ("norm_bias", "mlp_bias", "attention_bias")))
    },
    "roformer": ("RoFormer", {**SIZES, "embedding_size": 8, "max_position_embeddings": 32, "layer_norm_eps": 1e-3}),
    "roformer-values": ("RoFormer", {**SIZES, "max_position_embeddings": 32, "rotary_value": True}),
    "xlnet": (
        "XLNet",
        {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "clamp_len": 3, "layer_norm_eps": 1e-3},
    ),
    # As falcon-rw, falcon-7b, falcon-40b and falcon-11B have them.
    **{
        f"falcon-{name}": ("Falcon", {**SIZES, "num_attention_heads": 4, **fields})
        for name, fields in {
            "rw": {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
            "7b": {"multi_query": True, "num_kv_heads": 4},
            "40b": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "11b": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        }.items()
    },
    **{
        case: (
            "T5",
            {
                "d_model": 16,
                "d_kv": 6,
                "d_ff": 24,
                "num_layers": 2,
                "num_heads": 2,
                "feed_forward_proj": kind,
                "layer_norm_epsilon": 1e-3,
            },
        )
        for case, kind in (("t5", "relu"), ("t5-v1.1", "gated-gelu"))
    },
    "gemma3n": (
        "Gemma3nText",
        {
            **SIZES,
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 5,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "layer_types": ["sliding_attention", "sliding_attention"],
            "num_kv_shared_layers": 1,
            "sliding_window": 3,
            "altup_num_inputs": 2,
            "laurel_rank": 3,
            "rms_norm_eps": 1e-3,
        },
    ),
    "opt": ("OPT", {**SIZES, "ffn_dim": 24, "max_position_embeddings": 32}),
    # Three heads, since slopes for a number that is no power of two are made otherwise.
    "bloom": ("Bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 3, "layer_norm_epsilon": 1e-3}),
    **{
        case: (
            "GPTNeoX",
            {
                **SIZES,
                "hidden_act": activation,
                **more,
                "layer_norm_eps": 1e-3,
                "max_position_embeddings": 32,
                "rope_parameters": {"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
            },
        )
        for case, activation, more in (
            ("gpt_neox", "gelu_fast", {}),
            ("gpt_neox-gelu", "gelu", {}),
            ("gpt_neox-no-bias", "gelu", {"use_parallel_residual": False, "attention_bias": False}),
        )
    },
    "gpt_oss": ("GptOss", GPT_OSS),
    **{
        case: (
            "Phi3",
            {
                **SIZES,
                "num_key_value_heads": 1,
                "rms_norm_eps": 1e-3,
                "max_position_embeddings": 32,
                "sliding_window": window,
                "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
                "pad_token_id": 0,
            },
        )
        for case, window in (("phi3", 32), ("phi3-window", 3))
    },
    **{
        f"phi3-part-longrope-{trained}": (
            "Phi3",
            {
                **SIZES,
                "max_position_embeddings": 32,
                "original_max_position_embeddings": trained,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 50.0,
                    "partial_rotary_factor": 0.5,
                    "attention_factor": 1.5,
                    "short_factor": [1.0, 1.5],
                    "long_factor": [1.5, 4.0],
                },
                "pad_token_id": 0,
            },
        )
        for trained in (4, 16)
    },
    **{
        f"phi3-longrope-{trained}": (
            "Phi3",
            {
                **SIZES,
                "max_position_embeddings": 32,
                "original_max_position_embeddings": trained,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 50.0,
                    "short_factor": [1.0, 1.1, 1.2, 1.5],
                    "long_factor": [1.5, 2.0, 3.0, 4.0],
                },
                "pad_token_id": 0,
            },
        )
        for trained in (4, 16)
    },
}
# What is only looked at with fewer blocks: qwen3 as it is drawn here, for another epsilon.
QWEN3 = {**SIZES, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "rms_norm_eps": 1e-3}
WHOLE = {**CASES, "qwen3": ("Qwen3", QWEN3)}
# For each case what a configuration says of a model of one block.
FIRST: dict[str, dict[str, Any]] = {
    **{
        case: {"num_hidden_layers": 1}
        for case in ("falcon-40b", "deberta-v3", "deberta-v2", "gpt_neox", "modernbert", "qwen3")
    },
    **{case: {"n_layer": 1} for case in ("bloom", "xlnet")},
    "t5": {"num_layers": 1},
    "bart": {"encoder_layers": 1, "decoder_layers": 1},
    "gemma3n": {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "num_kv_shared_layers": 0},
}


# A model that has a decoder too is read without it.
CLASSES = {"t5": "EncoderModel", "t5-v1.1": "EncoderModel"}


def words(vocabulary: Path) -> int:
    return len((vocabulary / "vocab.txt").read_text(encoding="utf8").split())


@pytest.fixture
def folder(backend: str, vocabulary: Path, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Makes the folder of a tiny random model, and transformers' model of it, with the head that is asked for."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")

    def make(case: str, head: str = "", **changes: Any) -> tuple[Path, Any]:
        torch.manual_seed(0)
        name, fields = WHOLE[case]
        config = getattr(transformers, f"{name}Config")(**{"vocab_size": words(vocabulary), **fields, **changes})
        model = getattr(transformers, name + (head or CLASSES.get(case, "Model")))(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:  # sines and cosines stay what they are
                    weight.add_(torch.randn_like(weight) * 0.1)
        model.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf8")
        return tmp_path, model

    return make


def states(place: Path, **options: Any) -> np.ndarray:
    import keras

    backbone = kft.load_backbone(str(place), **options)
    inputs = {"token_ids": IDS, "padding_mask": MASK, "segment_ids": np.zeros_like(IDS)}
    found = backbone.model({name: inputs[name] for name in backbone.inputs}, training=False)
    found = found["sequence_output"] if isinstance(found, dict) else found
    return keras.ops.convert_to_numpy(found)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_transformers(
    folder: Callable[..., tuple[Path, Any]], same: Callable[..., None], case: str
) -> None:
    import torch

    place, model = folder(case)
    real = MASK.astype(bool)
    with torch.no_grad():
        if case == "mobilebert":  # whose transformers' model lets the last token hear of padding: row by row
            rows = [model(input_ids=torch.tensor(row[None, mask])) for row, mask in zip(IDS, real, strict=True)]
            wanted = np.concatenate([row.last_hidden_state[0].numpy() for row in rows])
        else:
            found = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK))
            wanted = found.last_hidden_state.numpy()[real]
    assert np.abs(wanted).max() > 0.1
    same("Hugging Face", case, states(place)[real], wanted)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_over_or_missing(folder: Callable[..., tuple[Path, Any]], case: str) -> None:
    place, _ = folder(case)
    file = place / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.endswith("weight"))
    save_file({other: array for other, array in weights.items() if other != name}, file)
    with pytest.raises(ModelError, match="has no weights for"):
        kft.load_backbone(str(place))
    save_file({**weights, "encoder.surplus.weight": weights[name]}, file)
    with pytest.raises(ModelError, match="find no place in a .*: encoder.surplus.weight"):
        kft.load_backbone(str(place))


@pytest.mark.parametrize("case", FIRST)
def test_a_recipe_may_ask_for_the_first_blocks_only(
    folder: Callable[..., tuple[Path, Any]], same: Callable[..., None], case: str
) -> None:
    import torch

    place, model = folder(case)
    config = {"vocab_size": model.config.vocab_size, **WHOLE[case][1], **FIRST[case]}
    first = type(model)(type(model.config)(**config)).eval()
    own, whole = first.state_dict(), model.state_dict()
    # Gemma's embeddings for all blocks lie in one tensor, those of the first one first.
    first.load_state_dict({name: whole[name][tuple(slice(size) for size in own[name].shape)] for name in own})
    with torch.no_grad():
        wanted = first(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()
    found, real = states(place, config={"num_layers": 1}), MASK.astype(bool)
    same("Hugging Face", f"{case}, first block", found[real], wanted[real])
    with pytest.raises(ModelError, match="has no weights for|is for . blocks. Give . or less"):
        kft.load_backbone(str(place), config={"num_layers": 4})


def test_roformers_published_head_is_kept(folder: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    import keras
    import torch

    place, model = folder("roformer", "ForSequenceClassification", hidden_act="relu")
    found = kft.published_classifier(kft.load_backbone(str(place)))
    found.save(tmp_path / "classifier.keras")
    again = keras.saving.load_model(tmp_path / "classifier.keras", compile=False)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.numpy()
    inputs = {"token_ids": IDS, "padding_mask": MASK, "segment_ids": np.zeros_like(IDS)}
    np.testing.assert_allclose(keras.ops.convert_to_numpy(again(inputs, training=False)), wanted, atol=1e-4)


def test_debertas_published_head_is_kept(
    folder: Callable[..., tuple[Path, Any]], tiny: dict, variant: Callable[..., dict], backend: str, tmp_path: Path
) -> None:
    import torch

    place, model = folder(
        "deberta-v3", "ForSequenceClassification", id2label={0: "negative", 1: "positive"}, pooler_hidden_act="gelu"
    )
    prepared = kft.load_backbone(str(place))
    assert prepared.head is not None and prepared.head.labels == ("negative", "positive")
    report = kft.run(
        variant(
            tiny,
            {
                "backend": backend,
                "model": {"preset": str(place), "sequence_length": 24},
                "train.epochs": 1,
                "train.learning_rate": 1e-12,
                "train.weight_decay": 0.0,
                "output.directory": str(tmp_path / "run"),
            },
        )
    )
    run = kft.load_run(report.run)
    found = run.predict(["good film", "a bad book ."])
    rows = [run.encoding.tokenizer.engine.encode([text])[0] for text in ("good film", "a bad book .")]
    for one, ids in zip(found, rows, strict=True):
        whole = [*run.encoding.tokenizer.template.prefix, *ids, *run.encoding.tokenizer.template.suffix]
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([whole])).logits.softmax(-1)[0].numpy()
        mine = [one["probabilities"][label] for label in ("negative", "positive")]
        np.testing.assert_allclose(mine, wanted, atol=1e-4)
