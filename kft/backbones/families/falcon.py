"""Falcon (Almazrouei et al. 2023, https://arxiv.org/abs/2311.16867): each of its kinds, from falcon-rw to falcon-180B and Falcon2.

KerasHub's class is falcon-rw's alone, and leaves out that its positions were added in half precision; so the graph is drawn here,
of Keras' and KerasHub's own layers: a saved model loads without kft. Import after `backend.activate`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from kft.backbones import rotary
from kft.backbones.families import drawn
from kft.backbones.families.family import Family, activation_of, dense, norm, refuse
from kft.backbones.hugging_face import DECODER
from kft.backbones.places import Place
from kft.errors import ModelError

# bfloat16 keeps 8 binary digits: a number at least as large as a power, and smaller than the next, is a multiple of its step.
POWERS = 2.0 ** np.arange(-20, 25, dtype=np.float32)
STEPS = np.concatenate([[2.0**-28], POWERS / 128]).astype(np.float32)


def falcon(
    vocabulary_size: int,
    num_layers: int,
    num_heads: int,
    num_groups: int,
    hidden_dim: int,
    intermediate_dim: int,
    parallel: bool = True,
    num_norms: int = 1,
    biased: bool = False,
    rope_max_wavelength: float = 10000.0,
    rope_scaling_factor: float = 1.0,
    alibi: bool = False,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    activation: str = "gelu",
    layer_norm_epsilon: float = 1e-5,
) -> Any:
    """Builds a decoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        num_layers: of blocks.
        num_heads: of attention.
        num_groups: of heads that have a key and a value in common.
        hidden_dim: width of the hidden states.
        intermediate_dim: width inside a block.
        parallel: whether the dense layers read what attention reads, not what it gives.
        num_norms: of the normalizations before both, where they are parallel: one for both, or one each.
        biased: whether dense layers have biases.
        rope_max_wavelength: base of the rotary frequencies.
        rope_scaling_factor: what positions are divided by.
        alibi: whether a token's place is added to its scores, instead of turning queries and keys by it.
        dropout: on what a block adds to its input.
        attention_dropout: on attention's weights, and on what attention gives where it is not parallel.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    layers = keras.layers
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    groups = None if num_groups == num_heads else num_groups

    def normed(x: Any, name: str) -> Any:
        return layers.LayerNormalization(epsilon=layer_norm_epsilon, name=name)(x)

    def made(units: int, x: Any, name: str, function: Any = None) -> Any:
        return layers.Dense(units, function, biased, kernel_initializer=drawn.normal(), name=name)(x)

    def added(x: Any, more: Any, rate: float, name: str) -> Any:
        return layers.Add(name=f"{name}_add")([x, layers.Dropout(rate, name=f"{name}_dropout")(more)])

    token = layers.Embedding(vocabulary_size, hidden_dim, embeddings_initializer=drawn.normal(), name="token_embedding")
    x, places = token(ids), drawn.places_of(ids)
    seen = drawn.seen(places, mask)
    seen = seen if groups is None else seen[:, None]
    beside = _alibi(places, num_heads, groups, hidden_dim // num_heads) if alibi else None
    for number in range(num_layers):
        start = f"block_{number}"
        hidden = normed(x, f"{start}_attention_layer_norm")
        more = drawn.attention(
            (hidden, hidden, hidden),
            seen,
            start,
            num_heads,
            hidden_dim,
            attention_dropout,
            biased=biased,
            groups=groups,
            scores=beside,
            turn=None
            if alibi
            else keras_hub.layers.RotaryEmbedding(
                rope_max_wavelength, rope_scaling_factor, name=f"{start}_rotary_embedding"
            ),
        )
        if not parallel:
            x = added(x, more, attention_dropout, f"{start}_attention")
        if not parallel or num_norms == 2:
            hidden = normed(x, f"{start}_layer_norm")
        inner = made(intermediate_dim, hidden, f"{start}_intermediate", drawn.function(activation))
        out = made(hidden_dim, inner, f"{start}_output")
        x = added(x, layers.Add(name=f"{start}_both_add")([out, more]) if parallel else out, dropout, start)
    x = normed(x, "final_layer_norm")
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="falcon")


