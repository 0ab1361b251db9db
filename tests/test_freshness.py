"""Freshness: seconds from the push that filled a cache to its vector being readable online; in status and metrics."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from liber_feast import stream_metrics
from liber_feast.behavior import RatingScale, check_behaviors
from liber_feast.materialize import Report
from liber_feast.memory import Appended, Memory
from liber_feast.memory.claims import claim
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import partitions
from liber_feast.memory.status import Freshness, freshness, mark_online, stream_status
from tests import services
from tests.failure_parts import row_sinks
from tests.memory_parts import START, TWO, behavior, table_of
from tests.worker_parts import seal, small_job, waiting_rows

memory_url = services.memory_url
PUSHED = 1_700_000_000_000_000


@pytest.fixture
def memory(memory_url: str, tmp_path: Path) -> Iterator[Memory]:
    opened = Memory.open(memory_url, base=tmp_path)
    yield opened
    opened.close()


def push(memory: Memory, user: str, *, count: int, start: int = 0, pushed_time: int | None = PUSHED) -> None:
    stream = [behavior(second, user=user) for second in range(start, start + 2 * count)]
    memory.append(table_of(stream), condition=TWO, pushed_time=pushed_time)


def online_times(memory: Memory) -> list[int | None]:
    query = sa.select(partitions.c.online_time).order_by(partitions.c.user_key, partitions.c.partition_index)
    with memory.reading() as connection:
        return list(connection.scalars(query))


def test_a_partition_is_online_once_and_later_marks_change_nothing(memory: Memory) -> None:
    push(memory, "ann", count=3)
    for keys, seconds, took in (([(1, 0), (1, 1), (1, 0)], 2, [2.0, 2.0]), ([(1, 1), (1, 2)], 5, [5.0]), ([], 6, [])):
        with memory.writing() as connection:
            assert mark_online(connection, keys, now=PUSHED + seconds * 1_000_000) == took
    assert online_times(memory) == [PUSHED + seconds * 1_000_000 for seconds in (2, 2, 5)]
    with memory.reading() as connection:
        assert freshness(connection) == Freshness(count=3, p50_s=2.0, p99_s=4.94)
        assert freshness(connection, last=1) == Freshness(count=1, p50_s=5.0, p99_s=5.0)


def test_what_was_materialized_has_no_freshness(memory: Memory) -> None:
    push(memory, "ann", count=2, pushed_time=None)
    with memory.writing() as connection:
        assert mark_online(connection, [(1, 0), (1, 1)], now=PUSHED) == []
        assert freshness(connection) == Freshness(count=0, p50_s=None, p99_s=None)
    assert online_times(memory) == [None, None]


def test_a_clock_that_went_back_is_no_negative_freshness(memory: Memory) -> None:
    push(memory, "ann", count=1)
    with memory.writing() as connection:
        assert mark_online(connection, [(1, 0)], now=PUSHED - 9) == [0.0]
        assert freshness(connection).p99_s == 0.0


def test_the_status_says_who_waits_who_is_worked_on_and_what_was_odd(memory: Memory) -> None:
    with memory.reading() as connection:
        assert {name: value for name, value in stream_status(connection).items() if value} == {}
    seal(memory, ["ann", "bob", "cid"])
    stream = [behavior(9, user="ann", name="x"), behavior(9, user="ann", name="y")]
    memory.append(table_of(stream), condition=TWO)
    claim(memory, limit=1)
    claim(memory, limit=1, seconds=-1)
    with memory.reading() as connection:
        found = stream_status(connection)
    assert (found["waiting_users"], found["leased_users"], found["tied_behaviors"]) == (3, 1, 1)
    assert 0 <= found["oldest_waiting_s"] < 60


def test_a_push_is_online_when_its_job_is_done_and_the_metric_counts_it(tmp_path: Path) -> None:
    job = replace(small_job(tmp_path, "sqlite:///memory.db"), tables=row_sinks())
    before = REGISTRY.get_sample_value("liber_freshness_seconds_count") or 0
    with job.memory.reading() as connection:
        pushed_time = now_us(connection) - 3_000_000
    stream = [behavior(second) for second in range(4)]
    report = Report()
    checked = check_behaviors(table_of(stream), scale=RatingScale(), now=START.replace(year=2025))
    appended = job.append(checked, report, pushed_time=pushed_time)
    job.drain(report, user_keys=appended.user_keys)
    assert waiting_rows(job.memory) == {}
    with job.memory.reading() as connection:
        found = stream_status(connection)
    assert found["freshness_count"] == 2
    assert 3.0 <= found["freshness_p50_s"] <= found["freshness_p99_s"] < 60
    assert REGISTRY.get_sample_value("liber_freshness_seconds_count") == before + 2


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_what_comes_in_is_counted_by_kind() -> None:
    kinds = ("new", "duplicate", "late", "ahead", "tied", "forgotten")
    before = [sample("liber_behaviors_total", kind=kind) for kind in kinds]
    sealed = sample("liber_partitions_sealed_total")
    stream_metrics.record_append(
        Appended(
            behavior_count=9,
            duplicate_count=1,
            late_count=2,
            ahead_count=3,
            tied_count=4,
            forgotten_count=5,
            sealed_count=6,
        )
    )
    stream_metrics.record_append(Appended())
    after = [sample("liber_behaviors_total", kind=kind) for kind in kinds]
    assert [new - old for new, old in zip(after, before, strict=True)] == [9, 1, 2, 3, 4, 5]
    assert sample("liber_partitions_sealed_total") == sealed + 6


def test_claims_writes_and_retries_are_counted_by_their_words() -> None:
    before = [sample("liber_claims_total", outcome="lost"), sample("liber_memory_retries_total", reason="away")]
    stream_metrics.record_claim("lost", 2)
    stream_metrics.record_claim("lost", 0)
    stream_metrics.record_memory_retry("away")
    after = [sample("liber_claims_total", outcome="lost"), sample("liber_memory_retries_total", reason="away")]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1]
    writes = sample("liber_publish_seconds_count", stage="fused", kind="delta")
    stream_metrics.record_publish(stage="fused", sink="delta", seconds=0.01)
    assert sample("liber_publish_seconds_count", stage="fused", kind="delta") == writes + 1
    stream_metrics.set_waiting(7)
    assert sample("liber_waiting_users") == 7
