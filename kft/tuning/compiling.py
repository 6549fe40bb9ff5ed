"""Optimizer, loss and schedule by Keras' own names. Import after `backend.activate`."""

from __future__ import annotations

from typing import Any

import keras

from kft.recipe import Train
from kft.tasks.targets import Target
from kft.tuning.schedule import WarmupDecay


def compile_model(model: Any, train: Train, target: Target, steps: int, learning_rate: float | None = None) -> None:
    """Compiles a model as a recipe says; its loss is the mean over weights, not over rows.

    Args:
        model: gives logits.
        train: the recipe's train section.
        target: decides the loss.
        steps: batches of the whole training, for the schedule.
        learning_rate: peak rate, where it is not the recipe's.
    """
    schedule = WarmupDecay(
        learning_rate or train.learning_rate, steps, warmup_steps(train.warmup, steps), train.schedule
    )
    model.compile(optimizer=optimizer(model, train, schedule), loss=loss(target, train.label_smoothing))
    # TensorFlow would trace the whole step twice, the first time only to make the optimizer's variables.
    model.optimizer.build(model.trainable_variables)
    if keras.backend.backend() == "jax":
        from kft.tuning import jax_step

        jax_step.part(model)


def warmup_steps(warmup: float, steps: int) -> int:
    """Returns the number of steps a warmup takes: a share of all steps below 1, else the number itself."""
    return round(warmup * steps) if warmup < 1 else min(int(warmup), steps)


def optimizer(model: Any, train: Train, schedule: Any) -> Any:
    """Returns the recipe's optimizer; biases and normalization are left out of weight decay."""
    options: dict[str, Any] = {
        "learning_rate": schedule,
        "global_clipnorm": train.clip_norm,
        "gradient_accumulation_steps": train.gradient_accumulation if train.gradient_accumulation > 1 else None,
    }
    kinds, decay = keras.optimizers, {"weight_decay": train.weight_decay or None}
    choices: dict[str, tuple[Any, dict[str, Any]]] = {
        "adamw": (kinds.AdamW, {"weight_decay": train.weight_decay, "epsilon": train.epsilon}),
        "adam": (kinds.Adam, {"epsilon": train.epsilon}),
        "sgd": (kinds.SGD, {"momentum": 0.9, **decay}),
        "lion": (kinds.Lion, decay),
        "adafactor": (kinds.Adafactor, decay),
    }
    kind, own = choices[train.optimizer]
    made = _for_backend(kind)(**own, **options)
    if made.weight_decay:
        made.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if _is_exempt(v)])
    return made


def _for_backend(kind: Any) -> Any:
    if keras.backend.backend() == "tensorflow":
        return _summing(kind)
    if keras.backend.backend() == "torch" and kind in (keras.optimizers.Adam, keras.optimizers.AdamW):
        from kft.tuning.fused_adam import fused

        return fused(kind)
    return kind


def _summing(kind: Any) -> Any:
    """Returns an optimizer class whose gradients are one sum a weight, on every backend.

    TensorFlow gives the gradient of an embedding token by token, and Keras squares the parts apart, in the global norm
    and in Adam: a token that comes twice in a batch would count otherwise than on jax and torch.
    """
    import tensorflow

    class Summing(kind):  # type: ignore[misc]
        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            # As float32, since the norm of gradients of several types could not be multiplied with each of them.
            whole = [None if g is None else tensorflow.cast(tensorflow.convert_to_tensor(g), "float32") for g in grads]
            super().apply(whole, trainable_variables)

    return Summing


def _is_exempt(variable: Any) -> bool:
    """Says whether a weight is a bias or a normalization's; attention biases have two dimensions, so names count too."""
    return len(variable.shape) < 2 or variable.name in ("bias", "gamma", "beta", "scale")


def loss(target: Target, label_smoothing: float = 0.0) -> Any:
    """Returns the loss of a kind of target, on logits, as the weighted mean."""
    losses = keras.losses
    mean = "mean_with_sample_weight"
    if target.kind == "values":
        return losses.MeanSquaredError(reduction=mean)
    if target.kind == "multi_label":
        return losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing, reduction=mean)
    if label_smoothing:
        return losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing, reduction=mean)
    return losses.SparseCategoricalCrossentropy(from_logits=True, reduction=mean)
