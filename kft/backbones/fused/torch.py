"""Encoder blocks and dropout in torch's own operations. Import after `backend.activate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import torch
from torch.nn import functional

from kft.backbones.fused.block import MASKED, Drop, Settings, Weights


def value(variable: Any, dtype: Any) -> Any:
    """Returns a Keras weight as a tensor of a dtype."""
    return variable.value.to(dtype)


def concatenate(tensors: list[Any], axis: int) -> Any:
    """Returns tensors side by side."""
    return torch.cat(tensors, axis)


def activation_of(activation: Any) -> Callable[[Any], Any]:
    """Returns torch's own kernel for an activation that has one, else the activation."""
    known = {
        keras.activations.gelu: functional.gelu,
        keras.activations.relu: functional.relu,
        keras.saving.get_registered_object("keras_hub>gelu_approximate"): gelu_tanh,
    }
    found: Callable[[Any], Any] = known.get(activation, activation)
    return found


def block(x: Any, padding_mask: Any, w: Weights, settings: Settings, drop: Drop) -> Any:
    """Returns what a KerasHub TransformerEncoder returns, shape (batch, tokens, width)."""
    batch, tokens, width = x.shape
    first = settings.normalize_first
    x = x.reshape(-1, width)
    hidden = _norm(x, w.norm1, settings.epsilon) if first else x
    attended = _attend(hidden, (batch, tokens), padding_mask, w, settings, drop.attention)
    x = _add(attended, x, drop.hidden[0])
    x = x if first else _norm(x, w.norm1, settings.epsilon)
    hidden = _norm(x, w.norm2, settings.epsilon) if first else x
    x = _add(_between(hidden, w, settings.activation), x, drop.hidden[1])
    x = x if first else _norm(x, w.norm2, settings.epsilon)
    return x.reshape(batch, tokens, width)


def _norm(x: Any, weights: tuple[Any, Any], epsilon: float) -> Any:
    return functional.layer_norm(x, x.shape[-1:], *weights, epsilon)


def _add(x: Any, residual: Any, rate: float) -> Any:
    if not rate:
        return x + residual
    return _DropAdd.apply(x, residual, rate) if x.device.type == "cpu" else functional.dropout(x, rate) + residual


def _between(x: Any, w: Weights, activation: Callable[[Any], Any]) -> Any:
    """Returns what the two dense layers with the activation between them give."""
    approximate = KINDS.get(activation)
    if approximate is not None and torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32:
        return _Between.apply(x, w.up, w.up_bias, w.down, w.down_bias, approximate)
    return torch.addmm(w.down_bias, activation(torch.addmm(w.up_bias, x, w.up)), w.down)


def _attend(x: Any, shape: tuple[int, int], padding_mask: Any, w: Weights, settings: Settings, rate: float) -> Any:
    heads = settings.heads
    qkv = torch.addmm(w.qkv_bias, x, w.qkv).view(*shape, 3, heads, -1)
    mask = None if padding_mask is None else padding_mask.bool()[:, None, None, :]
    if rate and x.device.type == "cpu":
        bias = None if mask is None else torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(~mask, MASKED)
        out = _Attention.apply(qkv, bias, rate)
    else:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate).transpose(1, 2)
    return torch.addmm(w.out_bias, out.reshape(x.shape), w.out)


def dropout_of(layer: Any) -> Callable[..., Any]:
    """Returns a replacement for the `call` of a Keras Dropout layer."""
    plain = layer.call

    def call(inputs: Any, training: bool = False) -> Any:
        if not training or not layer.rate or inputs.device.type != "cpu" or layer.noise_shape is not None:
            return plain(inputs, training=training)
        return _Drop.apply(inputs, layer.rate)

    return call


# sqrt(2 / pi) and the cube's share in GELU's tanh form, D. Hendrycks and K. Gimpel, arXiv:1606.08415.
ROOT = math.sqrt(2 / math.pi)
CUBE = 0.044715 * ROOT
PIECE = 192 * 1024  # numbers at once, so that all passes over them stay in a processor's cache


def gelu_tanh(x: Any) -> Any:
    """Returns GELU's tanh form, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), for x of shape (rows, width).

    On a CPU torch computes its own kernel with a tanh several times slower than that of `torch.tanh`.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not x.is_contiguous():
        return functional.gelu(x, approximate="tanh")
    return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):  # type: ignore[misc]
    """torch's own gradient: passes over pieces gain nothing there."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        y, rows, root = torch.empty_like(x), max(1, PIECE // x.shape[-1]), torch.tensor(ROOT)
        room = torch.empty((rows, x.shape[-1]))
        for part, out in zip(x.split(rows), y.split(rows), strict=True):
            tanh = torch.addcmul(root, part, part, value=CUBE, out=room[: len(part)]).mul_(part).tanh_()
            torch.mul(part, 0.5, out=out).addcmul_(out, tanh)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return torch.ops.aten.gelu_backward(gradients[0], *ctx.saved_tensors, approximate="tanh")


# How torch names the two forms of GELU.
KINDS = {functional.gelu: "none", gelu_tanh: "tanh"}


