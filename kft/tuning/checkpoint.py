"""The state of a training that was cut off, so that it goes on at the same step. Import after `backend.activate`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

from kft.errors import RunFolderError
from kft.rundir import explained

GENERATOR = "generator."


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        stage: the stage, counted from 0.
        epoch: epochs finished over all stages.
        batch: batches finished in the epoch that has begun.
        step: batches finished over the whole run.
        best: the best value of the watched metric, or None.
        waited: epochs since then.
        stopped: whether early stopping ended the present stage.
        scores: validation metrics of the weights that will be kept.
    """

    stage: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float | None = None
    waited: int = 0
    stopped: bool = False
    scores: dict[str, float] = field(default_factory=dict)


def save(folder: Path, model: Any, position: Position, beside: Sequence[Any] = ()) -> None:
    """Writes weights, optimizer and random states, and the position; the old checkpoint stays until the new is whole.

    Args:
        folder: where it goes.
        model: compiled.
        position: where the training stands.
        beside: further variables.
    """
    with explained(folder.parent):
        temporary = Path(tempfile.mkdtemp(prefix=".checkpoint-", dir=folder.parent))
        try:
            save_file(_state(model, beside), str(temporary / "state.safetensors"))
            (temporary / "position.json").write_text(json.dumps(asdict(position)), encoding="utf8")
            old = folder.with_name(".checkpoint-old")
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.replace(old)
            temporary.replace(folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def position_of(folder: Path) -> Position | None:
    """Returns the position of a checkpoint, or None if there is no checkpoint."""
    for place in (folder, folder.with_name(".checkpoint-old")):
        if (place / "position.json").exists():
            return Position(**json.loads((place / "position.json").read_text(encoding="utf8")))
    return None


def restore(folder: Path, model: Any, beside: Sequence[Any] = ()) -> None:
    """Puts a checkpoint's weights, optimizer and random states into a compiled model, also one of another backend.

    Variables come in the same order on every backend; counters and random states are whole numbers of other widths. What
    torch draws from its own generators has no counterpart elsewhere, and begins anew where a checkpoint has none.

    Args:
        folder: what `save` wrote.
        model: compiled as that model was.
        beside: further variables, those that were given to `save`.

    Raises:
        RunFolderError: if it is of another model.
    """
    state = _read(folder)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = _variables(model, beside)
    kept = {name: array.shape for name, array in state.items() if not name.startswith(GENERATOR)}
    if kept != {name: tuple(variable.shape) for name, variable in variables.items()}:
        raise RunFolderError(
            f"The checkpoint in '{folder}' is of another model, or of another version of kft: it cannot be resumed with this "
            "recipe. Start a new run."
        )
    for name, variable in variables.items():
        _assign(variable, state[name])
    set_generators(state)


def restore_weights(folder: Path, model: Any, beside: Sequence[Any] = ()) -> bool:
    """Puts a checkpoint's weights into a model that may be compiled for another stage.

    Args:
        folder: what `save` wrote.
        model: gets the weights.
        beside: further variables, which keep what they have if the checkpoint is of a stage without them.

    Returns:
        Whether the checkpoint has the further variables.
    """
    state = _read(folder)
    further = {name: variable for name, variable in _named("beside", beside).items() if name in state}
    for name, variable in (_named("model", model.variables) | further).items():
        _assign(variable, state[name])
    return bool(further)


def _assign(variable: Any, array: np.ndarray) -> None:
    """Whole numbers are brought to the variable's width first: not every backend takes those of the others."""
    if array.dtype.kind in "iu":
        array = array.astype(keras.backend.standardize_dtype(variable.dtype))
    variable.assign(array)


def _read(folder: Path) -> dict[str, np.ndarray]:
    if not (folder / "state.safetensors").exists():
        folder = folder.with_name(".checkpoint-old")
    found: dict[str, np.ndarray] = load_file(str(folder / "state.safetensors"))
    return found


def _variables(model: Any, beside: Sequence[Any]) -> dict[str, Any]:
    return _named("model", model.variables) | _named("optimizer", model.optimizer.variables) | _named("beside", beside)


def _named(kind: str, variables: Sequence[Any]) -> dict[str, Any]:
    return {f"{kind}.{i}": variable for i, variable in enumerate(variables)}


def _state(model: Any, beside: Sequence[Any]) -> dict[str, np.ndarray]:
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    return {name: array_of(variable) for name, variable in _variables(model, beside).items()} | generators()


def generators() -> dict[str, np.ndarray]:
    """Returns the states of torch's own generators, from which its dropout draws; elsewhere variables are all there is."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    return {f"{GENERATOR}{place}": state.numpy() for place, state in enumerate(states)}


def set_generators(state: dict[str, np.ndarray]) -> None:
    """Puts back what `generators` returned; does nothing with a state that another backend left."""
    if keras.backend.backend() != "torch" or f"{GENERATOR}0" not in state:
        return
    import torch

    torch.set_rng_state(torch.from_numpy(state[f"{GENERATOR}0"]))
    for place in range(torch.cuda.device_count()):
        if f"{GENERATOR}{place + 1}" in state:
            torch.cuda.set_rng_state(torch.from_numpy(state[f"{GENERATOR}{place + 1}"]), place)


def array_of(variable: Any) -> np.ndarray:
    """Returns a variable's value in the layout that safetensors writes, to be used before the next step.

    It shares the variable's memory where the backend lets it, and keeps scalars, unlike `ascontiguousarray`.
    """
    if keras.backend.backend() == "tensorflow" and keras.backend.standardize_dtype(variable.dtype) != "bfloat16":
        value = variable.value
        return np.asarray(memoryview(value.read_value() if hasattr(value, "read_value") else value))
    return np.asarray(keras.ops.convert_to_numpy(variable), order="C")
