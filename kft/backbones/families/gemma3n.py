"""The text part of Gemma 3n (Gemma team 2025, https://ai.google.dev/gemma/docs/gemma-3n), as transformers computes it.

A token has several states at once, streams here, of which blocks read one and correct all (AltUp, Baykal et al. 2023,
https://arxiv.org/abs/2301.13310), a narrow layer beside attention (LAuReL, Menghani et al. 2024,
https://arxiv.org/abs/2411.07501), an embedding for each block, and upper blocks that take keys and values of a lower one.

KerasHub's class holds all blocks in one layer together with the embeddings, so that its upper blocks cannot be trained alone,
and gives blocks that share keys and values weights which published files need not have. So the graph is drawn here, of Keras'
and KerasHub's own layers: a saved model loads without kft. AltUp's coefficients are kept within 120 while transformers trains
them; published ones are far from it, and nothing is cut off here. Import after `backend.activate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import keras
import keras_hub

from kft.backbones.families import drawn
from kft.backbones.families.family import Family, dense, refuse
from kft.backbones.hugging_face import ACTIVATIONS
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

FULL, NEAR = "full_attention", "sliding_attention"
ROPES = {FULL: ("rope_theta", 1e6), NEAR: ("rope_local_base_freq", 1e4)}
# A stream's size is no less than the root of this.
LEAST = 1e-5
# What is above a root; so a token whose embedding is nothing has a gradient.
TINY = 1e-12
HALF = 1 / math.sqrt(2)


@dataclass(frozen=True)
class _Drawn:
    """Draws layers whose names begin alike.

    Attributes:
        start: of their names.
        epsilon: of normalizations.
        width: of a stream.
        streams: how many a token has.
        active: the one that blocks read.
        function: what gates are sent through.
    """

    start: str
    epsilon: float
    width: int
    streams: int
    active: int
    function: Any

    def norm(self, x: Any, name: str) -> Any:
        return keras.layers.RMSNormalization(epsilon=self.epsilon, name=self.start + name)(x)

    def dense(self, x: Any, units: int, name: str) -> Any:
        layer = keras.layers.Dense(units, use_bias=False, kernel_initializer=drawn.normal(), name=self.start + name)
        return layer(x)

    def parted(self, x: Any, rule: str, shape: tuple[int, ...], name: str, bias: str | None = None) -> Any:
        layer = keras.layers.EinsumDense(
            rule, (None, *shape), bias_axes=bias, kernel_initializer=drawn.normal(), name=self.start + name
        )
        return layer(x)


def gemma3n_text(
    vocabulary_size: int,
    layer_types: Sequence[str],
    num_shared: int,
    num_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    hidden_dim: int,
    intermediate_dims: Sequence[int],
    sparsities: Sequence[float],
    window: int,
    wavelengths: Mapping[str, float],
    stretches: Mapping[str, float],
    block_vocabulary_size: int,
    block_embedding_dim: int,
    streams: int,
    active: int,
    laurel_rank: int,
    attention_dropout: float = 0.0,
    activation: str = "gelu_approximate",
    layer_norm_epsilon: float = 1e-6,
    biased: bool = False,
    scaled: bool = True,
) -> Any:
    """Builds a decoder with random weights.

    Args:
        vocabulary_size: number of token ids.
        layer_types: for each block whether it sees the whole text, `full_attention`, or near tokens, `sliding_attention`.
        num_shared: how many of the upper blocks take keys and values of the last block of their kind below these.
        num_heads: of queries.
        num_key_value_heads: of keys and values.
        head_dim: width of a head.
        hidden_dim: width of the hidden states.
        intermediate_dims: width inside each block.
        sparsities: for each block the share of its gates that is shut, were they normally distributed; 0 for none.
        window: how many tokens, its own among them, a token sees in a block that sees near ones.
        wavelengths: base of the rotary frequencies, by kind of block.
        stretches: what places are divided by, by kind of block.
        block_vocabulary_size: number of token ids that have embeddings for blocks; others have that of id 0.
        block_embedding_dim: width of a token's embedding for one block.
        streams: how many states a token has.
        active: the number of the one that blocks read.
        laurel_rank: width inside the layer beside attention.
        attention_dropout: on attention's weights.
        activation: by Keras' name, or KerasHub's `gelu_approximate`.
        layer_norm_epsilon: of all normalizations.
        biased: whether attention's dense layers have biases.
        scaled: whether the state that a block's embedding gates has a scale for each channel.

    Returns:
        A `keras.Model` from `token_ids` and `padding_mask`, each of shape (batch, tokens), to a dict of `sequence_output`,
        shape (batch, tokens, hidden_dim).
    """
    function = keras.saving.get_registered_object(f"keras_hub>{activation}") or activation
    whole = _Drawn("", layer_norm_epsilon, hidden_dim, streams, active, function)
    ids, mask = (keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask"))
    x = _embedding(vocabulary_size, hidden_dim, "token_embedding")(ids) * hidden_dim**0.5
    own = _of_blocks(whole, x, ids, len(layer_types), block_vocabulary_size, block_embedding_dim)
    masks, x, seen = _masks(ids, mask, window), _spread(whole, x), {}
    for number, kind in enumerate(layer_types):
        block = dataclasses.replace(whole, start=f"block_{number}_")
        turn = keras_hub.layers.RotaryEmbedding(wavelengths[kind], stretches[kind], name=f"{block.start}rotary_{kind}")
        norm = keras.layers.RMSNormalization(epsilon=layer_norm_epsilon, name=f"{block.start}router_norm")
        router = keras.layers.Dense(streams, "tanh", use_bias=False, name=f"{block.start}router")
        x = _predicted(block, x, router(norm(x[:, :, active]) / hidden_dim))
        hidden = block.norm(x[:, :, active], "attention_layer_norm")
        if number < len(layer_types) - num_shared:
            seen[kind] = _keys_and_values(block, hidden, turn, num_key_value_heads, head_dim, biased)
        more = _attention(block, hidden, turn, *seen[kind], masks[kind], num_heads, attention_dropout, biased)
        low = block.parted(hidden, "btw,wr->btr", (laurel_rank,), "laurel_in")
        low = hidden + block.norm(block.dense(low, hidden_dim, "laurel_out"), "laurel_norm")
        state = (x[:, :, active] + block.norm(more, "attention_output_norm") + low) * HALF
        state = state + _gated(block, state, intermediate_dims[number], sparsities[number])
        x = _corrected(block, x, state, router(norm(state) / hidden_dim))
        x = _with_own(block, x, own[:, :, number], scaled)
    x = whole.norm(_joined(whole, x), "final_layer_norm")
    return keras.Model({"token_ids": ids, "padding_mask": mask}, {"sequence_output": x}, name="gemma3n_text")


def _embedding(size: int, width: int, name: str) -> Any:
    return keras.layers.Embedding(size, width, embeddings_initializer=drawn.normal(), name=name)


def _of_blocks(whole: _Drawn, x: Any, ids: Any, blocks: int, size: int, width: int) -> Any:
    """Returns what each block is given of each token besides its state, shape (batch, tokens, blocks, width)."""
    own = _embedding(size, blocks * width, "own_embedding")(keras.ops.where(ids < size, ids, 0)) * width**0.5
    own = keras.layers.Reshape((-1, blocks, width), name="own_embedding_parted")(own)
    more = whole.parted(x, "btw,wnp->btnp", (blocks, width), "own_projection") * whole.width**-0.5
    return (whole.norm(more, "own_projection_norm") + own) * HALF


def _masks(ids: Any, mask: Any, window: int) -> dict[str, Any]:
    """Returns which tokens each sees in a block of either kind, shape (batch, 1, 1, tokens, tokens)."""
    places = drawn.places_of(ids)
    behind = (places[:, :, None] - places[:, None, :])[:, None, None]
    seen = keras.ops.logical_and(mask[:, None, None, None, :] > 0, behind >= 0)
    return {FULL: seen, NEAR: keras.ops.logical_and(seen, behind < window)}


def _keys_and_values(block: _Drawn, x: Any, turn: Any, heads: int, size: int, biased: bool) -> tuple[Any, Any]:
    key, value = (
        block.parted(x, "btw,wkd->btkd", (heads, size), f"attention_{part}", "kd" if biased else None)
        for part in ("key", "value")
    )
    return turn(block.norm(key, "key_norm")), keras.ops.rms_normalization(value, epsilon=block.epsilon)


def _attention(
    block: _Drawn, x: Any, turn: Any, key: Any, value: Any, mask: Any, heads: int, rate: float, biased: bool
) -> Any:
    """Returns what attention gives, after its last dense layer; several heads of queries share one of keys."""
    shape = (key.shape[2], heads // key.shape[2], key.shape[3])
    query = block.parted(x, "btw,wkgd->btkgd", shape, "attention_query", "kgd" if biased else None)
    query = turn(block.norm(query, "query_norm"))
    scores = keras.ops.einsum("bqkgd,bskd->bkgqs", query, key)
    weights = keras.layers.Softmax(name=f"{block.start}attention_softmax")(scores, mask=mask)
    weights = keras.layers.Dropout(rate, name=f"{block.start}attention_weights_dropout")(weights)
    mixed = keras.ops.einsum("bkgqs,bskd->bqkgd", weights, value)
    return block.parted(mixed, "btkgd,kgdw->btw", (block.width,), "attention_output", "w" if biased else None)


def _gated(block: _Drawn, x: Any, inner: int, sparsity: float) -> Any:
    """Returns what a block's dense layers give; of sparse gates those below a share of a normal distribution are shut."""
    x = block.norm(x, "layer_norm")
    gate = block.dense(x, inner, "gate")
    if sparsity > 0:
        mean = keras.ops.mean(gate, axis=-1, keepdims=True)
        gate = keras.ops.relu(gate - (mean + _size(gate - mean) * NormalDist().inv_cdf(sparsity)))
    gate = keras.layers.Activation(block.function, name=f"{block.start}gate_activation")(gate)
    more = block.dense(gate * block.dense(x, inner, "intermediate"), block.width, "output")
    return block.norm(more, "output_norm")


