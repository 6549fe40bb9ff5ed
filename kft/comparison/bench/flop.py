"""The matrix products that a job cannot do without, counted in operations, without padding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Flop:
    """The weights of a model's matrices, by what passes through them.

    A product with w weights takes 2w operations a vector forwards; for a trained part the way back takes 4w more
    (Kaplan et al. 2020). Tables of embeddings are looked up, not multiplied, and left out.

    Attributes:
        token: weights that every token passes through, trained and frozen.
        row: weights that one vector a row passes through, as in a pooler or a classifier's head.
        attention: width of all heads, summed over layers: each takes 4 operations a pair of tokens and unit of width.
    """

    token: tuple[int, int] = (0, 0)
    row: tuple[int, int] = (0, 0)
    attention: tuple[int, int] = (0, 0)

    def training(
        self, lengths: Sequence[int] | np.ndarray, frozen: Sequence[int] | np.ndarray | None = None
    ) -> dict[str, float]:
        """Returns the operations of training on rows of some lengths in tokens.

        Args:
            lengths: of each row of each step.
            frozen: of the rows that pass through the frozen weights, where that is not all of them each time.
        """
        return self._count(lengths, lengths if frozen is None else frozen, 6.0, 12.0)

    def prediction(self, lengths: Sequence[int] | np.ndarray) -> dict[str, float]:
        """Returns the operations of predicting rows of some lengths in tokens."""
        return self._count(lengths, lengths, 2.0, 4.0)

    def _count(
        self,
        lengths: Sequence[int] | np.ndarray,
        frozen: Sequence[int] | np.ndarray,
        weight: float,
        attention: float,
    ) -> dict[str, float]:
        found = {"weights": 0.0, "attention": 0.0}
        for of, rows, a_weight, a_pair in ((0, lengths, weight, attention), (1, frozen, 2.0, 4.0)):
            each = np.asarray(rows, np.float64)
            found["weights"] += a_weight * (self.token[of] * float(each.sum()) + self.row[of] * len(each))
            found["attention"] += a_pair * self.attention[of] * float((each**2).sum())
        return found


def of_keras(model: Any) -> Flop:
    """Returns the counts of a text model of Keras' and KerasHub's layers. Call after `backend.activate`."""
    found = {"token": [0, 0], "row": [0, 0], "attention": [0, 0]}
    _walk(model, "token", found)
    return Flop(*((value[0], value[1]) for value in found.values()))


def _walk(model: Any, kind: str, found: dict[str, list[int]]) -> None:
    import keras

    # ALBERT sends its tokens through one layer many times. A layer's own nodes may be those of other models too.
    calls = Counter(id(node.operation) for nodes in model._nodes_by_depth.values() for node in nodes)
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _walk(layer, kind, found)
        else:
            _add(layer, "row" if _is_pooled(layer) else kind, calls[id(layer)], found)


def _is_pooled(layer: Any) -> bool:
    tensors = layer._inbound_nodes[0].input_tensors if layer._inbound_nodes else []
    return bool(tensors) and len(tensors[0].shape) == 2 and "int" not in str(tensors[0].dtype)


def _add(layer: Any, kind: str, calls: int, found: dict[str, list[int]]) -> None:
    import keras

    trained = {id(variable) for variable in layer.trainable_weights}
    for variable in layer.weights:
        if variable.name == "kernel" and len(variable.shape) >= 2:
            found[kind][id(variable) not in trained] += calls * math.prod(variable.shape)
    for inner in layer._flatten_layers():
        if isinstance(inner, keras.layers.MultiHeadAttention):
            width = inner.num_heads * inner.key_dim
            found["attention"][not layer.trainable] += calls * width


def of_torch(model: Any) -> Flop:
    """Returns the counts of a text model of transformers: its linear layers; poolers and heads see one vector a row."""
    import torch

    tokens_out = "TokenClassification" in type(model).__name__
    found = {"token": [0, 0], "row": [0, 0], "attention": [0, 0]}
    backbone = dict(model.base_model.named_modules())
    inside = {id(module) for module in backbone.values()}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            is_row = "pooler" in name or (id(module) not in inside and not tokens_out)
            found["row" if is_row else "token"][not module.weight.requires_grad] += module.weight.numel()
    layers, width = getattr(model.config, "num_hidden_layers", 0), getattr(model.config, "hidden_size", 0)
    share = sum(1 for block in blocks(model) if any(p.requires_grad for p in block.parameters()))
    found["attention"] = [share * width, (layers - share) * width]
    return Flop(*((value[0], value[1]) for value in found.values()))


def blocks(model: Any) -> list[Any]:
    """Returns the repeated blocks of a model of transformers, lowest first."""
    import torch

    lists = [module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(max(lists, key=len, default=[]))
