"""What a SavedModel computes of an image, operation by operation, as Keras' own layers; read as data.

Each operation is one of those below, in a use that a layer of Keras' has, or nothing of the SavedModel is read. So neither
names nor families have to be known: a MobileNet, an EfficientNet and a ResNet differ in their graphs alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kft.backbones.saved_graph import Files, Given, Operation, Shape, Source, Variable, value, variables
from kft.backbones.vision.operations import (
    SUMS,
    UnknownOperationError,
    broadcast,
    by_channel,
    constant,
    groups,
    normalization,
    operation,
    pair,
    require,
    same,
    short,
    swept,
)

ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Elu": "elu",
    "Softplus": "softplus",
    "Softmax": "softmax",
}


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the image: a layer's output, times a scale, plus an offset.

    Attributes:
        layer: the layer's number, 0 being the image.
        shape: without the batch, for images of any height and width.
        sides: height and width for images of the size that the SavedModel takes, where it takes one only.
        scale: a number, or one for each channel.
        offset: likewise.
    """

    layer: int
    shape: Shape
    sides: Shape = (None, None)
    scale: Any = 1.0
    offset: Any = 0.0


class Layers:
    """Draws what a tensor depends on.

    Args:
        found: the SavedModel's files.
        shape: of the images, with the batch.

    Attributes:
        drawn: the layers so far: class, name, numbers of the inputs, options, and the weights' names.
        weights: the weights by the checkpoint's names.
    """

    def __init__(self, found: Files, shape: Shape) -> None:
        self._found, self._values = found, dict[tuple[int, str, int], Value]()
        self._image = Value(0, (None, None, shape[3]), shape[1:3])
        self._rescaled = dict[tuple[int, bytes, bytes], int]()
        self._used, self._names = set[int](), set[str]()
        self.drawn: list[dict[str, Any]] = []
        self.weights: dict[str, np.ndarray] = {}

    def value(self, source: Source) -> Value:
        """Draws what gives a tensor, where it is not drawn yet.

        Raises:
            UnknownOperationError: if no layer does.
        """
        if isinstance(source, Given) and source.name == "image":
            return self._image
        op = operation(source, *READ)
        if op.key not in self._values:
            require(op.node.attr["data_format"].s in (b"", b"NHWC"), op)
            self._values[op.key] = READ[op.kind](self, op)
        return self._values[op.key]

    def settled(self, found: Value) -> int:
        """Returns the number of the layer whose output a tensor is."""
        scale, offset = (np.asarray(part, np.float64).ravel() for part in (found.scale, found.offset))
        if (scale == 1).all() and (offset == 0).all():
            return found.layer
        key = (found.layer, scale.tobytes(), offset.tobytes())
        if key not in self._rescaled:
            options = {"scale": _listed(scale), "offset": _listed(offset)}
            plain = replace(found, scale=1.0, offset=0.0)
            self._rescaled[key] = self._draw("Rescaling", "rescaling", [plain], plain.shape, options).layer
        return self._rescaled[key]

    def _draw(
        self,
        layer: str,
        name: str,
        inputs: Sequence[Value],
        shape: Shape,
        options: Mapping[str, Any],
        weights: Mapping[str, Source] | None = None,
        sides: Shape | None = None,
    ) -> Value:
        numbers = [self.settled(found) for found in inputs]
        named = {part: self._weight(source) for part, source in (weights or {}).items()}
        if named:
            name = next(iter(named.values())).rpartition("/")[0] or name
        self.drawn.append(
            {"layer": layer, "name": self._name(name), "inputs": numbers, "options": dict(options), "weights": named}
        )
        return Value(len(self.drawn), shape, inputs[0].sides if sides is None else sides)

    def _name(self, wanted: str) -> str:
        start = re.sub(r"[^0-9A-Za-z_-]+", "_", wanted).strip("_") or "layer"
        name, number = start, 1
        while name in self._names:
            name, number = f"{start}_again{number}", number + 1
        self._names.add(name)
        return name

    def _weight(self, source: Source) -> str:
        """Keeps a weight and returns its name; what is computed of variables alone, as a standardized kernel, is computed here."""
        array = value(self._found, source)
        own = [] if array is None else variables(source)
        if array is None or not own or own[0].number in self._used:
            raise UnknownOperationError("a weight that is none, or is used twice")
        self._used.add(own[0].number)
        name = own[0].name if own[0].name not in self.weights else f"{own[0].name}_{own[0].number}"
        self.weights[name] = np.ascontiguousarray(array, np.float32)
        return name

    def linear(self, op: Operation, bias: Source | None = None) -> Value:
        """Draws a convolution or a dense layer."""
        x, kernel = op.inputs
        found, array = self.value(x), value(self._found, kernel)
        weights = {"kernel": kernel, **({"bias": bias} if bias is not None else {})}
        if array is None:
            raise UnknownOperationError(f"{op.kind} {op.node.name}, whose kernel depends on the image")
        if op.kind != "MatMul":
            return self._convolution(op, found, array.shape, weights)
        require(len(found.shape) == 1 and not (op.node.attr["transpose_a"].b or op.node.attr["transpose_b"].b), op)
        options = {"units": array.shape[1], "use_bias": bias is not None}
        return self._draw("Dense", op.node.name, [found], (array.shape[1],), options, weights)

    def _convolution(self, op: Operation, x: Value, kernel: tuple[int, ...], weights: Mapping[str, Source]) -> Value:
        require(len(x.shape) == 3 and x.shape[2] is not None, op)
        strides, dilations, padding = pair(op, "strides"), pair(op, "dilations"), op.node.attr["padding"].s.decode()
        require(strides == (1, 1) or dilations == (1, 1), op)
        if padding == "EXPLICIT":
            x, padding = self._zeros(op, x, np.reshape(op.node.attr["explicit_paddings"].list.i, (4, 2))), "VALID"
        options = {
            "kernel_size": list(kernel[:2]),
            "strides": list(strides),
            "padding": padding.lower(),
            "dilation_rate": list(dilations),
            "use_bias": "bias" in weights,
        }
        if op.kind == "Conv2D":
            layer, channels = "Conv2D", kernel[3]
            options |= {"filters": channels, "groups": int(x.shape[2] or 0) // kernel[2]}
        else:
            require(strides[0] == strides[1], op)
            layer, channels = "DepthwiseConv2D", kernel[2] * kernel[3]
            options |= {"depth_multiplier": kernel[3]}
        reach = [(size - 1) * rate + 1 for size, rate in zip(kernel[:2], dilations, strict=True)]
        shape, sides = (swept(part, reach, strides, padding.lower()) for part in (x.shape[:2], x.sides))
        return self._draw(layer, op.node.name, [x], (*shape, channels), options, weights, sides)

    def _pad(self, op: Operation) -> Value:
        require(not any(constant(rest).any() for rest in op.inputs[2:]), op)
        return self._zeros(op, self.value(op.inputs[0]), constant(op.inputs[1]))

    def _zeros(self, op: Operation, x: Value, around: np.ndarray) -> Value:
        require(len(x.shape) == 3 and around.shape == (4, 2) and not around[[0, 3]].any(), op)
        rows, columns = around[1:3].tolist()
        shape, sides = (
            tuple(None if side is None else side + sum(more) for side, more in zip(part, (rows, columns), strict=True))
            for part in (x.shape[:2], x.sides)
        )
        options = {"padding": [rows, columns]}
        return self._draw("ZeroPadding2D", f"{op.node.name}_pad", [x], (*shape, x.shape[2]), options, sides=sides)

    def _bias(self, op: Operation) -> Value:
        require(isinstance(op.inputs[1], Variable), op)
        return self.linear(operation(op.inputs[0], *LINEAR), op.inputs[1])

    def _sum(self, op: Operation) -> Value:
        if (found := normalization(op)) is not None:
            return self._batch(op, found.stands_on, dict(found.weights), found.epsilon)
        if isinstance(op.inputs[1], Variable):
            return self._bias(op)
        return self._merged(op, "Add", lambda x, number, first: replace(x, offset=x.offset + number))

    def _difference(self, op: Operation) -> Value:
        def taken(x: Value, number: Any, first: bool) -> Value:
            sign = -1 if first else 1
            return replace(x, scale=x.scale * sign, offset=(x.offset - number) * sign)

        return self._merged(op, "Subtract", taken)

    def _product(self, op: Operation) -> Value:
        for x, gate in (op.inputs, op.inputs[::-1]):
            if isinstance(gate, Operation) and gate.kind == "Sigmoid" and same(gate.inputs[0], x):
                return self._activated(op, x, "silu")
        times = lambda x, number, first: replace(x, scale=x.scale * number, offset=x.offset * number)  # noqa: E731
        return self._merged(op, "Multiply", times)

    def _quotient(self, op: Operation) -> Value:
        found, number = self.value(op.inputs[0]), self._number(op.inputs[1])
        if number is None:
            raise UnknownOperationError(f"{op.kind} {op.node.name}, by what is no number")
        by = by_channel(op, number, found.shape)
        return replace(found, scale=found.scale / by, offset=found.offset / by)

    def _merged(self, op: Operation, layer: str, by_number: Callable[[Value, Any, bool], Value]) -> Value:
        """Draws a layer of two tensors, or keeps in mind what a number, first or second, does to one."""
        for place, part in enumerate(op.inputs):
            if (number := self._number(part)) is not None:
                found = self.value(op.inputs[1 - place])
                return by_number(found, by_channel(op, number, found.shape), place == 0)
        one, other = (self.value(part) for part in op.inputs)
        sides = other.sides if one.shape[:2] == (1, 1) else one.sides
        return self._draw(layer, op.node.name, [one, other], broadcast(op, one.shape, other.shape), {}, sides=sides)

    def _number(self, source: Source) -> np.ndarray | None:
        """Returns what is written in the graph, or is measured and not trained, as the means of images are."""
        found = value(self._found, source)
        return None if found is None or any(own.trained for own in variables(source)) else found

    def _fused(self, op: Operation) -> Value:
        x, *rest = op.inputs
        require(not op.node.attr["is_training"].b and op.place == 0, op)
        weights = dict(zip(("gamma", "beta", "moving_mean", "moving_variance"), rest, strict=True))
        return self._batch(op, x, weights, short(op.node.attr["epsilon"].f))

    def _batch(self, op: Operation, x: Source, weights: dict[str, Source], epsilon: float) -> Value:
        for name, nothing in (("gamma", 1), ("beta", 0)):
            if name in weights and not isinstance(weights[name], Variable):
                number = self._number(weights[name])
                require(number is not None and bool((number == nothing).all()), op)
                del weights[name]
        require(all(isinstance(weight, Variable) for weight in weights.values()), op)
        found = self.value(x)
        options = {"epsilon": epsilon, "scale": "gamma" in weights, "center": "beta" in weights}
        return self._draw("BatchNormalization", op.node.name, [found], found.shape, options, weights)

    def _activation(self, op: Operation) -> Value:
        return self._activated(op, op.inputs[0], ACTIVATIONS[op.kind])

    def _activated(self, op: Operation, x: Source, activation: str) -> Value:
        found = self.value(x)
        return self._draw("Activation", op.node.name, [found], found.shape, {"activation": activation})

    def _mean(self, op: Operation) -> Value:
        found = self.value(op.inputs[0])
        require(len(found.shape) == 3, op)
        require({int(axis) % 4 for axis in constant(op.inputs[1]).ravel()} == {1, 2}, op)
        return self._global(op, found, op.node.attr["keep_dims"].b)

    def _global(self, op: Operation, x: Value, keeps: bool) -> Value:
        shape = (1, 1, x.shape[2]) if keeps else (x.shape[2],)
        return self._draw("GlobalAveragePooling2D", op.node.name, [x], shape, {"keepdims": keeps}, sides=(1, 1))

    def _pooled(self, op: Operation) -> Value:
        found, maximum = self.value(op.inputs[0]), op.kind == "MaxPool"
        size, strides, padding = pair(op, "ksize"), pair(op, "strides"), op.node.attr["padding"].s.decode().lower()
        require(len(found.shape) == 3 and padding in ("same", "valid"), op)
        if not maximum and padding == "valid" and size == found.sides:
            return self._global(op, found, keeps=True)
        # Keras on torch takes the border into an average that is padded more on one side than on the other.
        require(maximum or padding == "valid" or (strides == (1, 1) and all(side % 2 for side in size)), op)
        shape, sides = (swept(part, size, strides, padding) for part in (found.shape[:2], found.sides))
        options = {"pool_size": list(size), "strides": list(strides), "padding": padding}
        layer = "MaxPooling2D" if maximum else "AveragePooling2D"
        return self._draw(layer, op.node.name, [found], (*shape, found.shape[2]), options, sides=sides)

    def _joined(self, op: Operation) -> Value:
        found = [self.value(part) for part in op.inputs[:-1]]
        require(int(constant(op.inputs[-1])) in (-1, 3) and all(len(part.shape) == 3 for part in found), op)
        channels = [part.shape[2] for part in found if part.shape[2] is not None]
        require(len(channels) == len(found), op)
        return self._draw("Concatenate", op.node.name, found, (*found[0].shape[:2], sum(channels)), {"axis": -1})

    def _reshaped(self, op: Operation) -> Value:
        x, wanted = op.inputs
        if isinstance(x, Operation) and x.kind in SUMS and (found := normalization(x)) is not None:
            stands_on, number, size = groups(found, wanted)
            require("gamma" in found.weights, op)
            weights = {name: operation(found.weights[name], "Reshape").inputs[0] for name in ("gamma", "beta")}
            inner = self.value(stands_on)
            require(number * size == inner.shape[-1], op)
            options = {"groups": number, "axis": -1, "epsilon": found.epsilon}
            return self._draw("GroupNormalization", op.node.name, [inner], inner.shape, options, weights)
        if isinstance(wanted, Operation) and wanted.kind == "Pack":
            return self._shaped(op, [int(constant(side)) for side in wanted.inputs[1:]])
        batch, *shape = (int(side) for side in constant(wanted).ravel())
        require(batch == -1, op)
        return self._shaped(op, shape)

    def _squeezed(self, op: Operation) -> Value:
        shape = self.value(op.inputs[0]).shape
        without = [axis % (len(shape) + 1) for axis in op.node.attr["squeeze_dims"].list.i]
        require(bool(without) and 0 not in without and all(shape[axis - 1] == 1 for axis in without), op)
        return self._shaped(op, [side for axis, side in enumerate(shape, 1) if axis not in without])

    def _shaped(self, op: Operation, shape: Sequence[int | None]) -> Value:
        found = self.value(op.inputs[0])
        known = [side for side in (*found.shape, *shape) if side is not None and side > 0]
        require(len(known) == len(found.shape) + len(shape), op)
        require(bool(np.prod(known[: len(found.shape)]) == np.prod(known[len(found.shape) :])), op)
        return self._draw("Reshape", op.node.name, [found], tuple(shape), {"target_shape": list(shape)}, sides=(1, 1))


LINEAR = ("Conv2D", "DepthwiseConv2dNative", "MatMul")
READ: Mapping[str, Callable[[Layers, Operation], Value]] = {
    **dict.fromkeys(LINEAR, Layers.linear),
    **dict.fromkeys(ACTIVATIONS, Layers._activation),
    **dict.fromkeys(SUMS, Layers._sum),
    "BiasAdd": Layers._bias,
    "Sub": Layers._difference,
    "Mul": Layers._product,
    "RealDiv": Layers._quotient,
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), Layers._fused),
    "Mean": Layers._mean,
    **dict.fromkeys(("MaxPool", "AvgPool"), Layers._pooled),
    **dict.fromkeys(("Pad", "PadV2"), Layers._pad),
    "ConcatV2": Layers._joined,
    "Reshape": Layers._reshaped,
    "Squeeze": Layers._squeezed,
}


def _listed(numbers: np.ndarray) -> Any:
    return float(numbers[0]) if numbers.size == 1 else numbers.tolist()