def _size(x: Any, least: float = TINY) -> Any:
    return keras.ops.sqrt(keras.ops.maximum(keras.ops.mean(x * x, axis=-1, keepdims=True), least))


def _spread(whole: _Drawn, x: Any) -> Any:
    """Returns the streams of embeddings, each as large as the first, shape (batch, tokens, streams, width)."""
    found = [x]
    for number in range(1, whole.streams):
        more = whole.dense(x, whole.width, f"stream_{number}_in")
        found.append(more * (_size(x) / _size(more, LEAST)))
    return keras.ops.stack(found, axis=2)


def _joined(whole: _Drawn, x: Any) -> Any:
    """Returns the mean of the streams, each made as large as the first."""
    found = [x[:, :, 0]]
    for number in range(1, whole.streams):
        more = whole.dense(x[:, :, number], whole.width, f"stream_{number}_out")
        found.append(more * (_size(found[0]) / _size(more, LEAST)))
    return keras.ops.mean(keras.ops.stack(found, axis=2), axis=2)


def _predicted(block: _Drawn, x: Any, routed: Any) -> Any:
    """Returns the streams as they would be after a block: each a sum of all, weighted by what the active one says."""
    shape = (block.streams, block.streams)
    return x + keras.ops.matmul(block.parted(routed, "btr,rki->btki", shape, "prediction"), x)


