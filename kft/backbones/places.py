"""Where each weight of an encoder stands in a published model, one table for the way in and the way out.

Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft.backbones import encoder
from kft.backbones.encoder import Encoder


@dataclass(frozen=True)
class Names:
    """How a layout calls the parts of an encoder; an empty name is a part that it does not have.

    Attributes:
        token: the table of token embeddings.
        position: that of positions.
        segment: that of segments.
        norm: the normalization of embeddings.
        projection: from the embeddings' width to the blocks'.
        blocks: the beginning of a block's names, with a place for its number, or for those of its group and in it.
        query: attention's kernels, here and below after the block's beginning.
        key: see `query`.
        value: see `query`.
        out: the kernel after attention.
        out_norm: the normalization beside attention.
        up: the first dense layer.
        down: the second one.
        down_norm: the normalization beside both.
        pooler: the dense layer that reads the first token.
    """

    token: str
    position: str
    segment: str
    norm: str
    projection: str
    blocks: str
    query: str
    key: str
    value: str
    out: str
    out_norm: str
    up: str
    down: str
    down_norm: str
    pooler: str


@dataclass(frozen=True)
class Place:
    """A weight, and the tensor it comes from and goes to.

    Attributes:
        variable: the Keras variable.
        name: of the tensor.
        inputs: leading axes of a dense kernel that are its inputs, since torch's kernels lie output first; 0 for weights
            that lie alike.
        cut: takes the variable's part out of a tensor that has more; None where the tensor is all its own.
        axes: the tensor's axes in the variable's order, for a convolution; None where they lie alike.
        outside: whether the tensor's name has no prefix before it, a head's part being in the backbone here.
    """

    variable: Any
    name: str
    inputs: int = 0
    cut: Callable[[np.ndarray], np.ndarray] | None = None
    axes: tuple[int, ...] | None = None
    outside: bool = False

    def inward(self, array: np.ndarray) -> np.ndarray:
        """Returns a published tensor as the variable wants it."""
        if self.axes is not None:
            return array.transpose(self.axes)
        return (array.T if self.inputs else array).reshape(tuple(self.variable.shape))

    def outward(self, array: np.ndarray) -> np.ndarray:
        """Returns a variable's value as it is published."""
        if self.axes is not None:
            return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))
        found = array.reshape(self.published[::-1]).T if self.inputs else array.reshape(self.published)
        return np.ascontiguousarray(found)

    @property
    def published(self) -> tuple[int, ...]:
        """The shape of the tensor; Keras parts the axes of attention's heads, torch does not."""
        own = tuple(self.variable.shape)
        if self.axes is not None:
            return tuple(own[axis] for axis in np.argsort(self.axes))
        size = int(np.prod(own))
        if not self.inputs:
            return (size,) if self.name.endswith(".bias") else own
        rows = int(np.prod(own[: self.inputs]))
        return (size // rows, rows)


def places(model: Any, shape: Encoder, names: Names) -> Iterator[Place]:
    """Gives every weight of an encoder with the name of its tensor.

    Args:
        model: what `encoder.build` made of `shape`.
        shape: the encoder's measures.
        names: the layout.
    """
    yield Place(model.get_layer("token_embedding").embeddings, f"{names.token}.weight")
    yield Place(model.get_layer("position_embedding").position_embeddings, f"{names.position}.weight")
    if shape.segments:
        yield Place(model.get_layer("segment_embedding").embeddings, f"{names.segment}.weight")
    yield from _norm(model.get_layer("embeddings_layer_norm"), names.norm)
    if shape.embedding_width:
        yield from _dense(model.get_layer("embeddings_projection"), names.projection)
    for number, name in enumerate(encoder.blocks(shape)):
        within = divmod(number, shape.repeated) if shape.groups else (number,)
        yield from _block(model.get_layer(name), names.blocks.format(*within), names)
    if shape.pooler:
        yield from _dense(model.get_layer("pooled_dense"), names.pooler)


def _block(block: Any, start: str, names: Names) -> Iterator[Place]:
    attention = block._self_attention_layer
    for dense, name in (
        (attention._query_dense, names.query),
        (attention._key_dense, names.key),
        (attention._value_dense, names.value),
    ):
        yield from _dense(dense, f"{start}.{name}")
    yield from _dense(attention._output_dense, f"{start}.{names.out}", inputs=2)
    yield from _norm(block._self_attention_layer_norm, f"{start}.{names.out_norm}")
    yield from _dense(block._feedforward_intermediate_dense, f"{start}.{names.up}")
    yield from _dense(block._feedforward_output_dense, f"{start}.{names.down}")
    yield from _norm(block._feedforward_layer_norm, f"{start}.{names.down_norm}")


def _dense(layer: Any, name: str, inputs: int = 1) -> Iterator[Place]:
    yield Place(layer.kernel, f"{name}.weight", inputs)
    yield Place(layer.bias, f"{name}.bias")


def _norm(layer: Any, name: str) -> Iterator[Place]:
    yield Place(layer.gamma, f"{name}.weight")
    yield Place(layer.beta, f"{name}.bias")
