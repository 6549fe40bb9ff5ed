"""gpt-oss (OpenAI 2025, https://arxiv.org/abs/2508.10925), its experts packed in four bits as they are published, or not.

KerasHub's class has its windows in the other half of the blocks, one token too wide, and has every expert read every token; so
its graph is drawn here. Import after `backend.activate`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kft.backbones import rotary
from kft.backbones.families.decoder import attention_places, blocks, decoder, norm_place
from kft.backbones.families.experts import routed
from kft.backbones.families.family import Family, dense, refuse
from kft.backbones.families.turning import turning
from kft.backbones.hugging_face import NEWER_DECODER
from kft.backbones.mxfp4 import decoded
from kft.backbones.places import Place
from kft.errors import ModelError

# What transformers takes where config.json says nothing.
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
WINDOW = "sliding_attention"


def gpt_oss(
    num_experts: int, top_k: int, swiglu_limit: float, swiglu_alpha: float, intermediate_dim: int, **measures: Any
) -> Any:
    """Builds gpt-oss with random weights.

    Args:
        num_experts: of each block.
        top_k: how many of them read a token.
        swiglu_limit: beyond which what an expert's first layer gives is cut.
        swiglu_alpha: how steep its gate is.
        intermediate_dim: width inside an expert.
        measures: the other arguments of `decoder`.

    Returns:
        A `keras.Model` as that of `decoder`.
    """

    def between(x: Any) -> Any:
        gate, up = x[..., ::2], x[..., 1::2]
        gate, up = keras.ops.minimum(gate, swiglu_limit), keras.ops.clip(up, -swiglu_limit, swiglu_limit)
        return (up + 1) * gate * keras.ops.sigmoid(gate * swiglu_alpha)

    def feedforward(x: Any, start: str) -> Any:
        return routed(x, start, num_experts, top_k, 2 * intermediate_dim, between)

    return decoder(**measures, intermediate_dim=intermediate_dim, name="gpt_oss", sinks=True, feedforward=feedforward)


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `gpt_oss`.

    Raises:
        ModelError: if the activation is another, rotary frequencies are scaled in another way, or weights are packed otherwise.
    """
    refuse(config, "hidden_act", "silu", "silu")
    refuse(
        {"model_type": config["model_type"], **(config.get("quantization_config") or {})},
        "quant_method",
        "mxfp4",
        "mxfp4",
    )
    heads, count = config["num_attention_heads"], config["num_hidden_layers"]
    head_dim = config.get("head_dim", 64) or config["hidden_size"] // heads
    fields = {"rope_theta": 150_000.0, **config}
    if not (config.get("rope_scaling") or config.get("rope_parameters")):
        fields["rope_parameters"] = YARN
    turned = rotary.read(fields, "rope_theta", "partial_rotary_factor", 1.0)
    usual = ["full_attention" if number % 2 else WINDOW for number in range(count)]
    kinds, window = config.get("layer_types") or usual, config.get("sliding_window", 128)
    if (unknown := set(kinds) - {WINDOW, "full_attention"}) or len(kinds) != count:
        raise ModelError(
            f"layer_types in config.json has {len(kinds)} entries, of {count} blocks, {sorted(unknown)} unknown."
        )
    return {
        "vocabulary_size": config["vocab_size"],
        "windows": [window if kind == WINDOW else None for kind in kinds],
        "num_query_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads", 8) or heads,
        "head_dim": head_dim,
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "num_experts": config["num_local_experts"],
        "top_k": config.get("num_experts_per_tok", 4),
        "swiglu_limit": config.get("swiglu_limit", 7.0),
        "swiglu_alpha": config.get("swiglu_alpha", 1.702),
        "turning": turning(config, turned, head_dim),
        "layer_norm_epsilon": config.get("rms_norm_eps", 1e-5),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "biases": dict.fromkeys(("inputs", "output"), bool(config.get("attention_bias", True))),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found, width, inner = (
        {layer.name: layer for layer in model.layers},
        config["hidden_size"],
        config["intermediate_size"],
    )
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    for number in range(blocks(found)):
        block, start = f"block_{number}", f"layers.{number}"
        yield from attention_places(found, block, start)
        sinks = found[f"{block}_attention_sinks"].embeddings
        yield Place(sinks, f"{start}.self_attn.sinks", cut=functools.partial(_rows, inner=()))
        yield from dense(found[f"{block}_router"], f"{start}.mlp.router")
        for part, name, shape in (
            ("inner", "gate_up_proj", (width, 2 * inner)),
            ("outer", "down_proj", (inner, width)),
        ):
            kernel, bias = (found[f"{block}_experts_{part}_{kind}"].embeddings for kind in ("kernel", "bias"))
            yield Place(kernel, f"{start}.mlp.experts.{name}", cut=functools.partial(_rows, inner=shape))
            # A name that ends as that of a vector of one layer; this one has a row for each expert.
            yield Place(bias, f"{start}.mlp.experts.{name}_bias")
    yield from norm_place(found["final_norm"], "norm")


def _rows(array: np.ndarray, inner: tuple[int, ...]) -> np.ndarray:
    """Returns a table whose rows are arrays of the shape `inner`, or vectors as one row; others are left as they are."""
    if not inner:
        return array[None]
    return array.reshape(len(array), -1) if array.shape[1:] == inner else array


FAMILY = Family(
    backbone=gpt_oss,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=("lm_head.", "score.", "classifier.", "qa_outputs."),
    head=NEWER_DECODER,
    pooling="last",
    read=decoded,
)
