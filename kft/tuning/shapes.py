"""What the active backend pads batches to. Import after `backend.activate`."""

from __future__ import annotations

import keras

from kft import backend

TENSOR_CORES = 8  # GPUs multiply matrices fastest whose sides are multiples of this
CACHED = 2048  # tokens whose activations a processor's cache still holds a part of


def multiple() -> int | None:
    """Returns the number of tokens whose multiples batches are padded to, or None for the ladder of few lengths.

    A backend that compiles each shape (jax, and tensorflow on a GPU, by XLA) takes the ladder; the others pad to the
    longest row of the batch.
    """
    name, on_gpu = keras.backend.backend(), any(device.startswith("gpu") for device in backend.devices())
    if name == "jax" or (name == "tensorflow" and on_gpu):
        return None
    return TENSOR_CORES if on_gpu else 1


def rows_at_once(batch_size: int, length: int) -> int:
    """Returns how many rows of a batch to predict at once: a divisor of its size, since each size is a shape.

    Without gradients to keep, torch and jax compute a batch on a CPU faster in pieces that stay in its cache; TensorFlow
    and GPUs are faster with all of it.

    Args:
        batch_size: rows of the whole batch.
        length: tokens a row, 0 where rows are no tokens.
    """
    on_gpu = any(device.startswith("gpu") for device in backend.devices())
    if on_gpu or keras.backend.backend() == "tensorflow" or not length:
        return batch_size
    divisors = [rows for rows in range(1, batch_size + 1) if batch_size % rows == 0]
    return max([rows for rows in divisors if rows * length <= CACHED], default=1)
