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
        weights, outs = [], []
        for q_BFK, k_BFK, v_BFK, r_BFK in zip(query, key, value, residual, strict=True):
            weight_BFF = softmax_(torch.bmm(q_BFK, k_BFK.transpose(1, 2)).mul_(scale))
            weights.append(weight_BFF)
            outs.append(torch.bmm(weight_BFF, v_BFK).add_(r_BFK))
        out = torch.cat(outs, dim=-1).relu_()
        ctx.save_for_backward(projected_BFD, out, *weights)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BFE: Tensor) -> tuple[Tensor | None, ...]:
        projected_BFD, out, *weights = ctx.saved_tensors
        query, key, value, _ = _heads(projected_BFD, ctx.heads)
        grad_BFE = torch.ops.aten.threshold_backward(grad_BFE, out, 0)
        grads: tuple[list[Tensor], ...] = ([], [], [])
        for head, (weight_BFF, grad_BFK) in enumerate(zip(weights, grad_BFE.chunk(ctx.heads, dim=-1), strict=True)):
            grad_BFF = torch.bmm(grad_BFK, value[head].transpose(1, 2)).mul_(weight_BFF)
            grad_BFF.addcmul_(weight_BFF, row_sums(grad_BFF), value=-1).mul_(ctx.scale)
            grads[0].append(torch.bmm(grad_BFF, key[head]))
            grads[1].append(torch.bmm(grad_BFF.transpose(1, 2), query[head]))
            grads[2].append(torch.bmm(weight_BFF.transpose(1, 2), grad_BFK))
        found = torch.cat([*grads[0], *grads[1], *grads[2], grad_BFE], dim=-1)
        return found, None, None


def _heads(projected_BFD: Tensor, heads: int) -> list[tuple[Tensor, ...]]:
    """Return queries, keys, values and residuals, each a view (B, F, K) for each head."""
    return [part.chunk(heads, dim=-1) for part in projected_BFD.chunk(4, dim=-1)]


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
