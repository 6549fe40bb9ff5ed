"""Encoders in Hugging Face's layout. Import after `backend.activate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from kft.backbones import encoder, filling, initial
from kft.backbones.backbone import Below, PublishedHead
from kft.backbones.encoder import Encoder
from kft.backbones.folders import ModelFolder
from kft.backbones.places import Names, places
from kft.backbones.tensors import Tensors
from kft.errors import ModelError, unknown
from kft.recipe import Model

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "gelu_fast": "gelu_approximate",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# model.config takes the names that KerasHub's classes have.
OVERRIDES = {
    "vocabulary_size": "vocabulary_size",
    "num_layers": "layers",
    "num_heads": "heads",
    "hidden_dim": "width",
    "intermediate_dim": "inner",
    "max_sequence_length": "positions",
    "num_segments": "segments",
    "dropout": "dropout",
}
BERT = Names(
    token="embeddings.word_embeddings",
    position="embeddings.position_embeddings",
    segment="embeddings.token_type_embeddings",
    norm="embeddings.LayerNorm",
    projection="embeddings_project",
    blocks="encoder.layer.{}",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    out="attention.output.dense",
    out_norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    down_norm="output.LayerNorm",
    pooler="pooler.dense",
)
DISTILBERT = dataclasses.replace(
    BERT,
    blocks="transformer.layer.{}",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    out="attention.out_lin",
    out_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    down_norm="output_layer_norm",
)
ALBERT = dataclasses.replace(
    BERT,
    projection="encoder.embedding_hidden_mapping_in",
    blocks="encoder.albert_layer_groups.{}.albert_layers.{}",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    out="attention.dense",
    out_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    down_norm="full_layer_layer_norm",
    pooler="pooler",
)


@dataclass(frozen=True)
class Head:
    """How a family's own head for a whole text is made.

    Attributes:
        logits: the name of its last layer.
        dense: that of a dense layer below it; empty where the head reads the pooler.
        norm: that of a normalization between both; empty where there is none.
        below: what these two are.
        bias: whether the last layer has one.
    """

    logits: str = "classifier"
    dense: str = ""
    norm: str = ""
    below: Below = field(default_factory=Below)
    bias: bool = True


@dataclass(frozen=True)
class Family:
    """How a family of encoders is published.

    Attributes:
        prefix: what a model with a head puts before the names of its encoder's weights.
        names: the names themselves.
        shape: reads the measures off `config.json`.
        heads: how the names of weights begin that belong to heads, or to what the encoder's own makers left out.
        head: that for a whole text.
        skipped: positions at the beginning of the table that no token ever has, from `config.json`.
    """

    prefix: str
    names: Names
    shape: Callable[[Mapping[str, Any]], Encoder]
    heads: tuple[str, ...]
    head: Head = Head()
    skipped: Callable[[Mapping[str, Any]], int] = lambda config: 0


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": str(config["model_type"]).replace("-", "_"),
        "vocabulary_size": config["vocab_size"],
        "width": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "inner": config["intermediate_size"],
        "positions": config["max_position_embeddings"],
        "epsilon": config.get("layer_norm_eps", 1e-12),
        "activation": _activation(config.get("hidden_act", "gelu")),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.1),
    }


def _activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ModelError(unknown("hidden_act in config.json", str(name), ACTIVATIONS))
    return ACTIVATIONS[name]


def _bert(config: Mapping[str, Any]) -> Encoder:
    return Encoder(**_common(config), segments=config.get("type_vocab_size", 2), pooler=True)


def _roberta(config: Mapping[str, Any]) -> Encoder:
    found = _common(config)
    found["positions"] -= _after_padding(config)
    segments = config.get("type_vocab_size", 1)
    return Encoder(**found, segments=segments if segments > 1 else 0)


def _after_padding(config: Mapping[str, Any]) -> int:
    padding = config.get("pad_token_id", 1)
    return int(1 if padding is None else padding) + 1


def _electra(config: Mapping[str, Any]) -> Encoder:
    found, width = _common(config), config.get("embedding_size", config["hidden_size"])
    projected = width if width != config["hidden_size"] else 0
    return Encoder(**found, segments=config.get("type_vocab_size", 2), embedding_width=projected)


def _albert(config: Mapping[str, Any]) -> Encoder:
    found = _common(config) | {
        "activation": _activation(config.get("hidden_act", "gelu_new")),
        "dropout": config.get("hidden_dropout_prob", 0.0),
        "attention_dropout": config.get("attention_probs_dropout_prob", 0.0),
    }
    return Encoder(
        **found,
        segments=config.get("type_vocab_size", 2),
        embedding_width=config.get("embedding_size", 128),
        groups=config.get("num_hidden_groups", 1),
        repeated=config.get("inner_group_num", 1),
        pooler=True,
    )


def _distilbert(config: Mapping[str, Any]) -> Encoder:
    return Encoder(
        name="distilbert",
        vocabulary_size=config["vocab_size"],
        width=config["dim"],
        layers=config["n_layers"],
        heads=config["n_heads"],
        inner=config["hidden_dim"],
        positions=config["max_position_embeddings"],
        activation=_activation(config.get("activation", "gelu")),
        dropout=config.get("dropout", 0.1),
        attention_dropout=config.get("attention_dropout", 0.1),
    )


ROBERTA = Family(
    "roberta.",
    BERT,
    _roberta,
    ("lm_head.", "classifier.", "qa_outputs.", "pooler."),
    Head("classifier.out_proj", "classifier.dense"),
    _after_padding,
)
FAMILIES = {
    "bert": Family("bert.", BERT, _bert, ("cls.", "classifier.", "qa_outputs.")),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": Family(
        "electra.",
        BERT,
        _electra,
        ("discriminator_predictions.", "generator_", "classifier.", "qa_outputs.", "sequence_summary."),
        Head("classifier.out_proj", "classifier.dense", below=Below("gelu")),
    ),
    "albert": Family("albert.", ALBERT, _albert, ("predictions.", "sop_classifier.", "classifier.", "qa_outputs.")),
    "distilbert": Family(
        "distilbert.",
        DISTILBERT,
        _distilbert,
        ("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
        Head(dense="pre_classifier", below=Below("relu")),
    ),
}
KINDS = {"sequence": "ForSequenceClassification", "tokens": "ForTokenClassification", "any": "ForMaskedLM"}


def family_of(folder: ModelFolder) -> Family | None:
    """Returns how a folder's weights are published, or None where it is not one of these encoders."""
    if folder.format != "hugging_face" or folder.config.get("is_decoder"):
        return None
    if folder.config.get("position_embedding_type", "absolute") != "absolute":
        return None
    return FAMILIES.get(str(folder.config.get("model_type")))


