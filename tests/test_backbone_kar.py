"""The hybrid-expert adaptor of KAR, against a plain loop, and in the place of LIBER's fusion."""

import pytest
import torch
from torch import Tensor, nn

from tests.backbone_parts import randomize
from training.backbones.kar import HybridExpertAdaptor, KnowledgeAdaptor

pytestmark = pytest.mark.usefixtures("one_thread")
B, D, F = 6, 5, 3


def loop(adaptor: HybridExpertAdaptor, text: Tensor, kind: int) -> Tensor:
    """Return the augmented vector of one text, expert by expert."""
    scores = adaptor.gates[kind].weight @ text + adaptor.gates[kind].bias
    weights = scores.exp() / scores.exp().sum()
    experts = [*adaptor.shared, *adaptor.dedicated[kind]]
    total = torch.zeros(F)
    for weight, expert in zip(weights, experts, strict=True):
        hidden = text
        for layer in expert:
            if isinstance(layer, nn.Linear):
                hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
        total = total + weight * hidden
    return total


@torch.no_grad()
def test_each_kind_is_the_gated_sum_of_the_shared_experts_and_its_own() -> None:
    torch.manual_seed(51)
    adaptor = HybridExpertAdaptor(D, kinds=2, out_width=F, shared=2, dedicated=3, hidden=4)
    randomize(adaptor)
    texts = torch.randn(B, 2, D)
    found = adaptor(texts)
    assert found.shape == (B, 2, F)
    for sample in range(B):
        for kind in range(2):
            torch.testing.assert_close(found[sample, kind], loop(adaptor, texts[sample, kind], kind))
    assert not torch.allclose(
        found[:, 0], adaptor(texts.flip(1))[:, 1]
    )  # the kinds have experts and gates of their own


def test_shared_experts_learn_from_every_kind_and_dedicated_ones_from_theirs() -> None:
    torch.manual_seed(52)
    adaptor = HybridExpertAdaptor(D, kinds=2, out_width=F, hidden=4)
    adaptor(torch.randn(B, 2, D))[:, 0].sum().backward()

    def learned(module: nn.Module) -> bool:
        return any(weight.grad is not None and bool(weight.grad.any()) for weight in module.parameters())

    assert learned(adaptor.shared)
    assert learned(adaptor.dedicated[0])
    assert not learned(adaptor.dedicated[1])
    assert not learned(adaptor.gates[1])


@torch.no_grad()
def test_a_user_without_a_text_gets_zeros_and_padding_does_not_matter() -> None:
    torch.manual_seed(53)
    adaptor = KnowledgeAdaptor(width=D, fused_width=F)
    randomize(adaptor)
    texts = torch.randn(B, 2, D)
    there = torch.tensor([[True, False], [False, False], [True, True], [True, False], [False, False], [True, False]])
    spoiled = texts.masked_fill(~there[..., None], torch.nan)
    found = adaptor(spoiled, there)
    assert not found[[1, 4]].any()
    assert found[[0, 2, 3, 5]].any(dim=1).all()
    torch.testing.assert_close(found[[0, 3, 5]], adaptor(texts[[0, 3, 5], :1], there[[0, 3, 5], :1]))
    torch.testing.assert_close(found[2:3], adaptor(texts[2:3, 1:], torch.tensor([[True]])))  # the last of two


def test_a_gradient_reaches_every_weight_and_stays_finite_without_texts() -> None:
    torch.manual_seed(54)
    adaptor = KnowledgeAdaptor(width=D, fused_width=F)
    there = torch.tensor([[True]] * 4 + [[False]] * 2)
    adaptor(torch.randn(B, 1, D).masked_fill(~there[..., None], torch.nan), there).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in adaptor.parameters())
