"""The gradient of a batch's loss, by each backend's own differentiation. Import after `backend.activate`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kft.comparison.parity_layers import as_array
from kft.data.batches import Batch


def gradients(model: Any, batch: Batch) -> tuple[float, list[np.ndarray]]:
    """Returns the training loss of a batch and its gradient for each trainable weight, in the model's order.

    The model is called in training mode, so normalization statistics move on and dropouts count a call.

    Args:
        model: compiled, for its loss.
        batch: inputs, targets and weights.
    """
    found = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}[keras.backend.backend()](model, batch)
    loss, slopes = found
    shapes = [tuple(weight.shape) for weight in model.trainable_variables]
    filled = zip(slopes, shapes, strict=True)
    return float(as_array(loss)), [np.zeros(shape) if slope is None else as_array(slope) for slope, shape in filled]


def _loss(model: Any, batch: Batch) -> Any:
    inputs, targets, weights = batch
    outputs = model(inputs, training=True)
    return model.compute_loss(inputs, ops.convert_to_tensor(targets), outputs, ops.convert_to_tensor(weights))


def _torch(model: Any, batch: Batch) -> tuple[Any, list[Any]]:
    model.zero_grad()
    loss = _loss(model, batch)
    loss.backward()
    slopes = [weight.value.grad for weight in model.trainable_variables]
    slopes = [None if slope is None else slope.detach().clone() for slope in slopes]
    model.zero_grad()
    return loss.detach(), slopes


def _tensorflow(model: Any, batch: Batch) -> tuple[Any, list[Any]]:
    import tensorflow

    with tensorflow.GradientTape() as tape:
        loss = _loss(model, batch)
    slopes = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
    # The gradient of an embedding comes token by token.
    return loss, [None if slope is None else tensorflow.convert_to_tensor(slope) for slope in slopes]


def _jax(model: Any, batch: Batch) -> tuple[Any, list[Any]]:
    import jax

    def loss(trainable: list[Any], others: list[Any]) -> Any:
        state = [*zip(model.trainable_variables, trainable, strict=True)]
        state += zip(model.non_trainable_variables, others, strict=True)
        with keras.StatelessScope(state_mapping=state) as scope:
            value = _loss(model, batch)
        return value, [scope.get_current_value(variable) for variable in model.non_trainable_variables]

    values = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    (value, moved), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(values, others)
    for variable, new in zip(model.non_trainable_variables, moved, strict=True):
        if new is not None:
            variable.assign(new)
    return value, slopes
