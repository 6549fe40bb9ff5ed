"""Models that read one text and write another: T5Gemma, T5Gemma 2 and T5, the whole of them and what tasks read of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import kft
from kft.errors import ModelError

pytestmark = [
    pytest.mark.backend,
    # KerasHub's T5 gives its attention a mask that Keras takes for one of padding.
    pytest.mark.filterwarnings(
        "ignore:Layer '(self|cross)_attention' .of type T5MultiHeadAttention. was passed an input with a mask:UserWarning"
    ),
]

IDS = np.array([[2, 7, 9, 3, 0, 0, 0, 0], [2, 8, 11, 12, 13, 21, 3, 5]], np.int32)
MASK = np.array([[1] * 4 + [0] * 4, [1] * 8], np.int32)
WRITTEN = np.array([[2, 9, 3, 0, 0, 0, 0], [2, 18, 11, 12, 21, 3, 5]], np.int32)
WRITTEN_MASK = np.array([[1] * 3 + [0] * 4, [1] * 7], np.int32)
NEAR, FULL = "sliding_attention", "full_attention"
BLOCKS = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 24,
    "query_pre_attn_scalar": 9,
    "sliding_window": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-3,
}
# What the encoder has and, below, the decoder has not, each seen to be computed.
OTHER = {
    "hidden_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 20,
    "query_pre_attn_scalar": 4,
    "sliding_window": 3,
    "rms_norm_eps": 1e-2,
    "attention_bias": True,
    "attn_logit_softcapping": 0.5,
    "hidden_activation": "silu",
    "layer_types": [FULL, NEAR],
    "rope_parameters": {"rope_type": "linear", "rope_theta": 50.0, "factor": 2.0},
}
UNLIKE = {
    "num_hidden_layers": 3,
    "attn_logit_softcapping": None,
    "hidden_activation": "gelu",
    "layer_types": [NEAR, FULL, NEAR],
    "rope_parameters": {"rope_type": "default", "rope_theta": 20.0},
}
SECOND = {
    **BLOCKS,
    "layer_types": [NEAR, FULL],
    "sliding_window": 3,
    "rope_parameters": {
        NEAR: {"rope_type": "default", "rope_theta": 50.0},
        FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
    },
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}
END, IMAGE = 70, 72
T5 = {
    "vocab_size": 80,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "layer_norm_epsilon": 1e-3,
}


def t5gemma(encoder: dict[str, Any], decoder: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"encoder": {**BLOCKS, **encoder}, "decoder": {**BLOCKS, **decoder}, "vocab_size": 80, **more}


def t5gemma2() -> dict[str, Any]:
    encoder = {
        "text_config": SECOND,
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "eoi_token_index": END,
        "boi_token_index": 71,
    }
    decoder = {**SECOND, "layer_types": [FULL, NEAR], "rope_parameters": None}
    return {"encoder": encoder, "decoder": decoder, "image_token_index": IMAGE}


WHOLE = {
    "t5gemma": ("T5Gemma", t5gemma({}, {})),
    "t5gemma, otherwise": ("T5Gemma", t5gemma(OTHER, UNLIKE)),
    "t5gemma2": ("T5Gemma2", t5gemma2()),
    "t5": ("T5", {**T5, "feed_forward_proj": "relu"}),
    "mt5": ("MT5", {**T5, "feed_forward_proj": "gated-gelu"}),
}
Made = Callable[..., tuple[Path, Any]]


@pytest.fixture
def published(backend: str, vocabulary: Path, tmp_path: Path) -> Made:
    """Makes the folder of a tiny random model, and transformers' model of it."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")

    def make(name: str, fields: dict[str, Any], head: str = "Model") -> tuple[Path, Any]:
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**fields)
        config._attn_implementation = "eager"
        model = getattr(transformers, name + head)(config).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
        model.save_pretrained(tmp_path)
        (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf8")
        return tmp_path, model

    return make


def ours(model: Any, inputs: dict[str, np.ndarray], names: Any) -> dict[str, np.ndarray]:
    import keras

    given = {name: inputs[name] for name in names}
    # As one function: JAX compiles whatever is called by itself.
    found = model.predict_on_batch(given) if keras.backend.backend() == "jax" else model(given, training=False)
    return {name: keras.ops.convert_to_numpy(states) for name, states in found.items()}


def theirs(model: Any, inputs: dict[str, np.ndarray]) -> Any:
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor(inputs["encoder_token_ids"]).long(),
            attention_mask=torch.tensor(inputs["encoder_padding_mask"]),
            decoder_input_ids=torch.tensor(inputs["decoder_token_ids"]).long(),
            decoder_attention_mask=torch.tensor(inputs["decoder_padding_mask"]),
            **({"pixel_values": torch.tensor(inputs["pixels"])} if "pixels" in inputs else {}),
        )


