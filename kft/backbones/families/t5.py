"""T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683): its encoder, for tasks that read a text, or the whole.

KerasHub's class cannot be built without the decoder, so the encoder's graph is drawn here, of Keras' own layers and operations:
a saved model loads without kft. The whole is KerasHub's class. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

# By feed_forward_proj; a gated one multiplies with a second dense layer.
ACTIVATIONS = {"relu": ("relu", False), "gated-gelu": ("gelu_approximate", True), "gated-silu": ("silu", True)}
# What transformers takes where a file says nothing, as those do in which this is a part of another model.
DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
}


def t5(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    hidden_dim: int,
    head_dim: int,
    intermediate_dim: int,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str = "relu",
    gated: bool = False,
    layer_norm_epsilon: float = 1e-6,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        hidden_dim: width of the hidden states.
        head_dim: width of a head.
        intermediate_dim: width inside a block.
        dropout: on all but attention's weights.
        attention_dropout: on these.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        gated: whether a second dense layer multiplies with it.
        layer_norm_epsilon: of all normalizations.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    layers = keras.layers
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    function = drawn.function(activation)

    def norm(x: Any, name: str) -> Any:
        return layers.RMSNormalization(epsilon=layer_norm_epsilon, name=name)(x)

    def made(units: int, x: Any, name: str, act: Any = None) -> Any:
        return layers.Dense(units, activation=act, use_bias=False, kernel_initializer=drawn.normal(), name=name)(x)

    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    x = layers.Dropout(dropout, name="embeddings_dropout")(token(ids))
    bias = drawn.distances(drawn.places_of(ids), num_heads)
    for number in range(num_layers):
        start = f"block_{number}"
        hidden = norm(x, f"{start}_attention_norm")
        more = drawn.attention(
            (hidden, hidden, hidden),
            mask[:, None, None, :],
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            inner=num_heads * head_dim,
            scale=1.0,
            biased=False,
            scores=bias,
        )
        more = layers.Dropout(dropout, name=f"{start}_attention_dropout")(more)
        x = layers.Add(name=f"{start}_attention_add")([x, more])
        hidden = norm(x, f"{start}_norm")
        more = made(intermediate_dim, hidden, f"{start}_intermediate", function)
        if gated:
            gate = made(intermediate_dim, hidden, f"{start}_gate")
            more = layers.Multiply(name=f"{start}_gated")([more, gate])
        more = layers.Dropout(dropout, name=f"{start}_inner_dropout")(more)
        more = layers.Dropout(dropout, name=f"{start}_dropout")(made(hidden_dim, more, f"{start}_output"))
        x = layers.Add(name=f"{start}_add")([x, more])
    x = layers.Dropout(dropout, name="final_dropout")(norm(x, "final_norm"))
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="t5")


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `t5`.

    Raises:
        ModelError: if the activation is unknown, or distances are counted otherwise than all published models do.
    """
    config = {**DEFAULTS, **config}
    name = str(config.get("feed_forward_proj", "relu"))
    if name not in ACTIVATIONS:
        raise ModelError(unknown("feed_forward_proj in config.json", name, ACTIVATIONS))
    refuse(config, "relative_attention_num_buckets", drawn.BUCKETS, drawn.BUCKETS)
    refuse(config, "relative_attention_max_distance", drawn.FARTHEST, drawn.FARTHEST)
    activation, gated = ACTIVATIONS[name]
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_layers"],
        "num_heads": config["num_heads"],
        "hidden_dim": config["d_model"],
        "head_dim": config["d_kv"],
        "intermediate_dim": config["d_ff"],
        "dropout": config.get("dropout_rate", 0.1),
        "attention_dropout": config.get("dropout_rate", 0.1),
        "activation": activation,
        "gated": gated,
        "layer_norm_epsilon": config.get("layer_norm_epsilon", 1e-6),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "shared.weight")
    yield Place(
        found["relative_position_bias"].embeddings,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        cut=drawn.from_before_to_behind,
    )
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"encoder.block.{number}.layer"
        yield Place(found[f"{block}_attention_norm"].scale, f"{start}.0.layer_norm.weight")
        for part in ("query", "key", "value"):
            yield from dense(found[f"{block}_attention_{part}"], f"{start}.0.SelfAttention.{part[0]}")
        yield from dense(found[f"{block}_attention_output"], f"{start}.0.SelfAttention.o", inputs=2)
        yield Place(found[f"{block}_norm"].scale, f"{start}.1.layer_norm.weight")
        gated = f"{block}_gate" in found
        within = f"{start}.1.DenseReluDense"
        yield from dense(found[f"{block}_intermediate"], f"{within}.{'wi_0' if gated else 'wi'}")
        if gated:
            yield from dense(found[f"{block}_gate"], f"{within}.wi_1")
        yield from dense(found[f"{block}_output"], f"{within}.wo")
    yield Place(found["final_norm"].scale, "encoder.final_layer_norm.weight")


