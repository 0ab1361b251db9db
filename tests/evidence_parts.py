"""The samples of `training_parts` with item texts and evidence, as the stages would publish them."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.evidence import memory_evidence, partition_evidence
from tests.training_parts import GENRES, START, sample_table

EVIDENCE_WIDTH = 5
ITEM_ENCODER = "items-1"
SEALED = 4
"""Behaviors of a partition."""
EVIDENCE_COLUMNS = ("vector", "memory_evidence", "memory_like_rate", "memory_behavior_count")


def item_vector(categories: list[str], *, number: int) -> npt.NDArray[np.float32]:
    """Return the vector of an item: its genres, about their mean, and something of its own."""
    genres = [(genre in categories) - 0.4 for genre in GENRES]
    return np.array([*genres, np.sin(number)], np.float32) / 2


def published_items(samples: pa.Table) -> pa.Table:
    """Return the rows of the view `item_text` for the items of the samples."""
    items = {row["item_id"]: row["categories"] for row in samples.select(["item_id", "categories"]).to_pylist()}
    rows = [
        {"item_id": name, "vector": item_vector(categories, number=int(name[1:])), "encoder_version": ITEM_ENCODER}
        for name, categories in sorted(items.items())
    ]
    table = pa.Table.from_pylist(
        rows,
        schema=pa.schema({"item_id": pa.string(), "vector": pa.list_(pa.float32()), "encoder_version": pa.string()}),
    )
    times = pa.array([START - 1] * len(rows), pa.timestamp("us", tz="UTC"))
    return table.append_column("event_timestamp", times)


def catalog_of(samples: pa.Table) -> pa.Table:
    """Return the attributes of every item of the samples, from before the first of them."""
    names = ["item_id", "title", "categories", "period", "price"]
    items = {row["item_id"]: row for row in samples.select(names).to_pylist()}
    table = pa.Table.from_pylist([items[name] for name in sorted(items)], schema=samples.select(names).schema)
    return table.append_column("event_timestamp", pa.array([START - 1] * len(table), pa.timestamp("us", tz="UTC")))


def published_evidence(samples: pa.Table) -> pa.Table:
    """Return the rows of the view `partition_evidence`: every fourth behavior of a user seals a partition."""
    users: dict[str, list[dict[str, object]]] = {}
    for row in samples.select(["user_id", "item_id", "categories", "rating", "event_timestamp"]).to_pylist():
        users.setdefault(row["user_id"], []).append(row)
    rows = []
    for user, behaviors in users.items():
        cut = [behaviors[left : left + SEALED] for left in range(0, len(behaviors) - SEALED + 1, SEALED)]
        sealed = [
            partition_evidence(
                np.stack([item_vector(one["categories"], number=int(one["item_id"][1:])) for one in part]),
                liked=np.array([one["rating"] > 3 for one in part]),
            )
            for part in cut
        ]
        memory = memory_evidence(sealed) if sealed else None
        for index, part in enumerate(cut):
            assert memory is not None
            rows.append(
                {
                    "user_id": user,
                    "partition_index": index,
                    "evidence": sealed[index].evidence,
                    "like_rate": sealed[index].like_rate,
                    "behavior_count": SEALED,
                    "memory_evidence": memory.evidence[index],
                    "memory_like_rate": float(memory.like_rates[index]),
                    "memory_behavior_count": int(memory.behavior_counts[index]),
                    "encoder_version": ITEM_ENCODER,
                    "event_timestamp": int(part[-1]["event_timestamp"].timestamp() * 1e6) + 1,
                }
            )
    return pa.Table.from_pylist(rows, schema=EVIDENCE_SCHEMA)


def with_evidence(samples: pa.Table) -> pa.Table:
    """Return the samples with the columns that Feast's join of both views would give, row by row."""
    published = published_evidence(samples).to_pylist()
    added: list[dict[str, object]] = []
    for row in samples.select(["user_id", "item_id", "categories", "event_timestamp"]).to_pylist():
        seen = [
            one
            for one in published
            if one["user_id"] == row["user_id"] and one["event_timestamp"] <= row["event_timestamp"]
        ]
        last = seen[-1] if seen else dict.fromkeys(EVIDENCE_COLUMNS)
        vector = item_vector(row["categories"], number=int(row["item_id"][1:]))
        added.append({**{name: last[name] for name in EVIDENCE_COLUMNS[1:]}, "vector": vector})
    columns = pa.Table.from_pylist(added, schema=pa.schema({n: ADDED[n] for n in EVIDENCE_COLUMNS}))
    for name in EVIDENCE_COLUMNS:
        samples = samples.append_column(name, columns[name])
    return samples


def evidence_table(*, count: int = 1_000) -> pa.Table:
    """Return the samples of `training_parts.sample_table` with evidence."""
    return with_evidence(sample_table(count=count))


ADDED = {
    "vector": pa.list_(pa.float32()),
    "memory_evidence": pa.list_(pa.float32()),
    "memory_like_rate": pa.float64(),
    "memory_behavior_count": pa.int64(),
}
EVIDENCE_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "partition_index": pa.int64(),
        "evidence": pa.list_(pa.float32()),
        "like_rate": pa.float64(),
        "behavior_count": pa.int64(),
        "memory_evidence": pa.list_(pa.float32()),
        "memory_like_rate": pa.float64(),
        "memory_behavior_count": pa.int64(),
        "encoder_version": pa.string(),
        "event_timestamp": pa.timestamp("us", tz="UTC"),
    }
)
