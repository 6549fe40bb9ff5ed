"""AdamW in one pass against Keras' own, step by step."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
@pytest.mark.parametrize("clip", [1.0, None])
def test_steps_are_those_of_keras(backend: str, name: str, clip: float | None) -> None:
    if backend != "torch":
        pytest.skip("the fused kernel is torch's")
    import keras
    import torch

    from kft.tuning.fused_adam import fused

    kind = getattr(keras.optimizers, name)
    found = []
    for optimizer_kind in (kind, fused(kind)):
        rng = np.random.default_rng(0)
        weights = [keras.Variable(rng.normal(size=s).astype("float32")) for s in ((300, 40), (40,), (7, 5, 3), ())]
        options = {"weight_decay": 0.1} if name == "AdamW" else {}
        optimizer = optimizer_kind(learning_rate=1e-2, epsilon=1e-8, global_clipnorm=clip, **options)
        if options:
            optimizer.exclude_from_weight_decay(var_list=[weights[1]])
        for step in range(30):
            size = 0.01 if step % 2 else 10
            gradients = [torch.tensor(size * rng.normal(size=w.shape), dtype=torch.float32) for w in weights]
            optimizer.apply(gradients, weights)
        found.append([keras.ops.convert_to_numpy(weight) for weight in weights])
    for fast, plain in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(fast, plain, atol=1e-5)


def test_the_norm_of_millions_of_numbers_is_exact(backend: str) -> None:
    if backend != "torch":
        pytest.skip("the fused kernel is torch's")
    import torch

    from kft.tuning.fused_adam import _norm

    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 1e-3, (30000, 384)).astype("float32"), rng.normal(size=384).astype("float32")]
    exact = np.sqrt(sum(np.square(array.astype(np.float64)).sum() for array in arrays))
    assert float(_norm([torch.from_numpy(array) for array in arrays])) == pytest.approx(exact, rel=1e-6)
