"""A SavedModel's graph on tensorflow: Keras' variables are the graph's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kft.backbones.bridge.graph import Graph


class Call:
    """Calls a graph whose variables have their values already.

    Args:
        graph: what is called.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def __call__(
        self, inputs: Sequence[Any], trained: Sequence[Any], kept: Sequence[Any], training: bool
    ) -> tuple[list[Any], list[Any]]:
        """Returns the outputs and the penalty; the kept variables change by themselves.

        Args:
            inputs: tensors, one after the other.
            trained: not read.
            kept: not read.
            training: whether the model drops out and updates its moving averages.
        """
        return self.graph.compute(inputs, training), []
