"""Workers: they claim users of whom something waits, and make and publish it; in this process, or as processes.

A worker is stopped by asking it: it claims no more and ends what it has begun. One that dies leaves its claim, which
ends by itself; see `memory.claims`.
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Protocol

from liber_feast.errors import LiberError, MemoryAway, RetryableError
from liber_feast.materialize import Job, Report
from liber_feast.memory import claims
from liber_feast.memory.claims import Claim
from liber_feast.run_display import worker_metrics

if TYPE_CHECKING:
    from liber_feast.origin import Changes

PAUSE_S = (0.5, 30.0)
"""The shortest and the longest pause after an error."""
PATIENCE_S = 30.0
"""How long an LLM that does not answer is waited for, beside calls under way; then its users are put off."""
RESTART_S = (1.0, 30.0)
"""The same before a process that died is started again."""
REOPEN = 75
"""The exit code of a process whose feature repo has changed: another one is started at once."""
LIVED_S = 60.0
"""A process that lived this long has not died at its start."""
RESTARTS = 10
"""Within LIVED_S; one more and the workers end."""

OpenJob = Callable[[], Job]
"""Opens the job of a feature repo as it is now, in the process that is to work on it."""


class Stop(Protocol):
    """Something that can be waited for; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Return whether it has happened."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait until it happens, or so many seconds; return whether it has."""
        ...


class Signals:
    """Happens with SIGTERM, SIGINT, and the end of the parent process.

    A lock, as an Event has, would be a trap for a signal's handler: it interrupts whoever holds it.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        parent = multiprocessing.parent_process()
        self._watched: list[int] = [self.reader, *([parent.sentinel] if parent else [])]

    def set(self, *_signal: object) -> None:
        """Let it happen."""
        os.write(self._writer, b"x")

    def is_set(self) -> bool:
        """Return whether it has happened."""
        return self.wait(0)

    def wait(self, timeout: float) -> bool:
        """Wait until it happens, or so many seconds; return whether it has."""
        return bool(wait(self._watched, timeout))

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals of this process for the block, once."""
        before = {one: signal.signal(one, self.set) for one in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
            os.close(self.reader)
            os.close(self._writer)


class Worker:
    """Works on what waits, batch by batch, until it is stopped.

    Attributes:
        report: what was done in all.
    """

    def __init__(self, job: Job, *, stop: Stop, say: Callable[[str], object] = lambda _line: None) -> None:
        self.job, self.stop, self.say = job, stop, say
        self.report = Report()
        self._pause_s = 0.0
        self._refused: Changes = {}

    def run(self, *, once: bool = False, open_job: OpenJob | None = None) -> bool:
        """Work until the stop, or `once` until nobody waits any more; users who were put off do not count.

        Return whether it ended because what the job was made from has changed, and `open_job` can make another one.
        """
        while not self.stop.is_set():
            if open_job is not None and self._is_outdated(open_job):
                return True
            if self.step():
                continue
            if once and self._pause_s == 0 and not self._is_anyone_waiting():
                return False
            self.stop.wait(self._pause_s or self.job.pace.poll_ms / 1_000 * random.uniform(0.5, 1.5))
        return False

    def _is_outdated(self, open_job: OpenJob) -> bool:
        """Return whether another job is to be made; where it cannot, that is said once, and the old one goes on."""
        changes, is_replaced = self.job.origin.changes(), self.job.memory.is_replaced()
        if not is_replaced and changes == self._refused:
            return False
        self._refused = changes
        names = " and ".join([*changes, *["the memory"] * is_replaced])
        if not names:
            return False
        try:
            open_job().close()
        except LiberError as error:
            goes_on = "" if is_replaced else " This worker goes on with what it has read before."
            self.say(f"Warning: {names} changed, and cannot be used as it is now: {error.message}{goes_on}")
            return False
        self.say(f"{names} changed: the feature repo is opened anew.")
        return True

    def step(self) -> int:
        """Claim one batch and work on it; return how many users it had. An error is said, and followed by a pause."""
        try:
            claimed = self._claim()
            if claimed.numbers:
                self._work(claimed)
            self._pause_s = 0.0
            return len(claimed.numbers)
        except LiberError as error:
            self.say(f"Warning: {error.message}")
            self._pause_s = min(max(2 * self._pause_s, PAUSE_S[0]), PAUSE_S[1])
            return 0

    def _claim(self) -> Claim:
        """Claim a batch; where it is not full, users who come within the wait of the configuration join it."""
        config = self.job.pace
        claimed = self._claim_more(None)
        wait_s = min(config.wait_ms / 1_000 - claimed.waited_s, config.lease_s / 3)
        is_whole = not claimed.numbers or claimed.is_alone or len(claimed.numbers) >= config.batch
        if is_whole or wait_s <= 0 or self.stop.wait(wait_s):
            return claimed
        with suppress(RetryableError):  # what is claimed is not left for it
            claimed = self._claim_more(claimed)
        return claimed

    def _claim_more(self, claimed: Claim | None) -> Claim:
        config = self.job.pace
        return claims.claim(
            self.job.memory,
            seconds=config.lease_s,
            limit=config.batch - (len(claimed.numbers) if claimed else 0),
            max_claims=config.max_claims,
            joining=claimed,
        )

    def _work(self, claimed: Claim) -> None:
        report, start = Report(), time.perf_counter()
        try:
            self.job.work(report, claimed, patience_s=PATIENCE_S)
        finally:
            self.report.add(report)
            self.say(
                f"users={len(claimed.numbers)} summaries={report.summary_count} shifts={report.shift_count}"
                f" encoded={report.encoded_count} rows={sum(report.published.values())}"
                f" {time.perf_counter() - start:.1f} s{''.join(report.remarks())}"
            )

    def _is_anyone_waiting(self) -> bool:
        try:
            with self.job.memory.reading() as connection:
                return claims.is_anyone_waiting(connection)
        except RetryableError:
            return True


def run_worker(open_job: OpenJob, *, number: int = 0, once: bool = False) -> None:
    """Be worker `number` until SIGTERM or SIGINT, and say on stderr what was done."""
    stop = Signals()
    with stop.handled():
        job = _opened(open_job, stop)
        if job is None:
            return
        worker = Worker(job, stop=stop, say=say)
        with worker_metrics(job.exposed, number=number, count_pending=job.count_pending):
            is_outdated = worker.run(once=once, open_job=open_job)
        job.close()
        say(f"worker {number}: {worker.report.line()}")
    if is_outdated:
        sys.exit(REOPEN)


def _opened(open_job: OpenJob, stop: Stop) -> Job | None:
    """Open the job, as soon as its memory answers; None: the stop came before. Any other error ends the process."""
    pause_s = PAUSE_S[0]
    while not stop.is_set():
        try:
            return open_job()
        except MemoryAway as error:
            say(f"Warning: {error.message}")
        except LiberError as error:
            say(f"Error: {error.message}")
            sys.exit(error.exit_code)
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, PAUSE_S[1])
    return None


