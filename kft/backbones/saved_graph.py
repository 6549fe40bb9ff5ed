"""A SavedModel's files as data: its objects, its checkpoint, and where each tensor of its functions comes from.

TensorFlow parses the files; no graph is loaded, and none is run. Import where TensorFlow may be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FILE = "saved_model.pb"
CALLS = ("PartitionedCall", "StatefulPartitionedCall")
DEEPEST = 64  # calls in calls: a function may call itself
# Operations that give what they are given; the variables' own are read through as well.
PASSED = ("Identity", "IdentityN", "ReadVariableOp", "StopGradient", "CheckNumerics", "PreventGradient", "Snapshot")


@dataclass(frozen=True)
class Files:
    """What lies in a SavedModel's folder.

    Attributes:
        meta: the graph with its functions and objects, as TensorFlow's MetaGraphDef.
        keys: what the checkpoint calls an object, by its number.
        reader: reads the checkpoint.
    """

    meta: Any
    keys: Mapping[int, str]
    reader: Any

    @property
    def objects(self) -> Any:
        """The objects, the root first."""
        return self.meta.object_graph_def.nodes

    def children(self, number: int) -> dict[str, int]:
        """Returns the numbers of an object's parts by their names."""
        return {child.local_name: child.node_id for child in self.objects[number].children} if self.objects else {}

    def read(self, number: int) -> np.ndarray:
        """Returns the value of a variable."""
        found: np.ndarray = self.reader.get_tensor(self.keys[number])
        return found


def files(folder: Path) -> Files:
    """Reads a SavedModel's files."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2, trackable_object_graph_pb2

    meta = saved_model_pb2.SavedModel.FromString((folder / FILE).read_bytes()).meta_graphs[0]
    nodes = meta.object_graph_def.nodes
    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    graph = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    )
    # The two graphs number their objects apart, but call an object's parts alike.
    keys: dict[int, str] = {}
    waiting, seen = [(0, 0)], set[tuple[int, int]]()
    while waiting:
        own, other = waiting.pop()
        if (own, other) in seen:
            continue
        seen.add((own, other))
        for part in graph.nodes[other].attributes:
            keys[own] = part.checkpoint_key
        there = {child.local_name: child.node_id for child in graph.nodes[other].children}
        waiting += [
            (child.node_id, there[child.local_name]) for child in nodes[own].children if child.local_name in there
        ]
    return Files(meta, keys, reader)


@dataclass(frozen=True)
class Given:
    """An argument that the called function is given: `image`, or another."""

    name: str


@dataclass(frozen=True)
class Variable:
    """A variable, by its object's number and its name, and whether it may be trained."""

    number: int
    name: str
    trained: bool


@dataclass(frozen=True)
class Constant:
    """An array that is written in the graph."""

    array: np.ndarray


@dataclass(frozen=True)
class Operation:
    """An output of an operation in a function that is called in one place.

    Attributes:
        scope: the call.
        node: the operation, as TensorFlow's NodeDef.
        place: the output's number.
    """

    scope: Scope
    node: Any
    place: int

    @property
    def kind(self) -> str:
        """What it does."""
        return str(self.node.op)

    @property
    def key(self) -> tuple[int, str, int]:
        """Tells it from any other."""
        return id(self.scope), self.node.name, self.place

    @property
    def inputs(self) -> list[Source]:
        """Where its inputs come from."""
        return [self.scope.source(text) for text in data(self.node)]


Source = Given | Variable | Constant | Operation


def data(node: Any) -> list[str]:
    """Returns the inputs of an operation but those that only say what comes before it."""
    return [text for text in node.input if not text.startswith("^")]


@dataclass(eq=False)
class Scope:
    """A function as it is called in one place.

    Attributes:
        library: every function by its name.
        function: the one that is called, as TensorFlow's FunctionDef.
        arguments: what it is called with, one after the other: a source, or a tensor's name where it is called.
        depth: how many calls it is in.
    """

    library: Mapping[str, Any]
    function: Any
    arguments: Sequence[Source | tuple[Scope, str]]
    depth: int = 0
    calls: dict[str, Scope] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [argument.name for argument in self.function.signature.input_arg]
        self._nodes = {node.name: node for node in self.function.node_def}
        self._given = dict(zip(names, self.arguments, strict=True))

    @property
    def results(self) -> list[str]:
        """The names of the tensors it returns."""
        return [self.function.ret[result.name] for result in self.function.signature.output_arg]

    def source(self, text: str) -> Source:
        """Returns where a tensor comes from, through calls and what changes nothing."""
        scope = self
        while True:
            name, _, rest = text.partition(":")
            if not rest and name in scope._given:
                found: Source | tuple[Scope, str] = scope._given[name]
                if not isinstance(found, tuple):
                    return found
                scope, text = found
                continue
            node, place = scope._nodes[name], int(rest.rpartition(":")[2] or 0)
            if node.op in CALLS and scope.depth < DEEPEST:
                scope = scope._called(node)
                text = scope.results[place]
            elif node.op in PASSED:
                text = data(node)[place if node.op == "IdentityN" else 0]
            else:
                return Constant(_array(node)) if node.op == "Const" else Operation(scope, node, place)

    def _called(self, node: Any) -> Scope:
        if node.name not in self.calls:
            function = self.library[node.attr["f"].func.name]
            self.calls[node.name] = Scope(self.library, function, [(self, text) for text in data(node)], self.depth + 1)
        return self.calls[node.name]


