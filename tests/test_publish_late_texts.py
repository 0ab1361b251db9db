"""Texts that come late or are written anew: what was published without them is published again, once and no more."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.behavior import CREATED_TIME, EVENT_TIME
from liber_feast.delta import DeltaSink
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory import Memory
from liber_feast.memory.publications import forget_online
from liber_feast.memory.schema import partitions, publications, texts, users
from liber_feast.memory.vectors import VECTOR
from liber_feast.projection import FUSED
from liber_feast.publish import VIEWS
from tests.failure_parts import RowSink, Runs, encode, mark, publisher_into, row_sinks, vector_of
from tests.memory_parts import (
    SECOND_US,
    START_US,
    Crash,
    Faults,
    OneAfterTheOther,
    OnlineRows,
    append_all,
    behavior,
    new_memory,
)
from tests.test_memory_failures import STEPS, memory_of, take
from tests.test_publish import FaultyDelta, delta_rows

NOTHING = dict.fromkeys(VIEWS, 0)
Place = tuple[str, int]
"""(user, partition index)"""


@dataclass(kw_only=True)
class Store:
    """A memory and what is published of it, by one clock."""

    memory: Memory
    online: OnlineRows = field(default_factory=OnlineRows)
    sinks: Mapping[str, DeltaSink] = field(default_factory=row_sinks)
    shown: set[tuple[str, int]] = field(default_factory=set)
    """User and seal time of the partitions that had a vector when `check` looked."""

    def __post_init__(self) -> None:
        self.runs = Runs(memory=self.memory)
        assert self.memory.identity  # read before a transaction: a memory that lives in a thread has one at a time

    def publish(self, *, user_keys: Sequence[int] | None = None) -> dict[str, int]:
        """Encode what is not, and publish."""
        encode(self.memory)
        publisher = publisher_into(
            self.sinks, self.memory, online=self.online, clock=self.runs.clock, executor=OneAfterTheOther
        )
        return publisher.publish(user_keys=user_keys)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        sink = self.sinks[stage]
        assert isinstance(sink, RowSink)
        return sink.rows

    def newest(self, stage: str) -> dict[tuple[str, Any], dict[str, Any]]:
        """Return the row of every user and event time that was created last."""
        rows = sorted(self.rows(stage), key=lambda row: row[CREATED_TIME])
        return {(row["user_id"], row[EVENT_TIME]): row for row in rows}


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What the newest rows of a memory are, worked out one partition after the other."""

    vectors: dict[tuple[str, int], list[float]]
    """By user and seal time, microseconds."""
    fused: dict[tuple[str, int], list[float]]
    windows: dict[str, list[list[float]]]
    """The newest two vectors of each user that has one."""


def expected_of(memory: Memory, *, shown: Collection[tuple[str, int]] = ()) -> Expected:
    """Return what is expected where the partitions in `shown` had a vector before."""
    with memory.reading() as connection:
        newest: dict[tuple[int, int], dict[str, str]] = {}
        for row in connection.execute(sa.select(texts).order_by(texts.c.text_id)):
            newest.setdefault((row.user_key, row.partition_index), {})[row.stage] = row.text
        ordered = sa.select(partitions, users.c.user_id).join(users)
        sealed = connection.execute(ordered.order_by(partitions.c.user_key, partitions.c.partition_index)).all()
    expected, with_summary = Expected(vectors={}, fused={}, windows={}), set()
    for one in sealed:
        found = newest.get((one.user_key, one.partition_index), {})
        if SUMMARY not in found:
            continue
        is_first = one.user_id not in with_summary
        with_summary.add(one.user_id)
        is_shown = is_first or one.failure is not None or (one.user_id, one.seal_time) in shown
        if SHIFT not in found and not is_shown:
            continue
        shift = vector_of(found[SHIFT]) if SHIFT in found else np.zeros(2)
        vector = [*vector_of(found[SUMMARY]).tolist(), *shift.tolist()]
        window = [*expected.windows.get(one.user_id, []), vector][-2:]
        expected.windows[one.user_id] = window
        expected.vectors[one.user_id, one.seal_time] = vector
        expected.fused[one.user_id, one.seal_time] = np.mean(window, axis=0).tolist()
    return expected


