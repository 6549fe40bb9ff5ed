"""Models of KerasHub's own classes, and ModernBERT, under the names transformers has for them. Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kft.backbones.families import deberta, modernbert
from kft.backbones.families.family import dense, norm
from kft.backbones.hugging_face import published_name
from kft.backbones.places import Place
from kft.backbones.tokenizer import Template
from kft.errors import ModelError
from kft.exporters.exported import EACH_TOKEN, Finished


@dataclass(frozen=True)
class Leaving:
    """What a model is in transformers.

    Attributes:
        name: model_type in `config.json`.
        cls: how the names of its classes begin.
        tensors: its weights, the head's among them.
        fields: its measures in `config.json`.
        positions: the most tokens a text may have.
        segments: whether it tells a second text apart.
    """

    name: str
    cls: str
    tensors: dict[str, np.ndarray]
    fields: dict[str, Any]
    positions: int
    segments: bool


def value(place: Place) -> np.ndarray:
    """Returns a variable's value as it is published, float32."""
    return place.outward(np.asarray(keras.ops.convert_to_numpy(place.variable), np.float32))


def head(layer: Any, name: str) -> dict[str, np.ndarray]:
    """Returns kernel and bias, where it has one, of a head's dense layer under a name."""
    return {place.name: value(place) for place in dense(layer, name)}


def known(inner: Any) -> bool:
    """Says whether a backbone is one that this module has names for."""
    return _kind(inner) in MAKERS


def _kind(inner: Any) -> str:
    """Returns a backbone's class, or where it is a plain graph its name."""
    name = type(inner).__name__
    return str(inner.name) if name == "Functional" else name


def leaving(run: Finished, inner: Any) -> Leaving:
    """Returns what a run's model is in transformers.

    Args:
        run: what is handed on.
        inner: its backbone, which is `known`.

    Raises:
        ModelError: if transformers' class reads another part of a text than the model does.
    """
    return MAKERS[_kind(inner)](run, inner)


def _layers(run: Finished) -> dict[str, Any]:
    return {layer.name: layer for layer in run.model.layers}


def _deberta(run: Finished, inner: Any) -> Leaving:
    tensors = {f"deberta.{place.name}": value(place) for place in deberta.places(inner, {})}
    layers = _layers(run)
    if run.task in EACH_TOKEN:
        tensors |= head(layers["logits"], EACH_TOKEN[run.task])
    elif "head_dense" in layers:
        tensors |= head(layers["head_dense"], "pooler.dense") | head(layers["logits"], "classifier")
    else:
        raise ModelError(
            "transformers' DebertaV2ForSequenceClassification reads the first token, and this model does not. Train with "
            "model.pooling=first."
        )
    activation = layers["head_dense"].activation.__name__ if "head_dense" in layers else "gelu"
    fields = {
        "hidden_size": inner.hidden_dim,
        "num_hidden_layers": inner.num_layers,
        "num_attention_heads": inner.num_heads,
        "intermediate_size": inner.intermediate_dim,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-7,
        "hidden_dropout_prob": inner.dropout,
        "attention_probs_dropout_prob": inner.dropout,
        "max_position_embeddings": inner.max_sequence_length,
        "max_relative_positions": -1,
        "position_buckets": inner.bucket_size,
        "relative_attention": True,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "type_vocab_size": 0,
        "pooler_hidden_size": inner.hidden_dim,
        "pooler_hidden_act": activation,
        "pooler_dropout": 0,
    }
    fields["vocab_size"] = inner.vocabulary_size
    return Leaving("deberta-v2", "DebertaV2", tensors, fields, inner.max_sequence_length, segments=False)


def _modernbert(run: Finished, inner: Any) -> Leaving:
    layers, parts = _layers(run), dict[str, list[np.ndarray]]()
    if "head_norm" not in layers or not layers["logits"].use_bias:
        raise ModelError(
            "transformers' ModernBert classes read the first token or the mean through a dense layer and a normalization, and "
            "this model does not, or was trained by an older version of kft. Train with model.pooling=first."
        )
    for place in modernbert.places(inner, {}):
        parts.setdefault(f"model.{place.name}", []).append(value(place))
    tensors = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    tensors |= head(layers["head_dense"], "head.dense") | head(layers["logits"], "classifier")
    for variable, part in zip(layers["head_norm"].weights, ("weight", "bias"), strict=False):
        tensors[f"head.norm.{part}"] = value(Place(variable, ""))
    template = run.encoding.tokenizer.template if run.encoding.tokenizer is not None else Template()
    start, end = next(iter(template.prefix), None), next(iter(template.suffix), None)
    positions = max(8192, run.encoding.sequence_length)  # its graph does not know how many there may be
    fields = {
        **modernbert.measures(inner),
        "max_position_embeddings": positions,
        "classifier_pooling": "mean" if "mean_pooling" in layers else "cls",
        "classifier_bias": layers["head_dense"].use_bias,
        "classifier_activation": published_name(layers["head_dense"].activation),
        **dict.fromkeys(("bos_token_id", "cls_token_id"), start),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), end),
    }
    return Leaving("modernbert", "ModernBert", tensors, fields, positions, segments=False)


