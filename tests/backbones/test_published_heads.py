"""Heads that were published with a backbone: they say what transformers' own classes say, and go on being trained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kft

pytestmark = [
    pytest.mark.backend,
    # KerasHub's Swin gives its attention a mask that Keras takes for one of padding.
    pytest.mark.filterwarnings(
        "ignore:Layer 'attn' .of type WindowAttention. was passed an input with a mask:UserWarning"
    ),
]

IDS = np.array([[2, 7, 9, 3, 0, 0], [2, 8, 11, 12, 13, 3]], np.int32)
MASK = np.array([[1] * 4 + [0] * 2, [1] * 6], np.int32)
SIZES = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
DECODER = {**SIZES, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": None}
DEBERTA = {
    **SIZES,
    "relative_attention": True,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "position_buckets": 4,
    "pos_att_type": ["p2c", "c2p"],
    "type_vocab_size": 0,
}
MODERNBERT = {**SIZES, **dict.fromkeys(("eos_token_id", "bos_token_id", "cls_token_id", "sep_token_id"), 0)}
TEXT = {**DECODER, "head_dim": 8, "num_hidden_layers": 6, "eos_token_id": 1}
# Models that read images too: their head is on the part for texts.
WHOLE: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": TEXT,
        "vision_config": {**SIZES, "image_size": 16, "patch_size": 2, "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "qwen3_5": {
        "text_config": {
            **TEXT,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 4,
            "linear_value_head_dim": 6,
            "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]},
        },
        "vision_config": {"depth": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 12, "out_hidden_size": 16},
    },
}
ALL = ("SequenceClassification", "TokenClassification", "QuestionAnswering")
# The fields of config.json, and the heads that transformers has of the type.
TYPES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "bert": (SIZES, ALL),
    "roberta": ({**SIZES, "pad_token_id": 1}, ("QuestionAnswering",)),
    "distilbert": ({"vocab_size": 80, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, ALL),
    "electra": (SIZES, ("QuestionAnswering",)),
    "albert": ({**SIZES, "embedding_size": 8}, ("QuestionAnswering",)),
    "deberta-v2": (DEBERTA, ALL),
    "mpnet": ({**SIZES, "pad_token_id": 1}, ("QuestionAnswering",)),
    "modernbert": (MODERNBERT, ALL),
    "fnet": (SIZES, ("QuestionAnswering",)),
    "bloom": ({"vocab_size": 80, "hidden_size": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0}, ALL),
    "gpt2": ({"vocab_size": 80, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "pad_token_id": 0}, ALL),
    "llama": (DECODER, ALL),
    "phi3": (DECODER, ("SequenceClassification", "TokenClassification")),
    "qwen3": ({**DECODER, "head_dim": 8}, ("SequenceClassification", "QuestionAnswering")),
    **{kind: (fields, ("SequenceClassification",)) for kind, fields in WHOLE.items()},
    "t5": ({"vocab_size": 80, "d_model": 16, "d_kv": 8, "num_layers": 2, "num_heads": 2}, ("TokenClassification",)),
}


@functools.cache
def shaken(kind: str, head: str) -> Any:
    """Returns a random model of transformers' with a head."""
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    labels = {} if head == "QuestionAnswering" else {"num_labels": 3}
    config = transformers.AutoConfig.for_model(kind, **TYPES[kind][0], **labels)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def wanted(model: Any, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns transformers' logits, those of answers as (batch, 2, tokens)."""
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(mask))
    if hasattr(found, "start_logits"):
        return np.stack([found.start_logits.numpy(), found.end_logits.numpy()], axis=1)
    return np.asarray(found.logits)


@pytest.mark.parametrize(("kind", "head"), [(kind, head) for kind, (_, heads) in TYPES.items() for head in heads])
def test_a_published_head_has_transformers_logits(
    kind: str, head: str, backend: str, vocabulary: Path, same: Callable[..., None], tmp_path: Path
) -> None:
    import keras

    model = shaken(kind, head)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    padding = model.config.get_text_config().pad_token_id or 0
    mask = np.ones_like(MASK) if kind == "fnet" else MASK  # its attention is none, and it sees padding
    ids = np.where(mask == 1, np.where(padding == IDS, 5, IDS), padding)
    backbone = kft.load_backbone(str(tmp_path), part="text" if kind in WHOLE else "auto")
    classifier = kft.published_classifier(backbone)
    inputs = {"token_ids": ids, "padding_mask": mask, "segment_ids": np.zeros_like(ids)}
    found = classifier({name: inputs[name] for name in classifier.input}, training=False)
    mine, theirs = np.asarray(keras.ops.convert_to_numpy(found)), wanted(model, ids, mask)
    assert mine.shape == theirs.shape
    if head == "QuestionAnswering":
        assert (mine.transpose(0, 2, 1)[mask == 0] < -1e8).all()  # padding answers nothing
        mine, theirs = mine.transpose(0, 2, 1)[mask == 1], theirs.transpose(0, 2, 1)[mask == 1]
    elif head == "TokenClassification":
        mine, theirs = mine[mask == 1], theirs[mask == 1]
    assert theirs.std() > 0.02
    same("Hugging Face", f"{kind}, with its head", mine, theirs)


@pytest.mark.parametrize(("kind", "name"), [("vit", "ViT"), ("deit", "DeiT"), ("swin", "Swin"), ("siglip", "Siglip")])
def test_a_published_classifier_of_images_is_kept(
    kind: str, name: str, backend: str, same: Callable[..., None], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="transformers' models, to compare with, run on torch")
    transformers = pytest.importorskip("transformers")
    import keras

    torch.manual_seed(0)
    vit = {k: v for k, v in SIZES.items() if "size" in k or "num" in k} | {"image_size": 16, "patch_size": 8}
    swin = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2}
    fields = {"swin": swin, "siglip": {"vision_config": {**vit, "vision_use_head": False}, "text_config": vit}}
    config = transformers.AutoConfig.for_model(kind, **fields.get(kind, vit), num_labels=3)
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.float32)
    backbone = kft.load_backbone(str(tmp_path), part="image" if kind == "siglip" else "auto")
    found = kft.published_classifier(backbone)({"images": pixels}, training=False)
    scaled = (pixels - np.asarray(backbone.images.mean)) / np.asarray(backbone.images.deviation)
    with torch.no_grad():
        theirs = model(torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)).logits.numpy()
    same("Hugging Face", f"{kind}, with its head", np.asarray(keras.ops.convert_to_numpy(found)), theirs)
