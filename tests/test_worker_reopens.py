"""A worker whose feature repo changed: another one is started on what lies there now, or it says why it goes on."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from liber_feast.background import BackgroundDrain
from liber_feast.errors import ConfigError
from liber_feast.materialize import Job
from liber_feast.origin import FileContent, Origin
from liber_feast.worker import REOPEN, Crew, Signals, Worker
from tests.failure_parts import row_sinks
from tests.test_worker import PACE, Waits, until
from tests.worker_parts import seal, small_job, waiting_rows


@dataclass(kw_only=True)
class Repo:
    """A feature repo whose configuration is one file; `refused` is what is said of it as it is now."""

    folder: Path
    refused: str | None = None
    opened: int = 0
    lines: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        return self.folder / "feature_store.yaml"

    def open(self) -> Job:
        self.opened += 1
        if self.refused:
            raise ConfigError(self.refused)
        origin = Origin(parts={"feature_store.yaml": FileContent(path=self.path)}, every_s=0.0)
        job = small_job(self.folder, "sqlite:///memory.db", pace=PACE)
        return replace(job, tables=row_sinks(), origin=origin)

    def work(self, *, meanwhile: Callable[[], object], at_most: int = 3) -> bool:
        """Run a worker until its wait number `at_most`, with something happening in the first one."""
        worker = Worker(self.open(), stop=Waits(meanwhile=meanwhile, at_most=at_most), say=self.lines.append)
        return worker.run(open_job=self.open)


def repo_in(folder: Path) -> Repo:
    repo = Repo(folder=folder)
    repo.path.write_text("one")
    return repo


def test_a_worker_whose_configuration_changed_ends_so_that_another_one_is_started(tmp_path: Path) -> None:
    repo = repo_in(tmp_path)
    assert repo.work(meanwhile=lambda: repo.path.write_text("two"))
    assert repo.lines == ["feature_store.yaml changed: the feature repo is opened anew."]
    assert not repo.work(meanwhile=lambda: None)


def test_a_configuration_that_cannot_be_used_is_said_once_and_the_worker_goes_on_until_it_can(tmp_path: Path) -> None:
    repo = repo_in(tmp_path)
    job = repo.open()

    def spoil() -> None:
        repo.path.write_text("two")
        repo.refused = "batch_engine.size: no such key."
        seal(job.memory, ["ann"])

    assert not repo.work(meanwhile=spoil, at_most=5)
    warning, batch = repo.lines
    assert warning == (
        "Warning: feature_store.yaml changed, and cannot be used as it is now: batch_engine.size: no such key."
        " This worker goes on with what it has read before."
    )
    assert batch.startswith("users=1 summaries=1")
    assert waiting_rows(job.memory) == {}
    repo.refused = None
    worker = Worker(repo.open(), stop=Waits(at_most=5), say=repo.lines.append)
    repo.refused = "Still not."
    repo.path.write_text("three")
    worker.stop.wait(0)

    def mend() -> None:
        repo.refused = None
        repo.path.write_text("four")

    worker.stop = Waits(meanwhile=mend, at_most=5)
    assert worker.run(open_job=repo.open)
    assert ["Still not" in line for line in repo.lines[2:]] == [True, False]


def test_a_memory_that_is_replaced_is_opened_anew_and_one_that_is_gone_is_waited_for(tmp_path: Path) -> None:
    repo = repo_in(tmp_path)
    memory = tmp_path / "memory.db"
    assert repo.work(meanwhile=lambda: memory.rename(tmp_path / "away.db"))
    assert repo.lines == ["the memory changed: the feature repo is opened anew."]  # an empty one is made
    repo.lines.clear()

    def lose() -> None:
        memory.unlink()
        repo.refused = "There is no registry."

    assert not repo.work(meanwhile=lose, at_most=3)
    assert repo.lines[0] == "Warning: the memory changed, and cannot be used as it is now: There is no registry."
    assert repo.lines[1].startswith(f"Warning: The memory {memory} was replaced while this process had it open.")


def ends(code: int) -> None:
    raise SystemExit(code)


def test_a_process_that_ends_for_a_change_is_followed_by_another_one_at_once_and_has_not_died(tmp_path: Path) -> None:
    context, started = multiprocessing.get_context("fork"), list[int]()

    def start(number: int) -> multiprocessing.process.BaseProcess:
        started.append(number)
        process = context.Process(target=partial(ends, REOPEN if len(started) <= 30 else 0))
        process.start()
        return process

    assert Crew(start=start, concurrency=2, stop=Signals()).run() == 0
    assert len(started) == 30 + 2


def test_a_thread_in_the_background_that_is_retired_ends_its_batch_and_closes_its_job(tmp_path: Path) -> None:
    job = repo_in(tmp_path).open()
    drain = BackgroundDrain(job)
    seal(job.memory, ["ann"])
    drain.kick()
    until(lambda: waiting_rows(job.memory) == {})
    thread = drain._thread
    assert thread is not None
    drain.retire()
    thread.join(10)
    assert not thread.is_alive()
    assert job.memory.engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # of the pool of a file
