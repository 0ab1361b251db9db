"""Lookups and sums of rows: torch's values and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.backbones.rows import sum_rows, take_rows

PLACES = torch.tensor([[0, 3, 3], [2, 0, 3]])


def gradient(table: Tensor, out: Tensor) -> Tensor:
    torch.manual_seed(1)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), table)[0]


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_rows_are_those_of_an_embedding(padding: int | None) -> None:
    table = torch.randn(5, 2, requires_grad=True)
    found, expected = take_rows(table, PLACES, padding=padding), F.embedding(PLACES, table, padding_idx=padding)
    assert torch.equal(found, expected)
    torch.testing.assert_close(gradient(table, found), gradient(table, expected))


def test_sums_of_rows_are_those_of_an_embedding_bag() -> None:
    table = torch.randn(5, 2, requires_grad=True)
    found, expected = sum_rows(table, PLACES), F.embedding_bag(PLACES, table, mode="sum")
    assert torch.equal(found, expected)
    torch.testing.assert_close(gradient(table, found), gradient(table, expected))


def test_nothing_is_taken_from_nowhere() -> None:
    table = torch.randn(5, 2, requires_grad=True)
    empty = torch.zeros(0, 3, dtype=torch.int32)
    assert take_rows(table, empty).shape == (0, 3, 2)
    assert not gradient(table, take_rows(table, empty)).any()
