"""T5Gemma (Zhang et al. 2025, https://arxiv.org/abs/2504.06225) and the text encoder of T5Gemma 2.

KerasHub's class of the first leaves out that most blocks of its encoder see near tokens only, lets those of its decoder see one
token too many, and cannot be built without the decoder. So graphs are drawn here, of Keras' and KerasHub's own layers: a saved
model loads without kft. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import keras_hub
import numpy as np

from kft.backbones import rotary
from kft.backbones.families import drawn
from kft.backbones.families.family import Family, activation_of, dense, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place

FULL, NEAR = "full_attention", "sliding_attention"
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Blocks:
    """What a stack of blocks of Gemma's is made of.

    Attributes:
        layer_types: for each block whether it sees the whole text, `full_attention`, or near tokens, `sliding_attention`.
        num_query_heads: of attention.
        num_key_value_heads: of keys and values, each for several of the queries'.
        head_dim: width of a head.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        window: how many tokens before and behind a near token may be.
        ropes: by kind of block the base of the rotary frequencies, and what positions are divided by.
        scale: of attention's scores.
        soft_cap: what their size stays below, or None.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.
        biased: whether attention's dense layers have biases.
        normed: whether queries and keys are normalized.
    """

    layer_types: Sequence[str]
    num_query_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_dim: int
    intermediate_dim: int
    window: tuple[int, int]
    ropes: Mapping[str, tuple[float, float]]
    scale: float
    soft_cap: float | None
    activation: str
    layer_norm_epsilon: float
    biased: bool
    normed: bool


def t5gemma(
    vocabulary_size: int,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    end_of_image: int | None = None,
    name: str = "t5gemma",
    **encoder: Any,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        dropout: on all but attention's weights.
        attention_dropout: on these.
        end_of_image: the token with an embedding of its own beside the table, or None.
        name: of the model.
        encoder: what `Blocks` has.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    stack = _Stack(Blocks(**encoder), "", dropout, attention_dropout)
    x = stack.encoded(ids, mask, vocabulary_size, end_of_image)
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name=name)


def both(
    vocabulary_size: int,
    decoder_vocabulary_size: int,
    decoder: Mapping[str, Any],
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    **encoder: Any,
) -> Any:
    """Builds an encoder and its decoder with random weights.

    Args:
        vocabulary_size: number of token ids of the encoder.
        decoder_vocabulary_size: that of the decoder.
        decoder: what `Blocks` has, of the decoder.
        dropout: on all but attention's weights.
        attention_dropout: on these.
        encoder: what `Blocks` has, of the encoder.

    Returns:
        A `keras.Model` with the inputs and outputs of KerasHub's: `token_ids` and `padding_mask` of `encoder_` and `decoder_`,
        to the `sequence_output` of either.
    """
    inputs = {
        f"{part}_{name}": keras.Input((None,), dtype="int32", name=f"{part}_{name}")
        for part in ("encoder", "decoder")
        for name in ("token_ids", "padding_mask")
    }
    first, mask = inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
    read = _Stack(Blocks(**encoder), "", dropout, attention_dropout).encoded(first, mask, vocabulary_size)
    write = _Stack(Blocks(**decoder), "decoder_", dropout, attention_dropout)
    wrote = write.decoded(
        inputs["decoder_token_ids"], inputs["decoder_padding_mask"], decoder_vocabulary_size, read, mask
    )
    outputs = {"encoder_sequence_output": read, "decoder_sequence_output": wrote}
    return keras.Model(inputs, outputs, name="t5gemma")


@dataclass(frozen=True)
class _Stack:
    """Draws the blocks of an encoder or a decoder.

    Attributes:
        blocks: what they are made of.
        start: of their layers' names.
        dropout: on all but attention's weights.
        attention_dropout: on these.
    """

    blocks: Blocks
    start: str
    dropout: float
    attention_dropout: float

    def encoded(self, ids: Any, mask: Any, words: int, end_of_image: int | None = None) -> Any:
        """Returns an encoder's states."""
        seen = mask[:, None, None, None, :] > 0
        masks = {FULL: seen, NEAR: keras.ops.logical_and(seen, self._near(ids))}
        x = self._embedded(ids, words, end_of_image)
        for number, kind in enumerate(self.blocks.layer_types):
            start = f"{self.start}block_{number}"
            x = self._added(x, lambda y, s=start, k=kind: self._attention(y, y, masks[k], s, k), f"{start}_attention")
            x = self._added(x, lambda y, s=start: self._dense(y, s), start)
        return self._last(x)

    def decoded(self, ids: Any, mask: Any, words: int, read: Any, read_mask: Any) -> Any:
        """Returns a decoder's states, given those of an encoder and the mask of its tokens."""
        seen = mask[:, None, None, None, :] > 0
        before = keras.ops.logical_and(seen, self._apart(ids) <= 0)
        masks = {FULL: before, NEAR: keras.ops.logical_and(before, self._near(ids))}
        across = read_mask[:, None, None, None, :] > 0
        x = self._embedded(ids, words, None)
        for number, kind in enumerate(self.blocks.layer_types):
            start, cross = f"{self.start}block_{number}", f"{self.start}block_{number}_cross"
            x = self._added(x, lambda y, s=start, k=kind: self._attention(y, y, masks[k], s, k), f"{start}_attention")
            x = self._added(x, lambda y, s=cross: self._attention(y, read, across, s), f"{cross}_attention")
            x = self._added(x, lambda y, s=start: self._dense(y, s), start)
        return self._last(x)

    def _embedded(self, ids: Any, words: int, end_of_image: int | None) -> Any:
        width = self.blocks.hidden_dim
        table = keras.layers.Embedding(
            words, width, embeddings_initializer=drawn.normal(), name=f"{self.start}token_embedding"
        )
        x = table(ids) * width**0.5
        if end_of_image is not None:
            own = keras.layers.Embedding(
                1, width, embeddings_initializer=drawn.normal(), name=f"{self.start}end_of_image_embedding"
            )
            x = keras.ops.where(keras.ops.equal(ids, end_of_image)[:, :, None], own(keras.ops.zeros_like(ids)), x)
        return keras.layers.Dropout(self.dropout, name=f"{self.start}embeddings_dropout")(x)

    def _apart(self, ids: Any) -> Any:
        """Returns how far behind the token that looks is the one it looks at, shape (1, 1, 1, tokens, tokens)."""
        places = drawn.places_of(ids)
        return (places[:, None, :] - places[:, :, None])[:, None, None, :, :]

    def _near(self, ids: Any) -> Any:
        before, behind = self.blocks.window
        apart = self._apart(ids)
        return keras.ops.logical_and(apart >= -before, apart <= behind)

    def _norm(self, x: Any, name: str) -> Any:
        return keras.layers.RMSNormalization(epsilon=self.blocks.layer_norm_epsilon, name=name)(x)

    def _added(self, x: Any, made: Any, start: str) -> Any:
        """Returns the sum of a block's input and what a part of the block makes of it, between two normalizations."""
        more = self._norm(made(self._norm(x, f"{start}_norm")), f"{start}_after_norm")
        more = keras.layers.Dropout(self.dropout, name=f"{start}_dropout")(more)
        return keras.layers.Add(name=f"{start}_add")([x, more])

    def _last(self, x: Any) -> Any:
        x = self._norm(x, f"{self.start}final_norm")
        return keras.layers.Dropout(self.dropout, name=f"{self.start}final_dropout")(x)

    def _dense(self, x: Any, start: str) -> Any:
        return drawn.gated(x, self.blocks.intermediate_dim, start, self.blocks.activation, rate=self.dropout)

    def _attention(self, x: Any, seen: Any, mask: Any, start: str, kind: str = "") -> Any:
        """Returns attention of `x` to `seen`; with a kind of block both are turned by their positions."""
        blocks, layers, start = self.blocks, keras.layers, f"{start}_attention"
        few, each = blocks.num_key_value_heads, blocks.num_query_heads // blocks.num_key_value_heads

        def made(x: Any, rule: str, shape: tuple[int | None, ...], axes: str, name: str) -> Any:
            return layers.EinsumDense(
                rule,
                shape,
                bias_axes=axes if blocks.biased else None,
                kernel_initializer=drawn.normal(),
                name=f"{start}_{name}",
            )(x)

        query = made(x, "btw,wged->btged", (None, few, each, blocks.head_dim), "ged", "query")
        key = made(seen, "btw,wgd->btgd", (None, few, blocks.head_dim), "gd", "key")
        value = made(seen, "btw,wgd->btgd", (None, few, blocks.head_dim), "gd", "value")
        if blocks.normed:
            query, key = self._norm(query, f"{start}_query_norm"), self._norm(key, f"{start}_key_norm")
        if kind:
            base, factor = blocks.ropes[kind]
            turn = keras_hub.layers.RotaryEmbedding(base, factor, name=f"{start}_rotary_{kind}")
            query, key = turn(query), turn(key)
        scores = keras.ops.einsum("bqged,bkgd->bgeqk", query * blocks.scale, key)
        if blocks.soft_cap is not None:
            scores = keras.ops.tanh(scores / blocks.soft_cap) * blocks.soft_cap
        weights = layers.Softmax(dtype="float32", name=f"{start}_softmax")(scores, mask=mask)
        weights = keras.ops.cast(weights, value.dtype)
        weights = layers.Dropout(self.attention_dropout, name=f"{start}_weights_dropout")(weights)
        mixed = keras.ops.einsum("bgeqk,bkgd->bqged", weights, value)
        return made(mixed, "btged,gedw->btw", (None, blocks.hidden_dim), "w", "output")


