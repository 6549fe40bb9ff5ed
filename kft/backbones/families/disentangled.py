"""DeBERTa (He et al. 2020, https://arxiv.org/abs/2006.03654): attention that also hears how far tokens are apart, each way.

Its first kind, `deberta`, and all of `deberta-v2` that KerasHub's class of DeBERTa-v3 does not compute: a convolution beside the
first block, kernels of their own for distances, one way alone. The graph is drawn here, of Keras' own layers and operations: a
saved model loads without kft. Import after `backend.activate`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kft.backbones.backbone import Below
from kft.backbones.families import drawn
from kft.backbones.families.bloom import of_each_head
from kft.backbones.families.family import Family, activation_of, dense, norm, refuse
from kft.backbones.hugging_face import Head
from kft.backbones.places import Place
from kft.errors import ModelError

# From what a token holds to how far another one is, and back.
THERE, BACK = "c2p", "p2c"


def deberta(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    embedding_dim: int,
    hidden_dim: int,
    intermediate_dim: int,
    farthest: int,
    buckets: int = 0,
    ways: Sequence[str] = (THERE, BACK),
    own_kernels: bool = False,
    key_biased: bool = True,
    normalized: bool = False,
    convolution: int = 0,
    convolution_activation: str = "tanh",
    num_positions: int = 0,
    num_segments: int = 0,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    activation: str = "gelu",
    layer_norm_epsilon: float = 1e-7,
) -> Any:
    """Builds an encoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        embedding_dim: width of the embeddings, which are projected where it is another than that of the hidden states.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        farthest: tokens farther away than this count as this far.
        buckets: near distances have one each, farther ones share them; 0 where all distances have their own.
        ways: `c2p` and `p2c`, or one of them.
        own_kernels: whether distances have kernels of their own, not those of keys and queries.
        key_biased: whether the dense layers of keys have biases.
        normalized: whether the table of distances is.
        convolution: how many tokens one beside the first block reads; 0 where there is none.
        convolution_activation: its activation, as below.
        num_positions: the most tokens a text may have, where positions are embedded too; 0 where they are not.
        num_segments: rows of the table of segments; 0 where there is none.
        dropout: on hidden states.
        attention_dropout: on attention's weights.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, and `segment_ids` where there are any, each of shape (batch, tokens),
        to a dict of `sequence_output`, shape (batch, tokens, hidden_dim).
    """
    layers = keras.layers
    names = ("token_ids", "padding_mask", *(["segment_ids"] if num_segments else []))
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in names}
    ids, mask = inputs["token_ids"], inputs["padding_mask"]
    places = drawn.places_of(ids)

    def table(rows: int, width: int, name: str) -> Any:
        return layers.Embedding(rows, width, embeddings_initializer=drawn.normal(), name=name)

    def normed(x: Any, name: str) -> Any:
        return layers.LayerNormalization(epsilon=layer_norm_epsilon, name=name)(x)

    def made(units: int, x: Any, name: str, function: Any = None, *, biased: bool = True) -> Any:
        return layers.Dense(units, function, biased, kernel_initializer=drawn.normal(), name=name)(x)

    x = table(vocabulary_size, embedding_dim, "token_embedding")(ids)
    if num_positions:
        x = layers.Add(name="positions_add")([x, table(num_positions, embedding_dim, "position_embedding")(places)])
    if num_segments:
        segments = table(num_segments, embedding_dim, "segment_embedding")(inputs["segment_ids"])
        x = layers.Add(name="segments_add")([x, segments])
    if embedding_dim != hidden_dim:
        x = made(hidden_dim, x, "embeddings_projection", biased=False)
    x = normed(x, "embeddings_layer_norm")
    if convolution:  # which reads past a text's end
        x = x * keras.ops.cast(mask[:, :, None], x.dtype)
    x = layers.Dropout(dropout, name="embeddings_dropout")(x)
    span = buckets or farthest
    rows, columns = _bucketed(places, buckets, farthest) if buckets else _each(places, farthest)
    far = table(2 * span, hidden_dim, "distance_embedding")(rows)
    far = normed(far, "distances_layer_norm") if normalized else far
    first, size = x, hidden_dim // num_heads
    for number in range(num_layers):
        start = f"block_{number}"
        parts = {
            name: drawn.part(f"{start}_attention_{name}", (num_heads, size), key_biased or name != "key")
            for name in ("query", "key", "value")
        }
        beside = functools.partial(
            _beside,
            parts=parts,
            far=layers.Dropout(dropout, name=f"{start}_distances_dropout")(far),
            columns=columns,
            ways=ways,
            own=f"{start}_attention" if own_kernels else "",
        )
        more = drawn.attention(
            (x, x, x),
            mask[:, None, None, :],
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            scale=(size * (1 + len(ways))) ** -0.5,
            made=list(parts.values()),
            scores=beside,
        )
        x = drawn.joined(x, more, f"{start}_attention", dropout, layer_norm_epsilon)
        more = made(intermediate_dim, x, f"{start}_intermediate", drawn.function(activation))
        x = drawn.joined(x, made(hidden_dim, more, f"{start}_output"), start, dropout, layer_norm_epsilon)
        if convolution and not number:
            begin = f"{start}_convolution"
            more = layers.Conv1D(
                hidden_dim, convolution, padding="same", kernel_initializer=drawn.normal(), name=begin
            )(first)
            more = layers.Dropout(dropout, name=f"{begin}_dropout")(more)
            more = layers.Activation(drawn.function(convolution_activation), name=f"{begin}_activation")(more)
            x = normed(layers.Add(name=f"{begin}_add")([x, more]), f"{begin}_layer_norm")
    return keras.Model(inputs, {"sequence_output": x}, name="deberta")


def _each(places: Any, farthest: int) -> tuple[Any, Any]:
    """Returns the rows of all distances that a text has, shape (1, 2 * tokens - 1), and for each pair of tokens its one's place.

    The places have the shape (1, 1, tokens, tokens), tokens that ask first.
    """
    last = keras.ops.max(places, axis=1, keepdims=True)
    apart = keras.ops.concatenate([places - last, places[:, 1:]], axis=1)
    rows = keras.ops.clip(apart + farthest, 0, 2 * farthest - 1)
    return rows, (places[:, :, None] - places[:, None, :] + last[:, :, None])[:, None]


def _bucketed(places: Any, buckets: int, farthest: int) -> tuple[Any, Any]:
    """Returns all rows, shape (1, 2 * buckets), and for each pair of tokens that of their distance's bucket, as `_each` does."""
    table = rows_of_distances(buckets, farthest)
    reach = len(table) // 2
    apart = keras.ops.clip(places[:, :, None] - places[:, None, :], -reach, reach)
    columns = keras.ops.take(table, apart + reach, axis=0)
    return places[:, :1] + np.arange(2 * buckets, dtype="int32"), columns[:, None]


