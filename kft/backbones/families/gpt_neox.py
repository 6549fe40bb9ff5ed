"""GPT-NeoX (Black et al. 2022, https://arxiv.org/abs/2204.06745). Import after `backend.activate`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kft.backbones import rotary
from kft.backbones.families import drawn
from kft.backbones.families.bloom import of_each_head
from kft.backbones.families.decoder import blocks, decoder
from kft.backbones.families.family import Family, activation_of, computes, dense, norm, refuse
from kft.backbones.families.turning import turning
from kft.backbones.hugging_face import DECODER
from kft.backbones.places import Place
from kft.backbones.rotary import Rotary
from kft.errors import ModelError, unknown

# Names of GELU's approximation with tanh, which KerasHub's class computes.
APPROXIMATE = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
# Older files hold masks and frequencies of each block, which are no weights.
BUFFERS = tuple(f"layers.{n}.attention.{name}" for n in range(128) for name in ("bias", "masked_bias", "rotary_emb."))


def of(config: Mapping[str, Any]) -> Family:
    """Returns the table for KerasHub's class, or for a graph of kft's own where that computes otherwise."""
    return FAMILY if computes(arguments, config) else DRAWN


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if the model computes GELU exactly, as Pythia does, its layers one after the other, or lacks biases.
    """
    refuse(config, "use_parallel_residual", True, True)
    refuse(config, "attention_bias", True, True)
    if (activation := str(config.get("hidden_act", "gelu"))) not in APPROXIMATE:
        raise ModelError(unknown("hidden_act in config.json", activation, APPROXIMATE))
    turned = rotary.read(config, "rotary_emb_base", "rotary_pct", 0.25)
    rotary.refuse(config, turned, ("default",))
    _refuse_odd(config, turned)
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("hidden_dropout", 0.0),
        "rotary_percentage": turned.share,
        "rotary_max_wavelength": turned.wavelength,
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "max_sequence_length": config["max_position_embeddings"],
    }


def _refuse_odd(config: Mapping[str, Any], turned: Rotary) -> None:
    width = int(config["hidden_size"] // config["num_attention_heads"] * turned.share)
    if width < 2 or width % 2:
        raise ModelError(
            f"The rotary share in config.json is {turned.share}, which turns {width} numbers of a head; it has to be an even "
            "number, at least 2. Take another model of the family."
        )


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor; KerasHub keeps query, key and value fused as they are published."""
    yield Place(model.token_embedding.embeddings, "embed_in.weight")
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"layers.{number}", block._self_attention_layer
        yield from norm(block._self_attention_layer_norm, f"{start}.input_layernorm")
        yield from dense(attention._qkv_dense, f"{start}.attention.query_key_value")
        yield from dense(attention._output_dense, f"{start}.attention.dense")
        yield from norm(block._feedforward_layer_norm, f"{start}.post_attention_layernorm")
        yield from dense(block._feedforward_intermediate_dense, f"{start}.mlp.dense_h_to_4h")
        yield from dense(block._feedforward_output_dense, f"{start}.mlp.dense_4h_to_h")
    yield from norm(model.layer_norm, "final_layer_norm")


def gpt_neox(hidden_dim: int, intermediate_dim: int, activation: str, **measures: Any) -> Any:
    """Builds GPT-NeoX with random weights.

    Args:
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        measures: the other arguments of `decoder`.

    Returns:
        A `keras.Model` as that of `decoder`.
    """
    function = drawn.function(activation)

    def made(x: Any, units: int, name: str, act: Any = None) -> Any:
        return keras.layers.Dense(units, act, kernel_initializer=drawn.normal(), name=name)(x)

    def feedforward(x: Any, start: str) -> Any:
        return made(made(x, intermediate_dim, f"{start}_intermediate", function), hidden_dim, f"{start}_output")

    sizes: dict[str, Any] = {"hidden_dim": hidden_dim, "intermediate_dim": intermediate_dim}
    norms = keras.layers.LayerNormalization
    return decoder(**measures, **sizes, name="gpt_neox", norms=norms, feedforward=feedforward)


def drawn_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `gpt_neox`.

    Raises:
        ModelError: if the activation is unknown, or rotary frequencies are scaled in another way.
    """
    heads = config["num_attention_heads"]
    turned = rotary.read(config, "rotary_emb_base", "rotary_pct", 0.25)
    _refuse_odd(config, turned)
    head_dim, rate = config["hidden_size"] // heads, config.get("hidden_dropout", 0.0)
    return {
        "vocabulary_size": config["vocab_size"],
        "windows": [None] * config["num_hidden_layers"],
        "num_query_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim,
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "turning": turning(config, turned, head_dim),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "dropout": rate,
        "embedding_dropout": rate,
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation": activation_of(config, "hidden_act"),
        "biases": dict.fromkeys(("inputs", "output"), bool(config.get("attention_bias", True))),
        "parallel": bool(config.get("use_parallel_residual", True)),
    }


def drawn_places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of a drawn model with the name of its tensor, in which each head's query, key and value lie fused."""
    found, heads = {layer.name: layer for layer in model.layers}, config["num_attention_heads"]
    yield Place(found["token_embedding"].embeddings, "embed_in.weight")
    for number in range(blocks(found)):
        block, start = f"block_{number}", f"layers.{number}"
        yield from norm(found[f"{block}_attention_norm"], f"{start}.input_layernorm")
        fused = f"{start}.attention.query_key_value"
        for part, name in enumerate(("query", "key", "value")):
            cut = functools.partial(of_each_head, part=part, heads=heads)
            for place in dense(found[f"{block}_attention_{name}"], fused):
                yield dataclasses.replace(place, cut=cut)
        yield from dense(found[f"{block}_attention_output"], f"{start}.attention.dense", 2)
        yield from norm(found[f"{block}_norm"], f"{start}.post_attention_layernorm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.mlp.dense_h_to_4h")
        yield from dense(found[f"{block}_output"], f"{start}.mlp.dense_4h_to_h")
    yield from norm(found["final_norm"], "final_layer_norm")


FAMILY = Family(
    backbone="GPTNeoXBackbone",
    arguments=arguments,
    places=places,
    prefix="gpt_neox.",
    heads=("embed_out.", "lm_head.", "score.", "classifier.", "qa_outputs.", *BUFFERS),
    head=DECODER,
    pooling="last",
)
DRAWN = dataclasses.replace(FAMILY, backbone=gpt_neox, arguments=drawn_arguments, places=drawn_places)
