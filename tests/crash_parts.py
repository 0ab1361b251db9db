"""Producers and workers as real processes that are killed, and what the stores hold afterwards.

Nothing in the program knows of this: a process builds its job with a memory, tables and an online store that end the
process by SIGKILL when a named point is passed for the n-th time. What is tested is what is left in the stores.
"""

import os
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from feast import FeatureStore

from liber_feast.behavior import ITEM, USER, RatingScale, check_behaviors
from liber_feast.datasets import read_data_set
from liber_feast.errors import RetryableError
from liber_feast.interest import SHIFT, SUMMARY, Answers, Request, ShiftRequest, SummaryRequest
from liber_feast.item_encoding import ItemEncoding
from liber_feast.job import open_job
from liber_feast.materialize import Job, Report
from liber_feast.memory import Memory
from liber_feast.memory.evidence_tables import partition_evidence
from liber_feast.memory.schema import behaviors, partitions, publications, texts, users, waiting
from liber_feast.online import FeastOnlineSink
from liber_feast.publish import DeltaSink
from liber_feast.sequences import SequenceRows, publish_sequences
from liber_feast.worker import Worker
from tests import feature_repo_kit as kit
from tests.form_parts import Form
from tests.memory_parts import EchoLearner, TinyEncoding

STOP, TINY_ENCODER, TINY_ITEM_ENCODER = "stop", "tiny_encoder", "tiny_item_encoder"
ACKNOWLEDGED, CALLS, SAID = "acknowledged", "calls", "said"
"""Files of a repo in which processes write down what they do."""
AGAIN = "again"


def points(*transactions: str) -> tuple[str, ...]:
    return tuple(f"{moment} {what}" for what in transactions for moment in ("before", "after"))