def check(store: Store) -> None:
    """Check that the newest row of every partition is what the memory says, and that no row is there twice."""
    expected = expected_of(store.memory, shown=store.shown)
    store.shown |= expected.vectors.keys()
    for stage, name, wanted in ((VECTOR, "vector", expected.vectors), (FUSED, "fused", expected.fused)):
        found = {(user, _micros(time)): row[name] for (user, time), row in store.newest(stage).items()}
        for place, value in wanted.items():
            np.testing.assert_allclose(found[place], value, rtol=1e-6)
    for stage in VIEWS:
        keys = [(row["user_id"], row[EVENT_TIME], row[CREATED_TIME]) for row in store.rows(stage)]
        assert len(set(keys)) == len(keys)


def _micros(time: Any) -> int:
    return round(time.timestamp() * 1_000_000)


def taught(*, broken: Sequence[tuple[str, str, int]] = (), **partition_counts: int) -> Store:
    """Return a store in which everything but `broken` was learned and published."""
    store = Store(memory=memory_of(**partition_counts))
    store.runs.asked(broken=broken)
    store.publish()
    check(store)
    return store


def test_a_partition_whose_shift_failed_is_published_with_zeros_and_again_when_the_shift_comes() -> None:
    store = taught(ann=4, bob=2, broken=[(SHIFT, "ann", 1)])
    first = [row for row in store.rows(VECTOR) if row["partition_index"] == 1 and row["user_id"] == "ann"]
    assert [row["vector"][2:] for row in first] == [[0, 0]]
    store.runs.asked(with_failed=True)
    # The partition and the one after it; the window of the last one does not reach back to it.
    assert store.publish() == {"summary": 0, "shift": 1, "vector": 1, "fused": 2}
    check(store)
    before, after = [row for row in store.rows(VECTOR) if row["partition_index"] == 1 and row["user_id"] == "ann"]
    assert before == first[0]
    assert after["vector"][:2] == before["vector"][:2]
    assert after["vector"][2:] != [0, 0]
    assert after[EVENT_TIME] == before[EVENT_TIME]
    assert after[CREATED_TIME] > before[CREATED_TIME]
    assert store.publish() == NOTHING


def test_a_summary_that_comes_late_joins_the_windows_that_reach_back_to_it() -> None:
    store = taught(ann=5, broken=[(SUMMARY, "ann", 1)])
    assert [row["partition_count"] for row in store.rows(FUSED)] == [1, 2, 2, 2]
    store.runs.asked(with_failed=True)
    assert store.publish() == {"summary": 1, "shift": 1, "vector": 1, "fused": 2}
    check(store)
    assert store.publish() == NOTHING


def test_a_user_whose_first_summary_comes_late_gets_the_shift_that_was_not_due_before() -> None:
    store = taught(ann=2, broken=[(SUMMARY, "ann", 0)])
    (alone,) = store.rows(VECTOR)
    assert alone["vector"][2:] == [0, 0]
    store.runs.asked(with_failed=True)
    assert store.publish() == {"summary": 1, "shift": 1, "vector": 2, "fused": 2}
    check(store)


def test_a_partition_that_is_ready_only_once_its_shift_failed_joins_later_windows_without_a_new_text() -> None:
    store = Store(memory=memory_of(ann=4))
    order = store.runs.asked(budget=7, broken=[(SHIFT, "ann", 2)])
    assert order[4:] == [(SHIFT, "ann", 1), (SHIFT, "ann", 2), (SHIFT, "ann", 3)]
    with store.memory.writing() as connection:  # as if the answers had come in another order, and then the end
        connection.execute(partitions.update().values(failure=None))
    store.publish()
    assert [row["partition_count"] for row in store.rows(FUSED)] == [1, 2, 2]
    assert store.runs.asked(broken=[(SHIFT, "ann", 2)]) == [(SHIFT, "ann", 2)]
    assert store.publish() == {**NOTHING, "vector": 1, "fused": 2}
    check(store)
    assert store.publish() == NOTHING


def test_a_partition_with_a_vector_stays_in_the_memory_when_a_late_summary_makes_a_shift_of_it_due() -> None:
    store = taught(ann=3, broken=[(SUMMARY, "ann", 0)])
    before = expected_of(store.memory).windows["ann"]
    assert store.runs.asked(with_failed=True, budget=1) == [(SUMMARY, "ann", 0)]  # a shift of the next one is due now
    assert store.publish() == {**NOTHING, "summary": 1, "vector": 1, "fused": 2}
    check(store)
    assert store.online.rows["long_term_memory"]["ann"]["vectors"] == sum(before, [])
    assert [row["partition_count"] for row in store.rows(FUSED)[-2:]] == [1, 2]
    assert store.runs.asked(broken=[(SHIFT, "ann", 1)]) == [(SHIFT, "ann", 1)]
    assert store.publish() == NOTHING
    assert store.runs.asked(with_failed=True) == [(SHIFT, "ann", 1)]
    assert store.publish() == {**NOTHING, "shift": 1, "vector": 1, "fused": 2}
    check(store)
    assert store.publish() == NOTHING


