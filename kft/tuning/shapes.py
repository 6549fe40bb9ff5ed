"""What the active backend pads batches to. Import after `backend.activate`."""

from __future__ import annotations

import keras

from kft import backend

TENSOR_CORES = 8  # GPUs multiply matrices fastest whose sides are multiples of this


def multiple() -> int | None:
    """Returns the number of tokens whose multiples batches are padded to, or None for the ladder of few lengths.

    A backend that compiles each shape (jax, and tensorflow on a GPU, by XLA) takes the ladder; the others pad to the
    longest row of the batch.
    """
    name, on_gpu = keras.backend.backend(), any(device.startswith("gpu") for device in backend.devices())
    if name == "jax" or (name == "tensorflow" and on_gpu):
        return None
    return TENSOR_CORES if on_gpu else 1
