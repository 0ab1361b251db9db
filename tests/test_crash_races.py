"""Processes that die at every moment leave what an uninterrupted run leaves.

`LIBER_KILLS` says how many are killed: 25 in the suite, 200 by `make test-nightly`.
"""

import math
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from liber_feast.behavior import USER
from liber_feast.datasets import read_data_set
from liber_feast.materialize import Report
from tests import crash_parts
from tests import feature_repo_kit as kit
from tests.crash_parts import POINTS, STOP, TINY_ENCODER, Doom, job_of, paid_twice, produce, stores_of, streams, work

KILLS = int(os.environ.get("LIBER_KILLS", "25"))
PRODUCERS, WORKERS, USERS, BEHAVIORS = 4, 3, 12, 360
PATIENCE_S = 600
AT_POINT, LONGEST_S = 0.6, 3.0
"""How often a process is killed at a named point, and after how many seconds at most it is killed otherwise."""
ENGINE = {"worker": {"lease_s": 1.0}}


@dataclass(kw_only=True)
class Process:
    """A process that is started again whenever it was killed."""

    start: Callable[[Doom], Any]
    running: Any = None
    killed_at: float = math.inf
    """When it is killed from outside, if it is."""

    def begin(self, generator: random.Random, points: list[str]) -> None:
        """Start the process, to be killed at one of `points`, which is taken from them, or at any moment."""
        at_point = bool(points) and generator.random() < AT_POINT
        self._begin(Doom(point=points.pop(), count=generator.randint(1, 3)) if at_point else Doom())
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
        points = self.generator.sample(POINTS, len(POINTS))
        for process in self.processes:
            process.begin(self.generator, points)
        deadline = time.monotonic() + PATIENCE_S
        while self.kills < kills or not all(process.is_done for process in self.processes[:PRODUCERS]):
            assert time.monotonic() < deadline, f"{self.kills} kills after {PATIENCE_S} s"
            for process in self.processes:
                self._look(process, points, kills=kills)
            time.sleep(0.02)

    def _look(self, process: Process, points: list[str], *, kills: int) -> None:
        if self.kills < kills:
            process.kill_if_due()
        if process.was_killed:
            self.kills += 1
            if self.kills < kills:
                process.begin(self.generator, points)
            else:
                process.begin_for_good()
        assert process.running.exitcode in (None, 0, -signal.SIGKILL), "a process failed"


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    behaviors = read_data_set("synthetic", seed=9, users=USERS, behaviors=BEHAVIORS).behaviors
    names = sorted(set(behaviors[USER].to_pylist()))
    return {name: behaviors.filter(pc.equal(behaviors[USER], name)) for name in names}


def fresh_repo(folder: Path) -> Path:
    repo = kit.copy_feature_repo(folder, **ENGINE)
    kit.write_data_set(kit.small_data_set(), repo)
    kit.apply(repo)
    return repo


@pytest.fixture(scope="module")
def reference(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repo to which the streams were given whole, by one process that nothing interrupts."""
    repo = fresh_repo(tmp_path_factory.mktemp("reference") / "repo")
    job = job_of(repo)
    for batch in streams(data, size=7):
        crash_parts.append(job, batch)
    job.drain(Report())
    job.memory.close()
    return repo


@pytest.mark.parametrize("seed", [0])
def test_killed_producers_and_workers_leave_what_an_uninterrupted_run_leaves(
    data: dict[str, Any], reference: Path, tmp_path: Path, seed: int
) -> None:
    repo = fresh_repo(tmp_path / "repo")
    shutil.copytree(reference / TINY_ENCODER, repo / TINY_ENCODER)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash_parts"])
    names = list(data)
    parts = [{name: data[name] for name in names[number::PRODUCERS]} for number in range(PRODUCERS)]

    def producer(number: int) -> Callable[[Doom], Any]:
        batches = streams(parts[number], size=3)
        return lambda doom: context.Process(target=produce, args=(repo, str(number), batches, doom))

    def worker() -> Callable[[Doom], Any]:
        return lambda doom: context.Process(target=work, args=(repo, doom))

    starts = [*(producer(number) for number in range(PRODUCERS)), *(worker() for _ in range(WORKERS))]
    ordeal = Ordeal(processes=[Process(start=start) for start in starts], generator=random.Random(seed))
    try:
        ordeal.run(kills=KILLS)
    finally:
        (repo / STOP).touch()
        for process in ordeal.processes:
            process.running.join(60)
            process.running.kill()
    job = job_of(repo)
    job.drain(Report())
    job.memory.close()
    assert ordeal.kills >= KILLS
    found, expected = stores_of(repo, names), stores_of(reference, names)
    assert {name: len(rows) for name, rows in found["delta"].items()} == {
        name: len(rows) for name, rows in expected["delta"].items()
    }
    assert found == expected
    assert (found["unfinished"], found["waiting"]) == (0, 0)
    assert paid_twice(repo) == []
