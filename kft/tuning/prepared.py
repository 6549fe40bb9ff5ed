"""What a training starts from; loads no backend itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kft.backbones.backbone import Backbone
from kft.data.encoded import Encoded
from kft.data.table import Splits
from kft.recipe import Recipe
from kft.tasks.targets import Target
from kft.tasks.task import Encoding, Task


@dataclass(frozen=True)
class Prepared:
    """What a recipe has become before it is trained: data as arrays, and a model.

    Attributes:
        recipe: with its input columns named.
        backend: what keras runs on.
        task: joins rows to examples.
        target: says what the outputs mean.
        names: the metrics.
        splits: raw.
        backbone: the part of the model that may be frozen.
        encoding: how raw columns became inputs.
        encoded: the splits as arrays, by name.
        model: a `keras.Model`, not compiled.
        class_weights: a factor for each class, or None.
    """

    recipe: Recipe
    backend: str
    task: Task
    target: Target
    names: tuple[str, ...]
    splits: Splits
    backbone: Backbone
    encoding: Encoding
    encoded: dict[str, Encoded]
    model: Any
    class_weights: tuple[float, ...] | None
