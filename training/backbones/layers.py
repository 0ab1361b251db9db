"""Layers that several backbones share: activations and MLPs."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["dice", "prelu", "relu", "sigmoid"]
BIT_VALUES = 1 << 16


class Dice(nn.Module):
    """The data adaptive activation of DIN: `p * x + (1 - p) * alpha * x`, p = sigmoid of the normalized x.

    Any leading shape; the last one is the width. The normalization has no affine part.
    """

    def __init__(self, width: int, *, epsilon: float = 1e-9) -> None:
        super().__init__()
        self.normalize = nn.BatchNorm1d(width, eps=epsilon, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.normalize(x.reshape(-1, x.shape[-1])).view_as(x))
        return p * x + (1 - p) * self.alpha * x


class PReLU(nn.Module):
    """`max(0, x) + alpha * min(0, x)` with an alpha per unit of the last axis (torch's has them on axis 1)."""

    def __init__(self, width: int, *, start: float = 0.25) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, self.alpha * x)


class Dropout(nn.Module):
    """`torch.nn.Dropout` that on a CPU draws 16 bits for each value at once, where torch draws one value at a time.

    So there a rate is a multiple of 2**-16.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and 0 < self.rate < 1 and x.device.type == "cpu"):
            return F.dropout(x, self.rate, training=self.training)
        dropped = round(self.rate * BIT_VALUES)
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = drawn[: x.numel()].view_as(x) >= dropped - BIT_VALUES // 2
        return x * kept.to(x.dtype).mul_(BIT_VALUES / (BIT_VALUES - dropped))


def activation(name: Activation, *, width: int) -> nn.Module:
    """Return the activation called `name` for inputs of `width`."""
    if name == "dice":
        return Dice(width)
    if name == "prelu":
        return PReLU(width)
    return nn.Sigmoid() if name == "sigmoid" else nn.ReLU()


def hidden_layers(
    width: int, *, hidden: Sequence[int], activation_name: Activation = "relu", dropout: float = 0.0
) -> nn.Sequential:
    """Return linear layers, an activation and dropout after each: (..., width) -> (..., hidden[-1])."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), activation(activation_name, width=size), Dropout(dropout)]
        width = size
    return nn.Sequential(*layers)


def mlp(
    width: int, *, hidden: Sequence[int], activation_name: Activation = "relu", dropout: float = 0.0
) -> nn.Sequential:
    """Return hidden layers and a linear output: (..., width) -> (..., 1)."""
    layers = hidden_layers(width, hidden=hidden, activation_name=activation_name, dropout=dropout)
    return layers.append(nn.Linear(hidden[-1] if hidden else width, 1))