def inputs_for(name: str) -> dict[str, np.ndarray]:
    ids, mask, written, written_mask = IDS, MASK, WRITTEN, WRITTEN_MASK
    more = {}
    if name == "T5Gemma2":
        ids = np.array(
            [[2, IMAGE, IMAGE, IMAGE, IMAGE, END, 7, 0], [2, 8, IMAGE, IMAGE, IMAGE, IMAGE, END, 9]], np.int32
        )
        mask, written = np.array([[1] * 7 + [0], [1] * 8], np.int32), np.where(WRITTEN == 11, END, WRITTEN)
        images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
        more = {
            "images": images[:, None],
            "pixels": np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            "vision_indices": np.stack([np.flatnonzero(row == IMAGE) for row in ids]).astype(np.int32),
        }
    if name == "T5":  # distances fall into buckets, which are wide for far ones
        rng = np.random.default_rng(0)
        ids, written = (rng.integers(3, 80, (2, tokens)).astype(np.int32) for tokens in (150, 140))
        mask, written_mask = (np.ones_like(array) for array in (ids, written))
        mask[0, 70:] = written_mask[0, 66:] = 0
    return {
        **more,
        "encoder_token_ids": ids,
        "encoder_padding_mask": mask,
        "decoder_token_ids": written,
        "decoder_padding_mask": written_mask,
    }


@pytest.mark.parametrize("case", WHOLE)
def test_the_whole_gives_the_states_of_both_and_is_saved(
    published: Made, same: Callable[..., None], case: str, tmp_path: Path
) -> None:
    import keras

    name, fields = WHOLE[case]
    place, model = published(name, fields)
    backbone = kft.load_backbone(str(place), part="whole")
    assert backbone.modality == ("image_text" if name == "T5Gemma2" else "text_to_text")
    backbone.model.save(tmp_path / "model.keras")
    inputs = inputs_for(name)
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    found, wanted = ours(again, inputs, backbone.inputs), theirs(model, inputs)
    for part, states in (("encoder", wanted.encoder_last_hidden_state), ("decoder", wanted.last_hidden_state)):
        real, states = inputs[f"{part}_padding_mask"] == 1, states.numpy()
        assert states[real].std() > 0.1
        same("Hugging Face", case.partition(",")[0], found[f"{part}_sequence_output"][real], states[real])


@pytest.mark.parametrize("case", ["t5gemma, otherwise", "t5gemma2"])
def test_the_part_for_texts_is_the_encoder(
    published: Made, same: Callable[..., None], case: str, tmp_path: Path
) -> None:
    import keras

    name, fields = WHOLE[case]
    place, model = published(name, fields, "ForConditionalGeneration")
    backbone = kft.load_backbone(str(place), part="text")
    assert (backbone.modality, backbone.pooling, backbone.inputs) == ("text", "mean", ("token_ids", "padding_mask"))
    assert not any("decoder" in weight.path for weight in backbone.model.weights)
    backbone.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    ids = np.where(IDS == 12, END, IDS)
    found = ours(again, {"token_ids": ids, "padding_mask": MASK}, backbone.inputs)["sequence_output"]
    inputs = {**inputs_for("T5Gemma"), "encoder_token_ids": ids}
    wanted = theirs(model.model, inputs).encoder_last_hidden_state.numpy()
    same("Hugging Face", f"{case.partition(',')[0]}, text", found[MASK == 1], wanted[MASK == 1])


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification"])
def test_a_head_that_reads_the_encoder_is_kept(published: Made, head: str) -> None:
    import torch

    fields = t5gemma({}, {}, is_encoder_decoder=False, id2label={0: "bad", 1: "good", 2: "fine"})
    place, model = published("T5Gemma", fields, f"For{head}")
    backbone = kft.load_backbone(str(place))  # the encoder is the whole of it
    assert backbone.modality == "text" and backbone.head.labels == ("bad", "good", "fine")
    inputs = {"token_ids": IDS, "padding_mask": MASK}
    found = kft.published_classifier(backbone).predict_on_batch(inputs)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(IDS).long(), attention_mask=torch.tensor(MASK)).logits.numpy()
    real = MASK == 1 if head == "TokenClassification" else slice(None)
    assert wanted[real].std() > 0.1
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-4)


