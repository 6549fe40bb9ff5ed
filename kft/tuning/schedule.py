"""The learning rate over the steps of a run. Import after `backend.activate`."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable("kft")
class WarmupDecay(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Rises linearly to a peak, then falls linearly or by a cosine to zero at the last step, or stays.

    The linear form is that of BERT (Devlin et al. 2019), the cosine that of SGDR without restarts (Loshchilov and Hutter
    2017).

    Args:
        peak: the highest learning rate.
        steps: the number of steps of the run.
        warmup_steps: the number of steps it rises over.
        decay: linear, cosine or constant.
    """

    def __init__(self, peak: float, steps: int, warmup_steps: int = 0, decay: str = "linear") -> None:
        super().__init__()
        self.peak, self.steps, self.warmup_steps, self.decay = peak, steps, warmup_steps, decay

    def __call__(self, step: Any) -> Any:
        """Returns the learning rate at a step, counted from 0."""
        ops = keras.ops
        now = ops.cast(step, "float32")
        rise = (now + 1) / max(1, self.warmup_steps)
        left = ops.clip((self.steps - now) / max(1, self.steps - self.warmup_steps), 0.0, 1.0)
        if self.decay == "cosine":
            left = 0.5 * (1 - ops.cos(3.141592653589793 * left))
        elif self.decay == "constant":
            left = ops.ones_like(now)
        return self.peak * ops.where(now < self.warmup_steps, rise, left)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for saving."""
        return {"peak": self.peak, "steps": self.steps, "warmup_steps": self.warmup_steps, "decay": self.decay}
