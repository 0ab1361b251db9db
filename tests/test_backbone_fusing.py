"""The fusion of a training step is `AttentionFusion`, values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.fusion import AttentionFusion
from training.backbones.fusing import fuse, fuse_windows
from training.windows import WindowTable

pytestmark = pytest.mark.usefixtures("one_thread")
P, D, F = 6, 5, 3
ROWS = 40


@settings(max_examples=40)
@given(st.lists(st.lists(st.booleans(), min_size=P, max_size=P), min_size=1, max_size=9))
def test_values_and_gradients_are_those_of_the_module(sealed: list[list[bool]]) -> None:
    torch.manual_seed(9)
    fusion, sealed_BP = AttentionFusion(width=D, fused_width=F), torch.tensor(sealed)
    vectors = torch.randn(len(sealed), P, D).masked_fill(~sealed_BP[..., None], torch.nan)
    assert_same(fusion, fuse(fusion, vectors, sealed_BP), fusion(vectors, sealed_BP))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)), min_size=1, max_size=12))
def test_windows_that_share_partitions_are_fused_as_if_each_were_alone(bounds: list[tuple[int, int]]) -> None:
    torch.manual_seed(9)
    fusion, table_RD = AttentionFusion(width=D, fused_width=F), torch.randn(ROWS + 1, D)
    table_RD[-1] = 0
    starts_B, stops_B = torch.tensor(bounds, dtype=torch.int32).sort(dim=1).values.unbind(dim=1)
    vectors, sealed = WindowTable(rows=table_RD).gather(starts_B, stops_B - starts_B, width=ROWS)
    found = fuse_windows(fusion, table_RD, starts_B, stops_B - starts_B)
    assert_same(fusion, found, fusion(vectors, sealed))


def assert_same(fusion: AttentionFusion, found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    direction, weights = torch.randn_like(found), list(fusion.parameters())
    grads = (torch.autograd.grad((fused * direction).sum(), weights) for fused in (found, expected))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_user_without_partitions_gets_zeros() -> None:
    fusion = AttentionFusion(width=D, fused_width=F)
    assert not fuse(fusion, torch.randn(2, P, D), torch.zeros(2, P, dtype=torch.bool)).any()
