"""Small sample tables for the tests of inputs and training; no store, no network, no torch."""

from typing import Any

import numpy as np
import pyarrow as pa

USER_COLUMNS = ("profile", "age_group")
ITEM_COLUMNS = ("title", "categories", "period", "price")
WIDTH = 6
GENRES = ("Comedy", "Drama", "Horror", "War")
START = 1_600_000_000_000_000


def sample_table(*, count: int = 1_000, users: int = 25, items: int = 60, seed: int = 3, length: int = 12) -> pa.Table:
    """Return `count` samples in order of time as the feature service `ctr_training` would give them.

    A user likes two genres; a like is a rating of 4 or 5. Every fourth behavior seals a partition, whose vector
    holds how often each genre was liked in it.
    """
    random = np.random.default_rng(seed)
    tastes = [set(random.choice(GENRES, 2, replace=False)) for _ in range(users)]
    catalog = [_item(number, random=random) for number in range(items)]
    behaviors: list[list[tuple[dict[str, Any], float, int]]] = [[] for _ in range(users)]
    rows = []
    for step in range(count):
        user, item = int(random.integers(users)), catalog[int(random.integers(items))]
        likes = bool(tastes[user] & set(item["categories"])) != (random.random() < 0.1)
        rating = float(random.integers(4, 6) if likes else random.integers(1, 4))
        past, time = behaviors[user], START + step * 60_000_000
        sealed = [past[left : left + 4] for left in range(0, len(past) - 3, 4)][-5:]
        rows.append(
            {
                "user_id": f"u{user}",
                "rating": rating,
                "event_timestamp": time,
                "behavior_id": f"b{step:06d}",
                "profile": "free text",
                "age_group": ("18-24", "25-34", None)[user % 3],
                **item,
                "item_ids": [found["item_id"] for found, _, _ in past[-length:]],
                "ratings": [found for _, found, _ in past[-length:]],
                "times": [found for _, _, found in past[-length:]],
                "behavior_count": len(past),
                "vectors": [value for part in sealed for value in _vector(part)],
                "partition_count": len(sealed),
                "encoder_version": "encoder-1" if sealed else None,
            }
        )
        past.append((item, rating, time))
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def without_vectors(table: pa.Table) -> pa.Table:
    return table.drop_columns(["vectors", "partition_count", "encoder_version"])


def _item(number: int, *, random: np.random.Generator) -> dict[str, Any]:
    genres = sorted(random.choice(GENRES, int(random.integers(1, 3)), replace=False).tolist())
    return {
        "item_id": f"i{number}",
        "title": f"Title {number}",
        "categories": genres,
        "period": ("1980s", "1990s", None)[number % 3],
        "price": None if number % 4 == 0 else float(number),
    }


def _vector(partition: list[tuple[dict[str, Any], float, int]]) -> list[float]:
    liked = [
        sum((1 if rating > 3 else -1) * (genre in item["categories"]) for item, rating, _ in partition)
        for genre in GENRES
    ]
    return [value / 4 for value in liked] + [1.0, float(len(partition))]


SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "rating": pa.float64(),
        "event_timestamp": pa.timestamp("us", tz="UTC"),
        "behavior_id": pa.string(),
        "profile": pa.string(),
        "age_group": pa.string(),
        "title": pa.string(),
        "categories": pa.list_(pa.string()),
        "period": pa.string(),
        "price": pa.float64(),
        "item_ids": pa.list_(pa.string()),
        "ratings": pa.list_(pa.float64()),
        "times": pa.list_(pa.int64()),
        "behavior_count": pa.int64(),
        "vectors": pa.list_(pa.float32()),
        "partition_count": pa.int64(),
        "encoder_version": pa.string(),
    }
)
