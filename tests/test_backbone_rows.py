"""Lookups and sums of rows: torch's values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


@given(st.integers(1, 40), st.lists(st.integers(0, 39), max_size=60), st.integers(1, 3))
def test_gradients_are_torch_s_whether_a_row_is_taken_often_or_never(rows: int, places: list[int], width: int) -> None:
    torch.manual_seed(2)
    table, taken = torch.randn(rows, 2, requires_grad=True), torch.tensor(places, dtype=torch.int64) % rows
    torch.testing.assert_close(
        gradient(table, take_rows(table, taken)), gradient(table, F.embedding(taken, table)), rtol=1e-4, atol=1e-5
    )
    bags = taken[: len(taken) // width * width].view(-1, width)
    torch.testing.assert_close(
        gradient(table, sum_rows(table, bags)),
        gradient(table, F.embedding(bags, table).sum(dim=1)),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_table_of_more_rows_than_sixteen_bits_count_has_the_same_gradients() -> None:
    table, places = torch.randn(1 << 17, 1, requires_grad=True), torch.tensor([[0, 1 << 16], [65_537, 1 << 16]])
    found = gradient(table, sum_rows(table, places))
    torch.testing.assert_close(found, gradient(table, F.embedding(places, table).sum(dim=1)))
    many = places.flatten().repeat(1 << 16)
    torch.testing.assert_close(gradient(table, take_rows(table, many)), gradient(table, F.embedding(many, table)))


def test_nothing_is_taken_from_nowhere() -> None:
    table = torch.randn(5, 2, requires_grad=True)
    empty = torch.zeros(0, 3, dtype=torch.int32)
    assert take_rows(table, empty).shape == (0, 3, 2)
    assert not gradient(table, take_rows(table, empty)).any()
