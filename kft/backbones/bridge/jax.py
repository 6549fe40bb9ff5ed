"""A SavedModel's graph on jax, compiled or not: callbacks to TensorFlow, with a gradient of their own."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from kft.backbones.bridge.graph import Graph, Record

REMEMBERED = 4  # forward passes whose backward pass has not come; more are of computations that were given up


class Call:
    """Calls a graph with jax's arrays.

    Args:
        graph: what is called.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._records, self._numbers = OrderedDict[int, Record](), itertools.count(1)
        self._shapes: dict[Any, list[Any]] = {}

    def __call__(
        self, inputs: Sequence[Any], trained: Sequence[Any], kept: Sequence[Any], training: bool
    ) -> tuple[list[Any], list[Any]]:
        """Returns the outputs and the penalty, and the kept variables' new values.

        Args:
            inputs: arrays, one after the other.
            trained: values of the variables that may be trained.
            kept: values of the others.
            training: whether the model drops out and updates its moving averages.
        """
        shapes = [*self._outputs(inputs), jax.ShapeDtypeStruct((), np.float32)]
        states = [_like(state) for state in kept] if training else []

        def compute(*arrays: Any) -> Any:
            with self.graph.lock:
                found = self.graph.compute(self._put(arrays, len(inputs), len(trained)), training)
                return _arrays(found), self._states(training)

        def remember(*arrays: Any) -> Any:
            with self.graph.lock:
                record = self.graph.remember(self._put(arrays, len(inputs), len(trained)), training)
                return _arrays(record.outputs), self._states(training), self._keep(record)

        def slopes(number: Any, *outer: Any) -> Any:
            weights, given = self.graph.slopes(self._records.pop(int(number)), [np.asarray(slope) for slope in outer])
            return _arrays([slope for slope in given if slope is not None]), _arrays(weights)

        @jax.custom_vjp  # type: ignore[untyped-decorator]
        def call(inputs: Any, trained: Any, kept: Any) -> Any:
            return jax.pure_callback(compute, (shapes, states), *inputs, *trained, *kept)

        def forward(inputs: Any, trained: Any, kept: Any) -> Any:
            number = jax.ShapeDtypeStruct((), np.int32)
            outputs, new, token = jax.pure_callback(remember, (shapes, states, number), *inputs, *trained, *kept)
            return (outputs, new), token

        def backward(token: Any, outer: Any) -> Any:
            wanted = [_like(array) for array in inputs if _is_real(array)], [_like(array) for array in trained]
            floating, weights = jax.pure_callback(slopes, wanted, token, *map(_plain, outer[0], shapes))
            rest = iter(floating)
            given = [next(rest) if _is_real(array) else np.zeros(array.shape, jax.dtypes.float0) for array in inputs]
            return given, weights, [jax.numpy.zeros(state.shape, state.dtype) for state in kept]

        call.defvjp(forward, backward)
        outputs, new = call(list(inputs), list(trained), list(kept))
        return list(outputs), list(new)

    def _put(self, arrays: Sequence[Any], inputs: int, trained: int) -> list[Any]:
        """Gives the graph's variables their values, and returns the inputs as tensors.

        All is copied: TensorFlow would go on with memory that jax may use for something else before the way back.
        """
        whole = [np.array(array) for array in arrays]
        self.graph.assign(whole[inputs : inputs + trained], whole[inputs + trained :])
        return [tf.convert_to_tensor(array) for array in whole[:inputs]]

    def _states(self, training: bool) -> list[np.ndarray]:
        return _arrays([variable.read_value() for variable in self.graph.kept]) if training else []

    def _keep(self, record: Record) -> np.ndarray:
        number = next(self._numbers)
        self._records[number] = record
        while len(self._records) > REMEMBERED:
            self._records.popitem(last=False)
        return np.asarray(number, np.int32)

    def _outputs(self, inputs: Sequence[Any]) -> list[Any]:
        """Returns shape and type of each output, found by computing once with zeros."""
        key = tuple((tuple(array.shape), str(array.dtype)) for array in inputs)
        if key not in self._shapes:
            zeros = [tf.zeros(array.shape, str(array.dtype)) for array in inputs]
            with self.graph.lock:
                found = self.graph.compute(zeros, training=False)[:-1]
            self._shapes[key] = [
                jax.ShapeDtypeStruct(tuple(output.shape), output.dtype.as_numpy_dtype) for output in found
            ]
        return self._shapes[key]


def _arrays(tensors: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(tensor) for tensor in tensors]


def _like(array: Any) -> Any:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _is_real(array: Any) -> bool:
    return bool(jax.numpy.issubdtype(array.dtype, jax.numpy.floating))


def _plain(slope: Any, like: Any) -> Any:
    """Returns a gradient that a callback can be given: outputs of whole numbers have none."""
    return jax.numpy.zeros(like.shape, like.dtype) if slope.dtype == jax.dtypes.float0 else slope
