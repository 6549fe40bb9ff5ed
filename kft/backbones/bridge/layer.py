"""A SavedModel as a Keras layer on every backend. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from kft.backbones.bridge.graph import Graph

_moved: dict[str, Path] = {}


@contextlib.contextmanager
def lying_in(folder: Path) -> Iterator[None]:
    """Has layers that are loaded in the block take their SavedModel from a folder, wherever it lay when they were saved."""
    _moved["folder"] = folder
    try:
        yield
    finally:
        del _moved["folder"]


@keras.saving.register_keras_serializable(package="kft")
class SavedModelLayer(keras.layers.Layer):  # type: ignore[misc]
    """Calls a TensorFlow SavedModel; its weights are Keras variables like any other's.

    They are trained by any Keras optimizer, frozen by `trainable = False`, counted and saved. TensorFlow computes outputs and
    gradients on every backend, so it has to be installed: on tensorflow within the step, on torch with the same memory
    for both, on jax, also under `jit`, by a callback. It computes in float32.

    A SavedModel is a program: load none whose maker you do not trust.

    Args:
        folder: has `saved_model.pb` and `variables`.
        signature: the one to call, where the SavedModel cannot be called as it is, or not by that.
        **options: of every Keras layer.

    Attributes:
        trained: the variables that may be trained.
        kept: the others, such as moving averages.

    Raises:
        ModelError: if TensorFlow cannot load it, or it takes strings.
    """

    def __init__(self, folder: str | Path, signature: str | None = None, **options: Any) -> None:
        super().__init__(**{**options, "dtype": "float32", "autocast": False})
        self.folder, self.signature = Path(folder), signature
        graph = Graph(self.folder, signature)
        if keras.backend.backend() == "tensorflow":
            self.supports_jit = False  # XLA does not know every operation of a foreign graph
        self.trained = [self._variable(variable, trainable=True) for variable in graph.trained]
        self.kept = [self._variable(variable, trainable=False) for variable in graph.kept]
        backend = importlib.import_module(f"kft.backbones.bridge.{keras.backend.backend()}")
        self._calling = backend.Call(graph)
        self.built = True

    @property
    def takes(self) -> Any:
        """The inputs as `tf.TensorSpec`s, in the SavedModel's own structure."""
        return self._calling.graph.inputs

    def _variable(self, variable: Any, *, trainable: bool) -> Any:
        *scopes, name = variable.name.partition(":")[0].split("/")
        with contextlib.ExitStack() as stack:
            for scope in (self.name, *filter(None, scopes)):
                stack.enter_context(keras.name_scope(scope))
            made = keras.Variable(
                "zeros", shape=variable.shape, dtype=variable.dtype.name, trainable=trainable, autocast=False, name=name
            )
        if keras.backend.backend() == "tensorflow":
            made._initialize(variable)  # the graph's own: nothing is copied
        else:
            made.assign(variable.numpy())
        return made

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the variables are there."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the SavedModel's outputs, in its own structure.

        Args:
            inputs: tensors in the structure that the SavedModel takes; whole numbers of another width are brought to its.
            training: whether it drops out and updates its moving averages; a frozen layer does not.
        """
        graph = self._calling.graph
        flat = [
            keras.ops.cast(tensor, spec.dtype.name)
            for tensor, spec in zip(self._flat(inputs), tf.nest.flatten(graph.inputs), strict=True)
        ]
        values = [[variable.value for variable in group] for group in (self.trained, self.kept)]
        found, kept = self._calling(flat, *values, bool(training and self.trainable))
        for variable, value in zip(self.kept, kept, strict=False):
            variable.assign(value)
        if graph.penalizes:
            self.add_loss(found[-1])
        return tf.nest.pack_sequence_as(graph.structure, found[:-1])

    def _flat(self, inputs: Any) -> list[Any]:
        tf.nest.assert_same_structure(self._calling.graph.inputs, inputs, check_types=False)
        return list(tf.nest.flatten(inputs))

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns a `keras.KerasTensor` for each output."""
        specs = [
            tf.TensorSpec(tensor.shape, spec.dtype, spec.name)
            for tensor, spec in zip(self._flat(inputs), tf.nest.flatten(self._calling.graph.inputs), strict=True)
        ]
        outputs = self._calling.graph.outputs(tf.nest.pack_sequence_as(self._calling.graph.inputs, specs))
        return tf.nest.map_structure(lambda o: keras.KerasTensor(o.shape.as_list(), o.dtype.name), outputs)

    def get_config(self) -> dict[str, Any]:
        """Returns what the layer is made of."""
        return {**super().get_config(), "folder": str(self.folder), "signature": self.signature}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Makes the layer anew."""
        config = {name: value for name, value in config.items() if name != "dtype"}
        return cls(**{**config, **_moved})
