"""Small backbones and batches for the tests of all backbones."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from liber_feast.artifact import build_backbone, to_tensors
from liber_feast.inputs import InputShape, InputSpec
from tests.training_parts import ITEM_COLUMNS, USER_COLUMNS, WIDTH, sample_table
from training.backbones import BACKBONES
from training.backbones.attention import DINAttention
from training.backbones.behaviors import Behaviors
from training.fit_inputs import InputOptions, fit_inputs

COMMON: dict[str, Any] = {"embedding_width": 4, "hidden": (8, 4), "dropout": 0.0}
SMALL: dict[str, dict[str, Any]] = {
    "dcn": COMMON,
    "deepfm": COMMON,
    "xdeepfm": {**COMMON, "feature_maps": (5, 3)},
    "autoint": {**COMMON, "attention_layers": 2, "head_width": 3},
    "fibinet": COMMON,
    "din": {**COMMON, "attention_hidden": (8,)},
    "dien": {**COMMON, "auxiliary_hidden": (6, 4)},
    "sim": {**COMMON, "window": 3, "found": 4, "attention_width": 6, "age_width": 2, "attention_hidden": (8,)},
    "eta": {**COMMON, "window": 3, "found": 2, "attention_width": 6, "hash_bits": 16},
}
"""The config of a small one of each backbone."""
OF_FIELDS = ("dcn", "deepfm", "xdeepfm", "autoint", "fibinet")
LENGTH = 6


@cache
def spec(*, memory: bool = True) -> InputSpec:
    """Return the inputs of 200 samples; the fused vector is wider than the small embeddings."""
    options = InputOptions(sequence_length=LENGTH, memory_width=WIDTH if memory else 0, fused_width=5 if memory else 0)
    return fit_inputs(sample_table(count=200), user_columns=USER_COLUMNS, item_columns=ITEM_COLUMNS, options=options)


def batch_of(start: int = 100, stop: int = 164, *, memory: bool = True) -> dict[str, Tensor]:
    """Return samples as a batch; the first ones have short histories and no partitions."""
    return to_tensors(spec(memory=memory).encode(sample_table(count=200).slice(start, stop - start)))


def small(name: str, *, shape: InputShape | None = None, seed: int = 1, **config: Any) -> Any:
    """Return a small backbone in evaluation mode; `config` replaces values of its config."""
    torch.manual_seed(seed)
    model = build_backbone(
        BACKBONES[name], shape=spec().shape if shape is None else shape, config={**SMALL[name], **config}
    )
    return model.eval()


def randomize(module: nn.Module, *, deviation: float = 0.5) -> None:
    """Draw every weight anew, so that none is so small, or zero, that it would not show; buffers of variances too."""
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(std=deviation)
            if name.endswith("codes.weight"):
                weight[0] = 0


def behaviors_of(inputs_PW: Tensor) -> Behaviors:
    """Return rows as behaviors of their own without feedback."""
    return Behaviors(items=inputs_PW, places=None, told=torch.zeros(len(inputs_PW), 0), feedback_3E=torch.zeros(0, 0))


def attend(attention: DINAttention, candidate_BW: Tensor, history_BNW: Tensor, mask_BN: Tensor) -> Tensor:
    """Attend to behaviors whose last component is their feedback; that of the candidates must be the same for all."""
    behaviors = Behaviors(
        items=history_BNW[..., :-1], places=None, told=history_BNW[..., -1:], feedback_3E=torch.ones(1, 1)
    )
    assert (candidate_BW[:, -1] == candidate_BW[0, -1]).all()
    pooled: Tensor = attention(candidate_BW[:, :-1], candidate_BW[0, -1:], behaviors, mask_BN)
    return pooled
