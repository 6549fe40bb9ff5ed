"""What a table of a family says, and how a model is built from it. Import after `backend.activate`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kft.backbones import filling, initial
from kft.backbones.backbone import Modality, PublishedHead
from kft.backbones.families import fewer
from kft.backbones.folders import ModelFolder
from kft.backbones.hugging_face import ACTIVATIONS, Head, head_of
from kft.backbones.places import Place
from kft.backbones.tensors import Tensors
from kft.errors import ModelError, unknown
from kft.recipe import Model

# What families call the rates that `model.dropout` sets.
RATES = {
    "dropout",
    "activation_dropout",
    "embedding_dropout",
    "attention_dropout",
    "attention_dropout_rate",
    "feedforward_dropout_rate",
}


# What decoders with a head for answers have before the names of their weights, whatever their family has.
ANSWERING = ("transformer.",)


@dataclass(frozen=True)
class Family:
    """How a family is published.

    Attributes:
        backbone: the name of KerasHub's class, or what draws the model where there is none, or none that computes it.
        arguments: reads the class's arguments off `config.json`; raises `ModelError` for a variant the class cannot compute.
        places: gives each variable of a model with the name of its tensor, the prefix left out.
        prefix: what a model with a head puts before the names of its backbone's weights.
        heads: how the names of weights begin that belong to heads, or what reads that off `config.json`.
        head: that for a whole text, or what reads it off `config.json`, or None where published heads are not read.
        pooling: which part of a text its makers read off, or what reads that off `config.json`.
        modality: what the whole of it reads.
        resized: whether its images may have another size than those of its makers, as its argument `image_size` says.
        read: gives tensors as `places` knows them, where they are published in another form.
    """

    backbone: str | Callable[..., Any]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    places: Callable[[Any, Mapping[str, Any]], Iterator[Place]]
    prefix: str
    heads: tuple[str, ...] | Callable[[Mapping[str, Any]], tuple[str, ...]]
    head: Head | Callable[[Mapping[str, Any]], Head | None] | None = None
    pooling: str | Callable[[Mapping[str, Any]], str] = "first"
    modality: Modality = "text"
    resized: bool = False
    read: Callable[[Tensors], Tensors] = lambda tensors: tensors

    @property
    def drawn(self) -> bool:
        """Whether kft draws the model's graph, rather than KerasHub's class."""
        return not isinstance(self.backbone, str)

    def pools(self, config: Mapping[str, Any]) -> str:
        """Returns which part of a text a model's makers read off."""
        return self.pooling if isinstance(self.pooling, str) else self.pooling(config)

    def leaves(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns how the names of weights begin that a backbone does without."""
        return self.heads(config) if callable(self.heads) else self.heads

    def own_head(self, config: Mapping[str, Any]) -> Head | None:
        """Returns how its makers' head for a whole text is made, or None where published heads are not read."""
        return self.head(config) if callable(self.head) else self.head


def load(folder: ModelFolder, config: Model, family: Family) -> tuple[Any, PublishedHead | None]:
    """Builds a family's backbone as its configuration says, with the folder's weights or random ones.

    Returns:
        The backbone, and the head that was published with it, if there is one that a task may go on with.

    Raises:
        ModelError: if the configuration lacks a field or is of a variant KerasHub does not have, or weights and places do
            not fit; the message lists them.
    """
    import keras_hub

    cls = getattr(keras_hub.models, family.backbone) if isinstance(family.backbone, str) else family.backbone
    count, said, changes = _changed(folder.config, config)
    try:
        arguments = family.arguments(said)
    except KeyError as error:
        raise ModelError(f"'{folder.path / 'config.json'}' lacks {error}. Get the file again.") from None
    if config.dropout and not arguments.keys() & RATES:
        raise ModelError(f"model.dropout: {folder.config['model_type']} has none. Leave it out.")
    if config.dropout is not None:
        arguments |= dict.fromkeys(arguments.keys() & RATES, config.dropout)
    if family.drawn and config.attention_dropout is not None:
        if "attention_dropout" not in arguments:
            raise ModelError(
                f"model.attention_dropout: {folder.config['model_type']} has none of its own. Leave it out."
            )
        arguments["attention_dropout"] = config.attention_dropout
    if config.image_size is not None and family.resized:
        arguments["image_size"] = config.image_size
    try:
        with initial.undrawn() if config.pretrained else contextlib.nullcontext():
            model = cls(**{**arguments, **changes})
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        if not config.config:
            how = "as its config.json says" if config.image_size is None else f"with image_size {config.image_size}"
            raise ModelError(f"'{folder.handle}' cannot be built {how}: {reason}") from None
        raise ModelError(
            f"model.config does not fit {cls.__name__}: {reason}. It has: {', '.join(arguments)}."
        ) from None
    if not config.pretrained:
        return model, None
    tensors = family.read(folder.tensors())
    prefixes = (family.prefix, *ANSWERING)
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)), "")
    left, places = family.leaves(said), family.places(model, said)
    filling.fill(
        places if count is None else fewer.lower(places, folder.config, count),
        tensors,
        prefix,
        lambda name: name.startswith(left) or (count is not None and fewer.beyond(name, count)),
        f"{folder.config['model_type']} model",
    )
    own, pooling = family.own_head(said), family.pools(said)
    return model, None if own is None else head_of(folder.config, own, pooling, tensors)


