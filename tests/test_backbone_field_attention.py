"""AutoInt's attention by hand: the values and gradients of torch's."""

import pytest
import torch

from training.backbones.field_attention import _Attention, attend

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_that_of_torch(heads: int, scale: float) -> None:
    torch.manual_seed(6)
    fields, weight = torch.randn(5, 4, 6, requires_grad=True), torch.randn(4 * heads * 2, 6, requires_grad=True)
    found = attend(fields, weight, heads=heads, scale=scale)
    assert isinstance(found.grad_fn, _Attention._backward_cls)
    expected = attend(fields.detach(), weight.detach(), heads=heads, scale=scale)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_its_gradients_are_those_of_the_function(heads: int) -> None:
    torch.manual_seed(7)
    fields = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4 * heads * 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: _Attention.apply(*inputs, heads, 0.7), [fields, weight])


@pytest.mark.parametrize("level", [3.0, 5.0, 100.0])
def test_scores_far_apart_neither_overflow_nor_vanish(level: float) -> None:
    """Scores of 18 and -18, of 50 and -50, and of 20,000 and -2,000,000."""
    fields = torch.full((2, 3, 8), level)
    fields[:, 1] *= -100 if level > 10 else -1
    fields.requires_grad_()
    found = attend(fields, torch.eye(8).requires_grad_(), heads=1, scale=1.0)
    found.sum().backward()
    torch.testing.assert_close(found, attend(fields.detach(), torch.eye(8), heads=1, scale=1.0))
    assert fields.grad.isfinite().all()


def test_under_autocast_the_products_are_those_of_bfloat16() -> None:
    torch.manual_seed(8)
    fields, weight = torch.randn(5, 4, 6, requires_grad=True), torch.randn(8, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attend(fields, weight, heads=1, scale=1.0)
    assert found.dtype == torch.bfloat16
    found.sum().backward()
    assert weight.grad.dtype == torch.float32