PRODUCER_POINTS = points("append", "online", "sequence")
WORKER_POINTS = (
    *points("claim", "texts", "vectors", "evidence", "lease", "plan", "online", "done", "settle"),
    "after delta",
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

    inner: FeastOnlineSink
    doom: Doom

    def write(self, view: str, rows: pa.Table, **order: Any) -> None:
        self.doom.reach("before online")
        self.inner.write(view, rows, **order)
        self.doom.reach("after online")

    def write_together(self, rows: Mapping[str, pa.Table]) -> None:
        self.doom.reach("before online")
        self.inner.write_together(rows)
        self.doom.reach("after online")

    def delete(self, user_ids: Sequence[str | int]) -> int:
        return self.inner.delete(user_ids)

    def close(self) -> None:
        self.inner.close()


@dataclass(kw_only=True)
class CountingLearner(EchoLearner):
    """Writes down every text that it is asked for, and whether the memory had it then."""

    path: Path
    memory: Memory

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for one in requests:
            self._write(one, stage=SUMMARY)
            yield from super().summarize([one])

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        for one in requests:
            self._write(one, stage=SHIFT)
            yield from super().learn_shifts([one])

    def _write(self, one: Request, *, stage: str) -> None:
        is_it = (texts.c.stage == stage) & (texts.c.partition_index == one.partition_index)
        is_theirs = texts.c.user_key.in_(sa.select(users.c.user_key).where(users.c.user_id == str(one.user_id)))
        with self.memory.reading() as connection:
            is_kept = connection.scalar(sa.select(sa.exists().where(is_it, is_theirs)))
        add_line(self.path, f"{AGAIN if is_kept else 'new'} {stage}:{one.user_id}:{one.partition_index}")


def add_line(path: Path, line: str) -> None:
    """Append a line in one write, which processes do not mix up."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def behaviors_by_user(*, users: int, count: int) -> dict[str, pa.Table]:
    """Return a synthetic data set's behaviors of each user."""
    behaviors = read_data_set("synthetic", seed=9, users=users, behaviors=count).behaviors
    names = sorted(set(behaviors[USER].to_pylist()))
    return {name: behaviors.filter(pc.equal(behaviors[USER], name)) for name in names}


def fresh_repo(folder: Path, form: Form | None = None, **engine: Any) -> Path:
    """Return an applied repo without behaviors, on SQLite or on the services of a form."""
    repo = kit.copy_feature_repo(folder, **engine)
    kit.write_data_set(kit.small_data_set(), repo)
    if form is not None:
        return form.bring_to(repo)
    kit.apply(repo)
    return repo


def uninterrupted(folder: Path, users_of: Mapping[str, pa.Table]) -> Path:
    """Return a repo on SQLite to which streams were given whole, by one process that nothing interrupts."""
    repo = fresh_repo(folder)
    with opened(repo) as job:
        for batch in streams(users_of, size=7):
            push(job, batch)
        job.drain(Report())
    return repo


def take_encoder(reference: Path, repo: Path) -> None:
    """Let a repo have the PCAs of another one, so that both have the same vectors."""
    for folder in (TINY_ENCODER, TINY_ITEM_ENCODER):
        shutil.copytree(reference / folder, repo / folder)


@contextmanager
def opened(repo: Path) -> Iterator[Job]:
    """The job of a repo, whose connections are given back at the end."""
    job = job_of(repo)
    try:
        yield job
    finally:
        job.memory.close()
        job.online.close()  # type: ignore[attr-defined]  # it is of this file


def job_of(repo: Path, *, doom: Doom | None = None) -> Job:
    """Return the job of an applied repo with a tiny encoder, without an LLM."""
    doom = doom or Doom()
    store = FeatureStore(repo_path=str(repo))
    online_store = store._get_provider().online_store  # type: ignore[attr-defined]  # Feast has no public way to it
    job = open_job(store.config, registry=store.registry, online_store=online_store)
    memory = DoomedMemory(job.memory.engine)
    memory.doom = doom
    assert job.evidence is not None, "the feature repo has its views"
    encoding = TinyEncoding(folder=repo / TINY_ENCODER, width=kit.WIDTH)
    item_encoding = ItemEncoding(folder=repo / TINY_ITEM_ENCODER, width=kit.WIDTH, encoding=encoding)
    return replace(
        job,
        memory=memory,
        learner=CountingLearner(path=repo / CALLS, memory=memory),
        encoding=encoding,
        evidence=replace(job.evidence, memory=memory, encoding=item_encoding),
        tables={stage: DoomedDelta(path=sink.path, doom=doom) for stage, sink in job.tables.items()},
        online=DoomedOnline(inner=job.online, doom=doom),  # type: ignore[arg-type]  # a repo's is Feast's
    )


def produce(repo: Path, name: str, batches: Sequence[pa.Table], doom: Doom, pause_s: float = 0.0) -> None:
    """Push the batches in order; what was not acknowledged before is sent again, and so is the one before it."""
    job, path = job_of(repo, doom=doom), repo / f"{ACKNOWLEDGED}-{name}"
    ready_file(repo, os.getpid()).touch()
    done = int(path.read_text().split()[-1]) if path.exists() and path.read_text().strip() else 0
    for number, batch in list(enumerate(batches, start=1))[max(done - 1, 0) :]:
        until_done(lambda batch=batch: push(job, batch))
        add_line(path, str(number))
        time.sleep(pause_s)


def push(job: Job, batch: pa.Table) -> None:
    """Do what a push does with `on_the_fly: worker`."""
    user_keys = append(job, batch)
    recent = partial(SequenceRows, length=job.sequence_length)
    publish_sequences(job.memory, projection=recent, online=job.online, user_keys=user_keys)


def append(job: Job, batch: pa.Table) -> Sequence[int]:
    """Append behaviors to the memory alone; return whose they are."""
    checked = check_behaviors(batch, scale=RatingScale(), now=datetime.now(UTC))
    return job.append(checked, Report()).user_keys


@dataclass(frozen=True, kw_only=True)
class StopFile:
    """Happens when the file is there."""

    path: Path

    def is_set(self) -> bool:
        return self.path.exists()

    def wait(self, timeout: float) -> bool:
        until = time.monotonic() + timeout
        while not self.is_set() and time.monotonic() < until:
            time.sleep(0.02)
        return self.is_set()


def work(repo: Path, doom: Doom) -> None:
    """Be a worker until the file `stop` is there."""
    job = job_of(repo, doom=doom)
    ready_file(repo, os.getpid()).touch()
    Worker(job, stop=StopFile(path=repo / STOP), say=lambda line: add_line(repo / SAID, line)).run()


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
    with opened(repo) as job, job.memory.reading() as connection:
        held = {
            "partitions": rows(connection, partitions, "user_id", "partition_index", "partition_hash", "seal_time"),
            "behaviors": rows(connection, behaviors, "user_id", "partition_index", "behavior_id", "event_time"),
            "evidence": rows(connection, partition_evidence, "user_id", "partition_index", "like_count", "signed_sum"),
            "texts": rows(connection, texts, "user_id", "partition_index", "stage", "revision", "text"),
            "unfinished": connection.scalar(
                sa.select(sa.func.count()).select_from(publications).where(publications.c.done_time.is_(None))
            ),
            "waiting": connection.scalar(sa.select(sa.func.count()).select_from(waiting)),
        }
    store = FeatureStore(repo_path=str(repo))
    delta = {table: kit.published(repo, table) for table in kit.PUBLISHED_TABLES}
    online = kit.online(store, user_ids)
    items = kit.published(repo, kit.ITEM_VIEW, key=ITEM)
    online_items = kit.online_items(store, [row[ITEM] for row in items])
    kit.close(store)
    return {**held, "delta": delta, "online": online, "items": items, "online_items": online_items}


def rows(connection: sa.Connection, table: sa.Table, *names: str) -> list[tuple[Any, ...]]:
    columns = [(users if name == "user_id" else table).c[name] for name in names]
    joined = table.join(users, users.c.user_key == table.c.user_key)
    found = connection.execute(sa.select(*columns).select_from(joined))
    return sorted((tuple(row) for row in found), key=str)


def paid_twice(repo: Path) -> list[str]:
    """Return the texts that were asked for when the memory had them."""
    lines = (line.split(" ", 1) for line in (repo / CALLS).read_text().splitlines())
    return [key for what, key in lines if what == AGAIN]


def ready_file(repo: Path, pid: int | None) -> Path:
    """Return the file that a process makes when it has opened its job."""
    return repo / f"ready-{pid}"


def streams(users_of: Mapping[str, pa.Table], *, size: int) -> list[pa.Table]:
    """Return each user's behaviors in order, cut into batches of `size`, users in turn."""
    cut = {user: [table.slice(at, size) for at in range(0, len(table), size)] for user, table in users_of.items()}
    turns = max(map(len, cut.values()))
    return [batches[turn] for turn in range(turns) for batches in cut.values() if turn < len(batches)]
