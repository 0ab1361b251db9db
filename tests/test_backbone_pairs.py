"""Bilinear pairs: the values of each pair by itself, and torch's gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.backbone_parts import batch_of, small
from training.backbones.pairs import bilinear_pairs


def drawn(batch: int, fields: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return fields, matrices and what the pairs are weighed by."""
    torch.manual_seed(3)
    pairs = fields * (fields - 1) // 2
    return torch.randn(batch, fields, width), torch.randn(pairs, width, width), torch.randn(batch, pairs, width)


@given(st.integers(0, 4), st.integers(2, 6), st.integers(1, 5))
def test_pairs_and_their_gradients_are_those_of_each_pair_by_itself(batch: int, fields: int, width: int) -> None:
    values, weight, weigh = drawn(batch, fields, width)
    values.requires_grad_(), weight.requires_grad_()
    found = bilinear_pairs(values, weight)
    ordered = [(i, j) for i in range(fields) for j in range(i + 1, fields)]
    each = [values[:, i] @ weight[pair] * values[:, j] for pair, (i, j) in enumerate(ordered)]
    expected = torch.stack(each, dim=1)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * weigh).sum(), [values, weight]),
        torch.autograd.grad((expected * weigh).sum(), [values, weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_a_gradient_pairs_are_the_same() -> None:
    values, weight, _ = drawn(3, 5, 4)
    with torch.no_grad():
        expected = bilinear_pairs(values, weight)
    torch.testing.assert_close(bilinear_pairs(values, weight.requires_grad_()), expected)


def test_other_precisions_are_torch_s() -> None:
    values, weight, _ = (one.double() for one in drawn(3, 4, 2))
    assert bilinear_pairs(values.requires_grad_(), weight).dtype == torch.float64
    assert torch.autograd.gradcheck(bilinear_pairs, (values, weight.requires_grad_()))


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_layer_sees_both_interactions_side_by_side(shared: bool) -> None:
    model, batch = small("fibinet", shared_bilinear=shared).eval(), batch_of()
    fields = model.inputs.fields(batch)
    second = model.reweighted_interaction or model.interaction
    pairs = torch.cat([second(model.excitation(fields)), model.interaction(fields)], dim=1)
    expected = model.linear(batch, fields) + model.output(pairs.flatten(1)).squeeze(-1)
    torch.testing.assert_close(model(batch), expected)
