"""Evidence: what the feedback of a sealed partition says in the space of item texts, and of all partitions together.

Over the n behaviors of a partition, y in {0, 1} whether an item was liked and v the vector of its text:

    like_rate = mean(y)        evidence = mean((y - like_rate) * v)

A dot product with another item's vector is then high for what resembles the liked items more than the others. A
memory's evidence and like rate are the means over all behaviors of its partitions, each against the like rate of its
own partition. Sums are taken in float64, one behavior after the other and one partition after the other, so that a
partition that comes later changes no bit of an earlier row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from liber_feast.interest import Item

EVIDENCE, ITEM_TEXT = "evidence", "item_text"
"""The two stages."""

Floats = npt.NDArray[np.float64]
ItemTextForm = Literal["full", "categories"]


def item_text(item: Item, *, form: ItemTextForm = "full") -> str:
    """Return what the vector of an item is made of, without what is not known.

    `full`: `Title. Categories. Period.`; `categories`: the same without the title, where there are categories.
    """
    title = "" if form == "categories" and item.categories else item.title or ""
    parts = (title, ", ".join(item.categories), item.period or "")
    ended = (part.strip().rstrip(".") for part in parts)
    return " ".join(f"{part}." for part in ended if part)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PartitionEvidence:
    """The evidence of one sealed partition, as sums over its behaviors."""

    behavior_count: int
    """n, at least 1."""
    like_count: int
    signed_sum: Floats
    """(E,) sum((y - like_rate) * v)."""

    @property
    def like_rate(self) -> float:
        """The share of the behaviors that are likes."""
        return self.like_count / self.behavior_count

    @property
    def evidence(self) -> npt.NDArray[np.float32]:
        """(E,) the mean of the signed vectors."""
        return (self.signed_sum / self.behavior_count).astype(np.float32)


def partition_evidence(vectors: npt.NDArray[np.float32], *, liked: npt.NDArray[np.bool_]) -> PartitionEvidence:
    """Return the evidence of the behaviors of one partition, at least one, in their order.

    `vectors` is (n, E), zeros for an item without a vector: it says nothing, and still counts; `liked` is (n,).
    """
    like_count = int(np.count_nonzero(liked))
    signs = liked - like_count / len(liked)
    signed = signs[:, None] * vectors.astype(np.float64)
    return PartitionEvidence(
        behavior_count=len(liked),
        like_count=like_count,
        signed_sum=np.cumsum(signed, axis=0)[-1],  # adds in order, which a reduction need not do
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryEvidence:
    """For each of a user's P partitions, the evidence over it and all before it."""

    evidence: npt.NDArray[np.float32]
    """(P, E)."""
    like_rates: Floats
    """(P,)."""
    behavior_counts: npt.NDArray[np.int64]
    """(P,)."""


def memory_evidence(partitions: Sequence[PartitionEvidence]) -> MemoryEvidence:
    """Return the running evidence of a user's partitions, at least one: all of them, in the order of their indexes.

    Row p does not depend, to the last bit, on the partitions after it.
    """
    counts = np.cumsum([one.behavior_count for one in partitions], dtype=np.int64)
    likes = np.cumsum([one.like_count for one in partitions], dtype=np.int64)
    sums = np.cumsum([one.signed_sum for one in partitions], axis=0)
    return MemoryEvidence(
        evidence=(sums / counts[:, None]).astype(np.float32), like_rates=likes / counts, behavior_counts=counts
    )
