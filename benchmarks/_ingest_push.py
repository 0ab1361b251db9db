"""Pushes of 100 behaviors: through our provider into a memory on SQLite, and through Feast's own into its online store.

Both feature repos have the same views, and get the same frames in turns, so that what Feast does before either and
what the machine does beside them is in both figures.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import yaml
from feast import FeatureStore

from tests import feature_repo_kit as kit

ROWS, USERS, PUSHES, WARM = 100, 200, 40, 5
"""Behaviors of a push, users they are of, pushes that are timed, and pushes before those."""
INLINE_FROM = 35
"""The first push that is timed apart where texts are made inline; those before it are one."""
START = datetime(2023, 1, 1, tzinfo=UTC)


def run() -> dict[str, float]:
    """Return behaviors a second of each way to push; ours leaves the texts to workers, and inline makes them at once.

    `push_over_feast` is the ratio of the medians of both ways, taken in turns.
    """
    with tempfile.TemporaryDirectory(prefix="ingest-push-") as folder, ExitStack() as stores:
        ours, inline = (_ours(Path(folder) / way, on_the_fly=way) for way in ("worker", "inline"))
        feast = _feast(Path(folder) / "feast")
        for store in (ours, inline):
            stores.callback(kit.close, store)
        frames = list(_frames(PUSHES + WARM))
        seconds = _timed([ours, feast], frames)
        # Most caches are nearly full after the first push, so that each of the others fills some.
        inline_seconds = _timed([inline], [pd.concat(frames[:INLINE_FROM]), *frames[INLINE_FROM:]])
    return {
        "push_over_feast": seconds[1] / seconds[0],
        "push_behaviors_per_second": ROWS / seconds[0],
        "feast_push_behaviors_per_second": ROWS / seconds[1],
        "push_inline_behaviors_per_second": ROWS / inline_seconds[0],
    }


def _timed(stores: list[FeatureStore], frames: list[pd.DataFrame]) -> list[float]:
    """Return the median seconds of a push to each store; every second frame goes to the last one first."""
    seconds: list[list[float]] = [[] for _ in stores]
    for number, frame in enumerate(frames):
        order = range(len(stores)) if number % 2 else reversed(range(len(stores)))
        for place in order:
            pushed, begun = frame.copy(), time.perf_counter()
            stores[place].push("behavior_push", pushed)
            seconds[place].append(time.perf_counter() - begun)
    return [median(found[WARM:]) for found in seconds]


def _frames(count: int) -> Iterator[pd.DataFrame]:
    """Yield pushes in the order of time, of users and items drawn at random."""
    random = np.random.default_rng(7)
    for number in range(count):
        start = START + timedelta(hours=number)
        yield pd.DataFrame(
            {
                "user_id": [f"user-{one:04}" for one in random.integers(USERS, size=ROWS)],
                "item_id": [f"i{one:04}" for one in random.integers(1, 60, size=ROWS)],
                "rating": random.integers(1, 6, size=ROWS).astype(float),
                "event_timestamp": pd.to_datetime([start + timedelta(seconds=row) for row in range(ROWS)], utc=True),
            }
        )


def _ours(target: Path, *, on_the_fly: str) -> FeatureStore:
    """Return a store with partitions of 20, and a PCA, so that inline makes vectors too."""
    size = {"condition": "count", "size": 20}
    return kit.open_store(kit.repo_to_push_to(target, partition=size, sequence={"length": 50}, on_the_fly=on_the_fly))


def _feast(target: Path) -> FeatureStore:
    """Return a store of the same views with Feast's own provider, offline store and engine."""
    repo = kit.loaded_repo(target)
    path = repo / "feature_store.yaml"
    block = yaml.safe_load(path.read_text(encoding="utf-8"))
    block |= {"provider": "local", "batch_engine": {"type": "local"}, "offline_store": {"type": "dask"}}
    path.write_text(yaml.safe_dump(block, sort_keys=False), encoding="utf-8")
    return kit.open_store(repo)


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name}: {value:,.2f}")  # noqa: T201
