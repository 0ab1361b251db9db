"""Fuse a user's partition vectors by self-attention (LIBER, equations 5 and 6): the module that training trains.

`liber_feast.fuser` applies what `save_fusion` writes, without torch.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liber_feast.errors import MissingExtra
from liber_feast.fuser import FUSION_FILE, Fuser, attention_version, load_fusion, mean_fuser, open_fuser
from liber_feast.tensor_file import tensor_hash

try:
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra(package="torch", extra="encode") from error

__all__ = [
    "AttentionFusion",
    "Fuser",
    "fusion_version",
    "load_fusion",
    "masked_mean",
    "mean_fuser",
    "open_fuser",
    "save_fusion",
]

# Shape suffixes: B samples in the batch, P partitions, D width of a partition's vector, F fused width.


class AttentionFusion(nn.Module):
    """Fuse a user's partition vectors into one by self-attention (LIBER, equations 5 and 6).

    `sealed_BP` is true where a partition is; what stands elsewhere does not matter, be it NaN. The order of the
    partitions does not matter either. A user without partitions gets zeros.
    """

    def __init__(self, *, width: int, fused_width: int) -> None:
        super().__init__()
        self.width, self.fused_width = width, fused_width
        self.query, self.key, self.value = (nn.Linear(width, fused_width) for _ in range(3))

    def forward(self, vectors_BPD: Tensor, sealed_BP: Tensor) -> Tensor:
        """Return the fused vectors, (B, F)."""
        vectors_BPD = _without_padding(vectors_BPD, sealed_BP)
        attended_BPF = F.scaled_dot_product_attention(
            self.query(vectors_BPD), self.key(vectors_BPD), self.value(vectors_BPD), attn_mask=_mask(sealed_BP)
        )
        return masked_mean(attended_BPF, sealed_BP)

    def weights(self, vectors_BPD: Tensor, sealed_BP: Tensor) -> Tensor:
        """Return how much each partition contributes to the fused vector, (B, P).

        The mean over a user's queries of their attention: it sums to one over the user's partitions, and is zero
        where there is none. The fused vector is the sum of the values so weighted.
        """
        vectors_BPD = _without_padding(vectors_BPD, sealed_BP)
        scores_BPP = self.query(vectors_BPD) @ self.key(vectors_BPD).transpose(1, 2) / math.sqrt(self.fused_width)
        attention_BPP = scores_BPP.masked_fill(~_mask(sealed_BP), -math.inf).softmax(dim=2)
        return masked_mean(attention_BPP, sealed_BP).masked_fill(~sealed_BP, 0.0)


def masked_mean(vectors_BPD: Tensor, sealed_BP: Tensor) -> Tensor:
    """Return the mean over a user's partitions, (B, D); zeros for a user without partitions."""
    total_BD = _without_padding(vectors_BPD, sealed_BP).sum(dim=1)
    return total_BD / sealed_BP.sum(dim=1, keepdim=True).clamp(min=1).to(total_BD.dtype)


def _without_padding(vectors_BPD: Tensor, sealed_BP: Tensor) -> Tensor:
    """Put zeros where no partition is: a weight of zero would not keep out NaN."""
    return vectors_BPD.masked_fill(~sealed_BP[..., None], 0.0)


def _mask(sealed_BP: Tensor) -> Tensor:
    """Return which partitions a query may see, (B, 1, P); all where there is none, or the softmax would give NaN."""
    return (sealed_BP | ~sealed_BP.any(dim=1, keepdim=True))[:, None]


def fusion_version(module: AttentionFusion) -> str:
    """Return the version of the module's weights as they are now."""
    return attention_version(tensor_hash(_tensors(module)))


def save_fusion(
    module: AttentionFusion, folder: Path, *, encoder_version: str, extra: Mapping[str, object] | None = None
) -> str:
    """Write fusion.safetensors and fusion.json into `folder`, and return the fusion version.

    `extra` is kept in the JSON file under that name, for people; it must be JSON itself.
    """
    version = fusion_version(module)
    facts = {
        "version": version,
        "width": module.width,
        "fused_width": module.fused_width,
        "encoder_version": encoder_version,
        "extra": dict(extra or {}),
    }
    FUSION_FILE.save(_tensors(module), folder=folder, facts=facts)
    return version


def _tensors(module: AttentionFusion) -> dict[str, NDArray[np.float32]]:
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in module.state_dict().items()}
