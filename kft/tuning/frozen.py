"""Computes the frozen part of a model once: what it gives for each example is kept on disk. Import after activation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kft.data.batches import Batches
from kft.data.encoded import Array, Encoded, Ragged, kept
from kft.fetch import cache_folder
from kft.progress import Progress
from kft.rundir import free_bytes
from kft.tuning import predicting
from kft.tuning.trainable import RANDOM

SHARE_OF_DISK = 0.5  # of what is free, at most so much is taken


@dataclass(frozen=True)
class Cut:
    """A model in two, where what is trained begins.

    Attributes:
        lower: from the model's inputs to a dict of what crosses the cut; nothing in it is trained or random.
        upper: from that, and those inputs that it reads too, to logits; it shares the model's layers.
        names: what crosses the cut.
    """

    lower: Any
    upper: Any
    names: tuple[str, ...]


def cut(model: Any, inner: Any) -> Cut | None:
    """Returns a model cut in two below the first part that is trained, or None where nothing is to be gained.

    Args:
        model: backbone and head; what is trained has been set.
        inner: the backbone's `keras.Model`.
    """
    active = _active(model)
    if not any(id(t) in active for t in _outputs(model, inner)):
        crossing, raw = _frontier(keras.tree.flatten(model.output), active)
        return _in_two(model, crossing, raw) if crossing else None
    if any(id(tensor) in active for tensor in keras.tree.flatten(_call(model, inner).arguments.args[0])):
        return None  # something random, as augmentation, comes before the backbone
    still = _active(inner)
    return _through(model, inner, lambda tensor: id(tensor) not in still)


def above(model: Any, inner: Any, tensors: Sequence[Any]) -> Any:
    """Returns the part of a model above some tensors of its backbone's graph, or None where it cannot be cut there.

    Args:
        model: backbone and head.
        inner: the backbone's `keras.Model`.
        tensors: of its graph.

    Returns:
        A `keras.Model` from a dict of those of the tensors that are read, as `frozen_0` and so on, and of those of the
        model's inputs that are read beside them, to logits; it shares the model's layers.
    """
    found = _through(model, inner, lambda tensor: any(tensor is one for one in tensors))
    return None if found is None else found.upper


def _in_two(model: Any, crossing: list[Any], raw: list[Any]) -> Cut:
    rest = _between([*crossing, *raw], model.output)
    names, inputs = _inputs(crossing, raw)
    upper = keras.Model(inputs, rest([inputs[name] for name in (*names, *map(_name, raw))]))
    return Cut(keras.Model(model.input, dict(zip(names, crossing, strict=True))), upper, names)


def _through(model: Any, inner: Any, stops: Callable[[Any], bool]) -> Cut | None:
    """Cuts inside the backbone, which is one operation of the model."""
    node = _call(model, inner)
    # What the head reads of the backbone, and the same inside it.
    own = dict(zip(map(id, node.output_tensors), keras.tree.flatten(inner.output), strict=True))
    read, beside = _walk(keras.tree.flatten(model.output), lambda tensor: id(tensor) in own)
    outputs = [own[id(tensor)] for tensor in read]
    crossing, raw = _walk(outputs, stops)
    if not crossing or any(_name(tensor) not in model.input for tensor in (*raw, *beside)):
        return None
    names, inputs = _inputs(crossing, [*raw, *beside])
    middle = _between([*crossing, *raw], outputs)
    head = _between([*read, *beside], model.output)
    features = keras.tree.flatten(middle([inputs[name] for name in (*names, *map(_name, raw))]))
    logits = head([*features, *(inputs[_name(tensor)] for tensor in beside)])
    below = keras.Model(inner.input, dict(zip(names, crossing, strict=True)))
    return Cut(keras.Model(model.input, below(node.arguments.args[0])), keras.Model(inputs, logits), names)


def _call(model: Any, inner: Any) -> Any:
    """Returns the backbone's place in a model's graph."""
    return next(node for node in nodes(model) if node.operation is inner)


def _between(inputs: list[Any], outputs: Any) -> Any:
    """Returns the part of a graph between some tensors.

    Keras gives those among them that are inputs of the graph a second origin, with which the graph itself could not be
    saved any more; they get back their first.
    """
    origins = [tensor._keras_history for tensor in inputs]
    made = keras.Model(inputs, outputs)
    for tensor, origin in zip(inputs, origins, strict=True):
        tensor._keras_history = origin
    return made


def _inputs(crossing: list[Any], raw: list[Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    names = tuple(f"frozen_{i}" for i in range(len(crossing)))
    named = [*zip(names, crossing, strict=True), *((_name(tensor), tensor) for tensor in raw)]
    return names, {name: keras.Input(t.shape[1:], dtype=t.dtype, name=name) for name, t in dict(named).items()}


def _name(tensor: Any) -> str:
    return str(tensor._keras_history.operation.name)


def _outputs(model: Any, inner: Any) -> list[Any]:
    return [tensor for node in nodes(model) if node.operation is inner for tensor in node.output_tensors]


def nodes(model: Any) -> list[Any]:
    """Returns the calls that a model's graph is made of, what is computed first being first."""
    depths = sorted(model._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in model._nodes_by_depth[depth]]