def supervise(open_job: OpenJob, *, concurrency: int = 1, once: bool = False) -> int:
    """Run worker processes until SIGTERM or SIGINT, or `once` until nobody waits; return the exit code.

    One that dies is started again. They are not forked: neither BERT nor a connection outlives that. On the signal each
    ends what it has begun; the code is 0 where all of them did.
    """
    stop = Signals()
    crew = Crew(start=lambda number: _start(open_job, number=number, once=once), concurrency=concurrency, stop=stop)
    with stop.handled():
        return crew.run()


class Crew:
    """Processes by number, each started again where it dies."""

    def __init__(self, *, start: Callable[[int], BaseProcess], concurrency: int, stop: Signals) -> None:
        self._start, self._stop = start, stop
        self._running: dict[int, tuple[BaseProcess, float]] = {}
        self._due = dict.fromkeys(range(concurrency), 0.0)
        self._deaths: dict[int, int] = {}
        self._restarts: deque[float] = deque()

    def run(self) -> int:
        """Run until the stop, or until every process has ended by itself; return the exit code."""
        while (self._running or self._due) and not self._stop.is_set():
            now = time.monotonic()
            for number in [one for one, at in self._due.items() if at <= now]:
                del self._due[number]
                self._running[number] = (self._start(number), now)
            next_start = min(self._due.values(), default=None)
            timeout = None if next_start is None else max(0.0, next_start - now)
            wait([self._stop.reader, *(process.sentinel for process, _ in self._running.values())], timeout)
            if not self._bury(time.monotonic()):
                say(f"Error: workers died more than {RESTARTS} times within {LIVED_S:.0f} s.")
                self._end()
                return 1
        return self._end()

    def _bury(self, now: float) -> bool:
        """Let processes that died be started again; return False where too many did."""
        for number, (process, started) in list(self._running.items()):
            if process.exitcode is None:
                continue
            del self._running[number]
            if process.exitcode == 0 or self._stop.is_set():
                continue
            if process.exitcode == REOPEN:
                self._due[number] = now
                continue
            self._deaths[number] = 1 if now - started > LIVED_S else self._deaths.get(number, 0) + 1
            pause = min(RESTART_S[0] * 2 ** (self._deaths[number] - 1), RESTART_S[1])
            say(f"Warning: worker {number} died (exit code {process.exitcode}); it is started again in {pause:.0f} s.")
            self._due[number] = now + pause
            self._restarts.append(now)
            while now - self._restarts[0] > LIVED_S:
                self._restarts.popleft()
        return len(self._restarts) <= RESTARTS

    def _end(self) -> int:
        """Ask all that run to end, and wait for it."""
        for process, _ in self._running.values():
            process.terminate()
        for process, _ in self._running.values():
            process.join()
        ended = (0, REOPEN, -signal.SIGTERM)  # the last: it was asked before it could listen
        return int(any(process.exitcode not in ended for process, _ in self._running.values()))


def say(line: str) -> None:
    """Write a line to stderr at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _start(open_job: OpenJob, *, number: int, once: bool) -> BaseProcess:
    options = {"number": number, "once": once}
    process = multiprocessing.get_context("spawn").Process(
        target=run_worker, args=(open_job,), kwargs=options, name=f"worker {number}"
    )
    process.start()
    return process
