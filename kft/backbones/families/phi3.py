"""Phi-3 (Abdin et al. 2024, https://arxiv.org/abs/2404.14219). Import after `backend.activate`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from kft.backbones import rotary
from kft.backbones.families.decoder import blocks, decoder, norm_place
from kft.backbones.families.family import Family, activation_of, computes, dense, refuse
from kft.backbones.families.turning import turning
from kft.backbones.hugging_face import NEWER_DECODER
from kft.backbones.places import Place
from kft.backbones.rotary import Rotary
from kft.errors import ModelError

# What LongRoPE has been called in Phi-3's own files.
LONG = ("longrope", "su", "yarn")


def of(config: Mapping[str, Any]) -> Family:
    """Returns the table for KerasHub's class, or for a graph of kft's own where that computes otherwise."""
    return FAMILY if computes(arguments, config) else DRAWN


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if only a part of each head is turned, as in Phi-4-mini, a token does not see the whole text, as in
            Phi-3-mini-4k, or LongRoPE has a scale of its own.
    """
    heads = config["num_attention_heads"]
    refuse(config, "hidden_act", "silu", "silu")
    if config.get("head_dim") is not None:
        refuse(config, "head_dim", config["hidden_size"] // heads)
    _refuse_window(config)
    turned = rotary.read(config, "rope_theta", "partial_rotary_factor", 1.0)
    rotary.refuse(config, turned, ("default", *LONG))
    refuse({**config, "partial_rotary_factor": turned.share}, "partial_rotary_factor", 1.0)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_query_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("resid_pdrop", 0.0),
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-5),
        "max_sequence_length": config["max_position_embeddings"],
        "rope_max_wavelength": turned.wavelength,
        **(_long(config, turned) if turned.kind in LONG else {}),
    }


def _refuse_window(config: Mapping[str, Any]) -> None:
    window, longest = config.get("sliding_window"), config["max_position_embeddings"]
    if window is not None and window < longest:
        raise ModelError(
            f"sliding_window in config.json is {window}; KerasHub's phi3 has none, so that texts of more tokens, up to "
            f"{longest}, would come out otherwise. If yours have no more than {window} tokens, write null there."
        )


def _long(config: Mapping[str, Any], turned: Rotary) -> dict[str, Any]:
    """Returns the arguments for LongRoPE, whose scale KerasHub takes from the two lengths alone."""
    trained = config.get("original_max_position_embeddings", 4096)
    ratio = config["max_position_embeddings"] / trained
    scale = math.sqrt(1 + math.log(ratio) / math.log(trained)) if ratio > 1 else 1.0
    for field, wanted in (("factor", ratio), ("attention_factor", scale)):
        found = turned.fields.get(field)
        if found is not None and not math.isclose(found, wanted, rel_tol=1e-6):
            raise ModelError(
                f"{field} of rope_scaling in config.json is {found}; KerasHub's phi3 computes {wanted:.6g}, from "
                "max_position_embeddings and original_max_position_embeddings. Take another model of the family."
            )
    return {
        "pretraining_sequence_length": trained,
        "rope_scaling_type": "su",
        "rope_scaling_short_factor": [float(value) for value in turned.fields["short_factor"]],
        "rope_scaling_long_factor": [float(value) for value in turned.fields["long_factor"]],
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable that a text's states depend on with the name of its tensor; that of the next token's head not."""
    size = model.hidden_dim // model.num_query_heads
    first = model.num_query_heads * size
    second = first + model.num_key_value_heads * size
    yield Place(model.token_embedding.embeddings, "embed_tokens.weight")
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"layers.{number}", block.attention
        yield Place(block.pre_attention_layernorm.scale, f"{start}.input_layernorm.weight")
        fused = f"{start}.self_attn.qkv_proj.weight"
        yield Place(attention.query_dense.kernel, fused, 1, rows(0, first))
        yield Place(attention.key_dense.kernel, fused, 1, rows(first, second))
        yield Place(attention.value_dense.kernel, fused, 1, rows(second))
        yield from dense(attention.output_dense, f"{start}.self_attn.o_proj", inputs=2)
        yield Place(block.post_attention_layernorm.scale, f"{start}.post_attention_layernorm.weight")
        fused, inner = f"{start}.mlp.gate_up_proj.weight", model.intermediate_dim
        yield Place(block.feedforward_gate_dense.kernel, fused, 1, rows(0, inner))
        yield Place(block.feedforward_intermediate_dense.kernel, fused, 1, rows(inner))
        yield from dense(block.feedforward_output_dense, f"{start}.mlp.down_proj")
    yield Place(model.layer_norm.scale, "norm.weight")


def drawn_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `decoder`.

    Raises:
        ModelError: if the activation is unknown, or rotary frequencies are scaled in another way than Phi-3's.
    """
    heads = config["num_attention_heads"]
    turned = rotary.read(config, "rope_theta", "partial_rotary_factor", 1.0)
    rotary.refuse(config, turned, ("default", *LONG))
    if turned.kind in LONG:
        turned = dataclasses.replace(turned, kind="longrope")
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "vocabulary_size": config["vocab_size"],
        "windows": [config.get("sliding_window")] * config["num_hidden_layers"],
        "num_query_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "turning": turning({"original_max_position_embeddings": 4096, **config}, turned, head_dim),
        "name": "phi3",
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-5),
        "dropout": config.get("resid_pdrop", 0.0),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation": activation_of(config, "hidden_act", "silu"),
    }


def drawn_places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of a drawn model with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    for number in range(blocks(found)):
        block, start = f"block_{number}", f"layers.{number}"
        yield from norm_place(found[f"{block}_attention_norm"], f"{start}.input_layernorm")
        begin = 0
        for part in ("query", "key", "value"):
            kernel = found[f"{block}_attention_{part}"].kernel
            end = begin + int(np.prod(kernel.shape[1:]))
            yield Place(kernel, f"{start}.self_attn.qkv_proj.weight", 1, rows(begin, None if part == "value" else end))
            begin = end
        yield Place(found[f"{block}_attention_output"].kernel, f"{start}.self_attn.o_proj.weight", 2)
        yield from norm_place(found[f"{block}_norm"], f"{start}.post_attention_layernorm")
        inner = found[f"{block}_gate"].kernel.shape[1]
        yield Place(found[f"{block}_gate"].kernel, f"{start}.mlp.gate_up_proj.weight", 1, rows(0, inner))
        yield Place(found[f"{block}_intermediate"].kernel, f"{start}.mlp.gate_up_proj.weight", 1, rows(inner))
        yield Place(found[f"{block}_output"].kernel, f"{start}.mlp.down_proj.weight", 1)
    yield from norm_place(found["final_norm"], "norm")


def rows(begin: int, end: int | None = None) -> functools.partial[np.ndarray]:
    """Returns what cuts rows out of a tensor in which several kernels lie one below the other."""
    return functools.partial(_cut, begin=begin, end=end)


def _cut(array: np.ndarray, begin: int, end: int | None) -> np.ndarray:
    return array[begin:end]


FAMILY = Family(
    backbone="Phi3Backbone",
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=("lm_head.", "score.", "classifier.", "qa_outputs."),
    head=NEWER_DECODER,
    pooling="last",
)
DRAWN = dataclasses.replace(FAMILY, backbone=decoder, arguments=drawn_arguments, places=drawn_places)