def _array(node: Any) -> np.ndarray:
    import tensorflow as tf

    found: np.ndarray = tf.make_ndarray(node.attr["value"].tensor)
    return found


Shape = tuple[int | None, ...]


def calls(found: Files) -> list[tuple[Scope, Shape]]:
    """Returns each way to call a SavedModel with a batch of images, but for training, and the images' shape.

    Images are the one float32 tensor of four axes.
    """
    library = {function.signature.name: function for function in found.meta.graph_def.library.function}
    number = found.children(0).get("__call__")
    names = found.objects[number].function.concrete_functions if number is not None else ()
    # Flags that are part of a call, as `training` is, are not among its tensors.
    plain = [name for name in names if not _flagged(_signature(found, name))]
    every = [_call(found, library, name) for name in plain]
    return [call for call in every if call is not None]


def _signature(found: Files, name: str) -> Any:
    return found.meta.object_graph_def.concrete_functions[name].canonicalized_input_signature


def _call(found: Files, library: Mapping[str, Any], name: str) -> tuple[Scope, Shape] | None:
    bound, function = found.meta.object_graph_def.concrete_functions[name].bound_inputs, library[name]
    specs = [
        getattr(leaf, kind) for leaf in _leaves(_signature(found, name)) if (kind := _kind(leaf)).endswith("spec_value")
    ]
    images = [spec for spec in specs if spec.dtype == 1 and len(spec.shape.dim) == 4]
    if len(images) != 1 or len(specs) + len(bound) != len(function.signature.input_arg):
        return None
    given: list[Source] = [Given("image" if spec is images[0] else spec.name) for spec in specs]
    scope = Scope(library, function, [*given, *(_bound(found, number) for number in bound)])
    return scope, tuple(side.size if side.size > 0 else None for side in images[0].shape.dim)


def _kind(part: Any) -> str:
    return str(part.WhichOneof("kind"))


def _flagged(signature: Any) -> bool:
    return any(_kind(leaf) == "bool_value" and leaf.bool_value for leaf in _leaves(signature))


def _leaves(part: Any) -> list[Any]:
    """Returns the parts of a structure one after the other, in TensorFlow's order."""
    kind = _kind(part)
    if kind in ("tuple_value", "list_value"):
        return [leaf for inner in getattr(part, kind).values for leaf in _leaves(inner)]
    if kind == "dict_value":
        fields = part.dict_value.fields
        return [leaf for name in sorted(fields) for leaf in _leaves(fields[name])]
    return [part]


def _bound(found: Files, number: int) -> Source:
    kind = found.objects[number].WhichOneof("kind")
    if kind == "variable" and number in found.keys:
        own = found.objects[number].variable
        return Variable(number, own.name.partition(":")[0] or f"variable_{number}", own.trainable)
    if kind == "constant":
        wanted = found.objects[number].constant.operation
        node = next((node for node in found.meta.graph_def.node if node.name == wanted), None)
        if node is not None and node.op == "Const":
            return Constant(_array(node))
    return Given(kind)


ARITHMETIC: Mapping[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "AddV2": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "RealDiv": np.divide,
    "Neg": np.negative,
    "Maximum": np.maximum,
    "Sqrt": np.sqrt,
    "Rsqrt": lambda x: 1 / np.sqrt(x),
    "Square": np.square,
    "SquaredDifference": lambda x, y: np.square(x - y),
    "Reshape": lambda x, shape: np.reshape(x, tuple(int(side) for side in shape)),
    "Fill": lambda shape, x: np.full(tuple(int(side) for side in shape), x),
    "Pack": lambda *parts: np.stack(parts),
}


def value(found: Files, source: Source) -> np.ndarray | None:
    """Returns what a tensor is that depends on variables and constants alone, or None for any other."""
    if isinstance(source, Variable):
        return found.read(source.number)
    if isinstance(source, Constant):
        return source.array
    if isinstance(source, Given) or (source.kind not in ARITHMETIC and source.kind != "Mean"):
        return None
    known: list[np.ndarray] = []
    for part in source.inputs:
        if (array := value(found, part)) is None:
            return None
        known.append(array)
    if source.kind == "Mean":
        axes = tuple(int(axis) for axis in np.ravel(known[1]))
        return np.asarray(np.mean(known[0], axes, keepdims=source.node.attr["keep_dims"].b))
    return np.asarray(ARITHMETIC[source.kind](*known))


def variables(source: Source) -> list[Variable]:
    """Returns the variables that a tensor which `value` can tell depends on, in their order."""
    if isinstance(source, Variable):
        return [source]
    return [found for part in source.inputs for found in variables(part)] if isinstance(source, Operation) else []
