"""One publisher at a time, by a lease: what stands still holds nobody up, and what lost the lease marks nothing."""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

from liber_feast.delta import DeltaSink
from liber_feast.errors import MemoryFailure, StoreFailure
from liber_feast.memory import Memory
from liber_feast.memory.claims import claim
from liber_feast.memory.leases import PUBLISH, LeaseLost, acquire
from liber_feast.memory.publications import forget_online
from liber_feast.memory.schema import leases, partitions, publications, users
from liber_feast.publish import VIEWS
from liber_feast.republish import republish_all
from tests import services
from tests.memory_parts import OnlineRows, TickingClock, append_all, behavior, everything
from tests.publish_parts import NOTHING, check_once, publisher_of, tables_in, teach, unfinished_count

memory_url = services.memory_url

PATIENCE_S = 20


@dataclass(kw_only=True)
class Gate:
    """Stops whoever comes to `place` first, until it is opened."""

    place: str
    is_reached: threading.Event = field(default_factory=threading.Event)
    is_open: threading.Event = field(default_factory=threading.Event)

    def pass_at(self, place: str) -> None:
        if place == self.place and not self.is_reached.is_set():
            self.is_reached.set()
            assert self.is_open.wait(PATIENCE_S)


@dataclass(kw_only=True)
class GatedOnline(OnlineRows):
    """An online store that may hang before a write."""

    gate: Gate

    def write(
        self, view: str, rows: pa.Table, *, number: int | Sequence[int] | None = None, force: bool = False
    ) -> None:
        self.gate.pass_at(view)
        super().write(view, rows, number=number, force=force)


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedDelta(DeltaSink):
    """A real Delta table that may hang before or after a commit."""

    gate: Gate

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        self.gate.pass_at(f"before {self.path.name}")
        is_new = DeltaSink.append(self, rows, app_id=app_id, version=version)
        self.gate.pass_at(f"after {self.path.name}")
        return is_new


@pytest.fixture
def memory(memory_url: str, tmp_path: Path) -> Iterator[Memory]:
    opened = Memory.open(memory_url, base=tmp_path)
    yield opened
    opened.close()


@contextmanager
def standing_still(memory: Memory, folder: Path, gate: Gate, online: OnlineRows) -> Iterator[list[BaseException]]:
    """Let a publisher stand still at the gate for the block, and then go on; yield what it will have raised."""
    gated = GatedOnline(gate=gate, rows=online.rows, numbers=online.numbers)
    tables: dict[str, DeltaSink] = {stage: GatedDelta(path=folder / view, gate=gate) for stage, view in VIEWS.items()}
    raised: list[BaseException] = []

    def publish() -> None:
        try:
            publisher_of(memory, folder, online=gated, tables=tables).publish()
        except BaseException as error:  # noqa: BLE001 (the test looks at it)
            raised.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        assert gate.is_reached.wait(PATIENCE_S)
        yield raised
    finally:
        gate.is_open.set()
        thread.join()


def let_lease_end(memory: Memory) -> None:
    with memory.writing() as connection:
        connection.execute(leases.update().values(until=0))


PLACES = ["before partition_summary", "after partition_summary", "partition_summary", "after fused_vector"]


@pytest.mark.parametrize("place", PLACES)
def test_who_stood_still_while_another_published_marks_nothing_and_doubles_no_row(
    memory: Memory, tmp_path: Path, place: str
) -> None:
    teach(memory, "ann", "bob")
    gate, online = Gate(place=place), OnlineRows()
    with standing_still(memory, tmp_path, gate, online) as raised:
        let_lease_end(memory)
        another = publisher_of(memory, tmp_path, online=online, clock=TickingClock(time=TickingClock().time * 2))
        another.publish()
        teach(memory, "ann", "bob", index=1)
        another.publish()
        before, rows = everything(memory), {view: dict(some) for view, some in online.rows.items()}
    (error,) = raised
    assert isinstance(error, LeaseLost)
    assert everything(memory) == before
    assert online.rows == rows
    assert {row["partition_index"] for row in online.rows["partition_summary"].values()} == {1}
    check_once(memory, tmp_path, user_count=2, partition_count=2)
    assert another.publish() == NOTHING