def rows_of_distances(buckets: int, farthest: int) -> np.ndarray:
    """Returns the row of each distance's bucket, from the farthest token that follows to the farthest one before.

    A distance below half the buckets has one of its own; from there on they widen as the logarithm does, so that the last but
    one ends at `farthest` (DeBERTa's own code, https://github.com/microsoft/DeBERTa, `make_log_bucket_position`).
    """
    half, reach = buckets // 2, farthest
    while True:
        apart = np.arange(1, reach + 1, dtype=np.float32)
        widest = np.log(np.float32((farthest - 1) / half))
        wide = np.ceil(np.log(np.maximum(apart, half) / np.float32(half)) / widest * np.float32(half - 1)) + half
        ahead = np.where(apart <= half, apart, wide).astype(int)
        if ahead[-1] >= buckets:
            break
        reach *= 2
    both = np.concatenate([-ahead[::-1], [0], ahead])
    found: np.ndarray = np.clip(both + buckets, 0, 2 * buckets - 1).astype("int32")
    return found


def _beside(
    query: Any, key: Any, *, parts: Mapping[str, Any], far: Any, columns: Any, ways: Sequence[str], own: str
) -> Any:
    """Returns what attention's scores have beside the product of query and key.

    Each is a product with all distances, of which a pair of tokens takes its own.

    Args:
        query: shape (batch, tokens, heads, size of a head).
        key: of the same shape.
        parts: the dense layers of both.
        far: a vector for each distance, shape (1, distances, width).
        columns: for each pair of tokens the place of its distance, shape (1, 1, tokens, tokens).
        ways: which products there are.
        own: how the names of dense layers begin that distances have of their own, or nothing where they have those of `parts`.
    """
    shape = query.shape[-2:]
    scale = (shape[1] * (1 + len(ways))) ** -0.5

    def made(name: str) -> Any:
        layer = drawn.part(f"{own}_distance_{name}", shape, parts[name].bias is not None) if own else parts[name]
        return layer(far)[0] * scale

    found = []
    if THERE in ways:
        scores = keras.ops.einsum("bqhd,rhd->bhqr", query, made("key"))
        found.append(keras.ops.take_along_axis(scores, columns, axis=3))
    if BACK in ways:
        scores = keras.ops.einsum("bkhd,rhd->bhrk", key, made("query"))
        found.append(keras.ops.take_along_axis(scores, columns, axis=2))
    return sum(found[1:], found[0])


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `deberta`.

    Raises:
        ModelError: if an activation is unknown, or attention does not hear distances, or hears them in another way.
    """
    first, width, heads = config["model_type"] == "deberta", config["hidden_size"], config["num_attention_heads"]
    refuse(config, "relative_attention", True, False)
    refuse(config, "talking_head", False, False)
    refuse(config, "attention_head_size", width // heads, width // heads)
    refuse(config, "conv_groups", 1, 1)
    positions, reach = config.get("max_position_embeddings", 512), config.get("max_relative_positions", -1)
    farthest = reach if reach >= 1 else positions
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "embedding_dim": config.get("embedding_size", width),
        "hidden_dim": width,
        "intermediate_dim": config["intermediate_size"],
        "farthest": farthest,
        "buckets": 0 if first else _buckets(config, farthest),
        "ways": ways(config),
        "own_kernels": first or not config.get("share_att_key", False),
        "key_biased": not first,
        "normalized": not first and "layer_norm" in _split(config.get("norm_rel_ebd", "none")),
        "convolution": 0 if first else _convolution(config),
        "convolution_activation": activation_of(config, "conv_act", "tanh"),
        "num_positions": positions if config.get("position_biased_input", True) else 0,
        "num_segments": config.get("type_vocab_size", 0),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
        "activation": activation_of(config, "hidden_act"),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-7),
    }


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.lower().split("|")]


def ways(config: Mapping[str, Any]) -> list[str]:
    """Returns the ways in which attention hears distances.

    Raises:
        ModelError: if there is none, or another than the two.
    """
    found = config.get("pos_att_type") or []
    found = _split(found) if isinstance(found, str) else list(found)
    if not found or len(set(found)) < len(found) or not {THERE, BACK}.issuperset(found):
        raise ModelError(f"pos_att_type in config.json is {found}; kft computes c2p and p2c, or one of them.")
    return sorted(found)


def _buckets(config: Mapping[str, Any], farthest: int) -> int:
    found: int = config.get("position_buckets", -1)
    if found < 1:
        return 0
    if found < 4 or found // 2 >= farthest - 1:
        raise ModelError(
            f"position_buckets in config.json is {found} for distances up to {farthest}; kft counts in 4 or more, and in "
            "fewer than twice the distances."
        )
    return found


def _convolution(config: Mapping[str, Any]) -> int:
    found: int = config.get("conv_kernel_size", 0)
    if found > 0 and found % 2 == 0:
        raise ModelError(
            f"conv_kernel_size in config.json is {found}; a token has as many on either side: take an odd one."
        )
    return max(found, 0)


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    for own, name in (("token", "word"), ("position", "position"), ("segment", "token_type")):
        if f"{own}_embedding" in found:
            yield Place(found[f"{own}_embedding"].embeddings, f"embeddings.{name}_embeddings.weight")
    yield from norm(found["embeddings_layer_norm"], "embeddings.LayerNorm")
    if "embeddings_projection" in found:
        yield from dense(found["embeddings_projection"], "embeddings.embed_proj")
    yield Place(found["distance_embedding"].embeddings, "encoder.rel_embeddings.weight")
    if "distances_layer_norm" in found:
        yield from norm(found["distances_layer_norm"], "encoder.LayerNorm")
    if "block_0_convolution" in found:
        yield Place(found["block_0_convolution"].kernel, "encoder.conv.conv.weight", axes=(2, 1, 0))
        yield Place(found["block_0_convolution"].bias, "encoder.conv.conv.bias")
        yield from norm(found["block_0_convolution_layer_norm"], "encoder.conv.LayerNorm")
    parts = _fused if config["model_type"] == "deberta" else _apart
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"encoder.layer.{number}"
        yield from parts(found, f"{block}_attention", f"{start}.attention.self")
        yield from dense(found[f"{block}_attention_output"], f"{start}.attention.output.dense", inputs=2)
        yield from norm(found[f"{block}_attention_layer_norm"], f"{start}.attention.output.LayerNorm")
        yield from dense(found[f"{block}_intermediate"], f"{start}.intermediate.dense")
        yield from dense(found[f"{block}_output"], f"{start}.output.dense")
        yield from norm(found[f"{block}_layer_norm"], f"{start}.output.LayerNorm")


def _apart(found: Mapping[str, Any], block: str, start: str) -> Iterator[Place]:
    """Gives the weights of attention as `deberta-v2` has them."""
    for part in ("query", "key", "value"):
        yield from dense(found[f"{block}_{part}"], f"{start}.{part}_proj")
    for part in ("query", "key"):
        if f"{block}_distance_{part}" in found:
            yield from dense(found[f"{block}_distance_{part}"], f"{start}.pos_{part}_proj")


def _fused(found: Mapping[str, Any], block: str, start: str) -> Iterator[Place]:
    """Gives the weights of attention as `deberta` has them: three kernels in one, head by head, and two biases apart."""
    for number, part in enumerate(("query", "key", "value")):
        layer = found[f"{block}_{part}"]
        heads = layer.kernel.shape[1]
        cut = functools.partial(of_each_head, part=number, heads=heads)
        yield Place(layer.kernel, f"{start}.in_proj.weight", 1, cut)
        if layer.bias is not None:
            yield Place(layer.bias, f"{start}.{part[0]}_bias", cut=functools.partial(_by_head, heads=heads))
    if f"{block}_distance_key" in found:
        yield from dense(found[f"{block}_distance_key"], f"{start}.pos_proj")
    if f"{block}_distance_query" in found:
        yield from dense(found[f"{block}_distance_query"], f"{start}.pos_q_proj")


def _by_head(bias: np.ndarray, heads: int) -> np.ndarray:
    return bias if len(bias) % heads else bias.reshape(heads, -1)


def head(config: Mapping[str, Any]) -> Head:
    """Returns its makers' head: a pooler on the first token, and the last layer."""
    return Head(dense="pooler.dense", below=Below(activation_of(config, "pooler_hidden_act")))


FAMILY = Family(
    backbone=deberta,
    arguments=arguments,
    places=places,
    prefix="deberta.",
    heads=(
        *("pooler.", "classifier.", "qa_outputs.", "cls.", "lm_predictions.", "mask_predictions."),
        # Published files hold a table of positions that their models do not read: `position_biased_input` is false there.
        "embeddings.position_embeddings.",
    ),
    head=head,
)
