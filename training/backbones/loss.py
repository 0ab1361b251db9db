"""What a backbone may add to the loss of its logits."""

from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F

from training.backbones.embedding import Batch


@runtime_checkable
class WithAuxiliaryLoss(Protocol):
    """A backbone with a loss of its own beside that of its logits; fitting adds the two."""

    def forward_with_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B,) that `forward` gives, and the loss to be added, a scalar with its weight in it."""
        ...


@runtime_checkable
class WithAuxiliaryTask(Protocol):
    """A backbone of which a part tells likes by itself; fitting adds the loss of these logits, times `task_weight`."""

    @property
    def task_weight(self) -> float: ...

    def forward_with_task(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B,) that `forward` gives, and those of the part; None where it has no such task."""
        ...


def forward_with_loss(model: nn.Module, batch: Batch, *, labels_B: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return a backbone's logits (B,) and what it adds to their loss; most add nothing.

    `labels_B` are float32, 1 where a sample is a like.
    """
    if isinstance(model, WithAuxiliaryTask):
        logit_B, task_B = model.forward_with_task(batch)
        if task_B is None:
            return logit_B, 0.0
        return logit_B, model.task_weight * F.binary_cross_entropy_with_logits(task_B.float(), labels_B)
    return model.forward_with_loss(batch) if isinstance(model, WithAuxiliaryLoss) else (model(batch), 0.0)
