"""Freshness: pushes that fill one cache each, with the texts made before the push returns (`on_the_fly: inline`).

A user has 19 cached behaviors when the push of one more comes; partitions of 20, vectors of 32 floats a text, sequences
and memory windows of 50, as the feature repo of this project has them; the backend is extractive. Before the first of
these pushes every user has a partition, so that each is followed by a summary and a shift.

The time is from the call of `store.push` until the memory noted that the vector is readable online, which is after it
was written; after the last push every vector is read back. What the encoder (BERT and its tokenizer) took is measured
apart and taken out.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import sqlalchemy as sa
from feast import FeatureStore

from liber_feast.datasets.writer import write_data_set
from liber_feast.encoder import BertEncoder, open_bert
from liber_feast.materialize import Job
from liber_feast.memory.schema import partitions
from tests import feature_repo_kit as kit

USERS, ROUNDS, SIZE, ITEMS, WARM = 60, 4, 20, 60, 5
"""Every round fills a cache of each user; the first pushes are not counted."""
START = datetime(2023, 1, 1, tzinfo=UTC)


class TimedBert:
    """A BERT encoder, and the seconds that it took since they were last asked for."""

    def __init__(self, inner: BertEncoder) -> None:
        self.inner, self._seconds = inner, 0.0

    def encode(self, texts: Sequence[str], **options: Any) -> npt.NDArray[np.float32]:
        """Do as the encoder does."""
        start = time.perf_counter()
        vectors = self.inner.encode(texts, **options)
        self._seconds += time.perf_counter() - start
        return vectors

    def taken(self) -> float:
        """Return the seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def run() -> dict[str, float]:
    """Return percentiles of what a filled cache takes, in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="ingest-freshness-") as folder:
        store = _store(Path(folder) / "repo")
        users = [f"user-{number:03}" for number in range(USERS)]
        store.push("behavior_push", _behaviors(users, start=0, count=2 * SIZE - 1))
        job: Job = store._get_provider().batch_engine._job  # type: ignore[attr-defined]  # Feast has no public way
        bert = TimedBert(open_bert("bundled"))
        job.encoding._bert = bert  # type: ignore[assignment]
        taken = list(_filled(store, job, bert, users=users))[WARM:]
        _check_readable(store, users)
        kit.close(store)
    whole, encoder = (1e3 * np.array(column) for column in zip(*taken, strict=True))
    p50, p99 = np.percentile(whole - encoder, [50, 99])
    return {
        "freshness_p50_ms": round(float(p50), 1),
        "freshness_p99_ms": round(float(p99), 1),
        "encoder_ms": round(float(np.median(encoder)), 1),
        "freshness_with_encoder_p99_ms": round(float(np.percentile(whole, 99)), 1),
        "filled_caches": len(taken),
    }


def _filled(store: FeatureStore, job: Job, bert: TimedBert, *, users: Sequence[str]) -> Iterator[tuple[float, float]]:
    """Yield the seconds of each push that fills a cache until its vector was readable, and those of the encoder."""
    newest = sa.select(sa.func.max(partitions.c.online_time))
    for number in range(1, ROUNDS + 1):
        for user in users:
            pushed = _behaviors([user], start=(number + 1) * SIZE - 1, count=1)
            bert.taken()
            start = time.time()
            store.push("behavior_push", pushed)
            with job.memory.reading() as connection:
                online_time = connection.scalar(newest) or 0
            yield online_time / 1e6 - start, bert.taken()
        store.push("behavior_push", _behaviors(users, start=(number + 1) * SIZE, count=SIZE - 1))
        print(f"freshness: {number * len(users)} caches filled", file=sys.stderr, flush=True)


def _check_readable(store: FeatureStore, users: Sequence[str]) -> None:
    """Check that each user's newest vector is online."""
    rows = [{"user_id": user} for user in users]
    found = store.get_online_features(["long_term_memory:partition_count", "fused_vector:fused"], rows).to_dict()
    if found["partition_count"] != [ROUNDS + 1] * len(users) or any(fused is None for fused in found["fused"]):
        raise SystemExit("some vectors are not readable online")


def _behaviors(users: Sequence[str], *, start: int, count: int) -> pd.DataFrame:
    """Return the behaviors number `start` to `start + count` of every user, one a minute."""
    random = np.random.default_rng(start)
    minutes = np.tile(np.arange(start, start + count), len(users))
    return pd.DataFrame(
        {
            "user_id": np.repeat(users, count),
            "item_id": [f"i{one:04}" for one in random.integers(1, ITEMS, size=len(minutes))],
            "rating": random.integers(1, 6, size=len(minutes)).astype(float),
            "event_timestamp": pd.to_datetime([START + timedelta(minutes=int(one)) for one in minutes], utc=True),
        }
    )


def _store(target: Path) -> FeatureStore:
    block = {
        "partition": {"condition": "count", "size": SIZE},
        "encoder": {"model": "bundled", "width": 32},
        "sequence": {"length": 50},
        "memory_window": 50,
        "on_the_fly": "inline",
    }
    repo = kit.copy_feature_repo(target, **block)
    write_data_set(kit.small_data_set(), repo)
    kit.apply(repo)
    return kit.open_store(repo)


if __name__ == "__main__":
    print(json.dumps(run()))