def test_a_partition_whose_new_texts_are_not_yet_encoded_keeps_the_vector_it_has() -> None:
    store = taught(ann=2)
    online = store.online.rows["long_term_memory"]["ann"]
    mark(store.memory)
    store.runs.asked(says=" anew")
    unencoded = publisher_into(store.sinks, store.memory, online=store.online, clock=store.runs.clock)
    assert unencoded.publish() == {**NOTHING, "summary": 2, "shift": 1}
    assert store.online.rows["long_term_memory"]["ann"] == online
    assert store.publish() == {**NOTHING, "vector": 2, "fused": 2}
    check(store)


def test_a_vector_was_created_when_it_was_published_not_when_its_texts_were_written() -> None:
    store = taught(ann=2, broken=[(SHIFT, "ann", 1)])
    first = [row[CREATED_TIME] for row in store.rows(VECTOR)]
    (fused,) = {row[CREATED_TIME] for row in store.rows(FUSED)}
    assert set(first) == {fused}
    assert fused > max(row[CREATED_TIME] for row in store.rows(SUMMARY))
    store.runs.asked(with_failed=True)
    store.publish()
    late = store.rows(VECTOR)[-1]
    assert late[CREATED_TIME] > max(row[CREATED_TIME] for row in store.rows(SHIFT)) > fused
    assert store.online.rows["long_term_memory"]["ann"][CREATED_TIME] == late[CREATED_TIME]
    with store.memory.writing() as connection:
        forget_online(connection)
    store.publish()
    assert store.online.rows["long_term_memory"]["ann"][CREATED_TIME] > late[CREATED_TIME]
    assert store.rows(VECTOR)[-1] == late


def test_the_vector_of_a_partition_waits_for_its_shift_while_that_is_pending() -> None:
    store = Store(memory=memory_of(ann=3))
    store.runs.asked(budget=4)  # three summaries, one shift
    assert store.publish() == {"summary": 3, "shift": 1, "vector": 2, "fused": 2}
    assert store.runs.asked() == [(SHIFT, "ann", 2)]
    assert store.publish() == {**NOTHING, "shift": 1, "vector": 1, "fused": 1}
    check(store)


def test_texts_that_are_written_anew_are_new_rows_and_the_old_ones_stay_as_they_were() -> None:
    store = taught(ann=3, bob=1)
    before = {stage: list(store.rows(stage)) for stage in VIEWS}
    mark(store.memory, since=START_US + 4 * SECOND_US)
    store.runs.asked(says=" anew")
    assert store.publish() == {"summary": 1, "shift": 1, "vector": 1, "fused": 1}
    check(store)
    for stage, rows in before.items():
        found = store.rows(stage)
        assert found[: len(rows)] == rows
        (new,) = found[len(rows) :]
        (old,) = [row for row in rows if (row["user_id"], row[EVENT_TIME]) == (new["user_id"], new[EVENT_TIME])]
        assert new[CREATED_TIME] > old[CREATED_TIME]
    assert store.rows(SUMMARY)[-1]["summary"] == "ann likes the ann4, the ann5 anew"
    assert (store.rows(SUMMARY)[-1]["prompt_version"], store.rows(SUMMARY)[-1]["model"]) == ("test-1", "echo-1")
    assert store.publish() == NOTHING


def test_online_follows_the_late_text_and_nothing_older_comes_back() -> None:
    store = taught(ann=3, broken=[(SHIFT, "ann", 2)])
    old = store.online.rows["long_term_memory"]["ann"]
    assert old["vectors"][-2:] == [0, 0]
    store.runs.asked(with_failed=True)
    store.publish()
    expected = expected_of(store.memory)
    assert store.online.rows["long_term_memory"]["ann"]["vectors"] == sum(expected.windows["ann"], [])
    assert store.online.rows["partition_shift"]["ann"]["previous_partition_index"] == 1
    assert store.online.rows["fused_vector"]["ann"] == store.rows(FUSED)[-1]


