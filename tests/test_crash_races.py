"""Processes that die at every moment leave what an uninterrupted run leaves, whatever services they share.

`LIBER_KILLS` says how many die at random of each form: by default a few, 200 by `make test-nightly`. At every named
point one dies in any case.
"""

import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from liber_feast.materialize import Report
from tests.crash_parts import (
    PRODUCER_POINTS,
    STOP,
    WORKER_POINTS,
    Doom,
    behaviors_by_user,
    fresh_repo,
    opened,
    paid_twice,
    produce,
    push,
    ready_file,
    stores_of,
    streams,
    take_encoder,
    uninterrupted,
    work,
)
from tests.feature_repo_kit import SIZE
from tests.form_parts import FORMS, form_of
from tests.processes import PROCESSES

POINTS = (*PRODUCER_POINTS, *WORKER_POINTS)
KILLS = {"sqlite": 10, "redis": 6, "postgres": 3}
"""By form, in the suite, beside those at named points."""
NIGHTLY_KILLS = int(os.environ.get("LIBER_KILLS", "0"))
AT_EVERY_POINT = FORMS if NIGHTLY_KILLS else ("sqlite", "redis")
PRODUCERS, WORKERS, USERS = 4, 3, 12
BEHAVIORS = 360 + 10 * NIGHTLY_KILLS
"""Enough of them that there is work until the last kill."""
PATIENCE_S = 60.0 + 8.0 * NIGHTLY_KILLS
AT_POINT, LONGEST_S = 0.6, 2.0
"""How often a process is killed at a named point, and after how many seconds at most it is killed otherwise."""
PACE = {"lease_s": 3.0, "max_claims": 1_000}
"""A claim lasts for longer than seven processes on two cores keep each other waiting. However often a user's worker is
killed, no text is given up for it: that is another test's."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Behaviors by user, and a repo that was given them without an interruption."""

    data: dict[str, pa.Table]
    repo: Path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    data = behaviors_by_user(users=4, count=SIZE * len(POINTS))
    return Reference(data=data, repo=uninterrupted(tmp_path_factory.mktemp("few") / "repo", data))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    data = behaviors_by_user(users=USERS, count=BEHAVIORS)
    return Reference(data=data, repo=uninterrupted(tmp_path_factory.mktemp("many") / "repo", data))


@contextmanager
def ordeal_of(name: str, reference: Reference, folder: Path, **pace: Any) -> Iterator[Path]:
    """An empty repo on the services of a form; after the block it is to hold what the reference holds."""
    with form_of(name, folder) as form:
        repo = fresh_repo(folder / "repo", form, worker={**PACE, **pace})
        take_encoder(reference.repo, repo)
        yield repo
        with opened(repo) as job:
            job.drain(Report())
        found, expected = (stores_of(one, list(reference.data)) for one in (repo, reference.repo))
        assert {table: len(rows) for table, rows in found["delta"].items()} == {
            table: len(rows) for table, rows in expected["delta"].items()
        }
        assert found == expected
        assert (found["unfinished"], found["waiting"]) == (0, 0)
        assert paid_twice(repo) == []


@pytest.mark.parametrize("name", AT_EVERY_POINT)
def test_of_processes_that_die_at_every_named_point_the_next_ones_finish_the_work(
    name: str, few: Reference, tmp_path: Path
) -> None:
    batches = iter(streams(few.data, size=SIZE))  # each fills a partition of one user, but for the last ones

    def exit_code_of(target: Callable[..., object], *arguments: object) -> int | None:
        process = PROCESSES.Process(target=target, args=arguments)
        process.start()
        process.join(PATIENCE_S)
        return process.exitcode

    with ordeal_of(name, few, tmp_path, lease_s=0.5) as repo:
        for point in PRODUCER_POINTS:
            batch = next(batches)
            assert exit_code_of(produce, repo, point, [batch], Doom(point=point)) == -signal.SIGKILL, point
            assert exit_code_of(produce, repo, point, [batch], Doom()) == 0
        with opened(repo) as job:
            for point in WORKER_POINTS:
                push(job, next(batches))
                assert exit_code_of(work, repo, Doom(point=point)) == -signal.SIGKILL, point
            for batch in batches:
                push(job, batch)


@dataclass(kw_only=True)
class Process:
    """A process that is started again whenever it was killed."""

    start: Callable[[Doom], Any]
    points: Sequence[str]
    """Where it can be killed."""
    repo: Path
    running: Any = None
    lives_s: float = math.inf
    """How long it may live once it is ready, or None."""
    killed_at: float = math.inf
    """When it is killed from outside, if it is."""

    def begin(self, generator: random.Random) -> None:
        """Start the process, to be killed at one of its points or at any moment."""
        at_point = generator.random() < AT_POINT
        point = generator.choice(self.points) if at_point else None
        self._begin(Doom(point=point, count=generator.randint(1, 3)))
        self.lives_s = generator.uniform(0.0, 4 * LONGEST_S if at_point else LONGEST_S)  # the point may never come

    def begin_for_good(self) -> None:
        self._begin(Doom())
        self.lives_s = math.inf

    def _begin(self, doom: Doom) -> None:
        self.running, self.killed_at = self.start(doom), math.inf
        self.running.start()

    def kill_if_due(self) -> None:
        if self.killed_at == math.inf and ready_file(self.repo, self.running.pid).exists():
            self.killed_at = time.monotonic() + self.lives_s
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


def processes_of(repo: Path, data: dict[str, pa.Table]) -> list[Process]:
    """Return producers, each of users of its own, and workers."""
    names = list(data)
    parts = [{name: data[name] for name in names[number::PRODUCERS]} for number in range(PRODUCERS)]

    def producer(number: int) -> Callable[[Doom], Any]:
        batches = streams(parts[number], size=3)
        return lambda doom: PROCESSES.Process(target=produce, args=(repo, str(number), batches, doom))

    def worker() -> Callable[[Doom], Any]:
        return lambda doom: PROCESSES.Process(target=work, args=(repo, doom))

    producers = [Process(start=producer(one), points=PRODUCER_POINTS, repo=repo) for one in range(PRODUCERS)]
    return [*producers, *(Process(start=worker(), points=WORKER_POINTS, repo=repo) for _ in range(WORKERS))]


@pytest.mark.parametrize("name", FORMS)
def test_killed_producers_and_workers_leave_what_an_uninterrupted_run_leaves(
    name: str, many: Reference, tmp_path: Path
) -> None:
    kills = NIGHTLY_KILLS or KILLS[name]
    with ordeal_of(name, many, tmp_path) as repo:
        ordeal = Ordeal(processes=processes_of(repo, many.data), generator=random.Random(name))
        try:
            ordeal.run(kills=kills)
        finally:
            (repo / STOP).touch()
            for process in ordeal.processes:
                process.running.join(60)
                process.running.kill()
        assert ordeal.kills >= kills
