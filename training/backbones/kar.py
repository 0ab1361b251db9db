"""KAR: Towards Open-World Recommendation with Knowledge Augmentation from LLMs (Xi et al., RecSys 2024).

Its hybrid-expert adaptor turns the encoded knowledge into dense vectors that join a backbone's input, in the place
where LIBER has its fusion; `training.knowledge` says which texts a sample sees.

Shape suffixes: B samples in the batch, S kinds of knowledge, P texts of one kind, X experts, D width of a text's
vector, F width of what joins the input.
"""

from typing import cast

import torch
from torch import Tensor, nn

from training.backbones.layers import hidden_layers

SHARED_EXPERTS, DEDICATED_EXPERTS, EXPERT_HIDDEN = 2, 5, 128
"""As in the authors' code, which has no dropout in the experts."""


class HybridExpertAdaptor(nn.Module):
    """`sum_e softmax(g_s(r_s))_e e(r_s)` for each kind of knowledge s (section 3.4).

    The experts e of a kind are those that all kinds share and those dedicated to it; the gate g_s is linear.
    """

    def __init__(
        self,
        width: int,
        *,
        kinds: int,
        out_width: int,
        shared: int = SHARED_EXPERTS,
        dedicated: int = DEDICATED_EXPERTS,
        hidden: int = EXPERT_HIDDEN,
    ) -> None:
        """Build `shared` experts, and for each of `kinds` of knowledge `dedicated` ones and a gate."""
        super().__init__()

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(hidden_layers(width, hidden=(hidden, out_width)) for _ in range(count))

        self.shared = experts(shared)
        self.dedicated = nn.ModuleList(experts(dedicated) for _ in range(kinds))
        self.gates = nn.ModuleList(nn.Linear(width, shared + dedicated) for _ in range(kinds))

    def forward(self, knowledge_BSD: Tensor) -> Tensor:
        """Return the augmented vectors (B, S, F)."""
        return torch.stack(
            [self._augmented(kind, text_BD) for kind, text_BD in enumerate(knowledge_BSD.unbind(dim=1))], dim=1
        )

    def _augmented(self, kind: int, text_BD: Tensor) -> Tensor:
        experts = [*self.shared, *cast("nn.ModuleList", self.dedicated[kind])]
        weight_BX = self.gates[kind](text_BD).softmax(dim=-1)
        expert_BXF = torch.stack([expert(text_BD) for expert in experts], dim=1)
        return torch.einsum("bx,bxf->bf", weight_BX, expert_BXF)


class KnowledgeAdaptor(nn.Module):
    """The adaptor over what an LLM wrote of a user's history, with the interface of LIBER's fusion.

    A user has one text, the last where there are several, or none, and then the vector is zero. What stands where
    `there_BP` is false does not matter, be it NaN.
    """

    def __init__(self, *, width: int, fused_width: int) -> None:
        super().__init__()
        self.width, self.fused_width = width, fused_width
        self.adaptor = HybridExpertAdaptor(width, kinds=1, out_width=fused_width)

    def forward(self, text_BPD: Tensor, there_BP: Tensor) -> Tensor:
        """Return what joins the backbone's input (B, F)."""
        place_BP = there_BP * torch.arange(1, there_BP.shape[1] + 1, device=there_BP.device)
        last_B = place_BP.amax(dim=1)
        index_B11 = (last_B - 1).clamp(min=0)[:, None, None]
        text_B1D = text_BPD.gather(1, index_B11.expand(-1, 1, text_BPD.shape[2]))
        known_B1 = (last_B > 0)[:, None]
        text_B1D = text_B1D.masked_fill(~known_B1[..., None], 0.0)
        return self.adaptor(text_B1D).squeeze(1) * known_B1