def _alibi(places: Any, heads: int, groups: int | None, size: int) -> Any:
    """Returns what each head adds for a token's place, float32 (Press et al. 2021, https://arxiv.org/abs/2108.12409).

    Falcon was trained with slopes, places and their products rounded to bfloat16, which is done by arithmetic here: compilers
    leave out a conversion there and back.
    """
    axes = [heads, 1, 1] if groups is None else [groups, heads // groups, 1, 1]
    part, power = np.frexp(slopes(heads))
    steep = np.ldexp(np.round(part * 256), power - 8).reshape(axes)
    rounded = _halved(keras.ops.cast(places, "float32"))
    rounded = rounded[:, None, None] if groups is None else rounded[:, None, None, None]
    return _halved(rounded * steep) * np.float32(size**-0.5)


def slopes(heads: int) -> np.ndarray:
    """Returns each head's slope: a geometric sequence, and every other one of the next where heads are no power of two."""
    whole = 2 ** math.floor(math.log2(heads))
    first = (2.0 ** (-8 / whole)) ** np.arange(1, whole + 1)
    more = (2.0 ** (-4 / whole)) ** np.arange(1, 2 * (heads - whole), 2)
    return np.concatenate([first, more]).astype(np.float32)


def _halved(x: Any) -> Any:
    """Rounds numbers that are not negative to those that bfloat16 has, the even one where two are as near."""
    power = keras.ops.sum(keras.ops.cast(x[..., None] >= POWERS, "int32"), axis=-1)
    step = keras.ops.take(STEPS, power, axis=0)
    return keras.ops.round(x / step) * step


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `falcon`.

    Raises:
        ModelError: if the activation is unknown, frequencies are scaled in another way, or the model is of a kind that transformers
            does not compute either.
    """
    width, heads, parallel = config["hidden_size"], config["num_attention_heads"], config.get("parallel_attn", True)
    alibi, new = bool(config.get("alibi", False)), bool(config.get("new_decoder_architecture", False))
    norms = config.get("num_ln_in_parallel_attn")
    if new:
        refuse(config, "parallel_attn", True, True)
    elif parallel and norms == 2:
        refuse(config, "num_ln_in_parallel_attn", None)
    turned = rotary.read(config, "rope_theta", "partial_rotary_factor", 1.0)
    if not alibi:
        rotary.refuse(config, turned, ("default", "linear"))
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_groups": _groups(config),
        "hidden_dim": width,
        "intermediate_dim": config.get("ffn_hidden_size") or 4 * width,
        "parallel": bool(parallel),
        "num_norms": 2 if new and norms in (None, 2) else 1,
        "biased": bool(config.get("bias", False)),
        "rope_max_wavelength": turned.wavelength,
        "rope_scaling_factor": float(turned.fields["factor"]) if turned.kind == "linear" else 1.0,
        "alibi": alibi,
        "dropout": config.get("hidden_dropout", 0.0),
        "attention_dropout": config.get("attention_dropout", 0.0),
        "activation": activation_of(config, "activation"),
        "layer_norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    }


def _groups(config: Mapping[str, Any]) -> int:
    """Returns how many keys and values there are; of falcon-7b the field says another number, which is not read."""
    heads: int = config["num_attention_heads"]
    found: int = config.get("num_kv_heads") or heads
    if config.get("new_decoder_architecture", False):
        if heads % found:
            raise ModelError(
                f"num_kv_heads in config.json is {found}, which does not divide num_attention_heads, {heads}."
            )
        return found
    if config.get("multi_query", True):
        return 1
    refuse(config, "num_kv_heads", heads, heads)
    return heads


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    parallel, groups, alone = config.get("parallel_attn", True), _groups(config), "input_layernorm"
    first, second = ("ln_attn", "ln_mlp") if parallel else (alone, "post_attention_layernorm")
    yield Place(found["token_embedding"].embeddings, "word_embeddings.weight")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"h.{number}"
        two = f"{block}_layer_norm" in found
        yield from norm(found[f"{block}_attention_layer_norm"], f"{start}.{first if two else alone}")
        if two:
            yield from norm(found[f"{block}_layer_norm"], f"{start}.{second}")
        for name in ("query", "key", "value"):
            layer = found[f"{block}_attention_{name}"]
            cut = functools.partial(of_each_group, part=name, groups=groups, heads=config["num_attention_heads"])
            yield Place(layer.kernel, f"{start}.self_attention.query_key_value.weight", 1, cut)
            if layer.bias is not None:
                yield Place(layer.bias, f"{start}.self_attention.query_key_value.bias", cut=cut)
        out = found[f"{block}_attention_output"]
        yield from dense(out, f"{start}.self_attention.dense", inputs=len(out.kernel.shape) - 1)
        yield from dense(found[f"{block}_intermediate"], f"{start}.mlp.dense_h_to_4h")
        yield from dense(found[f"{block}_output"], f"{start}.mlp.dense_4h_to_h")
    yield from norm(found["final_layer_norm"], "ln_f")


def of_each_group(array: np.ndarray, part: str, groups: int, heads: int) -> np.ndarray:
    """Takes queries, keys or values out of rows that lie group by group: its queries, its key, its value."""
    if len(array) % (heads + 2 * groups):
        return array  # of another model, which its shape will tell
    rest, many = array.shape[1:], heads // groups
    cut = {"query": slice(0, many), "key": slice(many, many + 1), "value": slice(many + 1, None)}[part]
    found = array.reshape(groups, many + 2, -1, *rest)[:, cut]
    return found.reshape(-1, *rest)


FAMILY = Family(
    backbone=falcon,
    arguments=arguments,
    places=places,
    prefix="transformer.",
    heads=("lm_head.", "score.", "classifier.", "qa_outputs."),
    head=DECODER,
    pooling="last",
)