def _gpt2(run: Finished, inner: Any) -> Leaving:
    tensors = {f"transformer.{name}": array for name, array in _gpt2_tensors(inner)} | _on_last(run, "GPT2")
    fields = {
        "vocab_size": inner.vocabulary_size,
        "n_positions": inner.max_sequence_length,
        "n_embd": inner.hidden_dim,
        "n_layer": inner.num_layers,
        "n_head": inner.num_heads,
        "n_inner": inner.intermediate_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), inner.dropout),
    }
    return Leaving("gpt2", "GPT2", tensors, fields, inner.max_sequence_length, segments=False)


def _gpt2_tensors(inner: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Gives GPT-2's weights; its dense kernels lie as Keras' do, those of attention side by side."""

    def two(variable: Any, inputs: int) -> np.ndarray:
        array = np.asarray(keras.ops.convert_to_numpy(variable), np.float32)
        rows = int(np.prod(array.shape[:inputs]))
        return np.ascontiguousarray(array.reshape(rows, -1) if inputs else array.ravel())

    yield "wte.weight", value(Place(inner.token_embedding.embeddings, ""))
    yield "wpe.weight", value(Place(inner.position_embedding.position_embeddings, ""))
    for number, block in enumerate(inner.transformer_layers):
        attention = block._self_attention_layer
        parts = (attention._query_dense, attention._key_dense, attention._value_dense)
        yield f"h.{number}.attn.c_attn.weight", np.concatenate([two(part.kernel, 1) for part in parts], axis=1)
        yield f"h.{number}.attn.c_attn.bias", np.concatenate([two(part.bias, 0) for part in parts])
        for layer, name, inputs in (
            (attention._output_dense, "attn.c_proj", 2),
            (block._feedforward_intermediate_dense, "mlp.c_fc", 1),
            (block._feedforward_output_dense, "mlp.c_proj", 1),
        ):
            yield f"h.{number}.{name}.weight", two(layer.kernel, inputs)
            yield f"h.{number}.{name}.bias", two(layer.bias, 0)
        for layer, name in ((block._self_attention_layer_norm, "ln_1"), (block._feedforward_layer_norm, "ln_2")):
            yield from ((place.name, value(place)) for place in norm(layer, f"h.{number}.{name}"))
    yield from ((place.name, value(place)) for place in norm(inner.layer_norm, "ln_f"))


def _llama(run: Finished, inner: Any) -> Leaving:
    if getattr(inner, "rope_frequency_adjustment_factor", None) is not None:
        raise ModelError("A Llama whose positions are stretched (rope_scaling) cannot be exported to transformers yet.")
    tensors = {f"model.{place.name}": value(place) for place in _llama_places(inner)} | _on_last(run, "Llama")
    positions = max(2048, run.encoding.sequence_length)  # KerasHub's class does not know how many there may be
    fields = {
        "vocab_size": inner.vocabulary_size,
        "hidden_size": inner.hidden_dim,
        "intermediate_size": inner.intermediate_dim,
        "num_hidden_layers": inner.num_layers,
        "num_attention_heads": inner.num_query_heads,
        "num_key_value_heads": inner.num_key_value_heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": inner.layer_norm_epsilon,
        "rope_theta": inner.rope_max_wavelength,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return Leaving("llama", "Llama", tensors, fields, positions, segments=False)


def _llama_places(inner: Any) -> Iterator[Place]:
    yield Place(inner.token_embedding.embeddings, "embed_tokens.weight")
    for number, block in enumerate(inner.transformer_layers):
        start, attention = f"layers.{number}", block._self_attention_layer
        for layer, name, inputs in (
            (attention._query_dense, "self_attn.q_proj", 1),
            (attention._key_dense, "self_attn.k_proj", 1),
            (attention._value_dense, "self_attn.v_proj", 1),
            (attention._output_dense, "self_attn.o_proj", 2),
            (block._feedforward_gate_dense, "mlp.gate_proj", 1),
            (block._feedforward_intermediate_dense, "mlp.up_proj", 1),
            (block._feedforward_output_dense, "mlp.down_proj", 1),
        ):
            yield Place(layer.kernel, f"{start}.{name}.weight", inputs)
        yield Place(block._self_attention_layernorm.scale, f"{start}.input_layernorm.weight")
        yield Place(block._feedforward_layernorm.scale, f"{start}.post_attention_layernorm.weight")
    yield Place(inner.layer_norm.scale, "norm.weight")


def _on_last(run: Finished, cls: str) -> dict[str, np.ndarray]:
    """Returns the head of a decoder, which stands on the last token and has no bias."""
    layers = _layers(run)
    if run.task in EACH_TOKEN:
        raise ModelError(
            f"A {cls} for {run.task} cannot be exported to transformers yet. Allowed: text_classification."
        )
    if layers["logits"].use_bias or "head_dense" in layers or "mean_pooling" in layers:
        raise ModelError(
            f"transformers' {cls}ForSequenceClassification reads the last token, and has no bias; this model is another. Train "
            "with model.pooling=last."
        )
    return head(layers["logits"], "score")


MAKERS = {
    "DebertaV3Backbone": _deberta,
    "GPT2Backbone": _gpt2,
    "LlamaBackbone": _llama,
    "Llama3Backbone": _llama,
    "modernbert": _modernbert,
}
