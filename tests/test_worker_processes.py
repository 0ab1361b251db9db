"""Worker processes: several of them, stopped and killed, pay for no text twice and leave nothing undone."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from liber_feast.materialize import Report
from liber_feast.memory import Memory
from liber_feast.pace import Pace
from liber_feast.worker import run_worker, supervise
from tests import services
from tests.processes import PROCESSES
from tests.worker_parts import asked, calls, kept_texts, seal, small_job, waiting_rows

memory_url = services.memory_url
NAMES = tuple(f"user{number}" for number in range(8))
TEXTS = sorted(
    (stage, name, index) for stage in ("summary", "shift") for name in NAMES for index in range(stage == "shift", 2)
)
PATIENCE_S = 60
PACE = Pace(batch=2, wait_ms=0, poll_ms=20, lease_s=20.0)


def memory_of(url: str, folder: Path) -> Memory:
    """Return a memory in which all users wait, with two partitions each."""
    memory = Memory.open(url, base=folder)
    seal(memory, NAMES, partitions=2)
    return memory


def opener(url: str, folder: Path, *, seconds: float, lease_s: float = PACE.lease_s) -> partial[object]:
    return partial(small_job, folder, url, seconds=seconds, pace=replace(PACE, lease_s=lease_s))


def started(open_job: partial[object], *, once: bool = False) -> BaseProcess:
    process = PROCESSES.Process(target=run_worker, args=(open_job,), kwargs={"once": once})
    process.start()
    return process


def materialize(open_job: Callable[[], object]) -> None:
    job = open_job()
    job.drain(Report(), with_failed=True)  # type: ignore[attr-defined]
    job.memory.close()  # type: ignore[attr-defined]


def supervise_here(open_job: Callable[[], object], concurrency: int, once: bool) -> None:
    os._exit(supervise(open_job, concurrency=concurrency, once=once))  # type: ignore[arg-type]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(*processes: BaseProcess) -> list[int | None]:
    for process in processes:
        process.join(PATIENCE_S)
    return [process.exitcode for process in processes]


def paid_twice(folder: Path) -> list[tuple[str, str, int]]:
    """Return the texts that were asked for after they had been kept."""
    kept, twice = set(), []
    for one in calls(folder):
        if one.what == "kept":
            kept.add(one.text)
        elif one.text in kept:
            twice.append(one.text)
    return twice


def test_three_workers_share_no_user_pay_for_no_text_twice_and_end_when_nobody_waits(
    memory_url: str, tmp_path: Path
) -> None:
    memory = memory_of(memory_url, tmp_path)
    open_job = opener(memory_url, tmp_path, seconds=0.02)
    assert ended(*[started(open_job, once=True) for _ in range(3)]) == [0, 0, 0]
    assert sorted(asked(tmp_path)) == TEXTS == kept_texts(memory)
    assert waiting_rows(memory) == {}
    pids = {name: [one.pid for one in calls(tmp_path) if one.user == name] for name in NAMES}
    assert {name: len(list(groupby(some))) for name, some in pids.items()} == dict.fromkeys(NAMES, 1)
    memory.close()


def test_two_materializations_at_once_pay_for_each_text_once(memory_url: str, tmp_path: Path) -> None:
    memory = memory_of(memory_url, tmp_path)
    open_job = opener(memory_url, tmp_path, seconds=0.02)
    runs = [PROCESSES.Process(target=materialize, args=(open_job,)) for _ in range(2)]
    for run in runs:
        run.start()
    assert ended(*runs) == [0, 0]
    assert sorted(asked(tmp_path)) == TEXTS == kept_texts(memory)
    assert waiting_rows(memory) == {}
    memory.close()


def test_a_worker_that_is_asked_to_stop_ends_its_batch_leaves_the_rest_free_and_exits_with_0(
    memory_url: str, tmp_path: Path
) -> None:
    memory = memory_of(memory_url, tmp_path)
    worker = started(opener(memory_url, tmp_path, seconds=0.05))
    until(lambda: len(asked(tmp_path)) > 0)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    assert ended(worker) == [0]
    left = waiting_rows(memory)
    assert {row.lease_owner for row in left.values()} == {None}
    assert len(left) == len(NAMES) - 2
    assert [one.what for one in calls(tmp_path)].count("kept") == len(asked(tmp_path)) == 6
    memory.close()


def test_what_a_killed_worker_had_claimed_is_taken_up_after_its_lease_and_no_kept_text_is_paid_for_again(
    memory_url: str, tmp_path: Path
) -> None:
    memory = memory_of(memory_url, tmp_path)
    open_job = opener(memory_url, tmp_path, seconds=0.05, lease_s=2.0)
    dead = started(open_job)
    until(lambda: len(asked(tmp_path)) > 2)
    dead.kill()
    assert ended(dead) == [-signal.SIGKILL]
    assert any(row.lease_owner for row in waiting_rows(memory).values())
    assert ended(started(open_job, once=True)) == [0]
    assert kept_texts(memory) == TEXTS
    assert paid_twice(tmp_path) == []
    assert len(asked(tmp_path)) <= len(TEXTS) + 1  # the one that was in flight
    assert waiting_rows(memory) == {}
    memory.close()


def test_a_worker_that_stood_still_while_another_took_over_asks_for_nothing_that_is_kept(
    memory_url: str, tmp_path: Path
) -> None:
    memory = memory_of(memory_url, tmp_path)
    open_job = opener(memory_url, tmp_path, seconds=0.0, lease_s=1.0)
    still = started(partial(open_job, stopping=NAMES[0]))
    until(lambda: len(asked(tmp_path)) > 0)
    assert ended(started(open_job, once=True)) == [0]
    assert kept_texts(memory) == TEXTS
    assert still.pid is not None
    before = len(asked(tmp_path))
    os.kill(still.pid, signal.SIGCONT)
    os.kill(still.pid, signal.SIGTERM)
    assert ended(still) == [0]
    assert asked(tmp_path)[before:] == []
    assert paid_twice(tmp_path) == []
    memory.close()


def test_workers_that_die_are_started_again_until_what_kills_them_has_failed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    memory = Memory.open(url, base=tmp_path)
    seal(memory, ["ann", "bob"])
    pace = Pace(batch=2, wait_ms=0, poll_ms=20, lease_s=2.0, max_claims=2)
    open_job = partial(small_job, tmp_path, url, deadly="bob", pace=pace)
    parent = PROCESSES.Process(target=supervise_here, args=(open_job, 1, True))
    parent.start()
    assert ended(parent) == [0]
    assert kept_texts(memory) == [("summary", "ann", 0)]
    assert asked(tmp_path).count(("summary", "bob", 0)) == 2
    with memory.reading() as connection:
        failed = connection.exec_driver_sql("SELECT failure FROM partitions WHERE failure IS NOT NULL").scalars().all()
    assert failed == ["no worker survived it (2 claims)"]
    assert waiting_rows(memory) == {}
    memory.close()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)], ids=["SIGTERM", "SIGKILL"]
)
def test_workers_end_what_they_have_begun_and_exit_when_their_parent_is_asked_to_or_dies(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    url = f"sqlite:///{tmp_path / 'memory.db'}"
    memory = memory_of(url, tmp_path)
    parent = PROCESSES.Process(target=supervise_here, args=(opener(url, tmp_path, seconds=0.1), 2, False))
    parent.start()
    until(lambda: len({one.pid for one in calls(tmp_path)}) == 2)
    assert parent.pid is not None
    os.kill(parent.pid, number)
    assert ended(parent) == [code]
    until(lambda: not any(is_alive(one.pid) for one in calls(tmp_path)))
    assert {row.lease_owner for row in waiting_rows(memory).values()} <= {None}
    assert paid_twice(tmp_path) == []
    assert [one.what for one in calls(tmp_path)].count("kept") == len(asked(tmp_path))
    memory.close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"