class _Between(torch.autograd.Function):  # type: ignore[misc]
    """Two dense layers with a GELU between them, which is computed again on the way back, not kept."""

    @staticmethod
    def forward(ctx: Any, x: Any, up: Any, up_bias: Any, down: Any, down_bias: Any, approximate: str) -> Any:
        wide = torch.addmm(up_bias, x, up)
        ctx.save_for_backward(x, wide, up, down)
        ctx.approximate = approximate
        return torch.addmm(down_bias, _gelu(wide, approximate), down)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, wide, up, down = ctx.saved_tensors
        gradient = gradients[0]
        of_down = torch.mm(_gelu(wide, ctx.approximate).t(), gradient)
        of_wide = torch.mm(gradient, down.t())
        torch.ops.aten.gelu_backward.grad_input(of_wide, wide, approximate=ctx.approximate, grad_input=of_wide)
        of_up, of_x = torch.mm(x.t(), of_wide), torch.mm(of_wide, up.t())
        return of_x, of_up, of_wide.sum(0), of_down, gradient.sum(0), None


def _gelu(x: Any, approximate: str) -> Any:
    return gelu_tanh(x) if approximate == "tanh" else functional.gelu(x)


# torch draws dropout masks one number at a time, on one thread. Eight at once, a byte each, take a twentieth of that; a
# rate is then a multiple of 1/256.
STEPS = 256


def _bytes(like: Any) -> Any:
    """Returns random bytes in a tensor's shape, from torch's global generator."""
    count = like.numel()
    drawn = torch.empty(-(-count // 8), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return drawn.view(torch.uint8)[:count].view(like.shape)


def _threshold(rate: float) -> tuple[int, float]:
    """Returns which bytes are dropped, those below, and the factor for the rest."""
    below = min(max(round(rate * STEPS), 1), STEPS - 1)
    return below, STEPS / (STEPS - below)


def _kept(drawn: Any, below: int, dtype: Any) -> Any:
    """Returns 1 where a byte keeps its place and 0 elsewhere."""
    return torch.ge(drawn, below, out=torch.empty(drawn.shape, dtype=dtype, device=drawn.device))


class _Drop(torch.autograd.Function):  # type: ignore[misc]
    """x * mask * factor."""

    @staticmethod
    def forward(ctx: Any, x: Any, rate: float) -> Any:
        ctx.below, ctx.factor = _threshold(rate)
        drawn = _bytes(x)
        ctx.save_for_backward(drawn)
        return _kept(drawn, ctx.below, x.dtype).mul_(x).mul_(ctx.factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (drawn,), gradient = ctx.saved_tensors, gradients[0]
        return _kept(drawn, ctx.below, gradient.dtype).mul_(gradient).mul_(ctx.factor), None


class _DropAdd(torch.autograd.Function):  # type: ignore[misc]
    """residual + x * mask * factor."""

    @staticmethod
    def forward(ctx: Any, x: Any, residual: Any, rate: float) -> Any:
        ctx.below, ctx.factor = _threshold(rate)
        drawn = _bytes(x)
        ctx.save_for_backward(drawn)
        return torch.addcmul(residual, x, _kept(drawn, ctx.below, x.dtype), value=ctx.factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (drawn,), gradient = ctx.saved_tensors, gradients[0]
        return _kept(drawn, ctx.below, gradient.dtype).mul_(gradient).mul_(ctx.factor), gradient, None


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """Softmax attention with dropout on its weights; keeps the weights and a byte each, and computes the rest again.

    Takes query, key and value in one tensor, shape (batch, tokens, 3, heads, size), since torch would put together their
    gradients by two more copies; gives (batch, tokens, heads, size).
    """

    @staticmethod
    def forward(ctx: Any, qkv: Any, bias: Any, rate: float) -> Any:
        ctx.below, ctx.factor = _threshold(rate)
        batch, tokens, _, heads, size = qkv.shape
        qkv = qkv.permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = qkv.view(3, batch * heads, tokens, size).unbind(0)
        scores = q.new_empty((batch * heads, tokens, tokens))
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=size**-0.5, out=scores)
        if bias is not None:
            scores.view(batch, heads, tokens, tokens).add_(bias)
        weights = torch.softmax(scores, -1)
        drawn = _bytes(weights)
        ctx.save_for_backward(qkv, weights, drawn)
        kept = _kept(drawn, ctx.below, weights.dtype).mul_(weights)
        out = torch.baddbmm(q, kept, v, beta=0, alpha=ctx.factor)
        return out.view(batch, heads, tokens, size).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        qkv, weights, drawn = ctx.saved_tensors
        _, batch, heads, tokens, size = qkv.shape
        q, k, v = qkv.view(3, batch * heads, tokens, size).unbind(0)
        of_qkv = torch.empty_like(qkv)
        of_q, of_k, of_v = of_qkv.view(3, batch * heads, tokens, size).unbind(0)
        gradient = gradients[0].transpose(1, 2).reshape(batch * heads, tokens, size)
        kept = _kept(drawn, ctx.below, weights.dtype)
        of_weights = torch.empty_like(weights)
        torch.baddbmm(of_weights, gradient, v.transpose(1, 2), beta=0, alpha=ctx.factor, out=of_weights)
        of_weights.mul_(kept)
        torch.baddbmm(of_v, kept.mul_(weights).transpose(1, 2), gradient, beta=0, alpha=ctx.factor, out=of_v)
        scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        torch.baddbmm(of_q, scores, k, beta=0, alpha=size**-0.5, out=of_q)
        torch.baddbmm(of_k, scores.transpose(1, 2), q, beta=0, alpha=size**-0.5, out=of_k)
        return of_qkv.permute(1, 3, 0, 2, 4).contiguous(), None, None
