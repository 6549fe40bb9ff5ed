"""GPT-NeoX (Black et al. 2022, https://arxiv.org/abs/2204.06745). Import after `backend.activate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kft.backbones.families import rotary
from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.hugging_face import DECODER
from kft.backbones.places import Place
from kft.errors import ModelError

# Names of GELU's approximation with tanh.
ACTIVATIONS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
# Older files hold masks and frequencies of each block, which are no weights.
BUFFERS = tuple(f"layers.{n}.attention.{name}" for n in range(128) for name in ("bias", "masked_bias", "rotary_emb."))


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's class.

    Raises:
        ModelError: if the model computes GELU exactly, as Pythia does, its layers one after the other, or lacks biases.
    """
    refuse(config, "use_parallel_residual", True, True)
    refuse(config, "attention_bias", True, True)
    _refuse_exact(config)
    turned = rotary.read(config, "rotary_emb_base", "rotary_pct", 0.25)
    rotary.refuse(config, turned, ("default",))
    width = int(config["hidden_size"] // config["num_attention_heads"] * turned.share)
    if width < 2 or width % 2:
        raise ModelError(
            f"The rotary share in config.json is {turned.share}, which turns {width} numbers of a head; KerasHub turns an "
            "even number, at least 2. Take another model of the family."
        )
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "hidden_dim": config["hidden_size"],
        "intermediate_dim": config["intermediate_size"],
        "dropout": config.get("hidden_dropout", 0.0),
        "rotary_percentage": turned.share,
        "rotary_max_wavelength": turned.wavelength,
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-5),
        "max_sequence_length": config["max_position_embeddings"],
    }


def _refuse_exact(config: Mapping[str, Any]) -> None:
    found = config.get("hidden_act", "gelu")
    if found not in ACTIVATIONS:
        raise ModelError(
            f"hidden_act in config.json is {found!r}; of gpt_neox KerasHub computes only {', '.join(ACTIVATIONS)}. Take "
            "another model; or, where numbers a little off those of its makers will do, write gelu_new there for gelu."
        )


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor; KerasHub keeps query, key and value fused as they are published."""
    yield Place(model.token_embedding.embeddings, "embed_in.weight")
    for number, block in enumerate(model.transformer_layers):
        start, attention = f"layers.{number}", block._self_attention_layer
        yield from norm(block._self_attention_layer_norm, f"{start}.input_layernorm")
        yield from dense(attention._qkv_dense, f"{start}.attention.query_key_value")
        yield from dense(attention._output_dense, f"{start}.attention.dense")
        yield from norm(block._feedforward_layer_norm, f"{start}.post_attention_layernorm")
        yield from dense(block._feedforward_intermediate_dense, f"{start}.mlp.dense_h_to_4h")
        yield from dense(block._feedforward_output_dense, f"{start}.mlp.dense_4h_to_h")
    yield from norm(model.layer_norm, "final_layer_norm")


FAMILY = Family(
    backbone="GPTNeoXBackbone",
    arguments=arguments,
    places=places,
    prefix="gpt_neox.",
    heads=("embed_out.", "lm_head.", "score.", "classifier.", "qa_outputs.", *BUFFERS),
    head=DECODER,
    pooling="last",
)
