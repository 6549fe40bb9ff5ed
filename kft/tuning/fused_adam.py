"""Adam and AdamW on torch in one pass over each weight. Import after `backend.activate("torch")`."""

from __future__ import annotations

from typing import Any

import torch


def fused(kind: Any) -> Any:
    """Returns Keras' Adam or AdamW with torch's fused kernel: the same update, clipping and decay in the same pass.

    Keras adds epsilon to the root of the raw second moment, torch to that of the corrected one; epsilon is scaled for
    each step so that both are one formula.

    Args:
        kind: `keras.optimizers.Adam` or `keras.optimizers.AdamW`.
    """

    class Fused(kind):  # type: ignore[misc]
        def _clip_gradients(self, grads: Any) -> Any:
            self._norm = None
            if not self.global_clipnorm:
                return super()._clip_gradients(grads)
            # The kernel divides by it, which saves a pass over all gradients.
            self._norm = (_norm(grads) / self.global_clipnorm).clamp_(min=1.0)
            return grads

        def _apply_weight_decay(self, variables: Any) -> None:
            """The kernel does it."""

        def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
            pairs = list(zip(grads, trainable_variables, strict=True))
            decay = float(self.weight_decay or 0.0)
            groups = [(decay, [p for p in pairs if self._use_weight_decay(p[1])])] if decay else [(0.0, pairs)]
            if decay:
                groups.append((0.0, [p for p in pairs if not self._use_weight_decay(p[1])]))
            for rate, group in groups:
                if group:
                    with torch.no_grad():
                        self._step(group, float(learning_rate), rate)

        def _step(self, pairs: Any, learning_rate: float, decay: float) -> None:
            index = [self._get_variable_index(variable) for _, variable in pairs]
            step = int(self.iterations) + 1
            weights = [variable.value for _, variable in pairs]
            torch._fused_adamw_(
                weights,
                [gradient for gradient, _ in pairs],
                [self._momentums[i].value for i in index],
                [self._velocities[i].value for i in index],
                [],
                [torch.tensor(float(step), device=weights[0].device)] * len(pairs),
                lr=learning_rate,
                beta1=self.beta_1,
                beta2=self.beta_2,
                weight_decay=decay,
                eps=self.epsilon / (1 - self.beta_2**step) ** 0.5,
                amsgrad=False,
                maximize=False,
                grad_scale=self._norm,
                found_inf=None,
            )

    return Fused


def _norm(tensors: Any) -> Any:
    """Returns the norm over several tensors, row by row: torch adds up a tensor of millions in float32 as it comes."""
    rows = [torch.linalg.vector_norm(t.reshape(-1, t.shape[-1] if t.ndim else 1), dim=1) for t in tensors]
    return torch.linalg.vector_norm(torch.cat(rows))
