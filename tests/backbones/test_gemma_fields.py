"""What files of Gemma 3 and PaliGemma say: fields that they leave out, and those that KerasHub computes otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import kft
from kft.errors import ModelError

pytestmark = pytest.mark.backend

TEXT = {
    "vocab_size": 80,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "intermediate_size": 24,
}
GEMMA3 = {**TEXT, "num_hidden_layers": 6, "query_pre_attn_scalar": 4, "sliding_window": 5}
GEMMA2 = {**TEXT, "model_type": "gemma2"}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 2,
}


def load(place: Path, vocabulary: Path, config: dict[str, Any]) -> Any:
    (place / "config.json").write_text(json.dumps(config), encoding="utf8")
    (place / "vocab.txt").write_bytes((vocabulary / "vocab.txt").read_bytes())
    return kft.load_backbone(str(place), pretrained=False)


def test_paligemma_has_the_defaults_of_transformers(backend: str) -> None:
    """What paligemma2-3b-pt-224 and paligemma-3b-pt-224 leave out, images' size among it."""
    from kft.backbones.families.paligemma import FAMILY

    transformers = pytest.importorskip("transformers")
    tower = {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 14}
    for kind in ("gemma", "gemma2"):
        few = {"text_config": {"model_type": kind, "vocab_size": 80, "hidden_size": 16}, "vision_config": tower}
        few["text_config"] |= {"num_hidden_layers": 2, "intermediate_size": 24}
        whole = transformers.PaliGemmaConfig(**few).to_dict()
        few["text_config"] |= {"num_key_value_heads": whole["text_config"]["num_key_value_heads"]}
        few["text_config"] |= {"num_attention_heads": whole["text_config"]["num_attention_heads"]}
        assert FAMILY.arguments({"model_type": "paligemma", **few}) == FAMILY.arguments(whole)


@pytest.mark.parametrize(
    ("kind", "part", "changes", "said"),
    [
        ("gemma3", "", {"mm_tokens_per_image": 16}, "mm_tokens_per_image in config.json is 16; for gemma3 KerasHub"),
        ("gemma3", "text_config", {"sliding_window": 3}, "sliding_window in config.json is 3; .* '4 or more'"),
        ("gemma3", "text_config", {"rms_norm_eps": 1e-3}, "rms_norm_eps in config.json is 0.001; for gemma3_text"),
        ("gemma3", "text_config", {"use_bidirectional_attention": True}, "use_bidirectional_attention in config.json"),
        ("gemma3", "vision_config", {"layer_norm_eps": 1e-3}, "layer_norm_eps in config.json is 0.001"),
        ("gemma3", "vision_config", {"model_type": "clip_vision_model"}, "model_type in config.json is 'clip_vision_"),
        ("gemma3", "", {"vision_config": None}, "has no vision_config, which a gemma3 has"),
        ("paligemma", "text_config", {"model_type": "gemma3_text"}, "model_type in config.json is 'gemma3_text'"),
        ("paligemma", "text_config", {"sliding_window": 64}, "sliding_window in config.json is 64; .* '4096 or more'"),
        ("paligemma", "text_config", {"rope_theta": 50.0}, "rope_theta in config.json is 50.0"),
        ("paligemma", "vision_config", {"hidden_act": "relu"}, "hidden_act in config.json is 'relu'"),
        ("paligemma", "", {"text_config": None}, "has no text_config, which a paligemma has"),
    ],
)
def test_what_kerashub_computes_otherwise_is_refused(
    kind: str, part: str, changes: dict[str, Any], said: str, backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    config = {"model_type": kind, "text_config": GEMMA3 if kind == "gemma3" else GEMMA2, "vision_config": VISION}
    config |= {"mm_tokens_per_image": 4} | ({part: {**config[part], **changes}} if part else changes)
    with pytest.raises(ModelError, match=said):
        load(tmp_path, vocabulary, config)


def test_a_gemma3_that_sees_both_ways_is_pooled_as_its_makers_do(
    backend: str, vocabulary: Path, tmp_path: Path
) -> None:
    config = {**GEMMA3, "model_type": "gemma3_text", "use_bidirectional_attention": True}
    assert load(tmp_path, vocabulary, config).pooling == "mean"


def test_a_siglip_is_read_for_images_only(backend: str, vocabulary: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a siglip, which kft does not read as a whole.*model.part=image"):
        load(tmp_path, vocabulary, {"model_type": "siglip"})
