"""What a memory does while its database is away, locked, full or closed to it, and that it goes on afterwards."""

import multiprocessing
import os
import resource
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from liber_feast.errors import MemoryAway, MemoryFailure, RetryableError
from liber_feast.memory import Memory, connect, schema
from liber_feast.memory.call_tables import calls
from tests import services
from tests.ledger_parts import ledger_of, planned
from tests.memory_parts import append_all, behavior, contents, everything, new_memory
from tests.processes import PROCESSES

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

memory_url = services.memory_url
postgres_cluster = services.postgres_cluster

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 60
NOBODY = 65_534


def said_by(work: "Callable[[Connection[str, str], str], None]", argument: str) -> str:
    """Return what a process of its own says that does `work`."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=work, args=(theirs, argument))
    process.start()
    assert ours.poll(PATIENCE_S), "the process says nothing"
    said = ours.recv()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    return str(said)


def test_a_server_that_restarts_in_mid_run_costs_no_behavior_and_adds_none_twice(
    postgres_cluster: services.PostgresCluster,
) -> None:
    memory = Memory.open(postgres_cluster.url, base=Path())
    done, is_over = [], threading.Event()

    def produce() -> None:
        second = 0
        while not is_over.is_set():
            append_all(memory, [behavior(second), behavior(second + 1)])
            done.extend([second, second + 1])
            second += 2

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.2)
    postgres_cluster.stop()
    time.sleep(0.3)
    before = len(done)
    postgres_cluster.start()
    until = time.monotonic() + PATIENCE_S
    while len(done) < before + 20 and time.monotonic() < until:
        time.sleep(0.02)
    is_over.set()
    producer.join()
    found = contents(memory)
    memory.close()
    assert len(done) >= before + 20
    assert found.behavior_ids("ann") == [f"{second:09}" for second in done]
    assert len(found.partitions["ann"]) == len(done) // 2


def test_a_server_that_is_away_is_said_in_one_line_and_nothing_is_reserved_twice(
    postgres_cluster: services.PostgresCluster,
) -> None:
    memory = Memory.open(postgres_cluster.url, base=Path())
    ledger = ledger_of(memory)
    ledger.exchange(settled=(), wanted=planned(1))
    postgres_cluster.stop()
    for work in (
        lambda: memory.setting("schema_version"),
        lambda: ledger.exchange(settled=(), wanted=planned(1)),
        lambda: memory.retrying(lambda connection: None, what="nothing", patience_s=0.1),
        lambda: Memory.open(postgres_cluster.url, base=Path()),
    ):
        with pytest.raises(MemoryAway) as caught:
            work()
        assert caught.value.message.startswith(f"The memory {postgres_cluster.url} does not answer: ")
        assert "\n" not in caught.value.message
    postgres_cluster.start()
    ledger.exchange(settled=(), wanted=planned(1))
    with memory.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(calls)) == 2
    memory.close()


def test_a_file_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    new_memory(tmp_path).close()
    memory, hasty = (Memory.open(f"sqlite:///memory.db?timeout={wait}", base=tmp_path) for wait in (10, 0.01))
    other = sqlite3.connect(tmp_path / "memory.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RetryableError, match="is locked by another process"), hasty.writing():
        pass
    with pytest.raises(RetryableError, match="is locked by another process"):
        append_all(hasty, [behavior(1)])
    ending = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
    ending.start()
    append_all(memory, [behavior(1)])
    ending.join()
    other.close()
    assert contents(memory).caches == {"ann": ("000000001",)}


def fill_the_disk(said: "Connection[str, str]", folder: str) -> None:
    memory = new_memory(Path(folder))
    _soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
    try:
        append_all(memory, [behavior(second, item="x" * 1_000) for second in range(2, 3_000)])
        said.send("nothing")
    except MemoryFailure as error:
        said.send(error.message)
    append_all(memory, [behavior(1.5)])


def test_a_disk_that_takes_no_more_is_said_in_one_line_and_the_memory_goes_on(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(1)])
    message = said_by(fill_the_disk, str(tmp_path))
    assert message.startswith(f"The memory {tmp_path / 'memory.db'} cannot")
    assert "the disk is full" in message
    assert "\n" not in message
    append_all(memory, [behavior(second) for second in range(2, 4)])
    assert len(contents(memory).behavior_ids("ann")) == 4


def write_as_nobody(said: "Connection[str, str]", folder: str) -> None:
    if services.IS_ROOT:
        os.setuid(NOBODY)
    try:
        append_all(new_memory(Path(folder)), [behavior(2)])
        said.send("nothing")
    except MemoryFailure as error:
        said.send(error.message)


@pytest.mark.parametrize("is_there", [True, False], ids=["with the database in it", "empty"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line_and_harms_nothing(is_there: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="liber_memory_"))  # tmp_path is closed to other users
    try:
        before = None
        if is_there:
            memory = new_memory(folder)
            append_all(memory, [behavior(1)])
            before = everything(memory)
            memory.close()
            (folder / "memory.db").chmod(0o444)
        folder.chmod(0o555)
        message = said_by(write_as_nobody, str(folder))
        assert message.startswith("The memory ")
        assert "memory.db cannot be opened: " in message
        assert "must be able to write the file and its folder" in message
        folder.chmod(0o755)
        (folder / "memory.db").chmod(0o644) if is_there else None
        assert before is None or everything(new_memory(folder)) == before
    finally:
        shutil.rmtree(folder)


class BusyCursor:
    """A cursor on a file whose log others are making: busy some times, then ready."""

    def __init__(self, *, times: int, code: int = sqlite3.SQLITE_BUSY) -> None:
        self.times, self.code, self.executed = times, code, list[str]()

    def execute(self, statement: str) -> None:
        self.executed.append(statement)
        if len(self.executed) <= self.times:
            error = sqlite3.OperationalError("database is locked")
            error.sqlite_errorcode = self.code
            raise error


def test_the_log_of_a_fresh_file_is_asked_for_again_while_others_make_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = BusyCursor(times=3)
    connect._use_write_ahead_log(cursor)  # type: ignore[arg-type]
    assert cursor.executed == ["PRAGMA journal_mode=WAL"] * 4
    broken = BusyCursor(times=1, code=sqlite3.SQLITE_IOERR)
    with pytest.raises(sqlite3.OperationalError):
        connect._use_write_ahead_log(broken)  # type: ignore[arg-type]
    assert len(broken.executed) == 1
    monkeypatch.setattr(connect, "FRESH_SECONDS", 0.05)
    always = BusyCursor(times=1_000)
    with pytest.raises(sqlite3.OperationalError):
        connect._use_write_ahead_log(always)  # type: ignore[arg-type]
    assert 1 < len(always.executed) < 1_000


def open_one(said: "Connection[str, str]", url: str) -> None:
    said.send("ready")
    said.recv()
    memory = Memory.open(url, base=Path())
    append_all(memory, [behavior(os.getpid(), user=str(os.getpid()))])
    said.send(memory.identity)
    memory.close()


def test_processes_that_open_a_fresh_memory_at_once_make_one(memory_url: str) -> None:
    pipes = [PROCESSES.Pipe() for _ in range(2)]
    processes = [PROCESSES.Process(target=open_one, args=(theirs, memory_url)) for _, theirs in pipes]
    for process in processes:
        process.start()
    assert all(ours.poll(PATIENCE_S) and ours.recv() == "ready" for ours, _ in pipes)
    for ours, _ in pipes:
        ours.send("go")
    names = {ours.recv() for ours, _ in pipes if ours.poll(PATIENCE_S)}
    for process in processes:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    memory = Memory.open(memory_url, base=Path())
    assert names == {memory.identity}
    assert len(contents(memory).caches) == 2
    memory.close()


@pytest.fixture
def memory(memory_url: str) -> Iterator[Memory]:
    made = Memory.open(memory_url, base=Path())
    yield made
    made.close()


def append_some(memory: Memory, user: str) -> None:
    for second in range(5):
        append_all(memory, [behavior(second, user=user)])


def test_a_forked_process_uses_connections_of_its_own(memory: Memory) -> None:
    append_some(memory, "before")
    children = [FORK.Process(target=append_some, args=(memory, f"child {number}")) for number in range(2)]
    for child in children:
        child.start()
    append_some(memory, "parent")
    for child in children:
        child.join(PATIENCE_S)
        assert child.exitcode == 0
    append_some(memory, "after")
    found = contents(memory)
    for user in ("before", "child 0", "child 1", "parent", "after"):
        assert len(found.behavior_ids(user)) == 5


def test_a_memory_that_is_up_to_date_is_opened_while_another_process_writes(memory_url: str, memory: Memory) -> None:
    with memory.writing() as connection:
        connection.execute(schema.settings.insert().values(name="a", value="b"))
        again = Memory.open(memory_url, base=Path())
        assert again.identity == memory.identity
        again.close()
