"""Serve other weights without a restart: what a path leads to is looked at now and then, and taken when it fits.

The path is a run folder that a fit replaces, or a link that is pointed elsewhere; going back is pointing it back.
"""

import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from liber_feast.artifact import CONFIG
from liber_feast.errors import LiberError, one_line
from serving.metrics import SWAPS
from serving.service import Served, Service

REST_LOOKS = 4
"""How many looks pass before weights that were refused are tried again: the store may fit them by then."""
log = logging.getLogger(__name__)


class Watcher:
    """Looks at one run path for one service."""

    def __init__(self, service: Service, *, run: Path, reopen: Callable[[], Served]) -> None:
        self._service, self._run, self._reopen = service, run, reopen
        self._served = self._found()
        self._refused: tuple[str, str] | None = None
        self._rest = 0

    def start(self, *, every_s: float) -> None:
        """Look from a thread of its own, until the service is closed."""
        threading.Thread(target=self._work, args=(every_s,), name="run-watcher", daemon=True).start()

    def look(self) -> None:
        """Swap to what the path leads to, where it is not what is served; else leave what is served, and say why."""
        found = self._found()
        if found == self._served:
            self._service.model_problem = None
            return
        if found == self._refused and self._rest:
            self._rest -= 1
            return
        try:
            served = self._reopen()
        except Exception as error:  # noqa: BLE001 (whatever is wrong with it, the old weights go on)
            self._refused, self._rest = found, REST_LOOKS
            self._service.model_problem = error.message if isinstance(error, LiberError) else one_line(error)
            SWAPS.labels("refused").inc()
            log.warning("%s is not served: %s", self._run, self._service.model_problem)
            return
        self._service.swap(served)
        self._served, self._refused, self._service.model_problem = found, None, None
        SWAPS.labels("swapped").inc()
        log.info("serving %s, fusion %s", served.ranker.model.run, served.ranker.model.fusion_version)

    def _found(self) -> tuple[str, str]:
        """Return what tells one run from another: its name, and the hash of the file that has the hashes of all."""
        try:
            return self._run.resolve().name, hashlib.sha256((self._run / CONFIG).read_bytes()).hexdigest()
        except OSError:
            return self._run.name, ""

    def _work(self, every_s: float) -> None:
        while not self._service.closed.wait(every_s):
            self.look()
