"""The gauge of partitions that wait for a text: what it counts, and when it is worth a count."""

from pathlib import Path

import sqlalchemy as sa
from prometheus_client import REGISTRY

from liber_feast.memory import Memory
from liber_feast.memory.schema import partitions, recomputations
from liber_feast.pending import NOTICED_S, SHARE, PendingGauge, waiting_partition_count
from tests.memory_parts import append_all, behavior, learn_all, new_memory


def shown() -> float | None:
    return REGISTRY.get_sample_value("liber_pending_partitions")


def waiting(memory: Memory) -> int:
    with memory.reading() as connection:
        return waiting_partition_count(connection)


def mark(memory: Memory, *, index: int, stage: str) -> None:
    with memory.writing() as connection:
        key = sa.select(partitions.c.user_key).limit(1).scalar_subquery()
        row = {"user_key": key, "partition_index": index, "stage": stage, "asked_time": 1}
        connection.execute(recomputations.insert().values(**row))


def test_partitions_wait_for_a_missing_text_and_for_one_that_is_written_anew_and_each_once(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(second) for second in range(6)])
    assert waiting(memory) == 3
    learn_all(memory)
    assert waiting(memory) == 0
    mark(memory, index=1, stage="summary")
    assert waiting(memory) == 1
    mark(memory, index=1, stage="shift")
    assert waiting(memory) == 1
    append_all(memory, [behavior(second) for second in range(6, 8)])
    mark(memory, index=3, stage="summary")  # lacks its text anyway
    assert waiting(memory) == 2


def test_what_failed_waits_for_nothing(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(second) for second in range(4)])
    learn_all(memory)
    mark(memory, index=0, stage="summary")
    with memory.writing() as connection:
        connection.execute(partitions.update().values(failure="answer is empty"))
    assert waiting(memory) == 0


class Steps:
    """A clock that goes on by `step` whenever it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_they_are_counted_the_first_time_and_whenever_something_changed(tmp_path: Path) -> None:
    memory, gauge = new_memory(tmp_path), PendingGauge(clock=Steps(0.001))
    append_all(memory, [behavior(second) for second in range(4)])
    gauge.count_after(memory, is_changed=False)
    assert shown() == 2
    learn_all(memory)
    gauge.count_after(memory, is_changed=False)
    assert shown() == 2
    gauge.count_after(memory, is_changed=True)
    assert shown() == 0


def test_a_count_that_takes_long_is_not_made_after_every_push(tmp_path: Path) -> None:
    clock = Steps(2 * NOTICED_S)
    memory, gauge = new_memory(tmp_path), PendingGauge(clock=clock)
    gauge.count_after(memory, is_changed=True)
    append_all(memory, [behavior(second) for second in range(4)])
    gauge.count_after(memory, is_changed=True)
    assert shown() == 0
    clock.now += SHARE * gauge.seconds
    gauge.count_after(memory, is_changed=True)
    assert shown() == 2


def test_users_who_wait_are_counted_beside_their_partitions(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    for user in ("ann", "bob"):
        append_all(memory, [behavior(second, user=user) for second in range(4)])
    PendingGauge().count(memory)
    assert REGISTRY.get_sample_value("liber_waiting_users") == 2
    assert shown() == 4
