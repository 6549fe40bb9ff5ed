"""A SavedModel as TensorFlow runs it, with weights that come from outside. Import after `backend.activate`."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from kft.backbones.saved_model import FILE
from kft.errors import ModelError, listed

DEFAULT = "serving_default"


@dataclass(frozen=True)
class Record:
    """What TensorFlow remembers of a forward pass.

    Attributes:
        tape: recorded it.
        outputs: what it gave, the sum of regularization losses last.
        inputs: what it was given.
    """

    tape: Any
    outputs: list[Any]
    inputs: list[Any]


class Graph:
    """A SavedModel with the interface of TF-Hub's reusable models, or with a signature.

    The first is an object that is called with its inputs and perhaps with `training`, and has `variables`,
    `trainable_variables` and `regularization_losses`
    (https://www.tensorflow.org/hub/reusable_saved_models); of a signature, the variables that it reads are taken.

    Args:
        folder: has `saved_model.pb` and `variables`.
        signature: the one to call, or None for the object itself, else `serving_default`, else the only one.

    Attributes:
        trained: the variables that may be trained, in their own order.
        kept: the other variables of real numbers, such as moving averages.
        inputs: a `tf.TensorSpec`, or several in the list or dict that the model takes.
        structure: that of the outputs, with zeros in their places.

    Raises:
        ModelError: if TensorFlow cannot load it, or it cannot be called with tensors of numbers.
    """

    def __init__(self, folder: Path, signature: str | None = None) -> None:
        self.folder, self.lock = folder, threading.RLock()
        if keras.backend.backend() != "tensorflow":
            for gpu in tf.config.list_physical_devices("GPU"):  # which the backend computes on as well
                tf.config.experimental.set_memory_growth(gpu, True)
        try:
            self._loaded = self._load()
        except Exception as error:
            reason = " ".join(str(error).split())[:240]
            raise ModelError(f"TensorFlow cannot load the SavedModel '{folder}': {reason}") from None
        self._signature, self._function = self._choose(signature)
        concrete = self._function if self._signature else self._function.concrete_functions[0]
        positional, named = concrete.structured_input_signature
        self.inputs = named if self._signature else positional[0]
        self.structure = tf.nest.map_structure(lambda _: 0, concrete.structured_outputs)
        self._by_training = not self._signature and self._takes_training()
        texts = [spec.name for spec in tf.nest.flatten(self.inputs) if spec.dtype == tf.string]
        if texts:
            raise ModelError(
                f"The SavedModel '{folder}' takes strings ('{texts[0]}'), which jax and torch do not have. Give an encoder "
                "that takes token ids, and its tokenizer as model.tokenizer."
            )
        self.trained, self.kept = self._variables()

    def _load(self) -> Any:
        try:
            return tf.saved_model.load(str(self.folder))
        except AttributeError as error:
            if "add_slot" not in str(error):
                raise
        # It was saved with an optimizer of a Keras that is not here, and whose moments nobody asks for.
        with tempfile.TemporaryDirectory(prefix="kft-") as name:
            return self._load_without_optimizer(Path(name))

    def _load_without_optimizer(self, place: Path) -> Any:
        for entry in self.folder.iterdir():
            if entry.name != FILE:
                (place / entry.name).symlink_to(entry.resolve())
        whole, logger = saved_model_pb2.SavedModel.FromString((self.folder / FILE).read_bytes()), tf.get_logger()
        for graph in whole.meta_graphs:
            for node in graph.object_graph_def.nodes:
                del node.slot_variables[:]
        (place / FILE).write_bytes(whole.SerializeToString())
        level = logger.level
        logger.setLevel("ERROR")  # it would name every moment
        try:
            return tf.saved_model.load(str(place))
        finally:
            logger.setLevel(level)

    def _choose(self, signature: str | None) -> tuple[str, Any]:
        """Returns the name of the signature that is called, empty for the object itself, and what to call."""
        signatures = dict(getattr(self._loaded, "signatures", {}))
        called: Any = self._loaded.__call__ if callable(self._loaded) else None
        if signature is None and getattr(called, "concrete_functions", None):
            return "", called
        name = signature or (DEFAULT if DEFAULT in signatures else next(iter(signatures), ""))
        if name not in signatures or (signature is None and name != DEFAULT and len(signatures) > 1):
            there = listed(sorted(signatures)) if signatures else "none"
            raise ModelError(
                f"The SavedModel '{self.folder}' has no signature '{name or DEFAULT}' and cannot be called as it is. "
                f"Its signatures: {there}."
            )
        return name, signatures[name]

    def _takes_training(self) -> bool:
        first = self._function.concrete_functions[0]
        return "training" in first.structured_input_signature[1] or "training" in (
            getattr(self._function.function_type, "parameters", None) or ()
        )

    def _variables(self) -> tuple[list[Any], list[Any]]:
        source: Any = self._function if self._signature else self._loaded
        every: list[Any] = list(getattr(source, "variables", None) or getattr(self._loaded, "variables", None) or ())
        if self._signature:
            trained = [variable for variable in every if variable.trainable]
        else:
            trained = list(getattr(self._loaded, "trainable_variables", None) or ())
        trained = list({variable.ref(): variable for variable in trained if variable.dtype.is_floating}.values())
        known = {variable.ref() for variable in trained}
        kept = {variable.ref(): variable for variable in every if variable.dtype.is_floating}
        return trained, [variable for ref, variable in kept.items() if ref not in known]

    def __call__(self, inputs: Any, training: bool) -> Any:
        """Returns what the model gives, in its own structure, with its variables as they are."""
        if self._signature:
            return self._function(**inputs)
        return self._function(inputs, training=training) if self._by_training else self._function(inputs)

    @property
    def penalizes(self) -> bool:
        """Whether the model has regularization losses."""
        return bool(self._losses)

    @property
    def _losses(self) -> list[Any]:
        return [] if self._signature else list(getattr(self._loaded, "regularization_losses", None) or ())

    def penalty(self) -> Any:
        """Returns the sum of the model's regularization losses, float32."""
        losses = [tf.cast(loss(), tf.float32) for loss in self._losses]
        return tf.add_n(losses) if losses else tf.zeros((), tf.float32)

    def outputs(self, inputs: Any) -> Any:
        """Returns a `tf.TensorSpec` for each output, in the model's own structure.

        Args:
            inputs: a `tf.TensorSpec` for each input; sides may be None.
        """
        traced = tf.function(lambda given: self(given, False)).get_concrete_function(inputs)
        return tf.nest.map_structure(
            lambda output: tf.TensorSpec(output.shape, output.dtype), traced.structured_outputs
        )

    def assign(self, trained: Sequence[Any], kept: Sequence[Any]) -> None:
        """Gives the model's variables values from outside: arrays, or tensors of TensorFlow's."""
        for variable, value in zip([*self.trained, *self.kept], [*trained, *kept], strict=True):
            variable.assign(value)

    def compute(self, inputs: Sequence[Any], training: bool) -> list[Any]:
        """Returns the outputs one after the other, and the penalty last.

        Args:
            inputs: tensors of TensorFlow's, one after the other.
            training: whether the model drops out and updates its moving averages.
        """
        given = tf.nest.pack_sequence_as(self.inputs, list(inputs))
        return [*tf.nest.flatten(self(given, training)), self.penalty()]

    def remember(self, inputs: Sequence[Any], training: bool) -> Record:
        """Does what `compute` does so that `slopes` can be asked for."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*self.trained, *(tensor for tensor in inputs if tensor.dtype.is_floating)])
            outputs = self.compute(inputs, training)
        return Record(tape, outputs, list(inputs))

    def slopes(self, record: Record, outer: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the gradients of the trained variables and of the inputs, None for inputs of whole numbers.

        Args:
            record: what `remember` returned; it is used up.
            outer: the gradient of each output, those of whole numbers left as they are.
        """
        real = [place for place, output in enumerate(record.outputs) if output.dtype.is_floating]
        floating = [tensor for tensor in record.inputs if tensor.dtype.is_floating]
        found = record.tape.gradient(
            [record.outputs[place] for place in real],
            [*self.trained, *floating],
            [tf.cast(outer[place], record.outputs[place].dtype) for place in real],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        dense = [tf.convert_to_tensor(slope) for slope in found]
        rest = iter(dense[len(self.trained) :])
        inputs = [next(rest) if tensor.dtype.is_floating else None for tensor in record.inputs]
        return dense[: len(self.trained)], inputs