def _corrected(block: _Drawn, x: Any, state: Any, routed: Any) -> Any:
    """Returns the predicted streams, each with a part of what the active one was wrong by."""
    part = block.dense(routed, block.streams, "correction") + 1.0
    return x + part[:, :, :, None] * (state - x[:, :, block.active])[:, :, None, :]


def _with_own(block: _Drawn, x: Any, own: Any, scaled: bool) -> Any:
    """Returns the streams, all but the first with what a token's embedding for the block makes of the active one."""
    state = x[:, :, block.active]
    if scaled:
        scale = keras.layers.EinsumDense(
            "btw,w->btw", (None, block.width), kernel_initializer="zeros", name=f"{block.start}own_scale"
        )
        state = scale(state)
    gate = keras.layers.Activation(block.function, name=f"{block.start}own_activation")
    more = gate(block.dense(state, own.shape[-1], "own_gate")) * own
    more = block.norm(block.dense(more, block.width, "own_output"), "own_norm")
    return keras.ops.concatenate([x[:, :, :1], x[:, :, 1:] + more[:, :, None, :]], axis=2)


# What transformers takes where config.json says nothing.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 262_400,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "altup_active_idx": 0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "num_kv_shared_layers": 15,
    "laurel_rank": 64,
    "attention_dropout": 0.0,
    "attention_bias": False,
}


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `gemma3n_text`.

    Raises:
        ModelError: if the activation is unknown, rotary frequencies are scaled in another way than by one factor, AltUp's
            coefficients are kept within another limit, or fields do not fit each other.
    """
    refuse(config, "altup_coef_clip", 120.0, 120.0)
    said = {**DEFAULTS, **config}
    kinds = _kinds(said)
    activation = str(said["hidden_activation"])
    if activation not in ACTIVATIONS:
        raise ModelError(unknown("hidden_activation in config.json", activation, ACTIVATIONS))
    ropes = {kind: _rope(config, kind) for kind in ROPES}
    return {
        "vocabulary_size": said["vocab_size"],
        "layer_types": kinds,
        "num_shared": said["num_kv_shared_layers"],
        "num_heads": said["num_attention_heads"],
        "num_key_value_heads": said["num_key_value_heads"],
        "head_dim": said["head_dim"],
        "hidden_dim": said["hidden_size"],
        "intermediate_dims": _each(said, "intermediate_size", said["intermediate_size"], len(kinds)),
        "sparsities": _each(said, "activation_sparsity_pattern", _sparsities(said), len(kinds)),
        "window": said["sliding_window"],
        "wavelengths": {kind: base for kind, (base, _) in ropes.items()},
        "stretches": {kind: factor for kind, (_, factor) in ropes.items()},
        "block_vocabulary_size": said["vocab_size_per_layer_input"],
        "block_embedding_dim": said["hidden_size_per_layer_input"],
        "streams": said["altup_num_inputs"],
        "active": said["altup_active_idx"],
        "laurel_rank": said["laurel_rank"],
        "attention_dropout": said["attention_dropout"] or 0.0,
        "activation": ACTIVATIONS[activation],
        "layer_norm_epsilon": said["rms_norm_eps"],
        "biased": bool(said["attention_bias"]),
        "scaled": bool(said["altup_correct_scale"]),
    }


def _kinds(said: Mapping[str, Any]) -> list[str]:
    count, shared = said["num_hidden_layers"], said["num_kv_shared_layers"]
    usual = [NEAR if (number + 1) % 5 else FULL for number in range(count)]
    kinds = _each(said, "layer_types", said.get("layer_types") or usual, count)
    if strange := sorted({*kinds} - {*ROPES}):
        raise ModelError(unknown("layer_types in config.json", strange[0], ROPES))
    if without := sorted({*kinds[count - shared :]} - {*kinds[: count - shared]}) if shared else []:
        raise ModelError(
            f"num_kv_shared_layers in config.json is {shared}, but below the last {shared} of {count} blocks none is of the "
            f"kind {without[0]}, whose keys and values they would take. Get the file again."
        )
    return kinds


def _sparsities(said: Mapping[str, Any]) -> Any:
    sparse = 10 if said["num_hidden_layers"] > 10 else 0
    usual = [0.95] * sparse + [0.0] * (said["num_hidden_layers"] - sparse)
    found = said.get("activation_sparsity_pattern")
    return usual if found is None else found


def _each(said: Mapping[str, Any], field: str, value: Any, count: int) -> list[Any]:
    """Returns a value for each block."""
    found = list(value) if isinstance(value, Sequence) else [value] * count
    if len(found) != count:
        raise ModelError(
            f"{field} in config.json is for {len(found)} blocks, but there are {count}. Get the file again."
        )
    return found


def _rope(config: Mapping[str, Any], kind: str) -> tuple[float, float]:
    """Returns base and factor of a kind's rotary frequencies."""
    name, usual = ROPES[kind]
    old = (config.get("rope_scaling") or {}) if kind == FULL else {}
    fields = {**((config.get("rope_parameters") or {}).get(kind) or {}), **old}
    way = fields.get("rope_type", fields.get("type", "default"))
    if way not in ("default", "linear"):
        raise ModelError(
            f"rope_type in config.json is {way!r}; of gemma3n_text kft computes only default, linear. Take another model of "
            "the family."
        )
    base = float(fields.get("rope_theta", config.get(name, usual)))
    return base, float(fields["factor"]) if way == "linear" else 1.0


