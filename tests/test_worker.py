"""A worker's batches: who is in them, what becomes of errors, and when it ends. And the thread that does the same."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest

from liber_feast.background import BackgroundDrain
from liber_feast.errors import BackendUnreachable, BudgetExhausted, MemoryAway, OnlineStoreAway
from liber_feast.interest import Answers, LearnedText, SummaryRequest
from liber_feast.materialize import Job, Report
from liber_feast.memory import Memory
from liber_feast.memory.claims import claim
from liber_feast.pace import Pace
from liber_feast.worker import PAUSE_S, Worker, run_worker
from tests.failure_parts import row_sinks
from tests.memory_parts import EchoLearner, OnlineRows
from tests.worker_parts import asked, calls, kept_texts, let_claims_end, seal, small_job, waiting_rows

PACE = Pace(batch=3, wait_ms=0, poll_ms=10, lease_s=5.0)


def job_in(folder: Path, *, pace: Pace = PACE) -> Job:
    return replace(small_job(folder, "sqlite:///memory.db", pace=pace), tables=row_sinks())


@dataclass(kw_only=True)
class Waits:
    """A stop that never comes; `meanwhile` happens during the first wait, and every wait is written down."""

    meanwhile: Callable[[], object] = lambda: None
    waits: list[float] = field(default_factory=list)
    at_most: int = 100

    def is_set(self) -> bool:
        return len(self.waits) >= self.at_most

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        if len(self.waits) == 1:
            self.meanwhile()
        return self.is_set()


def test_a_worker_takes_up_a_batch_at_a_time_and_says_one_line_for_each(tmp_path: Path) -> None:
    job, lines = job_in(tmp_path), list[str]()
    seal(job.memory, ["ann", "bob", "cid", "dora"], partitions=2)
    worker = Worker(job, stop=Waits(), say=lines.append)
    assert [worker.step() for _ in range(3)] == [3, 1, 0]
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "users=3 summaries=6 shifts=3 encoded=9 rows=21",
        "users=1 summaries=2 shifts=1 encoded=3 rows=7",
    ]
    assert (worker.report.summary_count, worker.report.shift_count, worker.report.encoded_count) == (8, 4, 12)
    assert worker.report.published == {"summary": 8, "shift": 4, "vector": 8, "fused": 8}
    assert waiting_rows(job.memory) == {}
    assert isinstance(job.online, OnlineRows)
    assert set(job.online.rows["fused_vector"]) == {"ann", "bob", "cid", "dora"}


def test_users_who_come_soon_join_a_batch_that_is_not_full(tmp_path: Path) -> None:
    job = job_in(tmp_path, pace=replace(PACE, wait_ms=10_000, lease_s=60.0))
    seal(job.memory, ["ann"])
    stop = Waits(meanwhile=lambda: seal(job.memory, ["bob", "cid", "dora"]))
    assert Worker(job, stop=stop).step() == 3
    assert len(stop.waits) == 1
    assert 0 < stop.waits[0] <= 10.0
    assert set(waiting_rows(job.memory)) == {"dora"}


@pytest.mark.parametrize("names", [["ann"], ["ann", "bob", "cid"]], ids=["an old one", "a full one"])
def test_a_batch_that_has_waited_or_is_full_waits_for_nobody(tmp_path: Path, names: list[str]) -> None:
    job = job_in(tmp_path, pace=replace(PACE, wait_ms=100 if len(names) == 1 else 1_000))
    seal(job.memory, names)
    if len(names) == 1:
        time.sleep(0.11)
    stop = Waits()
    assert Worker(job, stop=stop).step() == len(names)
    assert stop.waits == []


class GoneLearner(EchoLearner):
    """Cannot be reached."""

    def _answer(self, text: str) -> LearnedText:
        raise BackendUnreachable(f"nobody answers {len(text)} characters")


class BrokeLearner(EchoLearner):
    """Has no budget."""

    def _answer(self, text: str) -> LearnedText:
        raise BudgetExhausted(f"no more for {len(text)} characters", limit="the 0 calls of this day")


@pytest.mark.parametrize(
    ("learner", "said"),
    [(GoneLearner(), "Warning: nobody answers"), (BrokeLearner(), "stopped at the 0 calls of this day")],
    ids=["away", "no budget"],
)
def test_users_whose_texts_cannot_be_had_now_are_put_off_and_stop_nobody(
    tmp_path: Path, learner: EchoLearner, said: str
) -> None:
    job, lines = job_in(tmp_path), list[str]()
    seal(job.memory, ["ann", "bob"])
    Worker(replace(job, learner=learner), stop=Waits(), say=lines.append).run(once=True)
    assert any(said in line for line in lines)
    assert {name: row.claim_count for name, row in waiting_rows(job.memory).items()} == {"ann": 0, "bob": 0}
    seal(job.memory, ["cid"])
    Worker(job, stop=Waits()).run(once=True)
    assert set(waiting_rows(job.memory)) == {"ann", "bob"}
    job.drain(Report())
    assert waiting_rows(job.memory) == {}


@dataclass(kw_only=True)
class AwayOnline:
    """An online store that is away for so many writes."""

    inner: OnlineRows
    writes: int

    def write(self, view: str, rows: object, **order: object) -> None:
        self._answer()
        self.inner.write(view, rows, **order)  # type: ignore[arg-type]

    def write_together(self, rows: Mapping[str, pa.Table]) -> None:
        self._answer()
        self.inner.write_together(rows)

    def _answer(self) -> None:
        self.writes -= 1
        if self.writes >= 0:
            raise OnlineStoreAway("The online store does not answer.")


def test_a_store_that_is_away_is_waited_for_longer_each_time_and_the_worker_goes_on(tmp_path: Path) -> None:
    job, lines = job_in(tmp_path), list[str]()
    online = AwayOnline(inner=OnlineRows(), writes=2)
    seal(job.memory, ["ann"])
    stop = Waits(at_most=2)
    worker = Worker(replace(job, online=online), stop=stop, say=lines.append)
    worker.run()
    assert "Warning: The online store does not answer." in lines
    assert stop.waits[0] == PAUSE_S[0]
    row = waiting_rows(job.memory)["ann"]
    assert (row.lease_owner, row.claim_count) == (None, 0)
    job.drain(Report())
    assert waiting_rows(job.memory) == {}
    assert asked(tmp_path) == [("summary", "ann", 0)]


def test_a_worker_that_is_asked_to_stop_claims_nobody(tmp_path: Path) -> None:
    job, stop = job_in(tmp_path), threading.Event()
    seal(job.memory, ["ann"])
    stop.set()
    Worker(job, stop=stop).run()
    assert waiting_rows(job.memory)["ann"].lease_owner is None
    assert asked(tmp_path) == []


def test_once_waits_for_those_whom_another_process_has_and_takes_them_where_it_died(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    seal(job.memory, ["ann", "bob"])
    assert claim(job.memory, limit=1).numbers
    stop = Waits(meanwhile=lambda: let_claims_end(job.memory))
    Worker(job, stop=stop).run(once=True)
    assert stop.waits
    assert waiting_rows(job.memory) == {}


@dataclass(kw_only=True)
class PoisonedLearner(EchoLearner):
    """Breaks at the first partition of one user, in a way that nobody foresaw."""

    poison: str = "bob"

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for one in requests:
            if (one.user_id, one.partition_index) == (self.poison, 0):
                raise ZeroDivisionError
            yield [(one, LearnedText(text=f"{one.user_id} {one.partition_index}"))]


def test_a_poison_partition_fails_after_its_attempts_and_stops_nobody(tmp_path: Path) -> None:
    job = replace(job_in(tmp_path, pace=replace(PACE, batch=4, max_claims=3)), learner=PoisonedLearner())
    seal(job.memory, ["ann", "bob", "cid"], partitions=2)
    deaths = 0
    for _ in range(20):
        try:
            Worker(job, stop=Waits()).run(once=True)
        except ZeroDivisionError:
            deaths += 1
            with job.memory.writing() as connection:
                connection.exec_driver_sql("UPDATE waiting SET not_before = 0")  # nobody waits in this test
    assert deaths == 3
    assert waiting_rows(job.memory) == {}
    texts = kept_texts(job.memory)
    assert [text for text in texts if text[0] == "summary"] == [
        *(("summary", name, index) for name in ("ann", "bob", "cid") for index in (0, 1) if (name, index) != ("bob", 0))
    ]
    with job.memory.reading() as connection:
        reasons = connection.exec_driver_sql("SELECT failure FROM partitions WHERE failure IS NOT NULL").scalars().all()
    assert reasons == ["no worker survived it (3 claims)"]


def test_a_worker_whose_memory_is_away_when_it_starts_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("liber_feast.worker.PAUSE_S", (0.01, 0.02))
    answers = [MemoryAway("The memory does not answer."), MemoryAway("Nor now."), job_in(tmp_path)]
    memory = Memory.open("sqlite:///memory.db", base=tmp_path)
    seal(memory, ["ann"])

    def open_job() -> Job:
        answer = answers.pop(0)
        if isinstance(answer, MemoryAway):
            raise answer
        return answer

    run_worker(open_job, once=True)
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == ["Warning: The memory does not answer.", "Warning: Nor now."]
    assert said[-1].startswith("worker 0: ")
    assert waiting_rows(memory) == {}
    memory.close()


def until(holds: Callable[[], bool], *, patience_s: float = 10.0) -> None:
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_thread_in_the_background_works_when_it_is_kicked_and_ends_with_nothing_left(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    drain = BackgroundDrain(job)
    seal(job.memory, ["ann"])
    assert "ann" in waiting_rows(job.memory)
    drain.kick()
    until(lambda: not waiting_rows(job.memory))
    seal(job.memory, ["bob"])
    drain.stop()
    assert waiting_rows(job.memory) == {}
    assert kept_texts(job.memory) == [("summary", "ann", 0), ("summary", "bob", 0)]
    assert asked(tmp_path) == [("summary", "ann", 0), ("summary", "bob", 0)]


def test_a_thread_that_was_never_kicked_has_nothing_to_stop(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    seal(job.memory, ["ann"])
    BackgroundDrain(job).stop()
    assert set(waiting_rows(job.memory)) == {"ann"}


def test_a_forked_process_has_a_thread_of_its_own(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    drain = BackgroundDrain(job)
    seal(job.memory, ["ann"])
    drain.kick()
    until(lambda: not waiting_rows(job.memory))
    child = os.fork()
    if child == 0:
        seal(job.memory, ["bob"])
        drain.kick()
        drain.stop()
        os._exit(len(waiting_rows(job.memory)))
    assert os.waitpid(child, 0)[1] == 0
    drain.stop()
    assert kept_texts(job.memory) == [("summary", "ann", 0), ("summary", "bob", 0)]
    assert {one.pid for one in calls(tmp_path)} == {os.getpid(), child}


def test_a_process_may_be_forked_while_the_thread_works(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    drain = BackgroundDrain(job)
    for number in range(25):
        seal(job.memory, [f"parent{number}"])
        drain.kick()
        child = os.fork()  # at any moment of the thread, which claims, learns and publishes now
        if child == 0:
            seal(job.memory, [f"child{number}"])
            os._exit(0)
        deadline = time.monotonic() + 20
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.002)
        assert ended[1] == 0, "the new process waits for a lock that nobody in it holds"
    drain.stop()
    assert {user for _, user, _ in kept_texts(job.memory)} >= {f"parent{number}" for number in range(25)}
