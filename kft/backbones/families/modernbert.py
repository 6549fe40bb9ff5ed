"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663): most of its blocks see only near tokens.

KerasHub has no class of it, so its graph is drawn here, of Keras' and KerasHub's own layers: a saved model loads without kft.
Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_hub

from kft.backbones.backbone import Below
from kft.backbones.families import drawn
from kft.backbones.families.family import Family, activation_of, dense
from kft.backbones.families.phi3 import rows
from kft.backbones.hugging_face import Head, published_name
from kft.backbones.places import Place
from kft.errors import ModelError

FULL, NEAR = "full_attention", "sliding_attention"
WAVELENGTHS = {FULL: ("global_rope_theta", 160_000.0), NEAR: ("local_rope_theta", 10_000.0)}


def modernbert(
    vocabulary_size: int,
    layer_types: Sequence[str],
    num_heads: int,
    hidden_dim: int,
    intermediate_dim: int,
    window: int,
    wavelengths: Mapping[str, float],
    dropout: float = 0.0,
    embedding_dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation: str = "gelu",
    layer_norm_epsilon: float = 1e-5,
    biases: Mapping[str, bool] | None = None,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        layer_types: for each block whether it sees the whole text, `full_attention`, or near tokens, `sliding_attention`.
        num_heads: of attention.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        window: how many tokens away a near token may be.
        wavelengths: base of the rotary frequencies, by kind of block.
        dropout: inside a block.
        embedding_dropout: on embeddings.
        attention_dropout: on attention's weights and outputs.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.
        biases: whether `attention`, `dense` and `norm` layers have them; none where left out.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    layers, has = keras.layers, {"attention": False, "dense": False, "norm": False, **(biases or {})}
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))

    def norm(x: Any, name: str) -> Any:
        return layers.LayerNormalization(epsilon=layer_norm_epsilon, center=has["norm"], name=name)(x)

    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    x = layers.Dropout(embedding_dropout, name="embeddings_dropout")(norm(token(ids), "embeddings_layer_norm"))
    places = drawn.places_of(ids)
    near = keras.ops.abs(places[:, None, :] - places[:, :, None]) <= window
    seen = mask[:, None, None, :] > 0
    masks = {FULL: seen, NEAR: keras.ops.logical_and(seen, near[:, None, :, :])}
    function = drawn.function(activation)
    for number, kind in enumerate(layer_types):
        start = f"block_{number}"
        hidden = norm(x, f"{start}_attention_layer_norm") if number else x
        turn = keras_hub.layers.RotaryEmbedding(max_wavelength=wavelengths[kind], name=f"{start}_rotary_{kind}")
        more = drawn.attention(
            (hidden, hidden, hidden),
            masks[kind],
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            biased=has["attention"],
            turn=turn,
        )
        more = layers.Dropout(attention_dropout, name=f"{start}_attention_dropout")(more)
        x = layers.Add(name=f"{start}_attention_add")([x, more])
        hidden = norm(x, f"{start}_layer_norm")
        dense = {"use_bias": has["dense"], "kernel_initializer": drawn.normal()}
        more = layers.Dense(intermediate_dim, activation=function, name=f"{start}_intermediate", **dense)(hidden)
        gate = layers.Dense(intermediate_dim, name=f"{start}_gate", **dense)(hidden)
        more = layers.Dropout(dropout, name=f"{start}_dropout")(layers.Multiply(name=f"{start}_gated")([more, gate]))
        more = layers.Dense(hidden_dim, name=f"{start}_output", **dense)(more)
        x = layers.Add(name=f"{start}_add")([x, more])
    x = norm(x, "final_layer_norm")
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="modernbert")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `modernbert`.

    Raises:
        ModelError: if the activation is unknown, or rotary frequencies are scaled.
    """
    every = config.get("global_attn_every_n_layers", 3)
    usual = [NEAR if number % every else FULL for number in range(config["num_hidden_layers"])]
    return {
        "vocabulary_size": config["vocab_size"],
        "layer_types": list(config.get("layer_types") or usual),
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "window": config.get("local_attention", 128) // 2,
        "wavelengths": {kind: _wavelength(config, kind) for kind in WAVELENGTHS},
        "dropout": config.get("mlp_dropout", 0.0),
        "embedding_dropout": config.get("embedding_dropout", 0.0),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation": activation_of(config, "hidden_activation"),
        "layer_norm_epsilon": config.get("norm_eps", 1e-5),
        "biases": {
            "attention": bool(config.get("attention_bias")),
            "dense": bool(config.get("mlp_bias")),
            "norm": bool(config.get("norm_bias")),
        },
    }


def _wavelength(config: Mapping[str, Any], kind: str) -> float:
    fields = {**(config.get("rope_scaling") or {}), **((config.get("rope_parameters") or {}).get(kind) or {})}
    if (found := fields.get("rope_type", fields.get("type", "default"))) != "default":
        raise ModelError(
            f"rope_type in config.json is {found!r}; of modernbert kft computes only 'default'. Take another model of the family."
        )
    name, usual = WAVELENGTHS[kind]
    return float(fields.get("rope_theta", config.get(name, usual)))


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embeddings.tok_embeddings.weight")
    yield from _norm(found["embeddings_layer_norm"], "embeddings.norm")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"layers.{number}"
        if number:
            yield from _norm(found[f"{block}_attention_layer_norm"], f"{start}.attn_norm")
        width = found[f"{block}_attention_query"].kernel.shape[0]
        for part, name in enumerate(("query", "key", "value")):
            yield from _part(found[f"{block}_attention_{name}"], f"{start}.attn.Wqkv", part, width)
        yield from dense(found[f"{block}_attention_output"], f"{start}.attn.Wo", 2)
        yield from _norm(found[f"{block}_layer_norm"], f"{start}.mlp_norm")
        inner = found[f"{block}_gate"].kernel.shape[1]
        for part, name in enumerate(("intermediate", "gate")):
            yield from _part(found[f"{block}_{name}"], f"{start}.mlp.Wi", part, inner)
        yield from dense(found[f"{block}_output"], f"{start}.mlp.Wo", 1)
    yield from _norm(found["final_layer_norm"], "final_norm")


def measures(model: Any) -> dict[str, Any]:
    """Returns what `config.json` says of a model that `modernbert` built or a run folder gave back."""
    found = {layer.name: layer for layer in model.layers}
    # A block's kind stands in a name, block_3_rotary_full_attention.
    rotary = {int(name.split("_")[1]): name for name in found if "_rotary_" in name}
    kinds = [rotary[number].partition("_rotary_")[2] for number in sorted(rotary)]
    bases = {name.partition("_rotary_")[2]: float(found[name].max_wavelength) for name in rotary.values()}
    return {
        "vocab_size": found["token_embedding"].input_dim,
        "hidden_size": found["token_embedding"].output_dim,
        "intermediate_size": found["block_0_intermediate"].units,
        "num_hidden_layers": len(kinds),
        "num_attention_heads": found["block_0_attention_query"].kernel.shape[1],
        "hidden_activation": published_name(found["block_0_intermediate"].activation),
        "layer_types": kinds,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": bases.get(kind, base)}
            for kind, (_, base) in WAVELENGTHS.items()
        },
        "local_attention": 2 * _window(model),
        "norm_eps": found["final_layer_norm"].epsilon,
        "norm_bias": found["final_layer_norm"].center,
        "attention_bias": found["block_0_attention_query"].bias is not None,
        "mlp_bias": found["block_0_intermediate"].use_bias,
        "embedding_dropout": found["embeddings_dropout"].rate,
        "attention_dropout": found["block_0_attention_dropout"].rate,
        "mlp_dropout": found["block_0_dropout"].rate,
    }


def _window(model: Any) -> int:
    """Returns how many tokens away a near token may be, which stands in the graph alone."""
    compared = [one for one in model.operations if type(one).__name__ == "LessEqual"]
    return int(compared[0]._inbound_nodes[0].arguments.args[1]) if compared else 64


def _part(layer: Any, name: str, part: int, size: int) -> Iterator[Place]:
    """Gives the weights of a layer that lie with others in one tensor, one below the other."""
    cut = rows(part * size, (part + 1) * size)
    yield Place(layer.kernel, f"{name}.weight", 1, cut)
    if layer.bias is not None:
        yield Place(layer.bias, f"{name}.bias", 0, cut)


def _norm(layer: Any, name: str) -> Iterator[Place]:
    yield Place(layer.gamma, f"{name}.weight")
    if layer.beta is not None:
        yield Place(layer.beta, f"{name}.bias")


def _pooling(config: Mapping[str, Any]) -> str:
    return "mean" if config.get("classifier_pooling") == "mean" else "first"


def _head(config: Mapping[str, Any]) -> Head:
    """The head of pretraining, with a new last layer, on one token or on the mean."""
    below = Below(
        activation_of(config, "classifier_activation"),
        bias=bool(config.get("classifier_bias")),
        everywhere=True,
        epsilon=config.get("norm_eps", 1e-5),
        offset=bool(config.get("norm_bias")),
    )
    return Head(dense="head.dense", norm="head.norm", below=below, spans="classifier")


FAMILY = Family(
    backbone=modernbert,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=("head.", "decoder.", "classifier.", "qa_outputs."),
    head=_head,
    pooling=_pooling,
)
