"""DIEN's auxiliary loss: what it is, what it is drawn from, and that a fit minimizes it with the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.backbone_parts import batch_of, behaviors_of, small
from tests.peers import load_mlp, peer
from training.backbones.dien import DIEN, NextBehavior, draw
from training.backbones.embedding import Batch
from training.backbones.loss import forward_with_loss
from training.backbones.packing import Packing, pack
from training.fit import take_step

pytestmark = pytest.mark.usefixtures("one_thread")
N, W, H = 5, 4, 3


def parts(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor, Packing]:
    """Return interests, behaviors, item numbers that differ everywhere, and the packing."""
    torch.manual_seed(31)
    packing = pack(torch.arange(N) < torch.tensor(lengths)[:, None])
    count = len(packing.rows_P)
    return torch.randn(count, H), torch.randn(count, W), torch.arange(count)[:, None], packing


def drawn_after(packing: Packing, *, seed: int) -> Tensor:
    """Return what is drawn right after `seed`."""
    torch.manual_seed(seed)
    return draw(packing.there_P, count=len(packing.before_Q))


def test_the_auxiliary_loss_is_that_of_the_paper() -> None:
    interest, behavior, items, packing = parts([3, 0, 5, 1])
    auxiliary = NextBehavior(H, width=W, hidden=(6, 4))
    drawn = drawn_after(packing, seed=32)
    torch.manual_seed(32)
    found = auxiliary(interest, behaviors_of(behavior), items, packing)
    total, count = torch.zeros(()), 0
    for number, (before, other) in enumerate(zip(packing.before_Q, drawn, strict=True)):
        after = len(packing.last_B) + number
        if other != after:
            pairs = (torch.cat([interest[before], behavior[row]]) for row in (after, other))
            follows, differs = (torch.sigmoid(auxiliary.network(pair)) for pair in pairs)
            total = total - follows.log()[0] - (1 - differs).log()[0]
            count += 1
    assert 0 < count <= 6
    torch.testing.assert_close(found, total / count)


def test_the_auxiliary_loss_is_twice_that_of_deepctr_which_averages_over_both_kinds() -> None:
    lengths = [3, 5, 2, 4]
    interest, behavior, items, packing = parts(lengths)
    behavior = behavior[:, :H]  # theirs is for interests as wide as behaviors
    theirs = peer("deepctr_torch.models.dien").InterestExtractor(H, use_neg=True)
    theirs.auxiliary_net = peer("deepctr_torch.layers").DNN(2 * H, [6, 4, 1], "sigmoid")
    ours = NextBehavior(H, width=H, hidden=(6, 4))
    load_mlp(theirs.auxiliary_net.linears, None, ours.network)
    first, rows = len(lengths), torch.arange(len(items))
    # They count a pair of the same behavior too.
    seed = next(seed for seed in range(99) if (drawn_after(packing, seed=seed) != rows[first:]).all())

    def padded(values: Tensor, places: Tensor) -> Tensor:
        return torch.zeros(first * N, H).index_copy(0, places, values).view(first, N, H)

    expected = theirs._cal_auxiliary_loss(
        padded(interest, packing.rows_P)[:, :-1],
        padded(behavior, packing.rows_P)[:, 1:],
        padded(behavior[drawn_after(packing, seed=seed)], packing.rows_P[first:])[:, 1:],
        torch.tensor(lengths) - 1,
    )
    torch.manual_seed(seed)
    found = ours(interest, behaviors_of(behavior), items, packing)
    torch.testing.assert_close(found, 2 * expected, rtol=1e-5, atol=1e-6)


@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(0, 50))
def test_what_is_drawn_are_behaviors_and_no_padding(there: list[bool], count: int) -> None:
    drawn = draw(torch.tensor(there), count=count)
    assert len(drawn) == count
    assert all(there[row] for row in drawn)


def test_every_behavior_is_drawn_as_often_as_another() -> None:
    torch.manual_seed(34)
    drawn = draw(torch.tensor([True, False, True, True]), count=30_000)
    assert torch.bincount(drawn, minlength=4) / 30_000 == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3], abs=0.02)


def test_a_pair_of_the_same_item_does_not_count() -> None:
    interest, behavior, items, packing = parts([3, 2])
    auxiliary = NextBehavior(H, width=W, hidden=(6,))
    assert auxiliary(interest, behaviors_of(behavior), items, packing) > 0
    assert auxiliary(interest, behaviors_of(behavior), torch.zeros_like(items), packing) == 0


def test_histories_without_a_next_behavior_add_nothing() -> None:
    interest, behavior, items, packing = parts([1, 0])
    assert NextBehavior(H, width=W, hidden=(6,))(interest, behaviors_of(behavior), items, packing) == 0


def auxiliary_loss(model: DIEN, batch: Batch, *, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return model.forward_with_loss(batch)[1]


def test_the_loss_is_weighted_seeded_and_leaves_the_logits_alone() -> None:
    model, batch = small("dien"), batch_of()
    assert torch.equal(model.forward_with_loss(batch)[0], model(batch))
    assert torch.equal(auxiliary_loss(model, batch), auxiliary_loss(model, batch))
    assert not torch.equal(auxiliary_loss(model, batch), auxiliary_loss(model, batch, seed=1))
    half = small("dien", auxiliary_weight=0.5)
    half.load_state_dict(model.state_dict())
    torch.testing.assert_close(auxiliary_loss(half, batch), auxiliary_loss(model, batch) / 2)


def test_without_the_auxiliary_loss_there_is_no_network_for_it() -> None:
    model, batch = small("dien", auxiliary_weight=0.0), batch_of()
    assert not [name for name in model.state_dict() if name.startswith("auxiliary")]
    found, added = forward_with_loss(model, batch, labels_B=torch.zeros(64))
    assert torch.equal(found, model(batch))
    assert added == 0


class OneBatch:
    """The samples of a fit that are one batch, of which half are likes."""

    device = torch.device("cpu")

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def step_batch(self, rows: np.ndarray) -> Batch:
        return self._batch

    def labels(self, rows: np.ndarray) -> Tensor:
        return torch.arange(len(self._batch["dense"])) % 2 * 1.0


@pytest.mark.parametrize("name", ["dien", "din"])
def test_a_step_minimizes_what_the_backbone_adds_with_the_rest(name: str) -> None:
    model, samples = small(name), OneBatch(batch_of())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.manual_seed(35)
    loss = take_step(model, optimizer=optimizer, samples=samples, rows=np.arange(64))
    torch.manual_seed(35)
    labels = samples.labels(np.arange(64))
    found, added = forward_with_loss(model.train(), samples.step_batch(np.arange(64)), labels_B=labels)
    expected = F.binary_cross_entropy_with_logits(found, labels) + added
    torch.testing.assert_close(loss, expected)
    assert (name == "dien") == isinstance(added, Tensor)


def test_the_auxiliary_loss_falls_where_interests_tell_what_comes_next() -> None:
    _, behavior, items, packing = parts([5, 4, 5, 5])
    behavior = behavior.sign()
    after = torch.arange(len(packing.last_B), len(items))
    interest = torch.zeros(len(items), W).index_copy(0, packing.before_Q, behavior[after])
    auxiliary = NextBehavior(W, width=W, hidden=(16,))
    optimizer, losses = torch.optim.Adam(auxiliary.parameters(), lr=0.05), []
    for _ in range(150):
        loss = auxiliary(interest, behaviors_of(behavior), items, packing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert torch.stack(losses[-10:]).mean() < 0.7 * torch.stack(losses[:10]).mean()


def test_an_interest_is_as_wide_as_an_item_unless_it_is_told() -> None:
    model = small("dien")
    assert model.extraction.gru.hidden_size == model.inputs.item.field_count * 4
    assert small("dien", hidden_width=5).evolution.weight_hh.shape == (15, 5)


def test_a_module_without_a_loss_of_its_own_adds_none() -> None:
    class Plain(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            return batch["dense"].sum(dim=1)

    batch = batch_of()
    found, added = forward_with_loss(Plain(), batch, labels_B=torch.zeros(64))
    assert torch.equal(found, batch["dense"].sum(dim=1))
    assert added == 0
