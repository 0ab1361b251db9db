"""DIEN's recurrences over packed behaviors: the GRU and the GRU with attentional update gate (AUGRU).

The inputs' part of all gates is computed for all steps at once, and so are the gradients of the weights, which
automatic differentiation would compute and add up step by step.

Shape suffixes: B samples in the batch, P packed rows, W input width, H hidden width, G = 3 * H for the three gates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from training.backbones.behaviors import Behaviors
from training.backbones.packing import Packing

SIGMOID_BACKWARD = torch.ops.aten.sigmoid_backward.grad_input
TANH_BACKWARD = torch.ops.aten.tanh_backward.grad_input


class AUGRU(nn.Module):
    """The GRU whose update gate is scaled by attention (DIEN, equations 2 to 5, 11 and 12).

    Reset and update gate are `r = sigmoid(W_r x + U_r h + b_r)` and `u = sigmoid(W_u x + U_u h + b_u)`, the new state
    is `n = tanh(W_n x + b_n + r * (U_n h + c_n))`, and `h' = h + a u (n - h)` with the attention a. The weights lie as
    in `torch.nn.GRU`, whose update gate is 1 - u: the gates r, u, n one below the other.
    """

    def __init__(self, width: int, *, hidden_width: int) -> None:
        super().__init__()
        like = nn.GRU(width, hidden_width)
        self.weight_ih, self.weight_hh = like.weight_ih_l0, like.weight_hh_l0
        self.bias_ih, self.bias_hh = like.bias_ih_l0, like.bias_hh_l0

    def forward(self, inputs_PW: Tensor, attention_P: Tensor, packing: Packing) -> Tensor:
        """Return the state after each packed row, (P, H). A row of attention 0 leaves the state as it was."""
        bias_G = input_bias(self.bias_ih, self.bias_hh)
        gates_PG = F.linear(inputs_PW, self.weight_ih, bias_G)
        return run_gates(gates_PG, attention_P, self.weight_hh, self.bias_hh, counts=packing.counts)


class GRU(nn.Module):
    """`torch.nn.GRU` of one layer over packed rows."""

    def __init__(self, width: int, *, hidden_width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, hidden_width)

    def forward(self, behaviors: Behaviors, packing: Packing) -> Tensor:
        """Return the state after each packed row, (P, H)."""
        if behaviors.told.is_cuda:  # packed with all samples in every step
            return self.gru(behaviors.whole().unflatten(0, (len(packing.counts), -1)))[0].flatten(0, 1)
        layer = self.gru
        weights = (layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0)
        # torch's update gate keeps the state: 1 - sigmoid(x) = sigmoid(-x).
        weight_ih, weight_hh, bias_ih, bias_hh = (
            torch.cat([r, -keep, n]) for r, keep, n in (weight.chunk(3) for weight in weights)
        )
        gates_PG = behaviors.linear(weight_ih, input_bias(bias_ih, bias_hh))
        return run_gates(gates_PG, None, weight_hh, bias_hh, counts=packing.counts)


def input_bias(bias_ih_G: Tensor, bias_hh_G: Tensor) -> Tensor:
    """Return what is added to the inputs' part of the gates; of the new state's, what is added to the state's part."""
    width = len(bias_hh_G) // 3
    return bias_ih_G + F.pad(bias_hh_G[: 2 * width], (0, width))


@torch.compiler.disable  # a compiled model runs the steps as they are
def run_gates(
    gates_PG: Tensor, attention_P: Tensor | None, weight_hh: Tensor, bias_hh: Tensor, *, counts: Sequence[int]
) -> Tensor:
    """Return the states (P, H) of the recurrence that `AUGRU` describes, in float32; no attention is 1 everywhere.

    `gates_PG` is the inputs' part of the gates, with `input_bias`.
    """
    with torch.autocast(gates_PG.device.type, enabled=False):
        attention_P = None if attention_P is None else attention_P.float()
        bias_H = bias_hh[2 * weight_hh.shape[1] :]
        gates_PG = gates_PG.float()
        # The gates take the place of their inputs' part, which nothing else needs.
        states: Tensor = _Gates.apply(gates_PG, gates_PG.detach(), attention_P, weight_hh, bias_H, counts)
        return states