@pytest.mark.parametrize("place", ["before partition_summary", "partition_summary", "fused_vector"])
def test_while_a_sink_hangs_behaviors_are_appended_and_the_memory_is_read(
    memory: Memory, tmp_path: Path, place: str
) -> None:
    teach(memory, "ann")
    with standing_still(memory, tmp_path, Gate(place=place), OnlineRows()) as raised:
        append_all(memory, [behavior(second, user="bob") for second in range(3)])
        with memory.reading() as connection:
            found = connection.scalars(sa.select(users.c.user_id).order_by(users.c.user_id)).all()
        assert found == ["ann", "bob"]
        assert unfinished_count(memory) > 0
    assert raised == []
    check_once(memory, tmp_path, user_count=1, partition_count=1)


def test_while_an_emptied_online_store_hangs_behaviors_are_appended(memory: Memory, tmp_path: Path) -> None:
    teach(memory, "ann")
    online = OnlineRows()
    publisher_of(memory, tmp_path, online=online).publish()
    before = {view: dict(some) for view, some in online.rows.items()}
    online.rows.clear()
    with memory.writing() as connection:
        forget_online(connection)
    with standing_still(memory, tmp_path, Gate(place="fused_vector"), online) as raised:
        append_all(memory, [behavior(9, user="bob")])
    assert raised == []
    assert online.rows["partition_summary"] == before["partition_summary"]


def test_who_finds_nothing_to_publish_takes_no_lease(memory: Memory, tmp_path: Path) -> None:
    (key,) = teach(memory, "ann")
    publisher = publisher_of(memory, tmp_path, online=OnlineRows())
    publisher.publish()
    lease = acquire(memory, PUBLISH, owner="somebody else")
    assert lease is not None
    assert publisher.publish() == publisher.publish(user_keys=[key]) == NOTHING
    append_all(memory, [behavior(9)])  # it fills no cache
    assert publisher.publish(user_keys=[key]) == NOTHING
    with memory.reading() as connection:
        assert connection.scalar(sa.select(leases.c.number)) == lease.number


def test_who_waits_for_another_publisher_finds_its_own_rows_published(memory: Memory, tmp_path: Path) -> None:
    (ann,) = teach(memory, "ann")
    online = OnlineRows()
    counts: list[dict[str, int]] = []

    def publish() -> None:
        counts.append(publisher_of(memory, tmp_path, online=online).publish(user_keys=[ann]))

    with standing_still(memory, tmp_path, Gate(place="fused_vector"), online) as raised:
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join()
    assert raised == []
    assert counts == [NOTHING]
    check_once(memory, tmp_path, user_count=1, partition_count=1)


def test_users_on_whom_somebody_works_are_published_along(memory: Memory, tmp_path: Path) -> None:
    ann, bob, _ = (teach(memory, name)[0] for name in ("ann", "bob", "carl"))
    assert set(claim(memory, user_keys=[bob]).numbers) == {bob}
    publisher = publisher_of(memory, tmp_path, online=OnlineRows())
    assert publisher.publish(user_keys=[ann]) == {"summary": 2, "shift": 0, "vector": 2, "fused": 2}
    assert publisher.publish(user_keys=[bob]) == NOTHING
    assert publisher.publish() == {"summary": 1, "shift": 0, "vector": 1, "fused": 1}


