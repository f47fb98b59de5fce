"""Two products of a training step with their gradients written out.

Owns a LoRA layer as one function and the log-probability of given tokens under a frozen
head. Both compute what autograd would, and keep less for backward: the layer its input and
the r numbers a token has between A and B, the head one vector a token and no logits.
Refuses everything else about a model: what is not the plain case is left to PEFT and torch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _LowRankLinear(torch.autograd.Function):  # type: ignore[misc]
    """y = x Wᵀ + b + s · (x Aᵀ) Bᵀ with W and b frozen; all of one dtype.

    x (..., I), W (O, I), b (O,) or None, A (r, I), B (O, r), s a number; y (..., O).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        rows = x.flatten(0, -2)  # (N, I)
        low = rows @ a.T  # (N, r)
        out = F.linear(rows, weight, bias).addmm_(low, b.T, alpha=s)  # (N, O)
        ctx.save_for_backward(rows, low, weight, a, b)
        ctx.scale, ctx.shape = s, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, low, weight, a, b = ctx.saved_tensors
        of_out = gradient.flatten(0, -2)  # (N, O)
        of_low = (of_out @ b).mul_(ctx.scale)  # (N, r)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_out @ weight).addmm_(of_low, a).view(ctx.shape)
        return of_x, None, None, of_low.T @ rows, (of_out.T @ low).mul_(ctx.scale), None


class _FrozenHead(torch.autograd.Function):  # type: ignore[misc]
    """log softmax(h Wᵀ + b)[target] of each row, with W and b frozen; the gradient at once.

    h (N, H), targets (N,), W (V, H), b (V,) or None; (N,) float32 or better. The gradient of row n
    is W[target] - softmax · W, which is made with the logits, so that no logits are kept. They go
    block by block, `tile` = (rows, columns) of them, and softmax · W is summed as attention sums
    its values when it goes over the keys in blocks: against the largest logit until now, the sums
    of before being scaled down when a larger one comes (Milakov & Gimelshein, arXiv 1805.02867).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tile: tuple[int, int],
    ) -> Tensor:
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        parts = []
        for start in range(0, len(hidden), tile[0]):
            rows = slice(start, start + tile[0])
            logprobs, mean = _scored(
                hidden[rows], targets[rows], weight, bias, tile[1], with_mean=slopes is not None
            )
            parts.append(logprobs)
            if slopes is not None:
                slopes[rows] = weight[targets[rows]] - mean
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (gradient[:, None] * slopes).to(slopes.dtype), None, None, None, None


def _scored(
    hidden: Tensor,  # (n, H)
    targets: Tensor,  # (n,)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    width: int,
    *,
    with_mean: bool,
) -> tuple[Tensor, Tensor]:
    """log softmax(h Wᵀ + b)[target], (n,), and softmax · W, (n, H), going over V in blocks."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    peak = hidden.new_full((len(hidden), 1), -torch.inf, dtype=dtype)
    total, hit = torch.zeros_like(peak), torch.zeros_like(peak)
    mean = hidden.new_zeros(hidden.shape if with_mean else (1, 1), dtype=dtype)
    for start in range(0, len(weight), width):
        part = weight[start : start + width]
        shift = bias[start : start + width] if bias is not None else None
        logits = F.linear(hidden, part, shift).to(dtype)  # (n, width)
        column = targets[:, None] - start  # (n, 1)
        nearest = column.clamp(0, len(part) - 1)
        hit = torch.where(column == nearest, logits.gather(1, nearest), hit)
        before, peak = peak, torch.maximum(peak, logits.amax(-1, keepdim=True))
        shrink = (before - peak).exp_()
        chance = logits.sub_(peak).exp_()
        total = total.mul_(shrink).add_(chance.sum(-1, keepdim=True))
        if with_mean:
            mean = mean.mul_(shrink).add_(chance.to(weight.dtype) @ part)
    return (hit - peak - total.log()).squeeze(1), mean / total


def target_logprobs(
    hidden: Tensor, targets: Tensor, head: nn.Linear, tile: tuple[int, int]
) -> Tensor:
    """log softmax(head(hidden))[target], (N,), for a head that `is_frozen_linear`.

    No more than `tile` = (rows, columns) of logits are held at a time.
    """
    of_all: Tensor = _FrozenHead.apply(hidden, targets, head.weight, head.bias, tile)
    return of_all


def is_frozen_linear(head: nn.Module) -> bool:
    """Whether a head is a plain linear layer that is not trained."""
    return type(head) is nn.Linear and not any(p.requires_grad for p in head.parameters())


def fuse_lora(model: nn.Module) -> None:
    """Let every plain LoRA linear layer of `model` run as one function."""
    for layer in model.modules():
        if type(layer) is LoraLinear and type(layer.base_layer) is nn.Linear:
            layer.forward = _Fused(layer)


class _Fused:
    """A layer's forward: one function where it can be, PEFT's own where it cannot."""

    def __init__(self, layer: LoraLinear) -> None:
        self.layer = layer
        self.otherwise = layer.forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        if args or kwargs or layer.disable_adapters or layer.merged or not self._is_plain(x):
            otherwise: Tensor = self.otherwise(x, *args, **kwargs)
            return otherwise
        name = layer.active_adapters[0]
        dtype = _compute_dtype(x)
        weight, bias = layer.base_layer.weight, layer.base_layer.bias
        tensors = (x, weight, bias, layer.lora_A[name].weight, layer.lora_B[name].weight)
        x, weight, bias, a, b = (t if t is None else t.to(dtype) for t in tensors)
        fused: Tensor = _LowRankLinear.apply(x, weight, bias, a, b, layer.scaling[name])
        return fused

    def _is_plain(self, x: Tensor) -> bool:
        """One adapter without dropout, bias or variant, and weights that are all here."""
        layer = self.layer
        names = layer.active_adapters
        if len(names) != 1 or names[0] not in layer.lora_A or names[0] in layer.lora_variant:
            return False
        dropout, low = layer.lora_dropout[names[0]], layer.lora_A[names[0]].weight
        weight = layer.base_layer.weight
        if isinstance(layer.lora_B[names[0]].bias, nn.Parameter) or weight.requires_grad:
            return False
        if layer.training and not isinstance(dropout, nn.Identity):
            return False
        if not weight.dim() == low.dim() == 2:  # a sharded engine keeps them elsewhere
            return False
        return _autocast(x) or bool(low.dtype == x.dtype == weight.dtype)


def _autocast(x: Tensor) -> bool:
    return bool(torch.is_autocast_enabled(x.device.type))


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype(x.device.type) if _autocast(x) else x.dtype
