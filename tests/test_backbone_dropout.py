"""Dropout: torch's, but for how many bits are drawn."""

import pytest
import torch
from torch.nn import functional as F

from training.backbones.layers import Dropout


@pytest.mark.parametrize("rate", [0.3, 0.75])
def test_dropout_keeps_the_mean_and_drops_as_often_as_it_is_told(rate: float) -> None:
    torch.manual_seed(2)
    x = torch.ones(301, 333, requires_grad=True)
    found = Dropout(rate)(x)
    assert float((found == 0).float().mean()) == pytest.approx(rate, abs=0.01)
    assert float(found.detach().mean()) == pytest.approx(1, abs=0.02)
    assert len(found.unique()) == 2
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], found)


def test_dropout_follows_the_seed_and_stops_after_training() -> None:
    layer, x = Dropout(0.5), torch.randn(40, 7)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x or torch.equal(layer(x), x)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all_are_torch_s(rate: float) -> None:
    x = torch.randn(3, 4)
    assert torch.equal(Dropout(rate)(x), F.dropout(x, rate))