def test_late_texts_of_some_users_leave_the_others_waiting() -> None:
    store = taught(ann=2, bob=2, broken=[(SHIFT, "ann", 1), (SHIFT, "bob", 1)])
    store.runs.asked(with_failed=True)
    only_one = {**NOTHING, "shift": 1, "vector": 1, "fused": 1}
    assert store.publish(user_keys=[2]) == only_one
    assert store.publish(user_keys=[2]) == store.publish(user_keys=[]) == NOTHING
    assert store.publish() == only_one
    check(store)


def test_another_encoder_in_use_again_after_a_late_text_publishes_every_vector_as_it_is_now() -> None:
    store = taught(ann=2, broken=[(SHIFT, "ann", 1)])
    encode(store.memory, version="other")
    other = publisher_into(store.sinks, store.memory, online=store.online, clock=store.runs.clock, version="other")
    assert other.publish() == {**NOTHING, "vector": 2, "fused": 2}
    store.runs.asked(with_failed=True)
    assert store.publish() == {**NOTHING, "shift": 1, "vector": 2, "fused": 2}
    assert [row["vector"] for row in store.rows(VECTOR)[-2:]] == list(expected_of(store.memory).vectors.values())
    assert store.publish() == NOTHING


def planned_and_crashed(folder: Path, *, steps: int) -> tuple[Store, Faults]:
    """Return a store whose first publishing crashed after `steps`; a shift had failed and comes after the crash."""
    folder.mkdir()
    faults = Faults(steps=steps)
    sinks = {stage: FaultyDelta(path=folder / view, faults=faults) for stage, view in VIEWS.items()}
    store = Store(memory=memory_of(ann=3, bob=1), sinks=sinks, online=OnlineRows(faults=faults))
    store.runs.asked(broken=[(SHIFT, "ann", 1)])
    with pytest.raises(Crash):
        store.publish()
    faults.steps = None
    return store, faults


@pytest.mark.parametrize("steps", range(16), ids="crash {}".format)
def test_a_late_text_after_a_crash_leaves_every_row_once_and_the_newest_as_they_are(tmp_path: Path, steps: int) -> None:
    store, faults = planned_and_crashed(tmp_path / "store", steps=steps)
    store.runs.asked(with_failed=True)
    faults.steps = faults.reached + 3
    with pytest.raises(Crash):  # and once more, half-way through what the first one had begun
        store.publish()
    faults.steps = None
    store.publish()
    assert store.publish() == NOTHING
    rows = delta_rows(tmp_path / "store")
    in_memory = row_sinks()
    for stage, view in VIEWS.items():
        in_memory[stage].rows.extend(rows[view])
    check(Store(memory=store.memory, sinks=in_memory))
    assert [len(rows[VIEWS[stage]]) for stage in (SUMMARY, SHIFT)] == [4, 2]
    # Rows that the crashed run had planned and not written are superseded, not written from newer texts.
    was_written = steps >= 5  # the third table
    assert len(rows[VIEWS[VECTOR]]) == 4 + was_written
    with store.memory.reading() as connection:
        undone = sa.select(publications.c.publication_id).where(publications.c.done_time.is_(None))
        assert connection.scalars(undone).all() == []


@settings(max_examples=25)
@given(st.lists(STEPS, max_size=7))
def test_whatever_fails_and_is_redone_each_publishing_brings_the_newest_rows_to_what_the_memory_says(
    steps: list[tuple[str, object, object]],
) -> None:
    store = Store(memory=new_memory())
    for step in [("seal", "ann", 2), *steps]:
        take(step, store.runs)
        store.publish()
        check(store)
        assert store.publish() == NOTHING
    store.runs.asked(with_failed=True)
    store.publish()
    check(store)
    expected = expected_of(store.memory)
    assert len(expected.vectors) == sum(1 for _ in store.newest(VECTOR))
    online = {user: row["vectors"] for user, row in store.online.rows["long_term_memory"].items()}
    assert online == {user: sum(window, []) for user, window in expected.windows.items()}
    fused = {(user, time): row["fused"] for (user, time), row in store.newest(FUSED).items()}
    assert {user: row["fused"] for user, row in store.online.rows["fused_vector"].items()} == {
        user: fused[user, max(time for name, time in fused if name == user)] for user in expected.windows
    }
    store.memory.close()


def test_a_store_of_one_user_with_no_late_text_has_no_row_twice() -> None:
    store = taught(ann=3)
    append_all(store.memory, [behavior(second, user="ann") for second in (6, 7)])
    store.runs.asked()
    assert store.publish() == {"summary": 1, "shift": 1, "vector": 1, "fused": 1}
    check(store)
