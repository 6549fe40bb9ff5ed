"""The training step on jax in two compiled parts. Import after `backend.activate("jax")`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras


def part(model: Any) -> None:
    """Has `fit` compile the gradients for each shape of batches, and the optimizer's update once for all.

    Keras compiles both together for each shape, and the update's many small loops take half of that time. Where a step is
    not compiled, is one of several in a call or is spread over devices, Keras' own is taken.

    Args:
        model: a compiled `keras.Model`.
    """

    def make_train_function(force: bool = False) -> None:
        several = model.steps_per_execution > 1 or keras.distribution.distribution() is not None
        if model.run_eagerly or not model.jit_compile or several:
            type(model).make_train_function(model, force)
        elif force or model.train_function is None:
            model.train_function = step(model)

    model.make_train_function = make_train_function


def step(model: Any) -> Callable[[Any, Iterator[Any]], tuple[Any, Any]]:
    """Returns what Keras calls for each batch.

    It takes the state (trained, other, optimizer's and metrics' variables) and an iterator over batches, and returns logs
    and the new state.
    """

    def slopes(trained: Any, other: Any, optimizer: Any, metrics: Any, data: Any) -> tuple[Any, Any, Any, Any]:
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        differentiated = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)
        (_, (loss, outputs, other, metrics)), gradients = differentiated(
            trained, other, metrics, x, y, weights, training=True, optimizer_variables=optimizer
        )
        logs, metrics = model._update_metrics_variables(metrics, loss, x, y, outputs, weights)
        return logs, gradients, other, metrics

    def update(trained: Any, optimizer: Any, gradients: Any) -> tuple[Any, Any]:
        found: tuple[Any, Any] = model.optimizer.stateless_apply(optimizer, gradients, trained)
        return found

    compiled_slopes = jax.jit(slopes, donate_argnums=(1, 3))
    compiled_update = jax.jit(update, donate_argnums=(0, 1))

    def call(state: Any, batches: Iterator[Any]) -> tuple[Any, Any]:
        trained, other, optimizer, metrics = state
        logs, gradients, other, metrics = compiled_slopes(trained, other, optimizer, metrics, next(batches))
        trained, optimizer = compiled_update(trained, optimizer, gradients)
        return logs, (trained, other, optimizer, metrics)

    call.parts = (compiled_slopes, compiled_update)  # type: ignore[attr-defined]
    return call
