"""Prometheus metrics of pushes, workers and publishing, beside those of LLM calls in `metrics`.

Labels are fixed words: no user, no item, no free reason.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from liber_feast.metrics import OURS

if TYPE_CHECKING:
    from liber_feast.memory.append import Appended
    from liber_feast.memory.status import Freshness

FRESHNESS_S = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histogram of freshness."""
PUBLISH_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_BEHAVIORS = Counter("liber_behaviors", "Behaviors that were sent, by what became of them.", ("kind",), registry=OURS)
_SEALED = Counter("liber_partitions_sealed", "Partitions that were sealed.", registry=OURS)
_FRESHNESS = Histogram(
    "liber_freshness_seconds",
    "From the push that filled a cache to its vector being readable online.",
    buckets=FRESHNESS_S,
    registry=OURS,
)
_WAITING = Gauge(
    "liber_waiting_users",
    "Users of whom something sealed is not yet readable online.",
    registry=OURS,
    multiprocess_mode="mostrecent",
)
_CLAIMS = Counter("liber_claims", "Users that were claimed, by how the claim ended.", ("outcome",), registry=OURS)
_PUBLISH = Histogram(
    "liber_publish_seconds",
    "Seconds of one write of published rows, to Delta or online.",
    ("stage", "kind"),
    buckets=PUBLISH_S,
    registry=OURS,
)
_RETRIES = Counter("liber_memory_retries", "Transactions that were tried again.", ("reason",), registry=OURS)
_MEMORY = Gauge(
    "liber_memory_behaviors",
    "Behaviors that the memory was sent, by what became of them; the same from every process.",
    ("kind",),
    registry=OURS,
    multiprocess_mode="mostrecent",
)
_QUANTILES = Gauge(
    "liber_memory_freshness_seconds",
    "Freshness of the partitions that became readable online last; the same from every process.",
    ("quantile",),
    registry=OURS,
    multiprocess_mode="mostrecent",
)
_FAILED = Gauge(
    "liber_failed_partitions",
    "Partitions of which a text failed.",
    registry=OURS,
    multiprocess_mode="mostrecent",
)
for _metric in (_BEHAVIORS, _SEALED, _FRESHNESS, _WAITING, _CLAIMS, _PUBLISH, _RETRIES, _MEMORY, _QUANTILES, _FAILED):
    REGISTRY.register(_metric)
for _outcome in ("done", "released", "lost", "poison"):  # a rate needs the zero before the first one
    _CLAIMS.labels(_outcome)


def record_append(appended: "Appended") -> None:
    """Count what an append took and sealed."""
    record_behaviors("new", appended.behavior_count)
    record_behaviors("duplicate", appended.duplicate_count)
    record_behaviors("late", appended.late_count)
    record_behaviors("ahead", appended.ahead_count)
    record_behaviors("tied", appended.tied_count)
    record_behaviors("forgotten", appended.forgotten_count)
    if appended.sealed_count:
        _SEALED.inc(appended.sealed_count)


def record_behaviors(kind: str, count: int) -> None:
    """Count behaviors: `new` (of these `late`, `ahead`, `tied`), `duplicate`, `forgotten` or `refused`."""
    if count:
        _BEHAVIORS.labels(kind).inc(count)


def record_freshness(seconds: float) -> None:
    """Count a partition that became readable online so long after the push that filled it."""
    _FRESHNESS.observe(seconds)


def set_waiting(count: int) -> None:
    """Say how many users wait."""
    _WAITING.set(count)


def set_memory(kinds: Mapping[str, int]) -> None:
    """Say how many behaviors the memory was sent, of each kind that `record_behaviors` knows."""
    for kind, count in kinds.items():
        _MEMORY.labels(kind).set(count)


def set_freshness(found: "Freshness") -> None:
    """Say how fresh the partitions are that became readable online last; nothing where there are none."""
    for quantile, seconds in (("0.5", found.p50_s), ("0.99", found.p99_s)):
        if seconds is not None:
            _QUANTILES.labels(quantile).set(seconds)


def set_failed(count: int) -> None:
    """Say of how many partitions a text failed."""
    _FAILED.set(count)


def record_claim(outcome: str, count: int) -> None:
    """Count users whose claim ended: `done`, `released`, `lost` or `poison`."""
    if count:
        _CLAIMS.labels(outcome).inc(count)


def record_publish(*, stage: str, sink: str, seconds: float) -> None:
    """Count a write of a stage's rows to a sink, `delta` or `online`."""
    _PUBLISH.labels(stage, sink).observe(seconds)


def record_memory_retry(reason: str) -> None:
    """Count a transaction that is tried again: `locked` or `away`."""
    _RETRIES.labels(reason).inc()
