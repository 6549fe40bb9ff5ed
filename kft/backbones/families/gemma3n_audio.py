"""What Gemma 3n hears sounds with: the Universal Speech Model (Zhang et al. 2023, https://arxiv.org/abs/2303.01037).

KerasHub's encoder cannot be loaded once it is saved, and takes one epsilon for all normalizations, so the graph is drawn here.
transformers cuts a sound into chunks before attention; a frame sees the same ones before and after it as it does here, where
those are masked that are too far. Import after `backend.activate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from kft.backbones.families import drawn
from kft.backbones.families.family import dense
from kft.backbones.places import Place
from kft.backbones.vision.convnext import CONVOLUTION, of_channels
from kft.errors import ModelError

# What transformers takes where config.json says nothing, of fields that have an effect.
DEFAULTS: dict[str, Any] = {
    "vocab_size": 128,
    "vocab_offset": 262_272,
    "input_feat_size": 128,
    "hidden_size": 1536,
    "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_conv_kernel_size": 5,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": (128, 32),
    "sscp_conv_group_norm_eps": 1e-3,
    "sscp_conv_kernel_size": ((3, 3), (3, 3)),
    "sscp_conv_stride_size": ((2, 2), (2, 2)),
}
# Of the normalizations that have no epsilon of their own, and of the longest wave of positions.
EPSILON, LONGEST = 1e-6, 1e4


@dataclass(frozen=True)
class Hearing:
    """The measures of an encoder of sounds.

    Attributes:
        bands: of a frame of a spectrogram.
        width: of a state.
        blocks: how many.
        heads: of attention.
        before: how many frames a state sees before its own.
        after: how many after it.
        cap: what attention's scores stay below.
        kernel: how many frames a block's convolution sees.
        share: how much of a block's dense layers is added.
        fewer: of so many states one is given.
        channels: of the two first convolutions.
        kernels: frames and bands of each.
        strides: of each.
        limit: beyond which states are clipped.
        epsilon: of the normalizations beside a block's convolution.
        first_epsilon: of those of the first convolutions.
    """

    bands: int
    width: int
    blocks: int
    heads: int
    before: int
    after: int
    cap: float
    kernel: int
    share: float
    fewer: int
    channels: Sequence[int]
    kernels: Sequence[Sequence[int]]
    strides: Sequence[Sequence[int]]
    limit: float
    epsilon: float
    first_epsilon: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Hearing:
        """Returns what `audio_config` says; see `DEFAULTS`.

        Raises:
            ModelError: if there are not two of what the two first convolutions have.
        """
        said = {**DEFAULTS, **config}
        for name in ("sscp_conv_channel_size", "sscp_conv_kernel_size", "sscp_conv_stride_size"):
            if len(said[name]) != 2:
                raise ModelError(f"{name} in config.json is {said[name]!r}, but is for two layers. Get the file again.")
        return cls(
            said["input_feat_size"],
            said["hidden_size"],
            said["conf_num_hidden_layers"],
            said["conf_num_attention_heads"],
            max(0, said["conf_attention_context_left"] - 1),
            said["conf_attention_context_right"],
            said["conf_attention_logit_cap"],
            said["conf_conv_kernel_size"],
            said["conf_residual_weight"],
            said["conf_reduction_factor"],
            said["sscp_conv_channel_size"],
            said["sscp_conv_kernel_size"],
            said["sscp_conv_stride_size"],
            said["gradient_clipping"],
            said["rms_norm_eps"],
            said["sscp_conv_group_norm_eps"],
        )

    def states(self, mel: Any, heard: Any) -> tuple[Any, Any]:
        """Returns the states of sounds, and which of them are of the sound.

        Args:
            mel: spectrograms, shape (sounds, frames, bands).
            heard: nonzero for frames of the sound, shape (sounds, frames).
        """
        x = keras.layers.Reshape((-1, self.bands, 1), name="audio_pixels")(mel)
        for number in range(2):
            x = self._convolved(x, number)
        x = keras.layers.Reshape((-1, x.shape[2] * x.shape[3]), name="audio_frames")(x)
        x = _dense(x, self.width, "audio_input")
        heard = heard[:, :: self.strides[0][0] * self.strides[1][0]] > 0
        seen = self._seen(heard)
        for number in range(self.blocks):
            x = self._block(x, heard, seen, f"audio_{number}")
        return x[:, :: self.fewer], heard[:, :: self.fewer]

    def _convolved(self, x: Any, number: int) -> Any:
        layers, name, kernel = keras.layers, f"audio_convolution_{number}", self.kernels[number]
        x = layers.ZeroPadding2D(((0, kernel[0] - 1), (1, 1)), name=f"{name}_padded")(x)
        x = layers.Conv2D(self.channels[number], tuple(kernel), tuple(self.strides[number]), use_bias=False, name=name)(
            x
        )
        return keras.ops.relu(self._normalized(x, f"{name}_scale"))

    def _normalized(self, x: Any, name: str) -> Any:
        """Returns frames normalized by the mean and the deviation of all up to each, in float32."""
        ops, own = keras.ops, x.dtype

        def mean(x: Any) -> Any:
            found = ops.mean(x, axis=(2, 3), keepdims=True)
            return ops.cumsum(found, axis=1) / ops.cumsum(ops.ones_like(found), axis=1)

        x = ops.cast(x, "float32")
        x = x - mean(x)
        x = ops.cast(x * ops.rsqrt(mean(x * x) + self.first_epsilon), own)
        return x * of_channels(x, name, "ones")

    def _seen(self, heard: Any) -> Any:
        """Says which frames a frame sees, shape (sounds, 1, frames, frames)."""
        behind = -_ahead(heard)
        near = keras.ops.logical_and(behind <= self.before, behind >= -self.after)
        return keras.ops.logical_and(near[None, None], heard[:, None, None, :])

    def _block(self, x: Any, heard: Any, seen: Any, name: str) -> Any:
        x = self._dense_layers(x, f"{name}_first")
        more = self._attended(_norm(self._clipped(x), f"{name}_attention_norm"), seen, name)
        more = self._clipped(_dense(more, self.width, f"{name}_attention_output"))
        x = x + _norm(more, f"{name}_attention_output_norm")
        x = self._listened(x * keras.ops.cast(heard[:, :, None], x.dtype), name)
        x = self._dense_layers(x, f"{name}_last")
        return _norm(self._clipped(x), f"{name}_norm")

    def _dense_layers(self, x: Any, name: str) -> Any:
        more = _dense(_norm(self._clipped(x), f"{name}_norm"), 4 * self.width, f"{name}_intermediate")
        more = self._clipped(_dense(keras.ops.silu(more), self.width, f"{name}_output"))
        return x + _norm(more, f"{name}_output_norm") * self.share

    def _listened(self, x: Any, name: str) -> Any:
        """Returns what a convolution over the last frames gives, and its input."""
        layers = keras.layers
        more = _dense(_norm(x, f"{name}_convolution_norm", self.epsilon), 2 * self.width, f"{name}_convolution_input")
        more = more[:, :, : self.width] * keras.ops.sigmoid(more[:, :, self.width :])
        more = layers.ZeroPadding1D((self.kernel - 1, 0), name=f"{name}_convolution_padded")(more)
        more = layers.DepthwiseConv1D(self.kernel, use_bias=False, name=f"{name}_convolution")(more)
        more = _norm(self._clipped(more), f"{name}_convolution_inner_norm", self.epsilon)
        return x + _dense(keras.ops.silu(more), self.width, f"{name}_convolution_output")

    def _attended(self, x: Any, seen: Any, name: str) -> Any:
        ops, layers, size = keras.ops, keras.layers, self.width // self.heads
        query, key, value = (
            drawn.part(f"{name}_attention_{part}", (self.heads, size), biased=False)(x)
            for part in ("query", "key", "value")
        )
        scale = ops.softplus(of_channels(query, f"{name}_attention_scale", "zeros")) / math.log(2)
        query = query * (scale * size**-0.5)
        distance = drawn.part(f"{name}_attention_distance", (self.heads, size), biased=False)(self._waves(x))
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key)
        of_distance = ops.einsum("bqhd,fhd->bhqf", query, distance[0])
        column = ops.clip(_ahead(x[:, :, 0]) + self.before, 0, self.before + self.after)
        column = column[None, None] + ops.zeros_like(of_distance[:, :, :, :1], dtype="int32")
        scores = scores + ops.take_along_axis(of_distance, column, axis=3)
        scores = ops.tanh(scores / self.cap) * self.cap
        weights = layers.Softmax(dtype="float32", name=f"{name}_attention_softmax")(scores, mask=seen)
        mixed = ops.einsum("bhqk,bkhd->bqhd", ops.cast(weights, value.dtype), value)
        return layers.Reshape((-1, self.width), name=f"{name}_attention_heads")(mixed)

    def _waves(self, x: Any) -> Any:
        """Returns sines and cosines of the distances that are seen, the farthest behind first, shape (1, distances, width)."""
        ops, half = keras.ops, self.width // 2
        one = ops.ones_like(x[:1, :1, :1], dtype="float32")
        behind = self.before + 1 - ops.cumsum(ops.repeat(one, self.before + self.after + 1, axis=1), axis=1)
        number = ops.cumsum(ops.repeat(one, half, axis=2), axis=2) - 1
        turned = behind * ops.exp(number * (-math.log(LONGEST) / max(half - 1, 1)))
        return ops.cast(ops.concatenate([ops.sin(turned), ops.cos(turned)], axis=-1), x.dtype)

    def _clipped(self, x: Any) -> Any:
        return keras.ops.clip(x, -self.limit, self.limit)


def _ahead(x: Any) -> Any:
    """Returns how far each frame is ahead of each, given anything of shape (sounds, frames); shape (frames, frames)."""
    places = keras.ops.cumsum(keras.ops.ones_like(x[0], dtype="int32"))
    return places[None, :] - places[:, None]


def _dense(x: Any, width: int, name: str) -> Any:
    return keras.layers.Dense(width, use_bias=False, kernel_initializer=drawn.normal(), name=name)(x)


def _norm(x: Any, name: str, epsilon: float = EPSILON) -> Any:
    return keras.layers.RMSNormalization(epsilon=epsilon, name=name)(x)


# A block's layers and their tensors.
DENSE = {
    **{
        f"{own}_{ours}": f"{theirs}.{name}"
        for own, theirs in (("first", "ffw_layer_start"), ("last", "ffw_layer_end"))
        for ours, name in (("intermediate", "ffw_layer_1"), ("output", "ffw_layer_2"))
    },
    "attention_query": "attention.attn.q_proj",
    "attention_key": "attention.attn.k_proj",
    "attention_value": "attention.attn.v_proj",
    "attention_distance": "attention.attn.relative_position_embedding.pos_proj",
    "attention_output": "attention.post",
    "convolution_input": "lconv1d.linear_start",
    "convolution_output": "lconv1d.linear_end",
}
NORMS = {
    "first_norm": "ffw_layer_start.pre_layer_norm",
    "first_output_norm": "ffw_layer_start.post_layer_norm",
    "attention_norm": "attention.pre_attn_norm",
    "attention_output_norm": "attention.post_norm",
    "convolution_norm": "lconv1d.pre_layer_norm",
    "convolution_inner_norm": "lconv1d.conv_norm",
    "last_norm": "ffw_layer_end.pre_layer_norm",
    "last_output_norm": "ffw_layer_end.post_layer_norm",
    "norm": "norm",
}


def places(model: Any, blocks: int) -> Iterator[Place]:
    """Gives each variable with the name of its tensor.

    Args:
        model: which has the encoder's layers.
        blocks: how many the encoder has.
    """
    layer, first = model.get_layer, "audio_tower.subsample_conv_projection"
    for number in range(2):
        own, name = f"audio_convolution_{number}", f"{first}.conv_{number}"
        yield Place(layer(own).kernel, f"{name}.conv.weight", axes=CONVOLUTION)
        yield Place(layer(f"{own}_scale").kernel, f"{name}.norm.weight")
    yield from dense(layer("audio_input"), f"{first}.input_proj_linear")
    for number in range(blocks):
        own, start = f"audio_{number}", f"audio_tower.conformer.{number}"
        for ours, theirs in DENSE.items():
            yield from dense(layer(f"{own}_{ours}"), f"{start}.{theirs}")
        for ours, theirs in NORMS.items():
            yield Place(layer(f"{own}_{ours}").scale, f"{start}.{theirs}.weight")
        yield Place(layer(f"{own}_attention_scale").kernel, f"{start}.attention.attn.per_dim_scale")
        # Frames, channels and one, where torch has channels, one and frames.
        yield Place(layer(f"{own}_convolution").kernel, f"{start}.lconv1d.depthwise_conv1d.weight", axes=(2, 0, 1))
