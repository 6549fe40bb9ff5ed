"""Whisper (Radford et al. 2022, https://arxiv.org/abs/2212.04356): hears log-mel spectrograms, writes text.

No task of kft hears; scripts get KerasHub's model with the published weights. Import after `backend.activate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kft.backbones.families.family import Family, dense, norm, refuse
from kft.backbones.places import Place
from kft.errors import ModelError


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of KerasHub's `WhisperBackbone`.

    Raises:
        ModelError: if encoder and decoder are not alike, as KerasHub's are, embeddings are scaled, or the activation is not GELU.
    """
    refuse(config, "activation_function", "gelu", "gelu")
    refuse(config, "scale_embedding", False, False)
    for part in ("layers", "attention_heads", "ffn_dim"):
        if config[f"encoder_{part}"] != config[f"decoder_{part}"]:
            raise ModelError(
                f"encoder_{part} in config.json is {config[f'encoder_{part}']} and decoder_{part} "
                f"{config[f'decoder_{part}']}; KerasHub computes only a Whisper that has as many of both. "
                "Take another model of the family."
            )
    return {
        "vocabulary_size": config["vocab_size"],
        "num_layers": config["encoder_layers"],
        "num_heads": config["encoder_attention_heads"],
        "hidden_dim": config["d_model"],
        "intermediate_dim": config["encoder_ffn_dim"],
        "num_mels": config.get("num_mel_bins", 80),
        "dropout": config.get("dropout", 0.0),
        # A convolution halves the length before positions are added.
        "max_encoder_sequence_length": 2 * config.get("max_source_positions", 1500),
        "max_decoder_sequence_length": config.get("max_target_positions", 448),
    }


def places(model: Any, config: Mapping[str, Any]) -> Iterator[Place]:
    """Gives each variable with the name of its tensor."""
    for number in (1, 2):
        layer = getattr(model, f"encoder_conv_layer_{number}")
        yield Place(layer.kernel, f"encoder.conv{number}.weight", axes=(2, 1, 0))
        yield Place(layer.bias, f"encoder.conv{number}.bias")
    table = model.decoder_embeddings
    yield Place(model.encoder_position_embedding.position_embeddings, "encoder.embed_positions.weight")
    yield Place(table.token_embedding.embeddings, "decoder.embed_tokens.weight")
    yield Place(table.position_embedding.position_embeddings, "decoder.embed_positions.weight")
    for part in ("encoder", "decoder"):
        for number, block in enumerate(getattr(model, f"{part}_transformer_layers")):
            yield from _block(block, f"{part}.layers.{number}")
        yield from norm(getattr(model, f"{part}_layer_norm"), f"{part}.layer_norm")


def _block(block: Any, start: str) -> Iterator[Place]:
    for own, name in (("self", "self"), ("cross", "encoder")):
        if attention := getattr(block, f"_{own}_attention_layer", None):
            yield from dense(attention._query_dense, f"{start}.{name}_attn.q_proj")
            yield from dense(attention._key_dense, f"{start}.{name}_attn.k_proj")
            yield from dense(attention._value_dense, f"{start}.{name}_attn.v_proj")
            yield from dense(attention._output_dense, f"{start}.{name}_attn.out_proj", inputs=2)
            yield from norm(getattr(block, f"_{own}_attention_layer_norm"), f"{start}.{name}_attn_layer_norm")
    yield from dense(block._feedforward_intermediate_dense, f"{start}.fc1")
    yield from dense(block._feedforward_output_dense, f"{start}.fc2")
    yield from norm(block._feedforward_layer_norm, f"{start}.final_layer_norm")


FAMILY = Family(
    backbone="WhisperBackbone",
    arguments=arguments,
    places=places,
    prefix="model.",
    heads=("proj_out.",),
    pooling="mean",
    modality="audio",
)