def steps(counts: Sequence[int]) -> list[tuple[slice, slice]]:
    """Return the packed rows of each step, and those of the same samples one step before; the first has none."""
    found, start, before = [], 0, 0
    for count in counts:
        found.append((slice(start, start + count), slice(before, before + count if start else 0)))
        start, before = start + count, start
    return found


class _Gates(torch.autograd.Function):
    """All steps, and their gradients by hand."""

    @staticmethod
    def forward(ctx: Any, _inputs_PG: Tensor, gates_PG: Tensor, attention_P: Tensor | None, *rest: Any) -> Tensor:
        """Return the states; `gates_PG` holds the values of the inputs' part and becomes the gates."""
        weight_hh, bias_H, counts = rest
        width = weight_hh.shape[1]
        recalled_PH, states_PH = (gates_PG.new_empty(len(gates_PG), width) for _ in range(2))
        of_reset_update, of_new = (weight.t() for weight in weight_hh.split([2 * width, width]))
        state = gates_PG.new_zeros(counts[0], width)
        for rows, before in steps(counts):
            state = states_PH[before] if rows.start else state
            reset_update, new = gates_PG[rows].split([2 * width, width], dim=1)
            reset_update.addmm_(state, of_reset_update).sigmoid_()
            recalled = torch.addmm(bias_H, state, of_new, out=recalled_PH[rows])
            reset, update = reset_update.split(width, dim=1)
            new.addcmul_(reset, recalled).mul_(2).sigmoid_().mul_(2).sub_(1)  # tanh, which takes thrice as long
            torch.lerp(state, new, _scaled(update, attention_P, rows), out=states_PH[rows])
        ctx.save_for_backward(attention_P, weight_hh, gates_PG, recalled_PH, states_PH)
        ctx.counts = counts
        return states_PH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states_PH: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_states_PH.device.type, enabled=False):
            return _gradients(ctx, grad_states_PH)


def _scaled(update: Tensor, attention_P: Tensor | None, rows: slice) -> Tensor:
    return update if attention_P is None else update * attention_P[rows, None]


def _gradients(ctx: Any, grad_states_PH: Tensor) -> tuple[Tensor | None, ...]:
    attention_P, weight_hh, gates_PG, recalled_PH, states_PH = ctx.saved_tensors
    width = weight_hh.shape[1]
    grad_gates_PG = torch.empty_like(gates_PG)  # of the state's part: the new state's is that of what is recalled
    grad_new_PH = torch.empty_like(states_PH)
    grad_attention_P = None if attention_P is None else torch.empty_like(attention_P)
    carried = torch.zeros_like(states_PH[: ctx.counts[0]])
    for rows, before in reversed(steps(ctx.counts)):
        reset_update, new = gates_PG[rows].split([2 * width, width], dim=1)
        reset, update = reset_update.split(width, dim=1)
        grad_reset_update, grad_recalled = grad_gates_PG[rows].split([2 * width, width], dim=1)
        grad_reset, grad_update = grad_reset_update.split(width, dim=1)
        grad_state = carried[: len(new)].add_(grad_states_PH[rows])
        grad_weight = grad_state * (new - states_PH[before] if rows.start else new)
        through_new = grad_state * _scaled(update, attention_P, rows)
        grad_new = TANH_BACKWARD(through_new, new, grad_input=grad_new_PH[rows])
        torch.mul(grad_new, reset, out=grad_recalled)
        torch.mul(grad_new, recalled_PH[rows], out=grad_reset)
        if grad_attention_P is None:
            grad_update.copy_(grad_weight)
        else:
            torch.sum(grad_weight * update, dim=1, out=grad_attention_P[rows])
            torch.mul(grad_weight, attention_P[rows, None], out=grad_update)
        SIGMOID_BACKWARD(grad_reset_update, reset_update, grad_input=grad_reset_update)
        grad_state.sub_(through_new).addmm_(grad_gates_PG[rows], weight_hh)
    states_before = torch.cat([states_PH[before] for _, before in steps(ctx.counts)])
    grad_weight_hh = grad_gates_PG[ctx.counts[0] :].t() @ states_before
    grad_bias_H = grad_gates_PG[:, 2 * width :].sum(dim=0)
    grad_gates_PG[:, 2 * width :] = grad_new_PH
    return grad_gates_PG, None, grad_attention_P, grad_weight_hh, grad_bias_H, None
