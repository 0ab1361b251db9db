"""What a memory holds, and how many partitions wait for a text, as Prometheus sees it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from liber_feast import metrics, stream_metrics
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory import Memory
from liber_feast.memory.schema import partitions, recomputations
from liber_feast.memory.status import (
    behavior_kinds,
    failed_partition_count,
    freshness,
    pending_partition_count,
    waiting_user_count,
)
from liber_feast.memory.texts import has_summary_before, has_text

NOTICED_S = 0.05
"""Seconds of a count from which it is not made after every push."""
SHARE = 20
"""Such a count is made when this many times its seconds have passed since the one before."""


def waiting_partition_count(connection: sa.Connection) -> int:
    """Count the partitions that lack a text, or have one that is to be written anew, and have not failed."""
    return pending_partition_count(connection) + (connection.scalar(_redone()) or 0)


@cache
def _redone() -> sa.Select[Any]:
    is_complete = has_text(SUMMARY) & (has_text(SHIFT) | ~has_summary_before())
    key = (partitions.c.user_key, partitions.c.partition_index)
    marked = sa.select(recomputations.c.user_key, recomputations.c.partition_index).distinct().subquery("marked")
    return (
        sa.select(sa.func.count())
        .select_from(marked.join(partitions, sa.and_(*(one == marked.c[one.name] for one in key))))
        .where(partitions.c.failure.is_(None), is_complete)
    )


def show_memory(memory: Memory) -> None:
    """Set the gauges of what the memory has taken, of freshness and of failures; whoever shows them, they are its."""
    with memory.reading() as connection:
        stream_metrics.set_memory(behavior_kinds(connection))
        stream_metrics.set_freshness(freshness(connection))
        stream_metrics.set_failed(failed_partition_count(connection))


@dataclass(kw_only=True, slots=True)
class PendingGauge:
    """The gauges `liber_pending_partitions` and `liber_waiting_users` of one memory, and what a count of them costs."""

    clock: Callable[[], float] = time.monotonic
    seconds: float = 0.0
    """Of the last count."""
    _counted_at: float | None = None

    def count(self, memory: Memory) -> None:
        """Count, and show it."""
        start = self.clock()
        with memory.reading() as connection:
            metrics.set_pending_partitions(waiting_partition_count(connection))
            stream_metrics.set_waiting(waiting_user_count(connection))
        self._counted_at = self.clock()
        self.seconds = self._counted_at - start

    def count_after(self, memory: Memory, *, is_changed: bool) -> None:
        """Count after a drain: the first time, and whenever it changed something; where that takes long, less often."""
        if self._counted_at is not None:
            is_too_soon = self.seconds > NOTICED_S and self.clock() - self._counted_at < SHARE * self.seconds
            if is_too_soon or not is_changed:
                return
        self.count(memory)
