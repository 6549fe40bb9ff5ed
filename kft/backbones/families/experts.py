"""Experts of which each token is read by few, drawn of Keras' own layers and operations. Import after `backend.activate`.

Tokens are sorted by expert and laid into as many blocks as there are experts, twice; all tokens of a block have one expert,
so that work grows with the tokens times the experts that read one, not times all experts, and no token is dropped, however
unevenly they are spread (the idea of Gale et al. 2022, https://arxiv.org/abs/2211.15841). All shapes follow from those of the
inputs, as JAX wants it. Kernels are rows of tables, which are looked up by block.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kft.backbones.families import drawn
from kft.backbones.tensors import Tensors

ALONE = re.compile(r"^(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")
# The tensor of all experts, and what lies in it of each, one below the other.
TOGETHER = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}


def routed(
    x: Any,
    start: str,
    experts: int,
    chosen: int,
    inner: int,
    between: Callable[[Any], Any],
    *,
    biased: bool = True,
) -> Any:
    """Returns what the chosen experts make of each token, weighted by a softmax over their scores.

    Args:
        x: shape (batch, tokens, width).
        start: of the layers' names.
        experts: how many there are.
        chosen: how many read a token.
        inner: width after an expert's first layer, for gate and kernel together.
        between: what stands between an expert's two layers, from `inner` to half of it.
        biased: whether all these layers have biases.
    """
    ops, width = keras.ops, x.shape[-1]
    router = keras.layers.Dense(experts, None, biased, kernel_initializer=drawn.normal(), name=f"{start}_router")
    scores = router(x)
    scores, ids = ops.top_k(scores, chosen)
    weights = ops.softmax(scores, axis=-1) if chosen > 1 else ops.ones_like(scores)
    of_block, taken, places = _laid(ops.cast(ids, "int32"), experts, chosen)
    tokens = ops.take(ops.reshape(x, (-1, width)), taken, axis=0)

    def layer(x: Any, inputs: int, outputs: int, name: str) -> Any:
        tables = {"kernel": inputs * outputs, **({"bias": outputs} if biased else {})}
        kernel, *bias = (
            keras.layers.Embedding(
                experts,
                size,
                embeddings_initializer=drawn.normal() if part == "kernel" else "zeros",
                name=f"{start}_experts_{name}_{part}",
            )(of_block)
            for part, size in tables.items()
        )
        kernel = ops.reshape(kernel, (-1, inputs, outputs))
        found = ops.einsum("nbi,nio->nbo", x, kernel)
        return found + bias[0][:, None, :] if biased else found

    made = layer(between(layer(tokens, width, inner, "inner")), inner // 2, width, "outer")
    made = ops.take(ops.reshape(made, (-1, width)), places, axis=0)
    return ops.sum(made * ops.cast(weights, made.dtype)[..., None], axis=2)


def _laid(ids: Any, experts: int, chosen: int) -> tuple[Any, Any, Any]:
    """Says where each token is laid.

    A block is as long as an expert's share if all had the same; each expert leaves at most one block unfilled, so that twice
    as many blocks as experts hold all.

    Args:
        ids: of the chosen experts, int32 of shape (batch, tokens, chosen).
        experts: how many there are.
        chosen: how many read a token.

    Returns:
        The expert of each block, shape (blocks,); the token at each place of each block, shape (blocks, length), any where
        the place is left free; and the place of each token for each of its experts, of the shape of `ids`.
    """
    ops, numbers = keras.ops, np.arange(2 * experts, dtype=np.int32)
    flat = ops.reshape(ids, (-1,))
    counts = ops.sum(ops.cast(ops.equal(flat[:, None], numbers[None, :experts]), "int32"), axis=0)
    shares = ops.ones_like(flat[..., ::experts])
    length = ops.sum(shares)
    used = (counts + length - 1) // length
    first_block, first = ops.cumsum(used) - used, ops.cumsum(counts) - counts
    ends = first_block + used
    of_block = ops.sum(ops.cast(ops.greater_equal(numbers[:, None], ends[None, :]), "int32"), axis=1)
    of_block = ops.minimum(of_block, experts - 1)  # blocks that are left over
    order = ops.cast(ops.argsort(flat), "int32")
    before = ops.subtract(numbers, ops.take(first_block, of_block)) * length + ops.take(first, of_block)
    sorted_places = before[:, None] + (ops.cumsum(shares) - 1)[None, :]
    sorted_places = ops.minimum(sorted_places, ops.sum(counts) - 1)
    taken = ops.take(order, sorted_places) // chosen
    rank = ops.take(ops.cast(ops.argsort(order), "int32"), _counted(ids))
    return of_block, taken, ops.take(first_block, ids) * length + rank - ops.take(first, ids)


def _counted(ids: Any) -> Any:
    """Returns the place of each number in the flattened array, of the shape of `ids`."""
    ones = keras.ops.ones_like(ids)
    batch, tokens, chosen = (keras.ops.cumsum(ones, axis=axis) - 1 for axis in range(3))
    return (batch * keras.ops.sum(ones[0, :, 0]) + tokens) * ids.shape[-1] + chosen


def together(tensors: Tensors) -> Tensors:
    """Returns tensors with those of single experts as one for all experts of a block; some files have them one way, some so.

    Experts that lack one of their tensors stay as they are, and find no place.
    """
    found: dict[str, dict[str, dict[int, str]]] = {}
    for name in tensors:
        if match := ALONE.match(name):
            found.setdefault(match[1], {}).setdefault(match[3], {})[int(match[2])] = name
    readers: dict[str, Callable[[], np.ndarray]] = {
        name: functools.partial(tensors.__getitem__, name) for name in tensors
    }
    for start, parts in found.items():
        numbers = list(range(max(len(names) for names in parts.values())))
        if any(sorted(parts.get(part, ())) != numbers for part in ("gate", "up", "down")):
            continue
        for whole, wanted in TOGETHER.items():
            names = [[parts[part][number] for part in wanted] for number in numbers]
            readers[f"{start}.{whole}"] = functools.partial(_stacked, tensors, names)
        for names_of in parts.values():
            for name in names_of.values():
                del readers[name]
    return Tensors(readers, tensors.place)


def _stacked(tensors: Tensors, names: Sequence[Sequence[str]]) -> np.ndarray:
    return np.stack([np.concatenate([tensors[name] for name in of_one]) for of_one in names])
