"""How an operation of a SavedModel is used: its numbers, the sizes it gives, and the normalizations that several make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kft.backbones.saved_graph import Constant, Operation, Shape, Source

SUMS = ("Add", "AddV2")


class UnknownOperationError(Exception):
    """There is an operation, or a use of one, that no layer of Keras' stands for."""


def require(fits: bool, op: Operation) -> None:
    """Goes on only where a use of an operation is one that is known.

    Raises:
        UnknownOperationError: if it is not.
    """
    if not fits:
        raise UnknownOperationError(f"{op.kind} {op.node.name}")


def _called(source: Source) -> str:
    return f"{source.kind} {source.node.name}" if isinstance(source, Operation) else type(source).__name__


def operation(source: Source, *kinds: str) -> Operation:
    """Returns a source that is an operation of one of some kinds.

    Raises:
        UnknownOperationError: if it is not.
    """
    if not isinstance(source, Operation) or source.kind not in kinds:
        raise UnknownOperationError(_called(source))
    return source


def constant(source: Source) -> np.ndarray:
    """Returns an array that is written in the graph.

    Raises:
        UnknownOperationError: if the source is not one.
    """
    if not isinstance(source, Constant):
        raise UnknownOperationError(_called(source))
    return source.array


def same(one: Source, other: Source) -> bool:
    """Says whether two tensors are one."""
    if isinstance(one, Operation) and isinstance(other, Operation):
        return one.key == other.key
    return not isinstance(one, Constant) and one == other


def pair(op: Operation, name: str) -> tuple[int, int]:
    """Returns what an attribute says of height and width; it says nothing of the batch and the channels."""
    found = list(op.node.attr[name].list.i) or [1, 1, 1, 1]
    require(len(found) == 4 and found[0] == found[3] == 1, op)
    return int(found[1]), int(found[2])


def swept(sides: Shape, reach: Sequence[int], strides: Sequence[int], padding: str) -> Shape:
    """Returns the sides of what a window gives that is moved over an image."""
    return tuple(
        None if side is None else -(-(side if padding == "same" else side - size + 1) // stride)
        for side, size, stride in zip(sides, reach, strides, strict=True)
    )


def broadcast(op: Operation, one: Shape, other: Shape) -> Shape:
    """Returns the shape of two tensors together, which differ at most where one is a single pixel."""
    require(len(one) == len(other) and one[-1] == other[-1], op)
    require(one == other or (1, 1) in (one[:2], other[:2]), op)
    return other if one[:2] == (1, 1) else one


def by_channel(op: Operation, number: np.ndarray, shape: Shape) -> Any:
    """Returns a number, or one for each channel, as float64."""
    require(number.size == 1 or (number.shape[-1] == number.size == shape[-1]), op)
    return float(number.ravel()[0]) if number.size == 1 else number.astype(np.float64).ravel()


def short(number: Any) -> float:
    """Returns a float32 as the shortest number that it is the nearest to."""
    return float(str(np.float32(number)))


@dataclass(frozen=True)
class Normalization:
    """A normalization as `tf.nn.batch_normalization` computes it.

    Attributes:
        stands_on: what is normalized.
        weights: its mean, variance, factor (not always) and offset, by the names that Keras has for them.
        epsilon: added to the variance.
    """

    stands_on: Source
    weights: Mapping[str, Source]
    epsilon: float


def normalization(op: Operation) -> Normalization | None:
    """Reads the sum that a normalization ends with: x · i + (offset - mean · i) with i = factor / √(variance + epsilon)."""
    try:
        scaled, rest = operation(op.inputs[0], "Mul"), operation(op.inputs[1], "Sub")
        x, inverse = scaled.inputs
        shifted = operation(rest.inputs[1], "Mul")
        if not same(shifted.inputs[1], inverse):
            return None
        factor = operation(inverse, "Mul", "Rsqrt")
        root = operation(factor.inputs[0], "Rsqrt") if factor.kind == "Mul" else factor
        variance, epsilon = operation(root.inputs[0], *SUMS).inputs
        weights = {"gamma": factor.inputs[1]} if factor.kind == "Mul" else {}
        weights |= {"beta": rest.inputs[0], "moving_mean": shifted.inputs[0], "moving_variance": variance}
        return Normalization(x, weights, short(constant(epsilon)))
    except UnknownOperationError:
        return None


def groups(found: Normalization, back: Source) -> tuple[Source, int, int]:
    """Reads a normalization by groups of channels.

    The channels are parted into groups, each group is normalized over the image's sides and its own channels, and the
    groups are joined again.

    Args:
        found: the normalization of the parted channels.
        back: the shape that is gone back to.

    Returns:
        What is normalized, the number of groups, and the channels in each.

    Raises:
        UnknownOperationError: if it is another normalization.
    """
    parted = operation(found.stands_on, "Reshape")
    x, into = parted.inputs
    require(same(operation(back, "Shape").inputs[0], x), parted)
    number, size = (int(side) for side in constant(operation(into, "ConcatV2").inputs[-2]).ravel())
    mean, variance = (operation(found.weights[name], "Mean") for name in ("moving_mean", "moving_variance"))
    squares = operation(variance.inputs[0], "SquaredDifference")
    for moment in (mean, variance):
        require({int(axis) % 5 for axis in constant(moment.inputs[1]).ravel()} == {1, 2, 4}, moment)
    require(same(mean.inputs[0], parted) and same(squares.inputs[0], parted) and same(squares.inputs[1], mean), parted)
    return x, number, size
