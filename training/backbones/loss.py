"""What a backbone may add to the loss of its logits."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from training.backbones.embedding import Batch


@runtime_checkable
class WithAuxiliaryLoss(Protocol):
    """A backbone with a loss of its own beside that of its logits; fitting adds the two."""

    def forward_with_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B,) that `forward` gives, and the loss to be added, a scalar with its weight in it."""
        ...


def forward_with_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
    """Return a backbone's logits (B,) and what it adds to their loss; most add nothing."""
    return model.forward_with_loss(batch) if isinstance(model, WithAuxiliaryLoss) else (model(batch), 0.0)