def test_a_publication_is_later_than_those_before_it_whatever_the_clock_says(memory: Memory, tmp_path: Path) -> None:
    online, clock = OnlineRows(), TickingClock()
    for index in range(3):
        teach(memory, "ann", index=index)
        back = TickingClock(time=clock.time - index * 10**12)
        publisher_of(memory, tmp_path, online=online, clock=back).publish()
    with memory.reading() as connection:
        query = sa.select(publications.c.created_time).order_by(publications.c.publication_id)
        times = list(connection.scalars(query))
    assert times == sorted(times)
    assert len(set(times)) == 3
    assert online.numbers["fused_vector", "ann"] == times[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class FullTable(DeltaSink):
    """A real Delta table on a disk that is full."""

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        raise StoreFailure("No space left on device")


def test_a_table_that_cannot_be_written_leaves_its_publication_to_the_next_run(memory: Memory, tmp_path: Path) -> None:
    teach(memory, "ann", "bob")
    online, tables = OnlineRows(), tables_in(tmp_path)
    full = tables | {"vector": FullTable(path=tables["vector"].path)}
    with pytest.raises(StoreFailure):
        publisher_of(memory, tmp_path, online=online, tables=full).publish()
    # There is no shift yet, and what is online does not wait for the tables.
    assert set(online.rows) == {"partition_summary", "long_term_memory", "fused_vector"}
    assert unfinished_count(memory) == 3
    publisher = publisher_of(memory, tmp_path, online=online)
    assert publisher.publish() == {**NOTHING, "summary": 2, "vector": 2, "fused": 2}
    check_once(memory, tmp_path, user_count=2, partition_count=1)


@dataclass(frozen=True, kw_only=True)
class MeetingTable(DeltaSink):
    """A table that is written when the others are, too, and the online store is written already."""

    others: threading.Barrier
    is_online: threading.Event

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        self.others.wait(timeout=10)
        assert self.is_online.wait(timeout=10)
        return super().append(rows, app_id=app_id, version=version)


@dataclass(kw_only=True)
class SayingOnline(OnlineRows):
    """An online store that says when the last view is written."""

    is_online: threading.Event

    def write(
        self, view: str, rows: pa.Table, *, number: int | Sequence[int] | None = None, force: bool = False
    ) -> None:
        super().write(view, rows, number=number, force=force)
        if view == "fused_vector":
            self.is_online.set()


def test_tables_are_written_side_by_side_and_online_rows_do_not_wait_for_them(memory: Memory, tmp_path: Path) -> None:
    teach(memory, "ann", "bob")
    others, is_online = threading.Barrier(3), threading.Event()  # there is no shift yet
    tables: dict[str, DeltaSink] = {
        stage: MeetingTable(path=table.path, others=others, is_online=is_online)
        for stage, table in tables_in(tmp_path).items()
    }
    publisher_of(memory, tmp_path, online=SayingOnline(is_online=is_online), tables=tables).publish()
    check_once(memory, tmp_path, user_count=2, partition_count=1)


def test_a_memory_that_is_older_than_its_tables_publishes_nothing_until_it_is_republished(tmp_path: Path) -> None:
    memory = Memory.open("sqlite:///memory.db", base=tmp_path)
    teach(memory, "ann")
    publisher_of(memory, tmp_path, online=OnlineRows()).publish()
    copy = sqlite3.connect(tmp_path / "older.db")
    with sqlite3.connect(tmp_path / "memory.db") as source:
        source.backup(copy)
    copy.close()
    source.close()
    teach(memory, "ann", index=1)
    publisher_of(memory, tmp_path, online=OnlineRows()).publish()
    memory.close()
    older = Memory.open("sqlite:///older.db", base=tmp_path)
    teach(older, "bob")
    for _ in range(2):
        with pytest.raises(MemoryFailure, match="run `liber republish`"):
            publisher_of(older, tmp_path, online=OnlineRows()).publish()
    assert unfinished_count(older) == 0
    publisher = publisher_of(older, tmp_path, online=OnlineRows())
    republish_all(publisher, say=lambda _line: None)
    check_once(older, tmp_path, user_count=2, partition_count=1)
    teach(older, "ann", "bob", index=1)
    assert publisher.publish() == {"summary": 2, "shift": 2, "vector": 2, "fused": 2}
    check_once(older, tmp_path, user_count=2, partition_count=2)
    older.close()


def test_who_does_not_know_of_the_pca_yet_publishes_texts_and_no_vector_is_published_twice(
    memory: Memory, tmp_path: Path
) -> None:
    teach(memory, "ann")
    publisher = publisher_of(memory, tmp_path, online=OnlineRows())
    publisher.publish()
    teach(memory, "bob")
    assert replace(publisher, encoder_version=None).publish() == {**NOTHING, "summary": 1}
    assert publisher.publish() == {**NOTHING, "vector": 1, "fused": 1}
    check_once(memory, tmp_path, user_count=2, partition_count=1)


def test_a_vector_is_online_from_when_its_publication_was_marked_done(memory: Memory, tmp_path: Path) -> None:
    teach(memory, "ann")
    with memory.writing() as connection:
        connection.execute(partitions.update().values(pushed_time=1_000_000))
    publisher = publisher_of(memory, tmp_path, online=OnlineRows())
    replace(publisher, encoder_version=None).publish()

    def online_times() -> list[int | None]:
        with memory.reading() as connection:
            return list(connection.scalars(sa.select(partitions.c.online_time)))

    assert online_times() == [None]
    publisher.publish()
    (first,) = online_times()
    assert first is not None and first > 1_000_000
    publisher.publish()
    assert online_times() == [first]
