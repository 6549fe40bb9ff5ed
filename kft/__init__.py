"""Fine-tunes pretrained Keras 3 models: one recipe, unchanged on TensorFlow, PyTorch and JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kft.api import Run as Run
    from kft.api import build_model as build_model
    from kft.api import encode as encode
    from kft.api import load_backbone as load_backbone
    from kft.api import load_data as load_data
    from kft.api import load_run as load_run
    from kft.api import published_classifier as published_classifier
    from kft.api import run as run
    from kft.api import use_backend as use_backend
    from kft.errors import KftError as KftError

__version__ = "0.2.0"

__all__ = [
    "KftError",
    "Run",
    "__version__",
    "build_model",
    "encode",
    "load_backbone",
    "load_data",
    "load_run",
    "published_classifier",
    "run",
    "use_backend",
]
_PLACES = {name: "kft.errors" if name == "KftError" else "kft.api" for name in __all__ if name != "__version__"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'kft' has no attribute '{name}'. It has: {', '.join(__all__)}.")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
