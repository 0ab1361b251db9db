"""Prometheus metrics of serving. Labels are routes, statuses and fixed words: no user, no item, no text.

Every worker process writes to files of one folder, so each of them shows the sums over all.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import feast.metrics  # noqa: F401  (names that folder, which has to come before the client library is imported)
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1, 10, 50, 100, 200, 500, 1_000, 2_000, 5_000)
_OURS = CollectorRegistry()
_IS_SHARED = values.ValueClass is not values.MutexValue
"""Whether metrics lie in files; not where somebody imported the client library before its folder was named."""

REQUESTS = Counter("liber_serving_requests", "Answered requests.", ("route", "status"), registry=_OURS)
REQUEST_SECONDS = Histogram(
    "liber_serving_request_seconds", "Seconds of answered requests.", ("route",), buckets=SECONDS, registry=_OURS
)
CANDIDATES = Counter("liber_serving_candidates", "Scored candidates.", registry=_OURS)
DEGRADED = Counter(
    "liber_serving_degraded", "Rankings made without something of the user, by what.", ("missing",), registry=_OURS
)
PASS_CANDIDATES = Histogram(
    "liber_serving_pass_candidates", "Candidates in one forward pass.", buckets=SIZES, registry=_OURS
)
SWAPS = Counter("liber_serving_swaps", "Attempts to serve other weights, by outcome.", ("outcome",), registry=_OURS)
WAITING = Gauge(
    "liber_serving_waiting_questions", "Questions in the queue.", registry=_OURS, multiprocess_mode="livesum"
)
STORE_AWAY = Gauge(
    "liber_serving_store_away",
    "1 while a process counts the online store as away.",
    registry=_OURS,
    multiprocess_mode="livemax",
)


def exposition() -> bytes:
    """Return the metrics of all worker processes in Prometheus' text format, or of this one where none are shared."""
    if not _IS_SHARED:
        return generate_latest(_OURS)
    _forget_killed()
    registry = CollectorRegistry()
    _Collector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


class _Collector(MultiProcessCollector):
    """Passes over the files that a process which starts has made and not filled yet: the library cannot read them."""

    def collect(self) -> Iterable[Metric]:
        files = [str(path) for path in Path(os.environ[FOLDER]).glob("*.db") if _size(path)]
        metrics: Iterable[Metric] = self.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
        return metrics


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # of a process that ended since
        return 0


def _forget_killed() -> None:
    """Take the gauges of processes that were killed, and could not `leave`, out of the sums."""
    for path in Path(os.environ[FOLDER]).glob("gauge_live*_*.db"):
        process = path.stem.rpartition("_")[2]
        if process.isdigit() and not _lives(int(process)):
            mark_process_dead(int(process))  # type: ignore[no-untyped-call]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's by now
        return True
    return True


def leave() -> None:
    """Take this process's gauges out of the sums; called when it ends."""
    mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
