"""Pushes of 100 behaviors: through our provider into a memory on SQLite, and through Feast's own into its online store.

The feature repos have the same views and get the same frames in turns. Each is pushed to by a process of its own, as
a producer is: within one process Feast would make the views of two registries anew at every turn, for both.

Ours has `KeptRegistryStore`, as the feature repo of this project. Stock Feast makes all feature views again at every
push, which is most of its time; what is left of the ratio where it is given our registry, too, is told apart.
"""

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import pandas as pd
import yaml

from benchmarks._pusher import ROWS, Pusher, Taken, frames, pushers
from tests import feature_repo_kit as kit

WARM, PUSHES = 5, 40
"""Pushes before those that are timed, and how many are: at their end users have some 22 behaviors each."""
FULL_FROM = 105
"""From this push on most sequences have all their 50 behaviors; as many are timed."""
INLINE_FROM = 35
"""The first push that is timed where texts are made inline; those before it are one."""
STARTS = {"": WARM, ", full sequences": FULL_FROM}
OURS, FEAST, FEAST_KEPT = "ours", "feast", "feast with our registry"


def run() -> dict[str, float | None]:
    """Return behaviors a second of each way to push; ours leaves the texts to workers, and inline makes them at once.

    `push_over_feast` is the ratio of the medians of both ways, taken in turns.
    """
    with tempfile.TemporaryDirectory(prefix="ingest-push-") as folder:
        repos = {
            OURS: _ours(Path(folder) / "ours", on_the_fly="worker"),
            FEAST: _feast(Path(folder) / "feast", registry="data/registry.db"),
            FEAST_KEPT: _feast(Path(folder) / "feast_kept", registry=None),
        }
        with pushers(*repos.values()) as started:
            found = _taken(dict(zip(repos, started, strict=True)), list(frames(FULL_FROM + PUSHES)))
        with pushers(_ours(Path(folder) / "inline", on_the_fly="inline")) as (inline,):
            inline_seconds = _inline_seconds(inline)
    short, full = (_told(found, start=start, name=name) for name, start in STARTS.items())
    return {
        "push_over_feast": round(short[FEAST].seconds / short[OURS].seconds, 3),
        "push_over_feast_cpu": round(short[FEAST].cpu_seconds / short[OURS].cpu_seconds, 3),
        "push_over_feast_full_sequences": round(full[FEAST].seconds / full[OURS].seconds, 3),
        "push_over_feast_same_registry": round(short[FEAST_KEPT].seconds / short[OURS].seconds, 3),
        "push_behaviors_per_second": round(ROWS / short[OURS].seconds),
        "feast_push_behaviors_per_second": round(ROWS / short[FEAST].seconds),
        "push_inline_behaviors_per_second": round(ROWS / inline_seconds),
    }


def _taken(ways: Mapping[str, Pusher], pushed: Sequence[pd.DataFrame]) -> dict[str, list[Taken]]:
    """Return what every push took in each way; every second frame goes to the last one first."""
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    for number, frame in enumerate(pushed):
        for way in ways if number % 2 else reversed(ways):
            taken[way].append(ways[way].push(frame))
    return taken


def _told(taken: Mapping[str, Sequence[Taken]], *, start: int, name: str) -> dict[str, Taken]:
    """Return the medians of the pushes from `start` on, and say them."""
    found = {way: _medians(some[start : start + PUSHES]) for way, some in taken.items()}
    for way, one in found.items():
        print(f"push{name}, {way}: {one.seconds * 1e3:.1f} ms, CPU {one.cpu_seconds * 1e3:.1f} ms", file=sys.stderr)
    return found


def _medians(taken: Sequence[Taken]) -> Taken:
    return Taken(seconds=median(one.seconds for one in taken), cpu_seconds=median(one.cpu_seconds for one in taken))


def _inline_seconds(inline: Pusher) -> float:
    """Return the median of pushes that make texts: most caches are nearly full, so that each of them fills some."""
    pushed = list(frames(INLINE_FROM + WARM + 5))
    inline.push(pd.concat(pushed[:INLINE_FROM]))
    return _medians([inline.push(frame) for frame in pushed[INLINE_FROM:]][WARM:]).seconds


def _ours(target: Path, *, on_the_fly: str) -> Path:
    """Return a repo with partitions of 20, and a PCA, so that inline makes vectors too."""
    size = {"condition": "count", "size": 20}
    return kit.repo_to_push_to(target, partition=size, sequence={"length": 50}, on_the_fly=on_the_fly)


def _feast(target: Path, *, registry: str | None) -> Path:
    """Return a repo of the same views with Feast's own provider, offline store and engine; None: with our registry."""
    repo = kit.loaded_repo(target)
    path = repo / "feature_store.yaml"
    block = yaml.safe_load(path.read_text(encoding="utf-8"))
    block |= {"provider": "local", "batch_engine": {"type": "local"}, "offline_store": {"type": "dask"}}
    path.write_text(yaml.safe_dump(block | ({"registry": registry} if registry else {}), sort_keys=False), "utf-8")
    return repo


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name}: {value:,.2f}")  # noqa: T201
