"""Producers and workers as real processes that are killed, and what the stores hold afterwards.

Nothing in the program knows of this: a process builds its job with a memory, tables and an online store that end the
process by SIGKILL when a named point is passed for the n-th time. What is tested is what is left in the files.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from feast import FeatureStore

from liber_feast.behavior import RatingScale, check_behaviors
from liber_feast.errors import RetryableError
from liber_feast.interest import SHIFT, SUMMARY, Answers, Request, ShiftRequest, SummaryRequest
from liber_feast.job import open_job
from liber_feast.materialize import Job, Report
from liber_feast.memory import Memory
from liber_feast.memory.schema import behaviors, partitions, publications, texts, users, waiting
from liber_feast.publish import DeltaSink, OnlineSink
from tests import feature_repo_kit as kit
from tests.memory_parts import EchoLearner, TinyEncoding

STOP, ACKNOWLEDGED, CALLS, TINY_ENCODER = "stop", "acknowledged", "calls", "tiny_encoder"
TRANSACTIONS = ("append", "claim", "texts", "vectors", "plan", "done", "sequence", "settle")
POINTS = (
    *(f"{moment} {what}" for what in TRANSACTIONS for moment in ("before", "after")),
    *("after delta", "before online", "after online"),
)
"""Where a process can be killed; `before WHAT` is before the commit of the transaction that the memory calls so."""


@dataclass(kw_only=True)
class Doom:
    """Kills this process when `point` is passed for the `count`-th time; None: never."""

    point: str | None = None
    count: int = 1
    passed: int = 0

    def reach(self, point: str) -> None:
        self.passed += point == self.point
        if point == self.point and self.passed == self.count:
            os.kill(os.getpid(), signal.SIGKILL)


class DoomedMemory(Memory):
    """A memory whose transactions are points."""

    doom: Doom

    @contextmanager
    def writing(self, what: str = "") -> Iterator[sa.Connection]:
        with super().writing(what) as connection:
            yield connection
            self.doom.reach(f"before {what}")
        self.doom.reach(f"after {what}")


@dataclass(frozen=True, kw_only=True)
class DoomedDelta(DeltaSink):
    """A Delta table after whose commits the process may end."""

    doom: Doom

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        is_new = super().append(rows, app_id=app_id, version=version)
        self.doom.reach("after delta")
        return is_new


@dataclass(frozen=True, kw_only=True)
class DoomedOnline:
    """An online store before and after whose writes the process may end."""

    inner: OnlineSink
    doom: Doom

    def write(self, view: str, rows: pa.Table, **order: Any) -> None:
        self.doom.reach("before online")
        self.inner.write(view, rows, **order)
        self.doom.reach("after online")

    def delete(self, user_ids: Sequence[str | int]) -> int:
        return self.inner.delete(user_ids)


@dataclass(kw_only=True)
class CountingLearner(EchoLearner):
    """Writes down every text that it is asked for, and that it was kept once the next is pulled."""

    path: Path

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for one in requests:
            yield from self._written(one, super().summarize([one]), stage=SUMMARY)

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        for one in requests:
            yield from self._written(one, super().learn_shifts([one]), stage=SHIFT)

    def _written(self, one: Request, answers: Iterator[Answers[Request]], *, stage: str) -> Iterator[Answers[Request]]:
        key = f"{stage}:{one.user_id}:{one.partition_index}"
        add_line(self.path, f"asked {key}")
        yield from answers  # a group that was yielded is committed before the next is pulled
        add_line(self.path, f"kept {key}")


def add_line(path: Path, line: str) -> None:
    """Append a line in one write, which processes do not mix up."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def job_of(repo: Path, *, doom: Doom | None = None) -> Job:
    """Return the job of an applied repo with a tiny encoder, without an LLM."""
    doom = doom or Doom()
    store = FeatureStore(repo_path=str(repo))
    online_store = store._get_provider().online_store  # type: ignore[attr-defined]  # Feast has no public way to it
    job = open_job(store.config, registry=store.registry, online_store=online_store)
    memory = DoomedMemory(job.memory.engine)
    memory.doom = doom
    return replace(
        job,
        memory=memory,
        learner=CountingLearner(path=repo / CALLS),
        encoding=TinyEncoding(folder=repo / TINY_ENCODER, width=kit.WIDTH),
        tables={stage: DoomedDelta(path=sink.path, doom=doom) for stage, sink in job.tables.items()},
        online=DoomedOnline(inner=job.online, doom=doom),
    )