# A block's layers and their tensors, in torch's order but for axes that are parted here.
DENSE = {
    "attention_query": "self_attn.q_proj",
    "attention_key": "self_attn.k_proj",
    "attention_value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "intermediate": "mlp.up_proj",
    "output": "mlp.down_proj",
    "laurel_in": "laurel.linear_left",
    "laurel_out": "laurel.linear_right",
    "router": "altup.modality_router",
    "prediction": "altup.prediction_coefs",
    "correction": "altup.correction_coefs",
    "own_gate": "per_layer_input_gate",
    "own_output": "per_layer_projection",
}
NORMS = {
    "attention_layer_norm": "input_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attention_output_norm": "post_attention_layernorm",
    "layer_norm": "pre_feedforward_layernorm",
    "output_norm": "post_feedforward_layernorm",
    "laurel_norm": "laurel.post_laurel_norm",
    "router_norm": "altup.router_norm",
    "own_norm": "post_per_layer_input_norm",
}


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    found = {layer.name: layer for layer in model.layers}
    yield Place(found["token_embedding"].embeddings, "embed_tokens.weight")
    yield Place(found["own_embedding"].embeddings, "embed_tokens_per_layer.weight")
    yield from _dense(found["own_projection"], "per_layer_model_projection")
    yield Place(found["own_projection_norm"].scale, "per_layer_projection_norm.weight")
    for number in range(1, sum(name.endswith("_out") and name.startswith("stream_") for name in found) + 1):
        yield from _dense(found[f"stream_{number}_in"], f"altup_projections.{number - 1}")
        yield from _dense(found[f"stream_{number}_out"], f"altup_unembed_projections.{number - 1}")
    for number in range(sum(name.endswith("_intermediate") for name in found)):
        block, start = f"block_{number}", f"layers.{number}"
        for ours, theirs in DENSE.items():
            if (layer := found.get(f"{block}_{ours}")) is not None:
                yield from _dense(layer, f"{start}.{theirs}", 3 if ours == "attention_output" else 1)
        for ours, theirs in NORMS.items():
            if (layer := found.get(f"{block}_{ours}")) is not None:
                yield Place(layer.scale, f"{start}.{theirs}.weight")
        if (layer := found.get(f"{block}_own_scale")) is not None:
            yield Place(layer.kernel, f"{start}.altup.correct_output_scale")
    yield Place(found["final_layer_norm"].scale, "norm.weight")


def _dense(layer: Any, name: str, inputs: int = 1) -> Iterator[Place]:
    yield from dense(layer, name, inputs, bias=layer.bias is not None)


def unread(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns how the names of weights begin that are published and not read: of keys and values that a block is given."""
    said = {**DEFAULTS, **config}
    count, shared = said["num_hidden_layers"], said["num_kv_shared_layers"]
    found = [f"layers.{number}.self_attn.{kind}_" for number in range(count - shared, count) for kind in "kv"]
    scales = () if said["altup_correct_scale"] else [f"layers.{n}.altup.correct_output_scale" for n in range(count)]
    return (*found, *scales)


FAMILY = Family(
    backbone=gemma3n_text,
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=lambda config: ("lm_head.", "score.", *unread(config)),
    pooling="last",
)
