"""A SavedModel's graph on torch: a function with a backward pass of TensorFlow's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import torch
from torch.utils import dlpack

from kft.backbones.bridge.graph import Graph


class Call:
    """Calls a graph with torch's tensors.

    Args:
        graph: what is called.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(
        self, inputs: Sequence[Any], trained: Sequence[Any], kept: Sequence[Any], training: bool
    ) -> tuple[list[Any], list[Any]]:
        """Returns the outputs and the penalty, and the kept variables' new values.

        Args:
            inputs: tensors, one after the other.
            trained: values of the variables that may be trained.
            kept: values of the others.
            training: whether the model drops out and updates its moving averages.
        """
        remembers = torch.is_grad_enabled()
        found = _Function.apply(self, training, remembers, len(inputs), [v.detach() for v in kept], *inputs, *trained)
        new = self.graph.kept if training else []
        return list(found), [to_torch(v.read_value()).to(old.device) for v, old in zip(new, kept, strict=False)]

    def put(self, values: Sequence[torch.Tensor]) -> None:
        """Gives the graph's variables torch's memory, or a copy of it."""
        count = len(self.graph.trained)
        there = [to_tensorflow(value) for value in values]
        self.graph.assign(there[:count], there[count:])


class _Function(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, call: Call, training: bool, remembers: bool, count: int, kept: Sequence[Any], *tensors: Any
    ) -> tuple[Any, ...]:
        inputs, trained = tensors[:count], tensors[count:]
        given, device = [to_tensorflow(tensor) for tensor in inputs], (trained or inputs)[0].device
        with call.graph.lock:
            call.put([*trained, *kept])
            ctx.call, ctx.record = call, call.graph.remember(given, training) if remembers else None
            outputs = ctx.record.outputs if remembers else call.graph.compute(given, training)
        found = tuple(to_torch(output).to(device) for output in outputs)
        ctx.mark_non_differentiable(*[output for output in found if not output.is_floating_point()])
        return found

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Any, ...]:
        weights, inputs = ctx.call.graph.slopes(ctx.record, [to_tensorflow(slope) for slope in outer])
        device = outer[-1].device
        found = [None if slope is None else to_torch(slope).to(device) for slope in (*inputs, *weights)]
        return (None, None, None, None, None, *found)


def to_tensorflow(tensor: torch.Tensor) -> Any:
    """Returns torch's tensor as TensorFlow's, in the same memory where both are on a processor."""
    whole = tensor.detach().contiguous()
    if whole.device.type != "cpu" or not whole.numel() or whole.data_ptr() % 64:
        return tf.convert_to_tensor(whole.cpu().numpy())
    return tf.experimental.dlpack.from_dlpack(dlpack.to_dlpack(whole))


def to_torch(tensor: Any) -> torch.Tensor:
    """Returns TensorFlow's tensor as torch's, in the same memory where both are on a processor."""
    if not tf.size(tensor) or "CPU" not in tensor.device:
        return torch.from_numpy(tensor.numpy().copy())
    return dlpack.from_dlpack(tf.experimental.dlpack.to_dlpack(tensor))
