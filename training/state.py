"""A fit between two steps: all that its next steps and its result depend on, beside its samples and its options."""

import copy
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.metrics import Quality


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What was seen of the validation part after `step`."""

    step: int
    validation: Quality


@dataclass(kw_only=True, slots=True)
class Best:
    """The best look so far, with the weights it saw."""

    quality: Quality = Quality(auc=-1.0, log_loss=0.0)
    step: int = 0
    waited: int = 0
    """Looks since then."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    logits: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Of the validation part, by these weights."""

    def look(self, seen: Quality, *, logits: npt.NDArray[np.float32], step: int, model: nn.Module) -> None:
        """Keep the model's weights if `seen` is better than all before."""
        self.waited += 1
        if seen.auc > self.quality.auc:
            self.quality, self.logits, self.step, self.waited = seen, logits, step, 0
            self.weights = copy.deepcopy(model.state_dict())


@dataclass(kw_only=True, slots=True, eq=False)
class FitState:
    """Where a fit is."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: Best = field(default_factory=Best)
    looks: list[Look] = field(default_factory=list)
    seconds: float = 0.0
    _losses: list[npt.NDArray[np.float32]] = field(default_factory=list, init=False)
    _on_device: list[Tensor] = field(default_factory=list, init=False)
    """Losses that were not read yet: reading one waits for the device."""

    def stepped(self, loss: Tensor) -> None:
        """Count a step and keep its loss, a scalar."""
        self.step += 1
        self._on_device.append(loss)

    def looked(self, seen: Quality, *, logits: npt.NDArray[np.float32]) -> None:
        """Keep what was just seen of the validation part, and the weights if it is the best so far."""
        self.looks.append(Look(step=self.step, validation=seen))
        self.best.look(seen, logits=logits, step=self.step, model=self.model)

    def losses(self) -> npt.NDArray[np.float32]:
        """Return the loss of every step so far; waits for the device."""
        if self._on_device:
            self._losses.append(torch.stack(self._on_device).float().cpu().numpy())
            self._on_device.clear()
        whole = np.concatenate(self._losses) if self._losses else np.zeros(0, np.float32)
        self._losses[:] = [whole]
        return whole

    def restore_losses(self, losses: npt.NDArray[np.float32]) -> None:
        """Take `losses` for those of the steps so far."""
        self._losses[:] = [losses]
        self._on_device.clear()