FAMILY = Family(
    backbone=t5,
    arguments=arguments,
    places=places,
    prefix="transformer.",
    # The decoder, and the embeddings once more, as some files have them.
    heads=("decoder.", "lm_head.", "classification_head.", "classifier.", "qa_outputs.", "encoder.embed_tokens."),
    # transformers' other classes for tasks read the decoder.
    head=Head(logits="", tokens="classifier", spans=""),
    pooling="mean",
)


def arguments_of_whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's `T5Backbone`.

    Raises:
        ModelError: if the encoder is of a kind that kft does not compute, or the decoder has another number of blocks.
    """
    found = arguments(config)
    refuse(config, "num_decoder_layers", found["num_layers"], found["num_layers"])
    return {
        "vocabulary_size": found["vocabulary_size"],
        "num_layers": found["num_layers"],
        "num_heads": found["num_heads"],
        "hidden_dim": found["hidden_dim"],
        "key_value_dim": found["head_dim"],
        "intermediate_dim": found["intermediate_dim"],
        "dropout": found["dropout"],
        "activation": drawn.function(found["activation"]),
        "use_gated_activation": found["gated"],
        "layer_norm_epsilon": found["layer_norm_epsilon"],
    }


def places_of_whole(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable of a whole model with the name of its tensor."""
    yield Place(model.token_embedding.embeddings, "shared.weight")
    for part in ("encoder", "decoder"):
        blocks = getattr(model, f"{part}_transformer_layers")
        yield Place(
            blocks[0].self_attention.relative_attention_bias,
            f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        )
        for number, block in enumerate(blocks):
            yield from _block(block, f"{part}.block.{number}.layer")
        yield Place(getattr(model, f"{part}_layer_norm").weight, f"{part}.final_layer_norm.weight")


def _block(block: Any, start: str) -> Iterator[Place]:
    parts = [(block.self_attention_layer_norm, block.self_attention, "SelfAttention")]
    if block.is_decoder:
        parts += [(block.cross_attention_layer_norm, block.cross_attention, "EncDecAttention")]
    for number, (norm, attention, name) in enumerate(parts):
        yield Place(norm.weight, f"{start}.{number}.layer_norm.weight")
        for own in ("query", "key", "value", "output"):
            yield from dense(getattr(attention, f"{own}_projector"), f"{start}.{number}.{name}.{own[0]}")
    yield Place(block.layer_norm.weight, f"{start}.{len(parts)}.layer_norm.weight")
    within, gated = f"{start}.{len(parts)}.DenseReluDense", block.use_gated_activation
    yield from dense(block.input_projector, f"{within}.{'wi_0' if gated else 'wi'}")
    if gated:
        yield from dense(block.gate_projector, f"{within}.wi_1")
    yield from dense(block.output_projector, f"{within}.wo")


WHOLE = Family(
    backbone="T5Backbone",
    arguments=arguments_of_whole,
    places=places_of_whole,
    prefix="transformer.",
    heads=(
        "lm_head.",
        "classification_head.",
        "classifier.",
        "qa_outputs.",
        "encoder.embed_tokens.",
        "decoder.embed_tokens.",
    ),
    pooling="mean",
    modality="text_to_text",
)
FAMILIES = {"t5-whole": WHOLE}
