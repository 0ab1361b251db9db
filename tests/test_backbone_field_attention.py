"""AutoInt's attention by hand: the values and gradients of torch's."""

import pytest
import torch

from training.backbones.field_attention import _Attention, attend

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_that_of_torch(heads: int, scale: float) -> None:
    torch.manual_seed(6)
    projected = torch.randn(5, 4, 4 * heads * 2, requires_grad=True)
    found = attend(projected, heads=heads, scale=scale)
    expected = attend(projected.detach(), heads=heads, scale=scale)
    assert isinstance(found.grad_fn, _Attention._backward_cls)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_its_gradients_are_those_of_the_function(heads: int) -> None:
    torch.manual_seed(7)
    projected = torch.randn(2, 3, 4 * heads * 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: _Attention.apply(values, heads, 0.7), [projected])


@pytest.mark.parametrize("level", [3.0, 5.0, 100.0])
def test_scores_far_apart_neither_overflow_nor_vanish(level: float) -> None:
    """Scores of 18 and -18, of 50 and -50, and of 20,000 and -2,000,000."""
    projected = torch.full((2, 3, 8), level)
    projected[:, 1] *= -100 if level > 10 else -1
    projected.requires_grad_()
    found = attend(projected, heads=1, scale=1.0)
    found.sum().backward()
    torch.testing.assert_close(found, attend(projected.detach(), heads=1, scale=1.0))
    assert projected.grad.isfinite().all()