def load(folder: ModelFolder, config: Model, family: Family) -> tuple[Any, PublishedHead | None]:
    """Builds an encoder as its configuration says, with the folder's weights or random ones.

    Returns:
        The encoder, and the head that was published with it, if there is one that a task may go on with.

    Raises:
        ModelError: if the configuration lacks a field, or weights and places do not fit; the message lists them.
    """
    try:
        shape = family.shape(folder.config)
    except KeyError as error:
        raise ModelError(f"'{folder.path / 'config.json'}' lacks {error}. Get the file again.") from None
    shape = changed(shape, config)
    if not config.pretrained:
        return _built(shape), None
    tensors = folder.tensors()
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    shape = dataclasses.replace(shape, pooler=shape.pooler and f"{prefix}{family.names.pooler}.weight" in tensors)
    with initial.undrawn():
        model = _built(shape)
    skipped = family.skipped(folder.config)
    fill(model, shape, family, tensors, prefix, skipped, all_blocks="num_layers" not in config.config)
    return model, head_of(folder.config, family.head, "first" if family.head.dense else "pooled", tensors)


def published_name(activation: Any) -> str:
    """Returns what `config.json` calls an activation, given its name in an `Encoder` or the function that a layer has."""
    own = activation if isinstance(activation, str) else encoder.activation_name(activation)
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == own)


