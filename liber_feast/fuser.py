"""Fuse a user's partition vectors into one when a partition is published (LIBER, equations 5 and 6); no torch.

The weights are those that training exports (`liber_feast.fusion` has the module it trains); until there are any, the
fused vector is the mean of the partition vectors.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from liber_feast.errors import ArtifactError
from liber_feast.tensor_file import TensorFile

FUSION_FILE = TensorFile(
    tensors="fusion.safetensors",
    facts="fusion.json",
    hash_key="weights_hash",
    noun="trained fusion",
    error=ArtifactError,
)
MEAN = "mean"
SHAPES = {
    f"{projection}.{kind}": shape
    for projection in ("query", "key", "value")
    for kind, shape in (("weight", ("fused_width", "width")), ("bias", ("fused_width",)))
}
FLOATS_PER_STEP = 1 << 20
"""How many float64 one array of a step of `Fuser.fuse` may hold: 8 MiB."""


def attention_version(weights_hash: str) -> str:
    """Return the fusion version of trained weights."""
    return f"attention-{weights_hash[:8]}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fuser:
    """Turns memories, (P, width) each, into fused vectors of `fused_width`.

    `weights` holds float32 `query.weight` (F, D), `query.bias` (F,) and so on for key and value; empty means the
    masked mean. `encoder_version` is that of the vectors the weights were trained on, None for the mean.
    """

    version: str
    width: int
    fused_width: int
    weights: Mapping[str, NDArray[np.float32]]
    encoder_version: str | None

    def fuse(self, memories: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return float32 (len(memories), fused_width); a memory without partitions gives zeros.

        A row depends on its own memory alone, to the last bit: memories of one length are stacked, not padded; a
        stacked product is one product of fixed shape per memory, and all is float64 until the end. Raises
        ArtifactError if a memory is not (P, width).
        """
        fused = np.zeros((len(memories), self.fused_width), np.float32)
        for rows, vectors_NPD in self._stacks(memories):
            if self.weights:
                fused[rows] = self._attend(vectors_NPD)
            else:
                count = vectors_NPD.shape[1]
                fused[rows] = (np.full((1, count), 1 / count) @ vectors_NPD)[:, 0]
        return fused

    def shares(self, memory: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how much each partition of one memory (P, width) contributes to its fused vector, (P,): sums to 1."""
        ((_, vectors_NPD),) = self._stacks([memory])
        if not self.weights:
            return np.full(len(memory), 1 / len(memory))
        found: NDArray[np.float64] = self._share(vectors_NPD)[0, 0]
        return found

    def _stacks(self, memories: Sequence[NDArray[np.float32]]) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
        """Yield memories of one length together, (N, P, D) and their rows; those without partitions are left out."""
        rows_of: dict[int, list[int]] = defaultdict(list)
        for row, memory in enumerate(memories):
            if memory.ndim != 2 or memory.shape[1] != self.width:  # noqa: PLR2004 (rows and columns)
                raise ArtifactError(
                    f"The fusion {self.version} takes partition vectors of width {self.width}; those of row {row} have"
                    f" the shape {memory.shape}. Train a fusion on this encoder, or set `fusion.weights` to null."
                )
            rows_of[len(memory)].append(row)
        rows_of.pop(0, None)
        for count, rows in rows_of.items():
            step = max(1, FLOATS_PER_STEP // (count * max(count, self.width, self.fused_width)))
            for left in range(0, len(rows), step):
                some = rows[left : left + step]
                yield some, np.stack([memories[row] for row in some]).astype(np.float64)

    def _attend(self, vectors_NPD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N, F): the mean over all queries of what they attend to, which is one weighted sum of the values."""
        fused: NDArray[np.float64] = (self._share(vectors_NPD) @ self._project(vectors_NPD, "value"))[:, 0]
        return fused

    def _share(self, vectors_NPD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N, 1, P): the weights of that sum."""
        query_NPF, key_NPF = (self._project(vectors_NPD, name) for name in ("query", "key"))
        scores_NPP = query_NPF @ key_NPF.transpose(0, 2, 1) / np.sqrt(self.fused_width)
        exponents_NPP = np.exp(scores_NPP - scores_NPP.max(axis=2, keepdims=True))
        attention_NPP = exponents_NPP / exponents_NPP.sum(axis=2, keepdims=True)
        share_N1P: NDArray[np.float64] = attention_NPP.mean(axis=1, keepdims=True)
        return share_N1P

    def _project(self, vectors_NPD: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        weight_FD = self.weights[f"{name}.weight"].astype(np.float64, order="C")
        return vectors_NPD @ weight_FD.T + self.weights[f"{name}.bias"].astype(np.float64)


def mean_fuser(*, width: int) -> Fuser:
    """Return the fuser without weights: the mean of the partition vectors, of their own width."""
    return Fuser(version=MEAN, width=width, fused_width=width, weights={}, encoder_version=None)


def load_fusion(folder: Path) -> Fuser:
    """Read the trained fusion of `folder`; raises ArtifactError if a file is missing, altered or of another format."""
    tensors, facts = FUSION_FILE.load(folder, shapes=SHAPES, facts={"version": str, "encoder_version": str})
    expected = attention_version(facts[FUSION_FILE.hash_key])
    if facts["version"] != expected:
        raise ArtifactError(
            f"{folder}: the version is {facts['version']!r}, but the weights are those of {expected!r}."
        )
    return Fuser(
        version=expected,
        width=facts["width"],
        fused_width=facts["fused_width"],
        weights=tensors,
        encoder_version=facts["encoder_version"],
    )


def open_fuser(path: Path | None, *, width: int, encoder_version: str | None = None) -> Fuser:
    """Return the trained fusion of the folder `path`, or the masked mean where that is None.

    `width` is that of a partition's vector, `encoder_version` that of the store's vectors (None: not known yet).
    Raises ArtifactError if the weights cannot be read, or were trained on other vectors than these.
    """
    if path is None:
        return mean_fuser(width=width)
    fuser = load_fusion(path)
    if fuser.width != width:
        raise ArtifactError(
            f"{path}: the fusion takes partition vectors of width {fuser.width}; encoder.width makes them {width}."
            " Train a fusion on this encoder, or set `fusion.weights` to null."
        )
    if encoder_version is not None and fuser.encoder_version != encoder_version:
        raise ArtifactError(
            f"{path}: the fusion was trained on vectors of the encoder {fuser.encoder_version}; the store's are of"
            f" {encoder_version}. Train a fusion on this encoder, or set `fusion.weights` to null."
        )
    return fuser
