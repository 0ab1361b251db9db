"""LIBER's fusion in a training step on a CPU: `AttentionFusion`, with its gradients by hand.

Most users of a batch have few partitions. Users of like counts are fused together, because padding costs as much as
partitions, in a handful of products each.

Shape suffixes: B samples in the batch, G samples of a group, P partitions, D width of a partition's vector, F fused
width, T = 3 * F for query, key and value.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from liber_feast.fusion import AttentionFusion
from training.backbones.field_attention import softmax_
from training.backbones.rows import take_rows

LONGEST = (1, 2, 4, 8, 16, 32)
"""The most partitions of a user in each group; those who have more are a group of their own."""


def fuse(fusion: AttentionFusion, vectors_BPD: Tensor, sealed_BP: Tensor) -> Tensor:
    """Return what `fusion` makes of the partition vectors, (B, F); the vectors themselves get no gradient."""
    length_B = (sealed_BP * torch.arange(1, sealed_BP.shape[1] + 1)).amax(dim=1)
    group_B = torch.bucketize(length_B, length_B.new_tensor(LONGEST))
    order_B = group_B.argsort(stable=True)
    groups = []
    for rows in order_B.split([count for count in group_B.bincount().tolist() if count]):
        longest = max(int(length_B[rows].max()), 1)
        sealed_GP = sealed_BP[rows, :longest]
        vectors_GPD = vectors_BPD[rows, :longest].float()
        groups.append((vectors_GPD.masked_fill(~sealed_GP[..., None], 0.0), sealed_GP))
    layers = (fusion.query, fusion.key, fusion.value)
    weight_TD, bias_T = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    with torch.autocast("cpu", enabled=False):
        fused_BF: Tensor = _Fusion.apply(weight_TD, bias_T, groups)
        return take_rows(fused_BF, order_B.argsort())


class _Fusion(torch.autograd.Function):
    """A user's fused vector is the sum of the values, each weighed by the mean over the queries of their attention."""

    @staticmethod
    def forward(ctx: Any, weight_TD: Tensor, bias_T: Tensor, groups: list[tuple[Tensor, Tensor]]) -> Tensor:
        scale, fused, saved = (len(bias_T) // 3) ** -0.5, [], []
        for vectors_GPD, sealed_GP in groups:
            projected = torch.addmm(bias_T, vectors_GPD.flatten(0, 1), weight_TD.t()).unflatten(0, sealed_GP.shape)
            query, key, value = projected.chunk(3, dim=-1)
            score_GPP = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
            score_GPP.masked_fill_(~sealed_GP[:, None], torch.finfo(score_GPP.dtype).min)
            attention_GPP = softmax_(score_GPP)
            share_G1P = (sealed_GP / sealed_GP.sum(dim=1, keepdim=True).clamp(min=1)).to(value.dtype)[:, None]
            weight_G1P = torch.bmm(share_G1P, attention_GPP)
            fused.append(torch.bmm(weight_G1P, value).squeeze(1))
            saved += [vectors_GPD, projected, attention_GPP, share_G1P, weight_G1P]
        ctx.save_for_backward(*saved)
        ctx.scale = scale
        return torch.cat(fused)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BF: Tensor) -> tuple[Tensor | None, ...]:
        saved, start, width = list(ctx.saved_tensors), 0, grad_BF.shape[1]
        grad_weight_TD = grad_BF.new_zeros(3 * width, saved[0].shape[-1])
        grad_bias_T = grad_BF.new_zeros(3 * width)
        while saved:
            vectors_GPD, projected, attention_GPP, share_G1P, weight_G1P = (saved.pop(0) for _ in range(5))
            query, key, value = projected.chunk(3, dim=-1)
            grad_G1F = grad_BF[start : start + len(value), None]
            start += len(value)
            grad_weight_G1P = torch.bmm(grad_G1F, value.transpose(1, 2))
            mean_GP1 = torch.bmm(attention_GPP, grad_weight_G1P.transpose(1, 2))
            grad_score_GPP = (grad_weight_G1P - mean_GP1).mul_(attention_GPP)
            grad_score_GPP.mul_(share_G1P.transpose(1, 2) * ctx.scale)
            grads = (
                torch.bmm(grad_score_GPP, key),
                torch.bmm(grad_score_GPP.transpose(1, 2), query),
                weight_G1P.transpose(1, 2) * grad_G1F,
            )
            grad_MT = torch.cat(grads, dim=-1).flatten(0, 1)
            grad_weight_TD.addmm_(grad_MT.t(), vectors_GPD.flatten(0, 1))
            grad_bias_T.add_(grad_MT.sum(dim=0))
        return grad_weight_TD, grad_bias_T, None
