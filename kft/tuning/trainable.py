"""Which parts of a model are trained; the rest is frozen and in inference mode. Import after `backend.activate`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import keras

from kft.backbones.backbone import Backbone
from kft.errors import ModelError

BLOCK = re.compile(r"^(.*block_?\d+[a-z]?)(?:_|$)")
NUMBERED = re.compile(r"^(.*?)(\d+)(?!.*\d)(.*)$")


def apply(model: Any, backbone: Any, trainable: str) -> None:
    """Freezes what a recipe does not train, and what the head does not read, as a pooler beside mean pooling.

    Frozen layers do not drop out, and frozen batch normalization keeps its statistics.

    Args:
        model: backbone and head; its head is always trained.
        backbone: the backbone's `keras.Model`, or the `Backbone`.
        trainable: `all`, `head`, or `top:N` for the head and the N uppermost blocks.

    Raises:
        ModelError: if the backbone has fewer than N blocks.
    """
    inner = backbone.model if isinstance(backbone, Backbone) else backbone
    model.trainable = True
    unread = _unread(model, inner)
    for layer in inner.layers:
        _set(layer, layer.name not in unread)
    for layer in _frozen(inner, trainable):
        _set(layer, False)
    for layer in inner._flatten_layers():
        # A decoder's way back from states to tokens, which no head here reads.
        if (back := getattr(layer, "reverse_embeddings", None)) is not None:
            back.trainable = False


def _frozen(inner: Any, trainable: str) -> list[Any]:
    if trainable == "all":
        return []
    if trainable == "head":
        return list(inner.layers)
    wanted = int(trainable.removeprefix("top:"))
    holder, found = _run(inner)
    if wanted > len(found):
        raise ModelError(
            f"trainable: top:{wanted}, but {inner.name} has {len(found)} blocks. Allowed: top:1 to top:{len(found)}."
        )
    if holder is None:
        return _below(inner, found[-wanted])  # what follows the blocks, a last norm or a pooler, is trained
    return [*inner.layers[: inner.layers.index(holder)], *found[:-wanted]]


def _below(inner: Any, block: Any) -> list[Any]:
    """Returns the layers that a block is computed from, but its own.

    Where a layer stands in the model's list does not tell: what a block knows of positions may come before the block below.
    """
    name = _block(block)
    own = {id(layer) for layer in inner.layers if layer is block or (name and _block(layer) == name)}
    graph = getattr(inner, "_functional", None) or inner  # a Sequential keeps its graph there
    nodes = [node for depth in sorted(graph._nodes_by_depth) for node in graph._nodes_by_depth[depth]]
    before, after = set[int](), set[int]()
    read, made = set[int](), set[int]()
    for node in nodes:
        if id(node.operation) in own or any(id(tensor) in read for tensor in node.output_tensors):
            before.add(id(node.operation))
            read |= {id(tensor) for tensor in node.arguments.keras_tensors}
    for node in reversed(nodes):
        if id(node.operation) in own or any(id(tensor) in made for tensor in node.arguments.keras_tensors):
            after.add(id(node.operation))
            made |= {id(tensor) for tensor in node.output_tensors}
    return [layer for layer in inner.layers if id(layer) in before - after]


def _block(layer: Any) -> str | None:
    match = BLOCK.match(layer.name)
    return match[1] if match else None


def _unread(model: Any, inner: Any) -> set[str]:
    """Returns the names of a backbone's layers that lead to none of the outputs a model goes on with."""
    read = {id(tensor) for tensor in keras.tree.flatten(model.output)}
    for operation in model.operations:
        read |= {id(tensor) for node in operation._inbound_nodes for tensor in node.arguments.keras_tensors}
    outputs = keras.tree.flatten(inner.output)
    for node in inner._inbound_nodes:
        found = [own for own, tensor in zip(outputs, node.output_tensors, strict=True) if id(tensor) in read]
        if found:
            used = keras.Model(inner.input, found).layers
            return {layer.name for layer in inner.layers} - {layer.name for layer in used}
    return set()


def blocks(inner: Any) -> list[str]:
    """Returns the names of a backbone's repeated blocks, lowest first: the longest run of like, numbered layers.

    They are looked for among its layers, and inside a layer that holds them all, as a vision transformer's encoder does.
    Layers named after a block, as `stack1_block0_2_conv`, are one block together, which goes by its first layer's name.
    """
    return [layer.name for layer in _run(inner)[1]]


def _run(inner: Any) -> tuple[Any, list[Any]]:
    """Returns the layer that holds the blocks, None where the backbone itself does, and the blocks."""
    found = _named(inner.layers) or _numbered(inner.layers)
    if len(found) > 1:
        return None, found
    nested = [(layer, _numbered(getattr(layer, "_layers", []))) for layer in inner.layers]
    holder, longest = max(nested, key=lambda pair: len(pair[1]))
    return (holder, longest) if len(longest) > len(found) else (None, found)


def _named(layers: Sequence[Any]) -> list[Any]:
    first: dict[str, Any] = {}
    for layer in layers:
        if name := _block(layer):
            first.setdefault(name, layer)
    return list(first.values()) if len(first) > 1 else []


def _numbered(layers: Sequence[Any]) -> list[Any]:
    groups: dict[tuple[type, str, str], list[Any]] = defaultdict(list)
    for layer in layers:
        if layer.weights and (match := NUMBERED.match(layer.name)):
            groups[(type(layer), match[1], match[3])].append(layer)
    return max(groups.values(), key=len, default=[])


def _set(layer: Any, trainable: bool) -> None:
    layer.trainable = trainable
    for inner in layer._flatten_layers():
        if isinstance(inner, RANDOM):
            _set_rate(inner, trainable)


RANDOM = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.GaussianDropout,
    keras.layers.AlphaDropout,
)


def _set_rate(layer: Any, trainable: bool) -> None:
    """Takes a dropout's rate away while it is frozen: Keras' `trainable` does not put dropout into inference mode."""
    if not trainable and not hasattr(layer, "_kft_rate"):
        layer._kft_rate = layer.rate
        layer.rate = 0.0
    elif trainable and hasattr(layer, "_kft_rate"):
        layer.rate = layer._kft_rate
        del layer._kft_rate
