"""Parts of models that no class of KerasHub's computes, drawn of Keras' own layers and operations. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


def attention(
    inputs: tuple[Any, Any, Any],
    mask: Any,
    start: str,
    heads: int,
    width: int,
    rate: float,
    *,
    inner: int | None = None,
    scale: float | None = None,
    biased: bool = True,
    groups: int | None = None,
    made: Sequence[Any] = (),
    scores: Any = None,
    turn: Callable[[Any], Any] | None = None,
    turned_values: bool = False,
) -> Any:
    """Returns what attention gives, after its last dense layer.

    Args:
        inputs: what queries, keys and values are made of, each of shape (batch, tokens, any width).
        mask: nonzero where a token is seen, of a shape that fits (batch, heads, tokens, tokens).
        start: of its layers' names.
        heads: how many.
        width: of what is given, and of all heads together.
        rate: of dropout on its weights.
        inner: width of all heads together, where it is another.
        scale: of the scores; one over the root of a head's width where it is left out.
        biased: whether its dense layers have biases.
        groups: how many keys and values there are, each for as many heads; the heads' axis is parted in two then, groups and
            the heads of a group, in the mask's shape too. None where each head has its own.
        made: the dense layers of queries, keys and values, where they are used elsewhere too; see `part`.
        scores: added to the scores before the softmax, or what makes that of queries and keys, or None.
        turn: turns queries and keys by their positions, or None.
        turned_values: whether values are turned as well.
    """
    layers, size = keras.layers, (inner or width) // heads
    many, few = ("h", "h") if groups is None else ("gr", "g")
    axes = [heads] if groups is None else [groups, heads // groups]
    shapes = {"query": axes, "key": axes[: len(few)], "value": axes[: len(few)]}
    query, key, value = (
        layer(x)
        for layer, x in zip(
            made or [part(f"{start}_attention_{name}", (*shape, size), biased) for name, shape in shapes.items()],
            inputs,
            strict=True,
        )
    )
    if turn is not None:
        query, key, value = turn(query), turn(key), turn(value) if turned_values else value
    scale = size**-0.5 if scale is None else scale
    found = keras.ops.einsum(f"bq{many}d,bk{few}d->b{many}qk", query * scale, key)
    if scores is not None:
        found = found + (scores(query, key) if callable(scores) else scores)
    weights = layers.Softmax(dtype="float32", name=f"{start}_attention_softmax")(found, mask=mask)
    weights = keras.ops.cast(weights, value.dtype)
    weights = layers.Dropout(rate, name=f"{start}_attention_weights_dropout")(weights)
    mixed = keras.ops.einsum(f"b{many}qk,bk{few}d->bq{many}d", weights, value)
    return layers.EinsumDense(
        f"bt{many}d,{many}dw->btw",
        (None, width),
        bias_axes="w" if biased else None,
        kernel_initializer=normal(),
        name=f"{start}_attention_output",
    )(mixed)


def part(name: str, shape: Sequence[int], biased: bool = True) -> Any:
    """Returns the dense layer of attention's queries, keys or values; a shape is (heads, size) or (groups, heads, size)."""
    axes = "grd" if len(shape) == 3 else "hd"
    return keras.layers.EinsumDense(
        f"btw,w{axes}->bt{axes}",
        (None, *shape),
        bias_axes=axes if biased else None,
        kernel_initializer=normal(),
        name=name,
    )


# Half of the buckets are for tokens that follow. A bucket begins at each of these distances: one for each up to 8, then
# eight to each factor of 16 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).
BUCKETS, FARTHEST = 32, 128
DISTANCES = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91)
BOUNDARIES = [1 - distance for distance in reversed(DISTANCES)] + list(DISTANCES)
# The published row of each interval between boundaries, from far before to far behind; the last one is never read.
ROWS = [*range(15, -1, -1), *range(17, 32), 16]


def distances(places: Any, heads: int) -> Any:
    """Returns what attention's scores get for tokens' distances, shape (1, heads, tokens, tokens), for all blocks."""
    layers = keras.layers
    apart = places[:, None, :] - places[:, :, None]
    buckets = layers.Discretization(BOUNDARIES, dtype="float32", name="relative_position_buckets")(apart)
    table = layers.Embedding(BUCKETS, heads, embeddings_initializer=normal(), name="relative_position_bias")
    return keras.ops.transpose(table(buckets), (0, 3, 1, 2))


def from_before_to_behind(table: np.ndarray) -> np.ndarray:
    """Returns a published table of buckets in the order of `distances`."""
    return table[ROWS]


def joined(x: Any, more: Any, start: str, rate: float, epsilon: float) -> Any:
    """Returns the normalized sum of a block's input and what a part of the block makes of it, which drops out first."""
    more = keras.layers.Dropout(rate, name=f"{start}_dropout")(more)
    x = keras.layers.Add(name=f"{start}_add")([x, more])
    return keras.layers.LayerNormalization(epsilon=epsilon, name=f"{start}_layer_norm")(x)


def gated(x: Any, inner: int, start: str, activation: str, *, biased: bool = False, rate: float = 0.0) -> Any:
    """Returns what a block's dense layers give, the first of which is multiplied with its gate; as wide as `x`.

    Args:
        x: hidden states, shape (batch, tokens, width).
        inner: width of gate and first layer.
        start: of the layers' names.
        activation: of the gate, by Keras' name, or KerasHub's `gelu_approximate`.
        biased: whether the layers have biases.
        rate: of dropout before the last layer.
    """
    layers = keras.layers

    def dense(units: int, name: str, act: Any = None) -> Any:
        return layers.Dense(units, act, biased, kernel_initializer=normal(), name=f"{start}_{name}")

    gate, more = dense(inner, "gate", function(activation))(x), dense(inner, "intermediate")(x)
    more = layers.Multiply(name=f"{start}_gated")([gate, more])
    if rate:
        more = layers.Dropout(rate, name=f"{start}_inner_dropout")(more)
    return dense(x.shape[-1], "output")(more)


def seen(places: Any, mask: Any, window: int | None = None) -> Any:
    """Says which tokens a token sees of those before it and itself, shape (batch, 1, tokens, tokens).

    Args:
        places: from `places_of`.
        mask: nonzero for tokens of the text, shape (batch, tokens).
        window: how many it sees at most, or None for all.
    """
    behind = places[:, :, None] - places[:, None, :]
    near = behind >= 0
    if window is not None:
        near = keras.ops.logical_and(near, behind < window)
    return keras.ops.logical_and(mask[:, None, None, :] > 0, near[:, None])


def places_of(ids: Any) -> Any:
    """Returns the tokens' places, from 0, shape (1, tokens)."""
    return keras.ops.cumsum(keras.ops.ones_like(ids[:1, :]), axis=1) - 1


def function(activation: str) -> Any:
    """Returns what a layer takes for an activation: Keras' name, or KerasHub's function of that name."""
    return keras.saving.get_registered_object(f"keras_hub>{activation}") or activation


def normal() -> Any:
    """Returns the initializer of BERT and its relatives (Devlin et al. 2019)."""
    return keras.initializers.TruncatedNormal(stddev=0.02)
