"""The texts behind a user's score, partition by partition, with how much each counts in the fused vector.

The online store has the newest partition alone, so the texts come from the tables that the plugin publishes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from liber_feast.behavior import CREATED_TIME
from liber_feast.errors import StoreNotReady
from liber_feast.fuser import MEAN, Fuser
from serving.online import FUSED_VECTOR, FUSION_VERSION, OnlineFeatures

SUMMARY_VIEW, SHIFT_VIEW, VECTOR_VIEW = "partition_summary", "partition_shift", "long_term_memory"
INDEX, VECTOR, ENCODER_VERSION, PARTITION_COUNT = "partition_index", "vector", "encoder_version", "partition_count"
SUMMARY_NAMES = ("summary", "behavior_count", "first_time", "last_time", "prompt_version", "model")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionInterest:
    """What was learned of one sealed partition; None where there is none. Times are microseconds since 1970 UTC."""

    partition_index: int
    first_time: int | None
    last_time: int | None
    behavior_count: int | None
    summary: str | None
    shift: str | None
    weight: float | None
    """Its share of the fused vector: all weights of a user sum to 1. None where it is not in it."""
    prompt_version: str | None
    model: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Interests:
    """A user's partitions, newest first."""

    user_id: str
    fusion_version: str | None
    partitions: tuple[PartitionInterest, ...]


class InterestReader:
    """Reads the published texts and vectors of one user; safe to use from several threads."""

    def __init__(self, features: OnlineFeatures, *, fuser: Fuser | None) -> None:
        """Take the fusion of the run that is served; without one only equal weights are known."""
        self._features, self._fuser = features, fuser

    def read(self, user_id: str, *, limit: int) -> Interests:
        """Return the newest `limit` partitions of a user; none of a user nobody has seen.

        Raises:
            OnlineStoreAway: the online store does not answer.
            ConfigError: a published table cannot be read.
        """
        (user,) = self._features.users([user_id])
        there = FUSED_VECTOR in user.views
        version = user.values[FUSION_VERSION] if there else None
        weights = self._weights(user_id, version=version, count=user.values[PARTITION_COUNT]) if there else {}
        summaries, shifts = self._newest(SUMMARY_VIEW, user_id), self._newest(SHIFT_VIEW, user_id)
        indexes = sorted(summaries.keys() | shifts.keys() | weights.keys(), reverse=True)[:limit]
        return Interests(
            user_id=user_id,
            fusion_version=version,
            partitions=tuple(
                PartitionInterest(
                    partition_index=index,
                    shift=shifts.get(index, {}).get("shift"),
                    weight=weights.get(index),
                    **{name: summaries.get(index, {}).get(name) for name in SUMMARY_NAMES},
                )
                for index in indexes
            ),
        )

    def _weights(self, user_id: str, *, version: str | None, count: int) -> dict[int, float]:
        """Return the weights of the last `count` partitions, those in the fused vector; none for unknown fusions."""
        fuser = self._fuser if self._fuser is not None and self._fuser.version == version else None
        if fuser is None and version != MEAN:
            return {}
        rows = self._newest(VECTOR_VIEW, user_id, encoder_version=None if fuser is None else fuser.encoder_version)
        indexes = sorted(rows)[-count:]
        if not indexes:
            return {}
        if fuser is None:
            return dict.fromkeys(indexes, 1 / len(indexes))
        shares = fuser.shares(np.array([rows[index][VECTOR] for index in indexes], np.float32))
        return dict(zip(indexes, shares.tolist(), strict=True))

    def _newest(self, view: str, user_id: str, *, encoder_version: str | None = None) -> dict[int, Row]:
        """Return the newest published row of each partition of a user, by index; none where there is no table."""
        try:
            rows = self._features.published_rows(view, user_id)
        except StoreNotReady:
            return {}
        kept = [row for row in rows if encoder_version is None or row[ENCODER_VERSION] == encoder_version]
        return {row[INDEX]: row for row in sorted(kept, key=lambda row: row[CREATED_TIME])}
