"""Checkpoints that another backend wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kft.errors import RunFolderError

pytestmark = pytest.mark.backend

WIDTHS = {"tensorflow": (np.int32, np.uint32), "torch": (np.int64, np.uint32), "jax": (np.int64, np.int64)}


def model() -> Any:
    import keras

    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5, seed=2**31 - 1)])
    made.compile(optimizer=keras.optimizers.AdamW(1e-2), loss="mse")
    made.optimizer.build(made.trainable_variables)
    return made


def values(made: Any) -> list[np.ndarray]:
    import keras

    return [keras.ops.convert_to_numpy(variable) for variable in (*made.variables, *made.optimizer.variables)]


@pytest.fixture
def foreign(backend: str, tmp_path: Path) -> tuple[Path, Any]:
    """A checkpoint with whole numbers of another backend's width and without torch's generators; and its model."""
    from kft.tuning import checkpoint

    made = model()
    for _ in range(2):
        made.train_on_batch(np.ones((2, 4), "float32"), np.ones((2, 3), "float32"))
    if hasattr(made, "jax_state_sync"):
        made.jax_state_sync()
    checkpoint.save(tmp_path / "checkpoint", made, checkpoint.Position(step=2))
    file = tmp_path / "checkpoint" / "state.safetensors"
    counter, seed = WIDTHS[backend]
    state = {name: array for name, array in load_file(str(file)).items() if not name.startswith("generator.")}
    for name, array in state.items():
        if array.dtype.kind in "iu":
            state[name] = array.astype(counter if name.startswith("optimizer.") else seed)
    save_file(state, str(file))
    return tmp_path / "checkpoint", made


def test_a_checkpoint_of_another_backend_is_restored(foreign: tuple[Path, Any]) -> None:
    from kft.tuning import checkpoint

    folder, trained = foreign
    fresh = model()
    checkpoint.restore(folder, fresh)
    assert int(fresh.optimizer.iterations) == 2
    for found, expected in zip(values(fresh), values(trained), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_a_checkpoint_of_other_shapes_is_refused(foreign: tuple[Path, Any]) -> None:
    import keras

    from kft.tuning import checkpoint

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
    other.compile(optimizer=keras.optimizers.AdamW(1e-2), loss="mse")
    with pytest.raises(RunFolderError, match="is of another model"):
        checkpoint.restore(foreign[0], other)
