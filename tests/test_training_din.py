from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from liber_feast.artifact import to_tensors
from liber_feast.inputs import InputSpec
from tests.backbone_parts import attend
from tests.training_parts import ITEM_COLUMNS, USER_COLUMNS, WIDTH, sample_table
from training.backbones.attention import DINAttention
from training.backbones.din import DIN, DINConfig
from training.backbones.fields import FieldEmbedding
from training.backbones.layers import Dice
from training.fit_inputs import InputOptions, fit_inputs

SMALL = DINConfig(embedding_width=4, attention_hidden=(8,), hidden=(16, 8), dropout=0.0)
N, W = 6, 5


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def spec(*, fused_width: int = 4) -> InputSpec:
    options = InputOptions(sequence_length=N, memory_width=WIDTH, fused_width=fused_width)
    table = sample_table(count=200)
    return fit_inputs(table, user_columns=USER_COLUMNS, item_columns=ITEM_COLUMNS, options=options)


def batch_of(rows: slice = slice(0, 64), *, fused_width: int = 4) -> dict[str, Tensor]:
    table = sample_table(count=200).slice(rows.start, rows.stop - rows.start)
    return to_tensors(spec(fused_width=fused_width).encode(table))


def din(*, fused_width: int = 4, config: DINConfig = SMALL) -> DIN:
    torch.manual_seed(1)
    return DIN(spec(fused_width=fused_width).shape, config=config).eval()


def candidates(count: int) -> Tensor:
    """Return candidates that have the same component for the feedback that is yet to come."""
    return torch.cat([torch.randn(count, W - 1), torch.randn(1, 1).expand(count, 1)], dim=1)


@settings(max_examples=25)
@given(st.integers(0, 2**20), st.lists(st.booleans(), min_size=N, max_size=N), st.booleans())
def test_what_stands_behind_the_mask_does_not_matter(seed: int, mask: list[bool], softmax: bool) -> None:
    torch.manual_seed(seed)
    attention = DINAttention(W, hidden=(4,), softmax=softmax).eval()
    candidate, history, there = candidates(2), torch.randn(2, N, W), torch.tensor([mask, mask])
    pooled = attend(attention, candidate, history, there)
    other = torch.where(there[..., None], history, torch.randn_like(history) * 100)
    torch.testing.assert_close(attend(attention, candidate, other, there), pooled)
    if not any(mask):
        assert not pooled.any()


def test_the_order_of_the_behaviors_does_not_matter() -> None:
    attention = DINAttention(W, hidden=(4,)).eval()
    candidate, history, there = candidates(3), torch.randn(3, N, W), torch.rand(3, N) > 0.3
    order = torch.randperm(N)
    torch.testing.assert_close(
        attend(attention, candidate, history[:, order], there[:, order]), attend(attention, candidate, history, there)
    )


@pytest.mark.parametrize("softmax", [False, True])
def test_the_attention_is_that_of_the_paper(softmax: bool) -> None:
    attention = DINAttention(W, hidden=(4, 3), activation_name="prelu", softmax=softmax).eval()
    candidate, history, there = candidates(2), torch.randn(2, N, W), torch.rand(2, N) > 0.3
    for row in range(2):
        scores = []
        for behavior in history[row]:
            c = candidate[row]
            scores.append(attention.unit(torch.cat([c, behavior, c - behavior, c * behavior]))[0])
        weights = torch.stack(scores)
        if softmax:
            weights = weights.masked_fill(~there[row], -torch.inf).softmax(0)
        expected = (weights * there[row]) @ history[row]
        torch.testing.assert_close(attend(attention, candidate, history, there)[row], expected, rtol=1e-4, atol=1e-5)


def test_dice_is_that_of_the_paper() -> None:
    dice, x = Dice(4), torch.randn(7, 3, 4)
    with torch.no_grad():
        dice.alpha.normal_()
    flat = x.reshape(-1, 4)
    p = torch.sigmoid((flat - flat.mean(0)) / torch.sqrt(flat.var(0, unbiased=False) + 1e-9)).view_as(x)
    torch.testing.assert_close(dice(x), p * x + (1 - p) * dice.alpha * x)


def test_a_field_is_the_mean_of_its_known_codes_and_zero_where_it_has_none() -> None:
    embedding = FieldEmbedding(slots=(1, 3), code_count=9, number_count=1, width=4)
    codes = torch.tensor([[2, 5, 7, 0], [0, 0, 0, 0]], dtype=torch.int32)
    numbers = torch.tensor([[[0.5, 1.0]], [[0.0, 0.0]]])
    fields, table = embedding(codes, numbers), embedding.codes.weight
    torch.testing.assert_close(fields[0, 0], table[2])
    torch.testing.assert_close(fields[0, 1], (table[5] + table[7]) / 2)
    torch.testing.assert_close(fields[0, 2], 0.5 * embedding.numbers[0, 0] + embedding.numbers[0, 1])
    assert not fields[1].any()
    fields.sum().backward()
    assert not table.grad[0].any()


@pytest.mark.parametrize("fused_width", [4, 7], ids=["of the embedding's width", "projected"])
def test_a_fused_vector_computed_before_gives_the_same_score(fused_width: int) -> None:
    model, batch = din(fused_width=fused_width), batch_of(slice(100, 164), fused_width=fused_width)
    assert batch["sealed"].any()
    assert not batch["sealed"].any(1).all()
    with torch.no_grad():
        raw = model(batch)
        fused = model.inputs.fusion(batch["vectors"], batch["sealed"])
        rest = {name: tensor for name, tensor in batch.items() if name not in {"vectors", "sealed"}}
        torch.testing.assert_close(model({**rest, "fused": fused}), raw, rtol=0, atol=1e-5)
        assert not torch.allclose(model({**rest, "fused": torch.zeros_like(fused)}), raw, atol=1e-4)


def test_fusing_by_length_is_fusing_at_once() -> None:
    inputs, batch = din().inputs, batch_of(slice(20, 90))
    with torch.no_grad():
        expected = inputs.fusion(batch["vectors"], batch["sealed"])
        torch.testing.assert_close(inputs.fused(batch), expected, rtol=0, atol=1e-6)
        few = {name: tensor[:3] for name, tensor in batch.items()}
        torch.testing.assert_close(inputs.fused(few), expected[:3], rtol=0, atol=1e-6)


def test_a_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = din()
    with torch.no_grad():
        whole, alone = model(batch_of(slice(100, 140))), model(batch_of(slice(117, 118)))
    torch.testing.assert_close(alone, whole[17:18], rtol=0, atol=1e-5)


def test_the_fusion_is_trained_with_the_backbone() -> None:
    model = din().train()
    model(batch_of(slice(100, 164))).square().mean().backward()
    learned = [weight for weight in model.parameters() if weight.numel()]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in learned)
    assert model.inputs.fusion.value.weight.grad.abs().sum() > 0


def test_din_learns_a_few_samples_by_heart() -> None:
    model, batch = din().train(), batch_of(slice(120, 152))
    liked = torch.from_numpy(np.arange(32) % 3 == 0).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        loss = F.binary_cross_entropy_with_logits(model(batch), liked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
