"""In an environment with a GPU the backend has to see it."""

from __future__ import annotations

import os

import pytest

from kft import backend as backends

pytestmark = [pytest.mark.backend, pytest.mark.gpu]


@pytest.mark.skipif(os.environ.get("KFT_TEST_GPU") != "1", reason="KFT_TEST_GPU is not 1: no GPU is expected here")
def test_the_backend_computes_on_a_gpu(backend: str) -> None:
    import keras

    assert any(device.startswith("gpu") for device in backends.devices()), backends.devices()
    product = keras.ops.matmul(keras.ops.ones((4, 4)), keras.ops.ones((4, 4)))
    place = str(getattr(product, "device", "")).lower()
    assert "gpu" in place or "cuda" in place, place
