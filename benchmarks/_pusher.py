"""Processes that push behaviors into a feature repo, each with a feature store of its own, as producers have."""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pandas as pd

from tests import feature_repo_kit as kit

ROWS, USERS, ITEMS = 100, 200, 59
"""Behaviors of a push, users that they are of, and items."""
START = datetime(2023, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What one push took, of a clock on the wall and of the processor."""

    seconds: float
    cpu_seconds: float


class Pusher:
    """A process with a feature store, which is opened when it starts."""

    def __init__(self, repo: Path) -> None:
        spawning = multiprocessing.get_context("spawn")  # a forked one would share what libraries opened before
        self._here, there = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(there, repo))
        self._process.start()

    def push(self, frame: pd.DataFrame) -> Taken:
        """Push, and return what it took there."""
        self.hand([frame])
        self.begin()
        return self.taken()[0]

    def hand(self, frames: Sequence[pd.DataFrame]) -> None:
        """Hand over what is to be pushed next; return when it is there."""
        self._here.send(list(frames))
        self._here.recv()

    def begin(self) -> None:
        """Let it push what it was handed, one frame after the other."""
        self._here.send(True)

    def taken(self) -> list[Taken]:
        """Wait for the last push, and return what each took."""
        found: list[Taken] = self._here.recv()
        return found

    def close(self) -> None:
        """Let the process end."""
        self._here.send(None)
        self._process.join()


@contextmanager
def pushers(*repos: Path) -> Iterator[list[Pusher]]:
    """Processes that push into the repos, one each."""
    with ExitStack() as opened:
        started = [Pusher(repo) for repo in repos]
        for one in started:
            opened.callback(one.close)
        yield started


def frames(count: int, *, seed: int = 7) -> Iterator[pd.DataFrame]:
    """Yield pushes in the order of time, of users and items drawn at random."""
    random = np.random.default_rng(seed)
    for number in range(count):
        start = START + timedelta(hours=number)
        yield pd.DataFrame(
            {
                "user_id": [f"user-{one:04}" for one in random.integers(USERS, size=ROWS)],
                "item_id": [f"i{one:04}" for one in random.integers(1, ITEMS + 1, size=ROWS)],
                "rating": random.integers(1, 6, size=ROWS).astype(float),
                "event_timestamp": pd.to_datetime([start + timedelta(seconds=row) for row in range(ROWS)], utc=True),
            }
        )


def _serve(there: Connection, repo: Path) -> None:
    store = kit.open_store(repo)
    while (given := there.recv()) is not None:
        there.send(len(given))
        there.recv()
        taken = []
        for frame in given:
            begun, cpu_begun = time.perf_counter(), time.process_time()
            store.push("behavior_push", frame)
            seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
            taken.append(Taken(seconds=seconds, cpu_seconds=cpu_seconds))
        there.send(taken)
    if hasattr(store._get_provider().batch_engine, "_job"):  # type: ignore[attr-defined]  # Feast has no public way
        kit.close(store)
