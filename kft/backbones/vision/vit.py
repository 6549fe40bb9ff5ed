"""Vision transformers as timm names them, which KerasHub's classes compute. Import after `backend.activate`.

ViT is of A. Dosovitskiy et al., arXiv:2010.11929; DeiT, of H. Touvron et al., arXiv:2012.12877, is the same, or has a second
token that was taught by another network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras_hub
import numpy as np

from kft.backbones.families.family import dense, norm
from kft.backbones.places import Place

NAMES = re.compile(r"^(?:vit|deit)_(tiny|small|base|large|huge)(_distilled)?_patch(\d+)_\d+$")
EPSILON, CONVOLUTION = 1e-6, (2, 3, 1, 0)  # torch's axes in Keras' order


@dataclass(frozen=True)
class ViT:
    """The measures of a vision transformer.

    Attributes:
        patch: height and width of a patch in pixels.
        width: numbers a token.
        depth: blocks.
        heads: of attention.
        inner: width of the dense layers between.
        distilled: whether a distillation token stands behind the class token.
    """

    patch: int
    width: int
    depth: int
    heads: int
    inner: int
    distilled: bool = False


# Width, depth, heads and inner width: table 1 of arXiv:2010.11929, and of arXiv:2012.12877 for the two smallest.
SIZES = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "huge": (1280, 32, 16, 5120),
}
# The one that timm publishes to try programs with.
SMALLEST = "test_vit"


def named(name: str) -> ViT | None:
    """Returns the measures of the vision transformer that timm calls so, None where it is of another kind."""
    if name == SMALLEST:
        return ViT(16, 64, 6, 2, 192)
    found = NAMES.match(name)
    return ViT(int(found[3]), *SIZES[found[1]], distilled=bool(found[2])) if found else None


def build(shape: ViT, image: tuple[int, int, int], dropout: float = 0.0) -> Any:
    """Builds a backbone from scaled images to tokens, the class token first.

    Args:
        shape: its measures.
        image: height, width and channels; the first two are multiples of the patch's.
        dropout: rate of the embeddings' and the blocks' dropout.

    Returns:
        A `keras.Model` from float32 images of shape (batch, height, width, channels) to shape (batch, tokens, width).
    """
    arguments = {
        "image_shape": image,
        "patch_size": shape.patch,
        "num_layers": shape.depth,
        "num_heads": shape.heads,
        "hidden_dim": shape.width,
        "dropout_rate": dropout,
        "layer_norm_epsilon": EPSILON,
    }
    if shape.distilled:
        return keras_hub.models.DeiTBackbone(intermediate_dim=shape.inner, **arguments)
    return keras_hub.models.ViTBackbone(mlp_dim=shape.inner, **arguments)


def places(model: Any, shape: ViT) -> Iterator[Place]:
    """Gives every weight of a backbone with the name that timm has for it.

    Args:
        model: what `build` made of `shape`.
        shape: its measures.
    """
    kind = "deit" if shape.distilled else "vit"
    embedding, encoder = model.get_layer(f"{kind}_patching_and_embedding"), model.get_layer(f"{kind}_encoder")
    yield Place(embedding.class_token, "cls_token")
    if shape.distilled:
        yield Place(embedding.distillation_token, "dist_token")
        yield Place(embedding.position_embedding, "pos_embed")
    else:
        yield Place(embedding.position_embedding.embeddings, "pos_embed", cut=_only)
    yield Place(embedding.patch_embedding.kernel, "patch_embed.proj.weight", axes=CONVOLUTION)
    yield Place(embedding.patch_embedding.bias, "patch_embed.proj.bias")
    for number, block in enumerate(encoder.encoder_layers):
        yield from _block(block, shape, f"blocks.{number}")
    yield from norm(encoder.layer_norm, "norm")


def _block(block: Any, shape: ViT, start: str) -> Iterator[Place]:
    attention = block.mha
    yield from norm(block.layer_norm_1, f"{start}.norm1")
    for part, layer in enumerate((attention.query_dense, attention.key_dense, attention.value_dense)):
        cut = partial(_third, part=part)
        yield Place(layer.kernel, f"{start}.attn.qkv.weight", 1, cut)
        yield Place(layer.bias, f"{start}.attn.qkv.bias", cut=cut)
    yield from dense(attention.output_dense, f"{start}.attn.proj", 2)
    yield from norm(block.layer_norm_2, f"{start}.norm2")
    mlp = block.mlp
    up, down = (mlp.dense, block.output_layer.dense) if shape.distilled else (mlp.dense_1, mlp.dense_2)
    yield from dense(up, f"{start}.mlp.fc1")
    yield from dense(down, f"{start}.mlp.fc2")


def _third(array: np.ndarray, part: int) -> np.ndarray:
    """Returns query, key or value of the three in one tensor; an array of other measures is refused by its shape then."""
    return np.array_split(array, 3)[part]


def _only(array: np.ndarray) -> np.ndarray:
    return array[0] if len(array) == 1 else array