def _changed(published: Mapping[str, Any], config: Model) -> tuple[int | None, Mapping[str, Any], dict[str, Any]]:
    """Returns how many blocks a recipe asks for, `config.json` with so many, and what else changes the class's arguments."""
    changes = dict(config.config)
    count = changes.get("num_layers")
    if not isinstance(count, int) or count < 1:
        return None, published, changes
    found = fewer.cut(published, count)
    if found is None:
        return count, published, changes
    del changes["num_layers"]
    return count, found, changes


def refuse(config: Mapping[str, Any], field: str, wanted: Any, default: Any = None) -> None:
    """Refuses a configuration whose field is not what the class computes.

    Raises:
        ModelError: if it is another.
    """
    found = config.get(field, default)
    if found != wanted:
        raise ModelError(
            f"{field} in config.json is {found!r}; of {config.get('model_type')} kft computes only {wanted!r}. "
            "Take another model of the family."
        )


def computes(arguments: Callable[[Mapping[str, Any]], Any], config: Mapping[str, Any]) -> bool:
    """Says whether a class computes what `config.json` says, going by what reads its arguments.

    Args:
        arguments: raises `ModelError` where it does not.
        config: `config.json`; a field that is not there is said where the model is built.
    """
    try:
        arguments(config)
    except ModelError:
        return False
    except KeyError:
        pass
    return True


def activation_of(config: Mapping[str, Any], field: str, default: str = "gelu") -> str:
    """Returns the activation that a field names, by Keras' name or KerasHub's `gelu_approximate`.

    Raises:
        ModelError: if it is unknown.
    """
    name = str(config.get(field, default))
    if name not in ACTIVATIONS:
        raise ModelError(unknown(f"{field} in config.json", name, ACTIVATIONS))
    return ACTIVATIONS[name]


def dense(layer: Any, name: str, inputs: int = 1) -> Iterator[Place]:
    """Gives kernel and bias of a dense layer, which may have none; `inputs` axes of the kernel are its inputs."""
    yield Place(layer.kernel, f"{name}.weight", inputs)
    if layer.bias is not None:
        yield Place(layer.bias, f"{name}.bias")


def norm(layer: Any, name: str) -> Iterator[Place]:
    """Gives scale and offset of a layer normalization."""
    yield Place(layer.gamma, f"{name}.weight")
    yield Place(layer.beta, f"{name}.bias")