def head_of(config: Mapping[str, Any], head: Head, reads: Any, tensors: Tensors) -> PublishedHead | None:
    """Returns the head of a published model for whole texts or for tokens, or None where it has none of these.

    Of a head for masked tokens the layers below the last are returned, where the family's other heads begin with them too.

    Args:
        config: `config.json`, whose architecture says what the head is for.
        head: how that for a whole text is called.
        reads: the pooling that that stands on.
        tensors: the weights.
    """
    architecture = str((config.get("architectures") or [""])[0])
    kind: Any = next((kind for kind, end in KINDS.items() if architecture.endswith(end)), "")
    below = {"head_dense": head.dense, "head_norm": head.norm} if kind == "sequence" or head.below.everywhere else {}
    layers = {"logits": {"sequence": head.logits, "tokens": "classifier"}.get(kind, ""), **below}
    biased = {"logits": head.bias or kind == "tokens", "head_dense": head.below.bias, "head_norm": head.below.offset}
    names = {
        layer: [f"{name}.weight", *([f"{name}.bias"] if biased[layer] else [])]
        for layer, name in layers.items()
        if name
    }
    if not kind or not names or any(part not in tensors for parts in names.values() for part in parts):
        return None
    weights = {
        layer: tuple(np.asarray(tensors[part], np.float32).T for part in parts) for layer, parts in names.items()
    }
    named = config.get("id2label") or {}
    outputs = weights["logits"][0].shape[1] if "logits" in weights else 0
    labels = tuple(str(named.get(str(number), named.get(number, f"LABEL_{number}"))) for number in range(outputs))
    return PublishedHead(reads if kind == "sequence" else kind, labels, weights)


def changed(shape: Encoder, config: Model) -> Encoder:
    """Returns an encoder's measures with what a recipe changes of them.

    Raises:
        ModelError: if `model.config` has an unknown name.
    """
    changes: dict[str, Any] = {}
    for name, value in config.config.items():
        if name not in OVERRIDES:
            raise ModelError(unknown("model.config", name, OVERRIDES))
        changes[OVERRIDES[name]] = value
    if "dropout" in changes or config.dropout is not None:
        rate = changes.get("dropout") if config.dropout is None else config.dropout
        changes |= {"dropout": rate, "attention_dropout": rate}
    if config.attention_dropout is not None:
        changes["attention_dropout"] = config.attention_dropout
    return dataclasses.replace(shape, **changes)


def _built(shape: Encoder) -> Any:
    model = encoder.build(shape)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.MultiHeadAttention):
            layer._dropout = layer._dropout_layer.rate = shape.attention_dropout
    return model


def fill(
    model: Any,
    shape: Encoder,
    family: Family,
    tensors: Tensors,
    prefix: str,
    skipped: int,
    *,
    all_blocks: bool = True,
) -> None:
    """Puts published tensors into an encoder, one after the other.

    Args:
        model: what `encoder.build` made of `shape`.
        shape: the encoder's measures.
        family: how its weights are published.
        tensors: the weights.
        prefix: before the names of the encoder's weights.
        skipped: positions that are left out at the beginning of their table.
        all_blocks: whether blocks that the encoder does not have are an error.

    Raises:
        ModelError: if a tensor finds no place, a place no tensor, or their shapes differ.
    """
    first, last, used = skipped, skipped + shape.positions, list[str]()
    segment = f"{prefix}{family.names.segment}.weight"
    one = 0.0
    if not shape.segments and segment in tensors:
        # One segment tells nothing apart: its vector is added to every position.
        one, used = np.asarray(tensors[segment], np.float32)[0], [segment]

    def positions(array: np.ndarray) -> np.ndarray:
        found: np.ndarray = array[first:last] + one
        return found

    wanted = [
        dataclasses.replace(place, cut=positions) if place.name == f"{family.names.position}.weight" else place
        for place in places(model, shape, family.names)
    ]
    blocks = () if all_blocks else (family.names.blocks.split("{")[0],)
    filling.fill(
        wanted,
        tensors,
        prefix,
        lambda name: name.startswith((*family.heads, *blocks)),
        f"{model.name} encoder",
        used,
    )
