"""Drain what pushes leave waiting, in a thread of their process (`on_the_fly: background`)."""

import atexit
import os
import threading

from liber_feast.materialize import Job
from liber_feast.worker import Worker, say

LOOK_S = 5.0
"""How often the thread looks for what other processes left."""
EXIT_S = 5.0
"""How long the process waits at its exit for the batch that is under way and for what waits."""


class BackgroundDrain:
    """The thread of one job; keep it as long as the job, and `kick` it after every push that was committed.

    The thread starts with the first kick, and anew in a forked process: gunicorn forks after the import. A fork waits,
    for at most EXIT_S seconds, until the thread is between two batches: what a library holds locked at that moment,
    SQLite for one, would be locked in the new process for ever. It claims as `liber worker` does, so that any number of
    processes may have one. At exit it has EXIT_S seconds to end; what is not done then waits for the next process.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop, self._kicked = threading.Event(), threading.Event()
        self._is_retired = False
        self._stepping, self._forking = threading.RLock(), threading.local()
        os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._reset)
        atexit.register(self.stop)

    def kick(self) -> None:
        """Let the thread look for what waits, now; it returns at once."""
        with self._lock:
            self._kicked.set()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="background drain", daemon=True)
                self._thread.start()

    def stop(self, *, patience_s: float = EXIT_S) -> None:
        """Let the thread do what waits, for at most `patience_s` seconds, and end it."""
        thread = self._thread
        if thread is None:
            return
        self._stop.set()
        self._kicked.set()
        thread.join(patience_s)

    def retire(self) -> None:
        """Let the thread end its batch, and close the job; nobody is to kick it any more."""
        with self._lock:
            self._is_retired = True
            self._stop.set()
            self._kicked.set()
            if self._thread is None or not self._thread.is_alive():
                self._job.close()
        atexit.unregister(self.stop)

    def _hold(self) -> None:
        self._forking.is_held = self._stepping.acquire(timeout=EXIT_S)

    def _let_go(self) -> None:
        if self._forking.is_held:
            self._stepping.release()

    def _reset(self) -> None:
        """Have no thread: this process is new. Whatever the other one's threads held is not held here."""
        self._lock, self._stepping, self._thread = threading.Lock(), threading.RLock(), None
        self._stop, self._kicked = threading.Event(), threading.Event()

    def _run(self) -> None:
        worker = Worker(self._job, stop=self._stop, say=_say)
        while True:
            self._kicked.clear()  # before the look at the stop: whoever stops kicks after
            is_last = self._stop.is_set()
            while not self._is_retired and self._step(worker):
                pass
            if is_last:
                break
            self._kicked.wait(LOOK_S)
        with self._lock:
            if self._is_retired:
                self._job.close()

    def _step(self, worker: Worker) -> int:
        with self._stepping:
            return worker.step()


def _say(line: str) -> None:
    """Say errors alone: a server's log is not for every batch."""
    if line.startswith("Warning"):
        say(line)