def _active(model: Any) -> set[int]:
    """Returns the tensors of a graph that a trained or random layer has had a part in."""
    found: set[int] = set()
    for node in nodes(model):
        before = any(id(tensor) in found for tensor in node.arguments.keras_tensors)
        if not node.is_input and (before or _changes(node.operation)):
            found |= {id(tensor) for tensor in node.output_tensors}
    return found


def _changes(operation: Any) -> bool:
    """Says whether what an operation gives for an example changes from step to step."""
    if not isinstance(operation, keras.Layer):
        return False
    if operation.trainable_variables:
        return True
    random = [layer for layer in operation._flatten_layers() if isinstance(layer, RANDOM) and layer.rate]
    return bool(random) or type(operation).__name__.startswith("Random")


def _walk(outputs: list[Any], stops: Callable[[Any], bool]) -> tuple[list[Any], list[Any]]:
    """Walks a graph back from its outputs, and returns the tensors at which it stopped and the inputs it came to."""
    stopped, raw, seen, waiting = [], [], set(), list(outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node_index, _ = tensor._keras_history
        node = operation._inbound_nodes[node_index]
        if node.is_input:
            raw.append(tensor)
        elif stops(tensor):
            stopped.append(tensor)
        else:
            waiting.extend(node.arguments.keras_tensors)
    return stopped, raw


def _frontier(outputs: list[Any], active: set[int]) -> tuple[list[Any], list[Any]]:
    """Returns what the active part of a graph reads: tensors that never change for an example, and inputs."""
    return _walk(outputs, lambda tensor: id(tensor) not in active)


@dataclass(frozen=True)
class Layout:
    """What is kept of a split.

    Attributes:
        shapes: of each array, by name.
        ragged: the names of those that have a row a token.
    """

    shapes: dict[str, tuple[int, ...]]
    ragged: frozenset[str]


def layout(part: Cut, encoded: Encoded, batches: Batches) -> Layout | None:
    """Returns what would be kept of a split, or None where the disk has no room, or padding would change it.

    Args:
        part: the cut model.
        encoded: the split.
        batches: of the split, not shuffled, with the whole model's inputs.
    """
    lengths = encoded.row_lengths
    if lengths is not None and "padding_mask" not in (batches.inputs or ()):
        return None
    shapes, ragged = {}, set()
    for name in part.names:
        shape = tuple(part.lower.output[name].shape[1:])
        if lengths is not None and shape and shape[0] is None:
            ragged.add(name)
            shapes[name] = (int(lengths.sum()), *shape[1:])
        else:
            shapes[name] = (len(encoded), *shape)
    if any(side is None for shape in shapes.values() for side in shape):
        return None
    if 4 * sum(math.prod(shape) for shape in shapes.values()) > SHARE_OF_DISK * free_bytes(cache_folder()):
        return None
    return Layout(shapes, frozenset(ragged))


def features(part: Cut, encoded: Encoded, batches: Batches, progress: Progress) -> Encoded | None:
    """Returns a split with what crosses the cut among its inputs, from the cache on disk if it was computed before.

    Args:
        part: the cut model.
        encoded: the split.
        batches: of the split, not shuffled, with the whole model's inputs.
        progress: hears of each batch.

    Returns:
        The split, or None where `layout` finds that nothing can be kept.
    """
    planned = layout(part, encoded, batches)
    if planned is None:
        return None

    def fill(arrays: dict[str, np.ndarray]) -> None:
        _fill(arrays, part, batches, planned.ragged, progress)

    found = kept({"frozen": _digest(part), "data": _digest_of(encoded)}, planned.shapes, fill)
    return joined(encoded, found, planned)


def joined(encoded: Encoded, found: Mapping[str, np.ndarray], planned: Layout) -> Encoded:
    """Returns a split with arrays of a layout among its inputs."""
    lengths, more = encoded.row_lengths, dict[str, Array](found)
    if lengths is not None:
        more |= {name: Ragged.of_lengths(found[name], lengths) for name in planned.ragged}
    return replace(encoded, inputs={**encoded.inputs, **more})


def _fill(
    arrays: dict[str, np.ndarray], part: Cut, batches: Batches, ragged: frozenset[str], progress: Progress
) -> None:
    lengths = batches.encoded.row_lengths
    starts = np.zeros(0, np.int64) if lengths is None else np.cumsum(lengths) - lengths
    plan = batches.plan(0)
    for done, (rows, length) in enumerate(plan, 1):
        for some, inputs in predicting.pieces(batches, rows, length):
            found = part.lower.predict_on_batch(inputs)
            for name in part.names:
                values = np.asarray(found[name], np.float32)[: len(some)]
                if name not in ragged or lengths is None:
                    arrays[name][some] = values
                    continue
                for row, tokens in zip(some, values, strict=True):
                    arrays[name][starts[row] : starts[row] + lengths[row]] = tokens[: lengths[row]]
        progress.advance(done, len(plan), "computed once")


def _digest(part: Cut) -> str:
    digest = hashlib.sha256(f"{keras.backend.backend()} {keras.config.dtype_policy().name}".encode())
    for variable in part.lower.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))).data)
    digest.update(repr([(name, part.lower.output[name].name) for name in part.names]).encode())
    return digest.hexdigest()


def _digest_of(encoded: Encoded) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(encoded.inputs.items()):
        digest.update(name.encode())
        for one in (array.values, array.offsets) if isinstance(array, Ragged) else (array,):
            digest.update(np.ascontiguousarray(one).data)
    return digest.hexdigest()
