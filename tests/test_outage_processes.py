"""Services that go away while producers and workers are at work: they wait, go on, and nothing is lost or paid twice.

`LIBER_OUTAGE_S` says for how many seconds they are away: two in the suite, 60 by `make test-nightly`.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa

from liber_feast.repo import repo_status
from liber_feast.worker import run_worker
from tests import feature_repo_kit as kit
from tests import services
from tests.crash_parts import (
    ACKNOWLEDGED,
    CALLS,
    Doom,
    behaviors_by_user,
    fresh_repo,
    job_of,
    paid_twice,
    produce,
    stores_of,
    streams,
    take_encoder,
    uninterrupted,
)
from tests.form_parts import Form
from tests.processes import PROCESSES

postgres_cluster, postgres_url, redis_server = services.postgres_cluster, services.postgres_url, services.redis_server

OUTAGE_S = float(os.environ.get("LIBER_OUTAGE_S", "2"))
PATIENCE_S = 120
WORKERS = 2
EVERY_VIEW = ("behaviors", *kit.LIBER_VIEWS)


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"it takes too long until {what}"
        time.sleep(0.05)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def be_worker(repo: Path, log: Path) -> None:
    """Be one of the processes that `liber worker` starts; what it says goes to `log`."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), sys.stderr.fileno())
    # The server that forks processes has imported the program `feast`, which lets every logger speak; `liber` does not.
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    run_worker(partial(job_of, repo))


@contextmanager
def ended(processes: list[BaseProcess]) -> Iterator[None]:
    """Start processes for the block; what still runs at its end is killed."""
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def data() -> dict[str, pa.Table]:
    return behaviors_by_user(users=6, count=240)


def test_a_postgresql_that_goes_away_twice_loses_and_pays_nothing_twice(
    postgres_cluster: services.PostgresCluster, data: dict[str, pa.Table], tmp_path: Path
) -> None:
    reference = uninterrupted(tmp_path / "reference", data)
    server = sa.make_url(postgres_cluster.url)
    online = {"type": "postgres", "host": server.host, "port": server.port, "database": server.database}
    online |= {"user": server.username, "password": "trusted", "db_schema": "public", "sslmode": "disable"}
    form = Form(memory=postgres_cluster.url, online=online, project="outage")
    repo = fresh_repo(tmp_path / "repo", form, worker={"lease_s": 2.0})
    take_encoder(reference, repo)
    halves = [dict(list(data.items())[half::2]) for half in range(2)]
    pause_s = 0.1 + OUTAGE_S / 40
    producers: list[BaseProcess] = [
        PROCESSES.Process(target=produce, args=(repo, str(number), streams(half, size=3), Doom(), pause_s))
        for number, half in enumerate(halves)
    ]
    logs = [tmp_path / f"worker {number}" for number in range(WORKERS)]
    workers: list[BaseProcess] = [PROCESSES.Process(target=be_worker, args=(repo, log)) for log in logs]

    def acknowledged() -> int:
        return sum(len(lines_of(repo / f"{ACKNOWLEDGED}-{number}")) for number in range(len(producers)))

    with ended([*producers, *workers]):
        for _ in range(2):
            before, texts = acknowledged(), len(lines_of(repo / CALLS))
            until(lambda: acknowledged() >= before + 10 and len(lines_of(repo / CALLS)) > texts, "pushes go on")  # noqa: B023
            postgres_cluster.stop()
            time.sleep(OUTAGE_S)
            assert all(process.exitcode is None for process in (*producers, *workers))
            postgres_cluster.start()
        for producer in producers:
            producer.join(PATIENCE_S)
        until(lambda: repo_status(repo)["waiting_users"] == 0, "nobody waits")
        for worker in workers:
            worker.terminate()
            worker.join(PATIENCE_S)
        assert [process.exitcode for process in (*producers, *workers)] == [0] * (len(producers) + WORKERS)
    said = [line for log in logs for line in lines_of(log)]
    assert any(line.startswith("Warning: The memory ") and " does not answer: " in line for line in said)
    assert not [
        line for line in said if not line.startswith(("Warning: ", "users=", "worker ", "metrics: The memory "))
    ]
    assert max(sum(line.startswith("metrics: ") for line in lines_of(log)) for log in logs) <= 2, "once an outage"
    found, expected = stores_of(repo, list(data)), stores_of(reference, list(data))
    assert found == expected
    assert (found["unfinished"], found["waiting"]) == (0, 0)
    assert paid_twice(repo) == []


@contextmanager
def liber_worker(repo: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`liber worker` on a repo; what still runs at the end of the block is killed."""
    with log.open("wb") as stderr:
        command = [str(Path(sys.executable).with_name("liber")), "worker", "--repo", str(repo)]
        worker = subprocess.Popen(command, stdout=stderr, stderr=stderr, start_new_session=True)
    try:
        yield worker
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def test_a_redis_that_is_away_fails_no_push_and_everything_is_online_once_it_is_back(
    redis_server: services.RedisServer, postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = kit.materialized_repo(tmp_path / "whole")
    online = {"type": "redis", "connection_string": redis_server.address}
    form, log = Form(memory=postgres_url, online=online, project="outage"), tmp_path / "worker"
    repo = form.bring_to(kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker"))
    rows, users, store = kit.log_of(repo), kit.users_of(repo), kit.open_store(repo)
    is_last = pc.equal(rows["user_id"], "u0005")  # who fills no partition, so that workers have nothing to make
    rows, last = rows.filter(pc.invert(is_last)), rows.filter(is_last)
    pushes = [kit.frame(rows.slice(start, 3)) for start in range(0, len(rows), 3)] + [kit.frame(last)]
    third = len(pushes) // 3
    with liber_worker(repo, log) as worker, caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        for some in pushes[:third]:
            store.push("behavior_push", some)
        until(lambda: repo_status(repo)["waiting_users"] == 0, "the worker works")
        redis_server.stop()
        for some in pushes[third:]:
            store.push("behavior_push", some)
            time.sleep(OUTAGE_S / len(pushes[third:]))
        until(lambda: any("Warning: The online store, Redis" in line for line in lines_of(log)), "the worker notices")
        assert worker.poll() is None
        redis_server.start()
        until(lambda: repo_status(repo)["waiting_users"] == 0, "nobody waits")
        worker.terminate()
        assert worker.wait(PATIENCE_S) == 0
    assert len(caplog.records) == len(pushes) - third
    assert "Traceback" not in log.read_text(encoding="utf-8")
    assert repo_status(repo)["duplicate_behaviors"] == 0
    found = kit.online(store, users, *EVERY_VIEW)
    kit.close(store)
    assert found == kit.online(kit.open_store(whole), users, *EVERY_VIEW)
    assert {table: kit.published(repo, table) for table in kit.PUBLISHED_TABLES} == {
        table: kit.published(whole, table) for table in kit.PUBLISHED_TABLES
    }
