"""Processes that die at every moment leave what an uninterrupted run leaves, whatever services they share.

`LIBER_KILLS` says how many are killed of each form: by default a few, 200 by `make test-nightly`.
"""

import math
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from liber_feast.materialize import Report
from tests.crash_parts import (
    DEATHS,
    PRODUCER_POINTS,
    STOP,
    WORKER_POINTS,
    Doom,
    behaviors_by_user,
    deaths_at_points,
    fresh_repo,
    opened,
    paid_twice,
    produce,
    stores_of,
    streams,
    take_encoder,
    uninterrupted,
    work,
)
from tests.form_parts import FORMS, form_of
from tests.processes import PROCESSES

KILLS = {"sqlite": 25, "redis": 15, "postgres": 10}
"""By form, in the suite."""
NIGHTLY_KILLS = int(os.environ.get("LIBER_KILLS", "0"))
PRODUCERS, WORKERS, USERS = 4, 3, 12
BEHAVIORS = 360 + 10 * NIGHTLY_KILLS
"""Enough of them that there is work until the last kill."""
PATIENCE_S = 900
AT_POINT, LONGEST_S = 0.6, 3.0
"""How often a process is killed at a named point, and after how many seconds at most it is killed otherwise."""
ENGINE = {"worker": {"lease_s": 3.0, "max_claims": 1_000}}
"""A claim lasts for longer than seven processes on two cores keep each other waiting. However often a user's worker is
killed, no text is given up for it: that is another test's."""


@dataclass(kw_only=True)
class Process:
    """A process that is started again whenever it was killed."""

    start: Callable[[Doom], Any]
    points: Sequence[str]
    """Where it can be killed."""
    path: Path
    """Where it writes down that it dies at one."""
    running: Any = None
    killed_at: float = math.inf
    """When it is killed from outside, if it is."""
    untried: list[str] = field(default_factory=list)

    def begin(self, generator: random.Random) -> None:
        """Start the process, to be killed at one of its points, each as often as the others, or at any moment."""
        at_point = generator.random() < AT_POINT
        self.untried = self.untried or generator.sample(self.points, len(self.points))
        point = self.untried.pop() if at_point else None
        self._begin(Doom(point=point, count=generator.randint(1, 3), path=self.path))
        longest_s = 4 * LONGEST_S if at_point else LONGEST_S  # the point may never come
        self.killed_at = time.monotonic() + generator.uniform(0.05, longest_s)

    def begin_for_good(self) -> None:
        self._begin(Doom())

    def _begin(self, doom: Doom) -> None:
        self.running, self.killed_at = self.start(doom), math.inf
        self.running.start()

    def kill_if_due(self) -> None:
        if time.monotonic() > self.killed_at and self.running.exitcode is None:
            self.running.kill()

    @property
    def was_killed(self) -> bool:
        return self.running.exitcode == -signal.SIGKILL

    @property
    def is_done(self) -> bool:
        return bool(self.running.exitcode == 0)


@dataclass(kw_only=True)
class Ordeal:
    """Processes over one repo, killed until enough of them were; then all run to their ends."""

    processes: list[Process]
    generator: random.Random
    kills: int = 0

    def run(self, *, kills: int) -> None:
        for process in self.processes:
            process.begin(self.generator)
        deadline = time.monotonic() + PATIENCE_S
        while self.kills < kills or not all(process.is_done for process in self.processes[:PRODUCERS]):
            assert time.monotonic() < deadline, f"{self.kills} kills after {PATIENCE_S} s"
            for process in self.processes:
                self._look(process, kills=kills)
            time.sleep(0.02)

    def _look(self, process: Process, *, kills: int) -> None:
        if self.kills < kills:
            process.kill_if_due()
        if process.was_killed:
            self.kills += 1
            if self.kills < kills:
                process.begin(self.generator)
            else:
                process.begin_for_good()
        assert process.running.exitcode in (None, 0, -signal.SIGKILL), "a process failed"


@pytest.fixture(scope="module")
def data() -> dict[str, pa.Table]:
    return behaviors_by_user(users=USERS, count=BEHAVIORS)


@pytest.fixture(scope="module")
def reference(data: dict[str, pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uninterrupted(tmp_path_factory.mktemp("reference") / "repo", data)


def processes_of(repo: Path, data: dict[str, pa.Table]) -> list[Process]:
    """Return producers, each of users of its own, and workers."""
    names, path = list(data), repo / DEATHS
    parts = [{name: data[name] for name in names[number::PRODUCERS]} for number in range(PRODUCERS)]

    def producer(number: int) -> Callable[[Doom], Any]:
        batches = streams(parts[number], size=3)
        return lambda doom: PROCESSES.Process(target=produce, args=(repo, str(number), batches, doom))

    def worker() -> Callable[[Doom], Any]:
        return lambda doom: PROCESSES.Process(target=work, args=(repo, doom))

    producers = [Process(start=producer(one), points=PRODUCER_POINTS, path=path) for one in range(PRODUCERS)]
    return [*producers, *(Process(start=worker(), points=WORKER_POINTS, path=path) for _ in range(WORKERS))]


@pytest.mark.parametrize("name", FORMS)
def test_killed_producers_and_workers_leave_what_an_uninterrupted_run_leaves(
    data: dict[str, pa.Table], reference: Path, tmp_path: Path, name: str
) -> None:
    with form_of(name, tmp_path) as form:
        repo, kills = fresh_repo(tmp_path / "repo", form, **ENGINE), NIGHTLY_KILLS or KILLS[name]
        take_encoder(reference, repo)
        ordeal = Ordeal(processes=processes_of(repo, data), generator=random.Random(name))
        try:
            ordeal.run(kills=kills)
        finally:
            (repo / STOP).touch()
            for process in ordeal.processes:
                process.running.join(60)
                process.running.kill()
        with opened(repo) as job:
            job.drain(Report())
        assert ordeal.kills >= kills
        found, expected = stores_of(repo, list(data)), stores_of(reference, list(data))
        assert {table: len(rows) for table, rows in found["delta"].items()} == {
            table: len(rows) for table, rows in expected["delta"].items()
        }
        assert found == expected
        assert (found["unfinished"], found["waiting"]) == (0, 0)
        assert paid_twice(repo) == []
        if NIGHTLY_KILLS >= 200:
            assert set(deaths_at_points(repo)) == {*PRODUCER_POINTS, *WORKER_POINTS}
