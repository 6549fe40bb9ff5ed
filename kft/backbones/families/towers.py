"""Blocks that normalize before attention and before their dense layers, as CLIP's and SigLIP's towers have them.

Import after `backend.activate`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from kft.backbones.families import drawn
from kft.backbones.families.family import dense, norm
from kft.backbones.places import Place
from kft.errors import ModelError, unknown

# Activations by transformers' names.
ACTIVATIONS = {
    "gelu": lambda x: keras.ops.gelu(x, approximate=False),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), lambda x: keras.ops.gelu(x, approximate=True)),
    # Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2
    "quick_gelu": lambda x: x * keras.ops.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class Tower:
    """The measures of a tower.

    Attributes:
        layers: blocks.
        heads: of attention.
        width: of states.
        inner: width of the dense layer between.
        activation: by transformers' name.
        epsilon: of the normalizations.
        attention_dropout: rate on attention's weights.
    """

    layers: int
    heads: int
    width: int
    inner: int
    activation: str
    epsilon: float
    attention_dropout: float = 0.0

    @classmethod
    def arguments(cls, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a `tower` and its `attention_dropout` as a part of `config.json` says; what it leaves out is in `defaults`.

        Raises:
            ModelError: if the activation is unknown.
        """
        said = {**defaults, **config}
        activation = str(said["hidden_act"])
        if activation not in ACTIVATIONS:
            raise ModelError(unknown("hidden_act in config.json", activation, ACTIVATIONS))
        tower = cls(
            said["num_hidden_layers"],
            said["num_attention_heads"],
            said["hidden_size"],
            said["intermediate_size"],
            activation,
            said["layer_norm_eps"],
        )
        return {"tower": tower, "attention_dropout": said["attention_dropout"]}

    def dropping(self, rate: float) -> Tower:
        """Returns the tower with a rate of dropout on attention's weights."""
        return replace(self, attention_dropout=rate)

    def blocks(self, x: Any, mask: Any = None, start: str = "block", turn: Callable[[Any], Any] | None = None) -> Any:
        """Returns what the tower's blocks make of states of shape (batch, tokens, width).

        Args:
            x: the states.
            mask: nonzero where a token is seen, of a shape that fits (batch, heads, tokens, tokens).
            start: of the names of layers.
            turn: turns queries and keys by their positions, or None.
        """
        for number in range(self.layers):
            x = self._block(x, mask, f"{start}_{number}", turn)
        return x

    def _block(self, x: Any, mask: Any, start: str, turn: Callable[[Any], Any] | None) -> Any:
        layers = keras.layers
        seen = self.norm(f"{start}_attention_norm")(x)
        more = drawn.attention(
            (seen, seen, seen), mask, start, self.heads, self.width, self.attention_dropout, turn=turn
        )
        x = layers.Add(name=f"{start}_attention_add")([x, more])
        seen = self.norm(f"{start}_feedforward_norm")(x)
        up = layers.Dense(self.inner, kernel_initializer=drawn.normal(), name=f"{start}_intermediate")(seen)
        up = ACTIVATIONS[self.activation](up)
        more = layers.Dense(self.width, kernel_initializer=drawn.normal(), name=f"{start}_output")(up)
        return layers.Add(name=f"{start}_feedforward_add")([x, more])

    def norm(self, name: str) -> Any:
        """Returns a normalization."""
        return keras.layers.LayerNormalization(epsilon=self.epsilon, name=name)


def square(said: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Returns `image_size`, `channels` and `patch_size` of a tower for images, as a part of `config.json` says.

    Raises:
        ModelError: if images or patches are not as wide as high.
    """
    size, patch = said["image_size"], said["patch_size"]
    if not (isinstance(size, int) and isinstance(patch, int)):
        raise ModelError(
            f"image_size and patch_size in config.json are {size!r} and {patch!r}; of {kind} kft computes images and patches "
            "that are as wide as high. Take another model of the family."
        )
    return {"image_size": size, "channels": said["num_channels"], "patch_size": patch}


def places(model: Any, prefix: str = "", start: str = "block") -> Iterator[Place]:
    """Gives each weight of a tower's blocks with the name of its tensor.

    Args:
        model: which has the blocks.
        prefix: of the tensors' names.
        start: of the names of layers.
    """
    found = {layer.name: layer for layer in model.layers}
    number = 0
    while f"{start}_{number}_intermediate" in found:
        block, own = f"{start}_{number}", f"{prefix}encoder.layers.{number}"
        yield from norm(found[f"{block}_attention_norm"], f"{own}.layer_norm1")
        for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            yield from dense(found[f"{block}_attention_{part}"], f"{own}.self_attn.{name}")
        yield from dense(found[f"{block}_attention_output"], f"{own}.self_attn.out_proj", 2)
        yield from norm(found[f"{block}_feedforward_norm"], f"{own}.layer_norm2")
        yield from dense(found[f"{block}_intermediate"], f"{own}.mlp.fc1")
        yield from dense(found[f"{block}_output"], f"{own}.mlp.fc2")
        number += 1


# What BLIP-2 and Qwen3.5 call a block's layers, in the order of `fused_places`.
Names = tuple[str, str, str, str, str, str]


def fused_places(found: Mapping[str, Any], start: str, names: Names) -> Iterator[Place]:
    """Gives each weight of a tower's blocks for images whose queries, keys and values lie in one tensor.

    Args:
        found: the model's layers by name.
        start: of the tensors' names, before a block's number.
        names: of the first normalization, queries with keys and values, attention's output, the second normalization, and both
            dense layers.
    """
    before, fused, output, after, first, last = names
    for number in range(sum(name.endswith("_feedforward_norm") for name in found)):
        block, own = f"image_block_{number}", f"{start}.{number}"
        yield from norm(found[f"{block}_attention_norm"], f"{own}.{before}")
        for part, name in enumerate(("query", "key", "value")):
            layer, cut = found[f"{block}_attention_{name}"], functools.partial(third, part=part)
            yield Place(layer.kernel, f"{own}.{fused}.weight", 1, cut)
            yield Place(layer.bias, f"{own}.{fused}.bias", cut=cut)
        yield from dense(found[f"{block}_attention_output"], f"{own}.{output}", 2)
        yield from norm(found[f"{block}_feedforward_norm"], f"{own}.{after}")
        yield from dense(found[f"{block}_intermediate"], f"{own}.{first}")
        yield from dense(found[f"{block}_output"], f"{own}.{last}")


def third(array: np.ndarray, part: int) -> np.ndarray:
    """Takes queries, keys or values out of rows that lie one kind after the other."""
    if len(array) % 3:
        return array  # of another model, which its shape will tell
    rows = len(array) // 3
    return array[part * rows : (part + 1) * rows]
