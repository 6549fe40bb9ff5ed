"""Where the weights of Gemma 4's encoders of images and sounds stand. Import after `backend.activate`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from kft.backbones.families import gemma4
from kft.backbones.families.family import dense
from kft.backbones.places import Place

ENDS = ("input_min", "input_max", "output_min", "output_max")


def seeing(encoder: Any, projection: Any) -> Iterator[Place]:
    """Gives each variable of the encoder of images, and of what follows it, with the name of its tensor."""
    embedder, start = encoder.patch_embedder, "vision_tower"
    yield from dense(embedder.input_proj, f"{start}.patch_embedder.input_proj")
    yield Place(embedder.position_embedding_table, f"{start}.patch_embedder.position_embedding_table")
    for number, block in enumerate(encoder.encoder_blocks):
        yield from _block(block, f"{start}.encoder.layers.{number}")
    if projection.standardize:
        yield Place(projection.std_bias, f"{start}.std_bias")
        yield Place(projection.std_scale, f"{start}.std_scale")
    yield from dense(projection.vision_input_projection, "embed_vision.embedding_projection")


def _block(block: Any, start: str) -> Iterator[Place]:
    yield Place(block.pre_attention_norm.scale, f"{start}.input_layernorm.weight")
    yield Place(block.post_attention_norm.scale, f"{start}.post_attention_layernorm.weight")
    yield Place(block.pre_ffw_norm.scale, f"{start}.pre_feedforward_layernorm.weight")
    yield Place(block.post_ffw_norm.scale, f"{start}.post_feedforward_layernorm.weight")
    attention = block.attention
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        layer, name = getattr(attention, f"{ours}_dense"), f"{start}.self_attn.{theirs}_proj"
        cut = functools.partial(gemma4.of_heads, heads=layer.dense.kernel.shape[0])
        yield Place(layer.dense.kernel, f"{name}.linear.weight", cut=cut, axes=(0, 2, 1))
        yield from _ends(layer, name)
    yield Place(attention.query_norm.scale, f"{start}.self_attn.q_norm.weight")
    yield Place(attention.key_norm.scale, f"{start}.self_attn.k_norm.weight")
    yield from _clipped(attention.output_dense, f"{start}.self_attn.o_proj", 2)
    yield from _clipped(block.gating_ffw, f"{start}.mlp.gate_proj")
    yield from _clipped(block.gating_ffw_2, f"{start}.mlp.up_proj")
    yield from _clipped(block.ffw_linear, f"{start}.mlp.down_proj")


def _clipped(layer: Any, name: str, inputs: int = 1) -> Iterator[Place]:
    yield from dense(layer.dense, f"{name}.linear", inputs)
    yield from _ends(layer, name)


def _ends(layer: Any, name: str) -> Iterator[Place]:
    """Gives the least and most of what a layer takes and returns."""
    if layer.use_clipped_linears:
        for end in ENDS:
            yield Place(getattr(layer, end), f"{name}.{end}")


def hearing(encoder: Any) -> Iterator[Place]:
    """Gives each variable of the encoder of sounds, and of what follows it, with the name of its tensor."""
    start = "audio_tower"
    first = encoder.subsample_conv_projection
    for number, layer in enumerate((first.conv_0, first.conv_1)):
        name = f"{start}.subsample_conv_projection.layer{number}"
        yield Place(layer.conv.kernel, f"{name}.conv.weight", axes=(2, 3, 1, 0))
        yield Place(layer.norm.gamma, f"{name}.norm.weight")
    yield from dense(first.input_proj, f"{start}.subsample_conv_projection.input_proj_linear")
    for number, block in enumerate(encoder.conformer_blocks):
        yield from _conformer(block, f"{start}.layers.{number}")
    yield from dense(encoder.output_proj, f"{start}.output_proj")
    yield from dense(encoder.audio_output_projection, "embed_audio.embedding_projection")


def _conformer(block: Any, start: str) -> Iterator[Place]:
    for layer, name in ((block.ffw_start, "feed_forward1"), (block.ffw_end, "feed_forward2")):
        yield Place(layer.pre_norm.scale, f"{start}.{name}.pre_layer_norm.weight")
        yield Place(layer.post_norm.scale, f"{start}.{name}.post_layer_norm.weight")
        yield from _clipped(layer.ffw_1, f"{start}.{name}.ffw_layer_1")
        yield from _clipped(layer.ffw_2, f"{start}.{name}.ffw_layer_2")
    around, attention, own = block.attention, block.attention.attn, f"{start}.self_attn"
    yield Place(around.pre_attn_norm.scale, f"{start}.norm_pre_attn.weight")
    yield Place(around.post_norm.scale, f"{start}.norm_post_attn.weight")
    for part in ("q_proj", "k_proj", "v_proj"):
        yield from _clipped(getattr(attention, part), f"{own}.{part}")
    yield Place(attention.per_dim_scale, f"{own}.per_dim_scale")
    yield Place(attention.rpe.pos_proj, f"{own}.relative_k_proj.weight", 1)
    yield from _clipped(around.out_proj, f"{own}.post")
    turned, own = block.lconv, f"{start}.lconv1d"
    yield Place(turned.pre_norm.scale, f"{own}.pre_layer_norm.weight")
    yield Place(turned.conv_norm.scale, f"{own}.conv_norm.weight")
    yield from _clipped(turned.linear_start, f"{own}.linear_start")
    yield Place(turned.depthwise_conv.kernel, f"{own}.depthwise_conv1d.weight", axes=(2, 0, 1))
    yield from _clipped(turned.linear_end, f"{own}.linear_end")
    yield Place(block.norm.scale, f"{start}.norm_out.weight")
