"""The formats a finished run can be handed on in."""

from __future__ import annotations

from kft.registry import Part, Registry

EXPORTERS = Registry(
    "format",
    "kft.exporters",
    {
        "huggingface": Part(
            "kft.exporters.hugging_face:write",
            "a folder that transformers opens, with the task's head, and a model card",
            needs=("keras", "keras_hub"),
            extra="jax",
        ),
    },
)