def produce(repo: Path, name: str, batches: Sequence[pa.Table], doom: Doom) -> None:
    """Append the batches in order; what was not acknowledged before is sent again, and so is the one before it."""
    job, path = job_of(repo, doom=doom), repo / f"{ACKNOWLEDGED}-{name}"
    done = int(path.read_text().split()[-1]) if path.exists() and path.read_text().strip() else 0
    for number, batch in list(enumerate(batches, start=1))[max(done - 1, 0) :]:
        until_done(lambda batch=batch: append(job, batch))
        add_line(path, str(number))


def work(repo: Path, doom: Doom) -> None:
    """Work on what waits until the file `stop` is there."""
    job = job_of(repo, doom=doom)
    while not (repo / STOP).exists():
        until_done(lambda: job.drain(Report()))
        time.sleep(0.02)


def append(job: Job, batch: pa.Table) -> None:
    checked = check_behaviors(batch, scale=RatingScale(), now=datetime.now(UTC))
    job.append(checked, Report())


def until_done(action: Any) -> None:
    """Repeat what another process was in the way of."""
    while True:
        try:
            action()
            return
        except RetryableError:
            time.sleep(0.05)


def stores_of(repo: Path, user_ids: Sequence[str]) -> dict[str, Any]:
    """Return what memory, Delta tables and online store hold of the users, times of writing aside."""
    job = job_of(repo)
    with job.memory.reading() as connection:
        held = {
            "partitions": rows(connection, partitions, "user_id", "partition_index", "partition_hash", "seal_time"),
            "behaviors": rows(connection, behaviors, "user_id", "partition_index", "behavior_id", "event_time"),
            "texts": rows(connection, texts, "user_id", "partition_index", "stage", "revision", "text"),
            "unfinished": connection.scalar(
                sa.select(sa.func.count()).select_from(publications).where(publications.c.done_time.is_(None))
            ),
            "waiting": connection.scalar(sa.select(sa.func.count()).select_from(waiting)),
        }
    job.memory.close()
    store = FeatureStore(repo_path=str(repo))
    delta = {table: kit.published(repo, table) for table in kit.PUBLISHED_TABLES}
    return {**held, "delta": delta, "online": kit.online(store, user_ids)}


def rows(connection: sa.Connection, table: sa.Table, *names: str) -> list[tuple[Any, ...]]:
    columns = [(users if name == "user_id" else table).c[name] for name in names]
    joined = table.join(users, users.c.user_key == table.c.user_key)
    found = connection.execute(sa.select(*columns).select_from(joined))
    return sorted((tuple(row) for row in found), key=str)


def paid_twice(repo: Path) -> list[str]:
    """Return the texts that were asked for after they had been kept."""
    kept: set[str] = set()
    twice = []
    for line in (repo / CALLS).read_text().splitlines():
        what, key = line.split(" ", 1)
        if what == "kept":
            kept.add(key)
        elif key in kept:
            twice.append(key)
    return twice


def streams(users_of: Mapping[str, pa.Table], *, size: int) -> list[pa.Table]:
    """Return each user's behaviors in order, cut into batches of `size`, users in turn."""
    cut = {user: [table.slice(at, size) for at in range(0, len(table), size)] for user, table in users_of.items()}
    turns = max(map(len, cut.values()))
    return [batches[turn] for turn in range(turns) for batches in cut.values() if turn < len(batches)]