def arguments(config: Config) -> dict[str, Any]:
    """Returns the arguments of `t5gemma`, of T5Gemma's encoder.

    Raises:
        ModelError: if the activation is unknown, or rotary frequencies are scaled otherwise than by a factor.
    """
    window = config["encoder"]["sliding_window"]
    return {**_common(config, config["encoder"]), **_blocks(config, config["encoder"], (window, window))}


def arguments_of_both(config: Config) -> dict[str, Any]:
    """Returns the arguments of `both`.

    Raises:
        ModelError: if there is no decoder, an activation is unknown, or rotary frequencies are scaled otherwise than by a factor.
    """
    refuse(config, "is_encoder_decoder", True, True)
    decoder = config["decoder"]
    return {
        **arguments(config),
        "decoder_vocabulary_size": decoder["vocab_size"],
        "decoder": _blocks(config, decoder, (decoder["sliding_window"] - 1, 0)),
    }


def arguments_of_second(config: Config) -> dict[str, Any]:
    """Returns the arguments of `t5gemma`, of the text encoder of T5Gemma 2.

    Raises:
        ModelError: if the activation is unknown, scores are capped, or rotary frequencies are scaled otherwise than by a factor.
    """
    text = config["encoder"]["text_config"]
    refuse({**text, "model_type": config["model_type"]}, "attn_logit_softcapping", None)
    window, turned = text["sliding_window"], text.get("rope_parameters") or {}
    ropes = {
        FULL: {"rope_theta": text.get("rope_theta", 1e6), **(turned.get(FULL) or text.get("rope_scaling") or {})},
        NEAR: {"rope_theta": text.get("rope_local_base_freq", 1e4), **(turned.get(NEAR) or {})},
    }
    return {
        **_common(config, text),
        **_blocks(config, text, ((window + 1) // 2 - 1, window // 2), 6),
        "ropes": {kind: _rope(config, {"rope_parameters": fields}) for kind, fields in ropes.items()},
        "normed": True,
        "end_of_image": config["encoder"].get("eoi_token_index", 256_000),
        "name": "t5gemma2",
    }


def _common(config: Config, encoder: Config) -> dict[str, Any]:
    return {
        "vocabulary_size": encoder["vocab_size"],
        "dropout": config.get("dropout_rate", 0.0),
        "attention_dropout": config.get("attention_dropout", 0.0),
    }


def _blocks(config: Config, part: Config, window: tuple[int, int], every: int = 2) -> dict[str, Any]:
    usual = [NEAR if (number + 1) % every else FULL for number in range(part["num_hidden_layers"])]
    return {
        "layer_types": list(part.get("layer_types") or usual),
        "num_query_heads": part["num_attention_heads"],
        "num_key_value_heads": part["num_key_value_heads"],
        "head_dim": part["head_dim"],
        "hidden_dim": part["hidden_size"],
        "intermediate_dim": part["intermediate_size"],
        "window": window,
        "ropes": dict.fromkeys((FULL, NEAR), _rope(config, part)) if every == 2 else {},
        "scale": part.get("query_pre_attn_scalar", 256) ** -0.5,
        # Where the file leaves it out, the first kind has Gemma 2's, the second none.
        "soft_cap": part.get("attn_logit_softcapping", 50.0 if every == 2 else None),
        "activation": activation_of(part, "hidden_activation", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": part.get("rms_norm_eps", 1e-6),
        "biased": bool(part.get("attention_bias")),
        "normed": False,
    }


def _rope(config: Config, part: Config) -> tuple[float, float]:
    found = rotary.read(part, "rope_theta", "", 1.0)
    rotary.refuse(config, found, ("default", "linear"))
    return float(found.wavelength), float(found.fields["factor"]) if found.kind == "linear" else 1.0


def places(model: Any, config: Config) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    for part, start in (("encoder", ""), ("decoder", "decoder_")):
        if f"{start}token_embedding" not in found:
            continue
        yield Place(found[f"{start}token_embedding"].embeddings, f"{part}.embed_tokens.weight")
        if own := found.get(f"{start}end_of_image_embedding"):
            yield Place(own.embeddings, f"{part}.embed_tokens.eoi_embedding", cut=lambda array: array[None])
        for number in range(sum(name.startswith(f"{start}block_") and name.endswith("_gate") for name in found)):
            yield from _block(found, f"{start}block_{number}", f"{part}.layers.{number}")
        yield _norm(found[f"{start}final_norm"], f"{part}.norm")


def _block(found: Mapping[str, Any], block: str, start: str) -> Iterator[Place]:
    for own, name in (("", "self_attn"), ("_cross", "cross_attn")):
        layers = f"{block}{own}_attention"
        if f"{layers}_query" not in found:
            continue
        yield _norm(found[f"{layers}_norm"], f"{start}.pre_{name}_layernorm")
        yield _norm(found[f"{layers}_after_norm"], f"{start}.post_{name}_layernorm")
        for part, inputs in (("query", 1), ("key", 1), ("value", 1), ("output", 3)):
            yield from dense(found[f"{layers}_{part}"], f"{start}.{name}.{part[0]}_proj", inputs)
        for part in ("query", "key"):
            if norm := found.get(f"{layers}_{part}_norm"):
                yield _norm(norm, f"{start}.{name}.{part[0]}_norm")
    yield _norm(found[f"{block}_norm"], f"{start}.pre_feedforward_layernorm")
    yield _norm(found[f"{block}_after_norm"], f"{start}.post_feedforward_layernorm")
    for layer, name in (("gate", "gate_proj"), ("intermediate", "up_proj"), ("output", "down_proj")):
        yield from dense(found[f"{block}_{layer}"], f"{start}.mlp.{name}")


def _norm(layer: Any, name: str) -> Place:
    return Place(layer.scale, f"{name}.weight", cut=_and_one)


def _and_one(array: np.ndarray) -> np.ndarray:
    """Returns a published scale as Keras has it: Gemma's are what is added to 1."""
    return array + np.ones((), array.dtype)


def _head(config: Config) -> Head | None:
    """Returns how heads are made where a model has no decoder; else they read that, which the encoder is without."""
    return Head("score.out_proj", tokens="score.out_proj") if config.get("is_encoder_decoder", True) is False else None


def _pooling(config: Config) -> str:
    """A head of its makers' own for a whole text reads the last token."""
    architecture = str((config.get("architectures") or [""])[0])
    return "last" if _head(config) and architecture.endswith("ForSequenceClassification") else "mean"


FAMILY = Family(both, arguments_of_both, places, "model.", ("lm_head.", "score."), None, "mean", "text_to_text")
FAMILIES = {
    "t5gemma-encoder": Family(
        t5gemma, arguments, places, "model.", ("decoder.", "lm_head.", "score."), _head, pooling=_pooling
    ),
    "t5gemma2-encoder": Family(
        t5gemma,
        arguments_of_second,
        places,
        "model.",
        ("decoder.", "encoder.vision_tower.", "encoder.multi_modal_projector.", "lm_head.", "score."),
        pooling="mean",
    ),
}
