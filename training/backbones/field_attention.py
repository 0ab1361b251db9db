"""Self-attention between the few fields of a sample, with its residual: a layer of AutoInt.

torch's kernels are made for long sequences. For some ten to thirty fields products of all samples at once take half
their time on a CPU. What a head projects, some 500 KB for 512 samples, is used while the caches still hold it: one
product for all heads is faster by itself, but the rest then reads strided rows from memory.

Shape suffixes: B samples, F fields, D width of a field, H heads, K head width, P = 4 * H * K.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from training.backbones.by_hand import is_by_hand

CLOSE = 60.0
"""exp(-60) has all digits of float32."""


def attend(fields_BFD: Tensor, weight_PD: Tensor, *, heads: int, scale: float) -> Tensor:
    """Return `relu(softmax(scale * q k^T) v + residual)` of each head side by side, (B, F, H * K).

    The rows of the weight project to queries, keys, values and residuals, in this order, each head by head.
    """
    if is_by_hand(fields_BFD, weight_PD):
        attended: Tensor = _Attention.apply(fields_BFD, weight_PD, heads, scale)
        return attended
    *parts, residual = F.linear(fields_BFD, weight_PD).chunk(4, dim=-1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    attended_BHFK = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return F.relu(attended_BHFK.transpose(1, 2).flatten(2) + residual)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fields_BFD: Tensor, weight_PD: Tensor, heads: int, scale: float) -> Tensor:
        rows_RD = fields_BFD.flatten(0, 1)
        weights_KD = weight_PD.chunk(4 * heads)

        def project(part: int) -> Tensor:
            return torch.mm(rows_RD, weights_KD[part].t()).unflatten(0, fields_BFD.shape[:2])

        out = fields_BFD.new_empty(*fields_BFD.shape[:2], len(weight_PD) // 4)
        saved = []
        for head, out_BFK in enumerate(out.chunk(heads, dim=-1)):
            query, key = project(head), project(heads + head)
            share_BFF = _softmax_at_once_(torch.bmm(query, key.transpose(1, 2)).mul_(scale))
            value = project(2 * heads + head)
            torch.add(torch.bmm(share_BFF, value), project(3 * heads + head), out=out_BFK)
            saved += [query, key, value, share_BFF]
        ctx.save_for_backward(fields_BFD, weight_PD, out.relu_(), *saved)
        ctx.heads, ctx.scale = heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BFE: Tensor) -> tuple[Tensor | None, ...]:
        fields_BFD, weight_PD, out, *saved = ctx.saved_tensors
        heads, rows_RD, residuals = ctx.heads, fields_BFD.flatten(0, 1), len(weight_PD) // 4 * 3
        weights_KD, grad_PD = weight_PD.chunk(4 * heads), torch.empty_like(weight_PD)
        grads_KD = grad_PD.chunk(4 * heads)
        grad_BFE = torch.ops.aten.threshold_backward(grad_BFE, out, 0)
        grad_RE = grad_BFE.flatten(0, 1)
        grad_RD = torch.mm(grad_RE, weight_PD[residuals:])
        torch.mm(grad_RE.t(), rows_RD, out=grad_PD[residuals:])

        def add(part: int, grad_BFK: Tensor) -> None:
            grad_RK = grad_BFK.flatten(0, 1)
            grad_RD.addmm_(grad_RK, weights_KD[part])
            torch.mm(grad_RK.t(), rows_RD, out=grads_KD[part])

        for head, grad_BFK in enumerate(grad_BFE.chunk(heads, dim=-1)):
            query, key, value, share_BFF = saved[4 * head : 4 * head + 4]
            add(2 * heads + head, torch.bmm(share_BFF.transpose(1, 2), grad_BFK))
            grad_BFF = torch.bmm(grad_BFK, value.transpose(1, 2)).mul_(share_BFF)
            grad_BFF.addcmul_(share_BFF, row_sums(grad_BFF), value=-1).mul_(ctx.scale)
            add(head, torch.bmm(grad_BFF, key))
            add(heads + head, torch.bmm(grad_BFF.transpose(1, 2), query))
        return grad_RD.view_as(fields_BFD), grad_PD, None, None


def _softmax_at_once_(score_BFF: Tensor) -> Tensor:
    """Return the softmax over the last axis, in place: that of every row less one and the same highest score.

    Only where scores lie so far apart that a row could vanish, each row has its own.
    """
    lowest, highest = torch.aminmax(score_BFF)
    if not bool(highest - lowest < CLOSE):
        return softmax_(score_BFF)
    return _shares_(score_BFF.sub_(highest))


def softmax_(score_BFF: Tensor) -> Tensor:
    """Return the softmax over the last axis, in place; torch's is slow on so short an axis."""
    first, *others = score_BFF.unbind(dim=-1)
    highest_BF = first.clone()
    for other in others:
        torch.maximum(highest_BF, other, out=highest_BF)
    return _shares_(score_BFF.sub_(highest_BF[..., None]))


def _shares_(score_BFF: Tensor) -> Tensor:
    share_BFF = score_BFF.exp_()
    return share_BFF.div_(row_sums(share_BFF))


def row_sums(values_BFF: Tensor) -> Tensor:
    """Return the sums over the last axis, (B, F, 1), as one product."""
    return (values_BFF.flatten(0, 1) @ values_BFF.new_ones(values_BFF.shape[-1])).view(*values_BFF.shape[:2], 1)
