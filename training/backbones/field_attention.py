"""Self-attention between the few fields of a sample, with its residual: the heavy part of AutoInt's layer.

torch's kernels are made for long sequences. For some ten to thirty fields products of all samples at once take half
their time on a CPU.

Shape suffixes: B samples in the batch, F fields, H heads, K head width, D = 4 * H * K.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CLOSE = 60.0
"""exp(-60) has all digits of float32."""


def attend(projected_BFD: Tensor, *, heads: int, scale: float) -> Tensor:
    """Return `relu(softmax(scale * q k^T) v + residual)` of each head side by side, (B, F, H * K).

    The last axis of the input has queries, keys, values and residuals, each head by head.
    """
    learns = torch.is_grad_enabled() and projected_BFD.requires_grad
    if learns and projected_BFD.device.type == "cpu" and projected_BFD.dtype == torch.float32:
        attended: Tensor = _Attention.apply(projected_BFD, heads, scale)
        return attended
    *parts, residual = projected_BFD.chunk(4, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    attended_BHFK = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return F.relu(attended_BHFK.transpose(1, 2).flatten(2) + residual)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, projected_BFD: Tensor, heads: int, scale: float) -> Tensor:
        query, key, value, residual = _heads(projected_BFD, heads)
        batch, fields, width = projected_BFD.shape
        weight_HBFF = projected_BFD.new_empty(heads, batch, fields, fields)
        for head, weight_BFF in enumerate(weight_HBFF):
            torch.bmm(query[head], key[head].transpose(1, 2), out=weight_BFF)
        _softmax_(weight_HBFF.mul_(scale).flatten(0, 1))
        out = projected_BFD.new_empty(batch, fields, width // 4)
        for head, out_BFK in enumerate(out.chunk(heads, dim=-1)):
            torch.add(torch.bmm(weight_HBFF[head], value[head]), residual[head], out=out_BFK)
        ctx.save_for_backward(projected_BFD, out.relu_(), weight_HBFF)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BFE: Tensor) -> tuple[Tensor | None, ...]:
        projected_BFD, out, weight_HBFF = ctx.saved_tensors
        query, key, value, _ = _heads(projected_BFD, ctx.heads)
        grad_BFE = torch.ops.aten.threshold_backward(grad_BFE, out, 0)
        grads_BFK = grad_BFE.chunk(ctx.heads, dim=-1)
        grad_HBFF = torch.empty_like(weight_HBFF)
        for head, grad_BFF in enumerate(grad_HBFF):
            torch.bmm(grads_BFK[head], value[head].transpose(1, 2), out=grad_BFF)
        grad_HBFF.mul_(weight_HBFF)
        sum_HBF1 = row_sums(grad_HBFF.flatten(0, 1)).unflatten(0, grad_HBFF.shape[:2])
        grad_HBFF.addcmul_(weight_HBFF, sum_HBF1, value=-1).mul_(ctx.scale)
        found = (
            *(torch.bmm(grad_BFF, key[head]) for head, grad_BFF in enumerate(grad_HBFF)),
            *(torch.bmm(grad_BFF.transpose(1, 2), query[head]) for head, grad_BFF in enumerate(grad_HBFF)),
            *(torch.bmm(weight.transpose(1, 2), grad) for weight, grad in zip(weight_HBFF, grads_BFK, strict=True)),
        )
        return torch.cat([*found, grad_BFE], dim=-1), None, None


def _heads(projected_BFD: Tensor, heads: int) -> list[tuple[Tensor, ...]]:
    """Return queries, keys, values and residuals, each a view (B, F, K) for each head."""
    return [part.chunk(heads, dim=-1) for part in projected_BFD.chunk(4, dim=-1)]


def _softmax_(score_BFF: Tensor) -> Tensor:
    """Return the softmax over the last axis, in place: that of every row less one and the same highest score.

    Only where scores lie so far apart that a row could vanish, each row has its own.
    """
    lowest, highest = torch.aminmax(score_BFF)
    if not bool(highest - lowest < CLOSE):
        return softmax_(score_BFF)
    weight_BFF = score_BFF.sub_(highest).exp_()
    return weight_BFF.div_(row_sums(weight_BFF))


def softmax_(score_BFF: Tensor) -> Tensor:
    """Return the softmax over the last axis, in place; torch's is slow on so short an axis."""
    first, *others = score_BFF.unbind(dim=-1)
    highest_BF = first.clone()
    for other in others:
        torch.maximum(highest_BF, other, out=highest_BF)
    weight_BFF = score_BFF.sub_(highest_BF[..., None]).exp_()
    return weight_BFF.div_(row_sums(weight_BFF))


def row_sums(values_BFF: Tensor) -> Tensor:
    """Return the sums over the last axis, (B, F, 1), as one product."""
    return (values_BFF.flatten(0, 1) @ values_BFF.new_ones(values_BFF.shape[-1])).view(*values_BFF.shape[:2], 1)
