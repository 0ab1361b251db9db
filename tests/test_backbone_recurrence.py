"""DIEN's recurrences over packed behaviors are those of torch and of the public implementations."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from tests.backbone_parts import behaviors_of
from tests.peers import copy, load_gates, peer
from training.backbones import packing as packings
from training.backbones import recurrence
from training.backbones.packing import Packing, pack
from training.backbones.recurrence import AUGRU, GRU, input_bias, run_gates

pytestmark = pytest.mark.usefixtures("one_thread")
N, W, H = 5, 4, 3
LENGTHS = st.lists(st.integers(0, N), min_size=1, max_size=6)


def mask_of(lengths: list[int]) -> Tensor:
    return torch.arange(N) < torch.tensor(lengths)[:, None]


def every_row(mask_BN: Tensor) -> Packing:
    """Return the packing that a GPU gets."""
    return packings._pack_all(mask_BN)


@settings(max_examples=30)
@given(LENGTHS)
def test_packing_is_that_of_torch_with_an_empty_history_as_one_row(lengths: list[int]) -> None:
    mask_BN = mask_of(lengths)
    values = torch.randn(len(lengths), N, W)
    packing, worked = pack(mask_BN), torch.tensor(lengths).clamp(min=1)
    expected = pack_padded_sequence(values, worked, batch_first=True, enforce_sorted=False)
    assert packing.counts == expected.batch_sizes.tolist()
    taken = packing.take(values)
    assert len(taken) == len(expected.data) == worked.sum()
    assert torch.equal(packing.there_P, packing.take(mask_BN[..., None]).squeeze(-1))
    assert int(packing.there_P.sum()) == sum(lengths)
    assert torch.equal(taken[packing.last_B], values[torch.arange(len(lengths)), worked - 1])
    later = packing.rows_P[len(lengths) :]
    assert torch.equal(packing.rows_P[packing.before_Q], later - 1)
    assert torch.equal(packing.take_samples(values[:, 0])[: len(lengths)], taken[: len(lengths)])


@settings(max_examples=30)
@given(LENGTHS)
def test_the_softmax_is_over_the_behaviors_of_each_sample(lengths: list[int]) -> None:
    mask_BN, score_BN = mask_of(lengths), torch.randn(len(lengths), N) * 5
    for packing in (pack(mask_BN), every_row(mask_BN)):
        weight_P = packing.softmax(packing.take(score_BN[..., None]).squeeze(-1))
        expected_BN = torch.zeros(len(lengths), N)
        for row, length in enumerate(lengths):
            expected_BN[row, :length] = score_BN[row, :length].softmax(0)
        torch.testing.assert_close(weight_P, packing.take(expected_BN[..., None]).squeeze(-1))


@settings(max_examples=20)
@given(LENGTHS)
def test_the_gru_is_that_of_torch_and_so_are_its_gradients(lengths: list[int]) -> None:
    torch.manual_seed(3)
    gru, packing = GRU(W, hidden_width=H), pack(mask_of(lengths))
    values = torch.randn(len(lengths), N, W, requires_grad=True)
    states_PH = gru(behaviors_of(packing.take(values)), packing)
    expected_PH = packing.take(gru.gru(values.transpose(0, 1))[0].transpose(0, 1))
    torch.testing.assert_close(states_PH, expected_PH, rtol=0, atol=1e-6)
    direction, learned = torch.randn_like(states_PH), [values, *gru.parameters()]
    found = torch.autograd.grad((states_PH * direction).sum(), learned)
    expected = torch.autograd.grad((expected_PH * direction).sum(), learned)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gradients_by_hand_are_those_of_the_function() -> None:
    torch.manual_seed(4)
    counts = pack(mask_of([3, 0, 5, 2])).counts
    gates, attention = torch.randn(sum(counts), 3 * H), torch.rand(sum(counts))
    weights = [torch.randn(3 * H, H), torch.randn(H)]
    arguments = [values.double().requires_grad_() for values in (gates, attention, *weights)]

    def run(gates: Tensor, attention: Tensor | None, *weights: Tensor) -> Tensor:
        # `run_gates` casts to float32
        states: Tensor = recurrence._Gates.apply(gates, gates.detach().clone(), attention, *weights, counts)
        return states

    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradcheck(lambda gates, *rest: run(gates, None, *rest), [arguments[0], *arguments[2:]])


def of_deepctr(ours: AUGRU) -> Callable[[PackedSequence, PackedSequence], Tensor]:
    theirs = peer("deepctr_torch.layers.sequence").DynamicGRU(W, H, gru_type="AUGRU")
    copy(ours.bias_ih, ours.bias_hh)  # its cell registers one tensor under both names
    theirs.rnn.load_state_dict(ours.state_dict())
    return lambda inputs, attention: theirs(inputs, attention).data


def of_fuxictr(ours: AUGRU) -> Callable[[PackedSequence, PackedSequence], Tensor]:
    theirs = peer("model_zoo.LongCTR.DIEN.DIEN").DynamicGRU(W, H, gru_type="AUGRU")
    load_gates(theirs.gru_cell, ours)
    return lambda inputs, attention: theirs(inputs, attention)[0].data


@pytest.mark.parametrize("load", [of_deepctr, of_fuxictr])
@pytest.mark.parametrize("lengths", [[3, 5, 1, 4], [5, 5], [1]], ids=str)
def test_the_augru_is_that_of_the_public_implementations(
    load: Callable[[AUGRU], Callable[[PackedSequence, PackedSequence], Tensor]], lengths: list[int]
) -> None:
    torch.manual_seed(5)
    ours = AUGRU(W, hidden_width=H)
    inputs, attention = (
        pack_padded_sequence(part, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        for part in (torch.randn(len(lengths), N, W), torch.rand(len(lengths), N))
    )
    expected = load(ours)(inputs, attention)
    torch.testing.assert_close(ours(inputs.data, attention.data, pack(mask_of(lengths))), expected, rtol=0, atol=1e-5)


def test_no_attention_leaves_the_state_and_full_attention_is_the_gru() -> None:
    torch.manual_seed(7)
    augru, packing = AUGRU(W, hidden_width=H), pack(mask_of([4, 2]))
    inputs = torch.randn(6, W)
    assert not augru(inputs, torch.zeros(6), packing).any()
    whole = augru(inputs, torch.ones(6), packing)
    gates = inputs @ augru.weight_ih.T + input_bias(augru.bias_ih, augru.bias_hh)
    torch.testing.assert_close(run_gates(gates, None, augru.weight_hh, augru.bias_hh, counts=packing.counts), whole)


def test_all_rows_give_what_the_behaviors_give() -> None:
    torch.manual_seed(8)
    mask_BN = mask_of([3, 0, 5, 1])
    gru, augru, values = GRU(W, hidden_width=H), AUGRU(H, hidden_width=H), torch.randn(4, N, W)
    score_BN, ends = torch.randn(4, N), []
    for packing in (pack(mask_BN), every_row(mask_BN)):
        states = gru(behaviors_of(packing.take(values)), packing)
        attention_P = packing.softmax(packing.take(score_BN[..., None]).squeeze(-1))
        ends.append(augru(states, attention_P, packing)[packing.last_B])
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
    assert not ends[0][1].any()
