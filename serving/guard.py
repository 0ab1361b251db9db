"""Reads of the online store that end in time: a store that is slow or away costs a request a bounded wait, or none.

After some failures in a row the store counts as away and nobody waits for it; from time to time one read tries again.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue

from liber_feast.errors import OnlineStoreAway
from liber_feast.service_schema import Schema
from serving.online import FeatureReader, OnlineRow

FAILURE_LIMIT, REST_S, READER_COUNT = 5, 5.0, 4
Read = Callable[[Sequence[str]], list[OnlineRow]]


class CircuitBreaker:
    """Counts failures in a row; open after `failures` of them, it lets one attempt through every `rest_s` seconds."""

    def __init__(
        self, *, failures: int = FAILURE_LIMIT, rest_s: float = REST_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit, self._rest_s, self._clock = failures, rest_s, clock
        self._failures, self._next_attempt = 0, 0.0
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the store counts as away."""
        return self._failures >= self._limit

    def allows(self) -> bool:
        """Say whether to try now; while open, that takes the one attempt of this time."""
        with self._lock:
            now = self._clock()
            if self.is_open and now < self._next_attempt:
                return False
            self._next_attempt = now + self._rest_s
            return True

    def record(self, *, is_answered: bool) -> None:
        """Take the outcome of an attempt."""
        with self._lock:
            self._failures = 0 if is_answered else self._failures + 1


class StoreGuard:
    """Runs reads in threads of its own, few and daemonic; safe to use from several threads.

    A read that hangs keeps neither a request nor the end of the process waiting. There is one guard per process,
    whatever is served.
    """

    def __init__(self, *, timeout_s: float, breaker: CircuitBreaker | None = None) -> None:
        self.timeout_s, self.breaker = timeout_s, breaker or CircuitBreaker()
        self._waiting: SimpleQueue[tuple[Future[list[OnlineRow]], Read, Sequence[str]]] = SimpleQueue()
        for number in range(READER_COUNT):
            threading.Thread(target=self._work, name=f"online-reader-{number}", daemon=True).start()

    def within_time(self, read: Read, ids: Sequence[str]) -> list[OnlineRow]:
        """Return the rows that `read` returns.

        Raises:
            OnlineStoreAway: the store does not answer in time, or did not just before.
        """
        if not ids:
            return []
        if not self.breaker.allows():
            raise OnlineStoreAway("the online store did not answer some reads in a row.")
        future: Future[list[OnlineRow]] = Future()
        self._waiting.put((future, read, ids))
        try:
            rows = future.result(self.timeout_s)
        except (OnlineStoreAway, TimeoutError) as error:
            future.cancel()
            self.breaker.record(is_answered=False)
            if isinstance(error, OnlineStoreAway):
                raise
            raise OnlineStoreAway(f"the online store did not answer within {self.timeout_s:g} s.") from error
        self.breaker.record(is_answered=True)
        return rows

    def _work(self) -> None:
        while True:
            future, read, ids = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(read(ids))
            except Exception as error:  # noqa: BLE001 (it is raised where the read was asked for)
                future.set_exception(error)


class GuardedFeatures:
    """A feature reader whose reads of users and items are guarded; what no request waits for is read as it is."""

    def __init__(self, features: FeatureReader, *, guard: StoreGuard) -> None:
        self._features, self._guard = features, guard

    @property
    def service(self) -> str:
        """The name of the feature service."""
        return self._features.service

    @property
    def user_features(self) -> frozenset[str]:
        """The names of all features that are kept by user."""
        return self._features.user_features

    @property
    def item_features(self) -> frozenset[str]:
        """The names of all features that are kept by item."""
        return self._features.item_features

    def users(self, user_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the features of users, in their order; raises as `StoreGuard.within_time`."""
        return self._guard.within_time(self._features.users, user_ids)

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        """Return the attributes of items, in their order; raises as `StoreGuard.within_time`."""
        return self._guard.within_time(self._features.items, item_ids)

    def published_versions(self, view_name: str, feature: str) -> frozenset[str]:
        """Return what the reader behind returns."""
        return self._features.published_versions(view_name, feature)

    def current_schema(self) -> Schema:
        """Return what the reader behind returns."""
        return self._features.current_schema()
