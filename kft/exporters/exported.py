"""What every exporter takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kft.tasks.targets import Target
from kft.tasks.task import Encoding

# The tasks whose heads read each token, and what transformers calls the last layer of these.
EACH_TOKEN = {"token_classification": "classifier", "question_answering": "qa_outputs"}


@dataclass(frozen=True)
class Finished:
    """A finished run, as it is handed on.

    Attributes:
        model: the trained `keras.Model`, from inputs to logits.
        task: the name of its task.
        target: what its outputs mean.
        encoding: how raw text became its inputs.
        preset: the handle of the weights it started from, or None.
        report: what is in the run's `report.json`.
        recipe: its recipe as YAML.
    """

    model: Any
    task: str
    target: Target
    encoding: Encoding
    preset: str | None
    report: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""