def test_a_head_that_reads_the_decoder_is_left_out(published: Made) -> None:
    place, _ = published("T5Gemma", t5gemma({}, {}), "ForSequenceClassification")
    backbone = kft.load_backbone(str(place), part="text")
    assert backbone.head is None and backbone.pooling == "mean"


def test_a_task_takes_the_encoder(published: Made, reviews: Path, backend: str, tmp_path: Path) -> None:
    place, _ = published("T5Gemma", t5gemma({}, {}))
    recipe = {
        "task": "text_classification",
        "backend": backend,
        "model": {"preset": str(place), "sequence_length": 8},
        "data": {"source": str(reviews), "limit": 16},
        "train": {"epochs": 1, "batch_size": 8},
        "output": {"directory": str(tmp_path / "run")},
    }
    assert np.isfinite(kft.run(recipe).metrics["validation"]["loss"])
    recipe |= {
        "model": {"preset": str(place), "sequence_length": 8, "part": "whole"},
        "output": {"directory": str(tmp_path / "other")},
    }
    with pytest.raises(ModelError, match="needs a backbone for text; this one is for text_to_text"):
        kft.run(recipe)


def test_a_t5_is_read_without_its_decoder_where_the_whole_is_not_asked_for(published: Made) -> None:
    place, _ = published("T5", WHOLE["t5"][1])
    for part in ("auto", "text"):
        assert kft.load_backbone(str(place), part=part).inputs == ("token_ids", "padding_mask")
    with pytest.raises(ModelError, match="reads text, it has no part for image"):
        kft.load_backbone(str(place), part="image")


@pytest.mark.parametrize("case", ["t5gemma", "t5gemma2"])
def test_nothing_is_left_over_or_missing(published: Made, case: str) -> None:
    place, _ = published(*WHOLE[case])
    file = place / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.startswith("decoder."))
    save_file({other: array for other, array in weights.items() if other != name}, file)
    with pytest.raises(ModelError, match=f"has no weights for .*{name}"):
        kft.load_backbone(str(place), part="whole")
    save_file({**weights, "decoder.surplus.weight": weights[name]}, file)
    with pytest.raises(ModelError, match="find no place in a .*: decoder.surplus.weight"):
        kft.load_backbone(str(place), part="whole")


@pytest.mark.parametrize(
    ("case", "where", "changes", "said"),
    [
        ("t5gemma", ["encoder"], {"hidden_activation": "gelo"}, "Unknown hidden_activation in config.json 'gelo'"),
        ("t5gemma", ["decoder"], {"rope_parameters": {"rope_type": "yarn"}}, "rope_type in config.json is 'yarn'"),
        ("t5gemma2", ["encoder", "text_config"], {"sliding_window": 5}, "sliding_window of the encoder .* is 5"),
        ("t5gemma2", ["decoder"], {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping in config.json is 50.0"),
        (
            "t5gemma2",
            ["decoder"],
            {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 1e4}}},
            "rope_theta of full_attention in config.json is 10000.0",
        ),
        ("t5gemma2", ["encoder", "vision_config"], {"layer_norm_eps": 1e-3}, "layer_norm_eps of vision_config"),
        ("t5", [], {"num_decoder_layers": 3}, "num_decoder_layers in config.json is 3"),
    ],
)
def test_what_is_computed_otherwise_is_refused(
    case: str, where: list[str], changes: dict[str, Any], said: str, published: Made
) -> None:
    place, _ = published(*WHOLE[case])
    config = json.loads((place / "config.json").read_text(encoding="utf8"))
    section = config
    for name in where:
        section = section[name]
    section |= changes
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")
    with pytest.raises(ModelError, match=said):
        kft.load_backbone(str(place), part="whole")
