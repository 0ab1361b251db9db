"""LIBER's fusion in a training step on a CPU: `AttentionFusion`, with its gradients by hand.

Samples of a user see the same partitions, often all the same ones. So each partition of a batch is projected once, and
each window of partitions fused once. Most windows are short: those of like lengths are fused together, because padding
costs as much as partitions, in a handful of products each.

Shape suffixes: B samples in the batch, R rows of a table of partitions, U distinct windows, G windows of a group, P
partitions of a window, M partitions in all, I distinct ones and padding, D width of a partition's vector, F fused
width, T = 3 * F for query, key and value.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from liber_feast.fields import Ints
from liber_feast.fusion import AttentionFusion
from training.backbones.field_attention import softmax_
from training.backbones.rows import take_rows

LENGTHS = "memory_lengths"
WINDOWS = ("memory_table", "memory_starts", LENGTHS)
"""Where a batch's partition vectors lie, if it says so: in a table (R, D) that ends with a row of zeros, those of a
sample from its start on, as many rows as its length says; both (B,)."""
LONGEST = (1, 2, 4, 8, 16, 32)
"""The most partitions of a window in each group; longer ones are a group of their own."""


def fuse(fusion: AttentionFusion, vectors_BPD: Tensor, sealed_BP: Tensor) -> Tensor:
    """Return what `fusion` makes of the partition vectors, (B, F); the vectors themselves get no gradient."""
    lengths_B = sealed_BP.sum(dim=1)
    sealed_MD = vectors_BPD.flatten(0, 1).index_select(0, sealed_BP.flatten().nonzero().squeeze(1))
    return fuse_windows(fusion, functional.pad(sealed_MD, (0, 0, 0, 1)), lengths_B.cumsum(dim=0) - lengths_B, lengths_B)


def fuse_windows(fusion: AttentionFusion, table_RD: Tensor, starts_B: Tensor, lengths_B: Tensor) -> Tensor:
    """Return what `fusion` makes of the partition vectors of windows, (B, F), as `WINDOWS` describes them."""
    lengths, row_count = lengths_B.numpy().astype(np.int64), len(table_RD)
    starts = np.where(lengths > 0, starts_B.numpy(), 0)
    windows_U, window_B = np.unique(lengths * row_count + starts, return_inverse=True)
    lengths_U, starts_U = np.divmod(windows_U, row_count)
    rows = _union(starts_U, lengths_U)
    # The rows of a window stand one behind the other among all rows, too.
    groups = _groups(np.searchsorted(rows, starts_U), lengths_U, padding=len(rows))
    vectors_ID = table_RD.index_select(0, torch.from_numpy(np.append(rows, row_count - 1))).float()
    layers = (fusion.query, fusion.key, fusion.value)
    weight_TD, bias_T = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    with torch.autocast("cpu", enabled=False):
        fused_UF: Tensor = _Fusion.apply(weight_TD, bias_T, vectors_ID, groups)
        return take_rows(fused_UF, torch.from_numpy(window_B))


def _union(starts_U: Ints, lengths_U: Ints) -> Ints:
    """Return every row that a window has, once, ascending."""
    order = starts_U.argsort(kind="stable")
    starts, stops = starts_U[order], (starts_U + lengths_U)[order]
    firsts = np.maximum(starts, np.append(0, np.maximum.accumulate(stops)[:-1]))
    counts = np.maximum(stops - firsts, 0)
    rows: Ints = np.repeat(firsts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())
    return rows


def _groups(starts_U: Ints, lengths_U: Ints, *, padding: int) -> list[tuple[Tensor, Tensor]]:
    """Return of windows in order of their lengths the rows of each group (G, P), and where a row is no padding."""
    bounds = np.unique([0, *np.searchsorted(lengths_U, LONGEST, side="right"), len(lengths_U)])
    groups = []
    for left, right in pairwise(bounds):
        steps = np.arange(max(lengths_U[right - 1], 1))
        sealed_GP = steps < lengths_U[left:right, None]
        index_GP = np.where(sealed_GP, starts_U[left:right, None] + steps, padding)
        groups.append((torch.from_numpy(index_GP), torch.from_numpy(sealed_GP)))
    return groups


class _Fusion(torch.autograd.Function):
    """A user's fused vector is the sum of the values, each weighed by the mean over the queries of their attention."""

    @staticmethod
    def forward(
        ctx: Any, weight_TD: Tensor, bias_T: Tensor, vectors_ID: Tensor, groups: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        scale, fused, saved = (len(bias_T) // 3) ** -0.5, [], [vectors_ID]
        projected_IT = torch.addmm(bias_T, vectors_ID, weight_TD.t())
        for index_GP, sealed_GP in groups:
            projected = projected_IT.index_select(0, index_GP.flatten()).unflatten(0, index_GP.shape)
            query, key, value = projected.chunk(3, dim=-1)
            score_GPP = torch.bmm(query, key.transpose(1, 2)).mul_(scale)
            score_GPP.masked_fill_(~sealed_GP[:, None], torch.finfo(score_GPP.dtype).min)
            attention_GPP = softmax_(score_GPP)
            share_G1P = (sealed_GP / sealed_GP.sum(dim=1, keepdim=True).clamp(min=1)).to(value.dtype)[:, None]
            weight_G1P = torch.bmm(share_G1P, attention_GPP)
            fused.append(torch.bmm(weight_G1P, value).squeeze(1))
            saved += [index_GP, projected, attention_GPP, share_G1P, weight_G1P]
        ctx.save_for_backward(*saved)
        ctx.scale = scale
        return torch.cat(fused) if fused else vectors_ID.new_zeros(0, len(bias_T) // 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UF: Tensor) -> tuple[Tensor | None, ...]:
        vectors_ID, *saved = ctx.saved_tensors
        start, grad_IT = 0, grad_UF.new_zeros(len(vectors_ID), 3 * grad_UF.shape[1])
        while saved:
            index_GP, projected, attention_GPP, share_G1P, weight_G1P = (saved.pop(0) for _ in range(5))
            query, key, value = projected.chunk(3, dim=-1)
            grad_G1F = grad_UF[start : start + len(value), None]
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
            grad_IT.index_add_(0, index_GP.flatten(), torch.cat(grads, dim=-1).flatten(0, 1))
        return torch.mm(grad_IT.t(), vectors_ID), grad_IT.sum(dim=0), None, None
