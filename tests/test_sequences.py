"""Recent behaviors online: of the users who changed, in the newest state, without a lock while they are written."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.errors import OnlineStoreAway
from liber_feast.memory import Memory
from liber_feast.memory.forgetting import forget_user
from liber_feast.memory.schema import users
from liber_feast.memory.user_states import lock, user_keys
from liber_feast.sequences import SequenceRows, publish_sequences
from tests import services
from tests.examples import at_most
from tests.memory_parts import START_US, append_all, behavior, new_memory

postgres_url = services.postgres_url
LENGTH = 3


@dataclass(kw_only=True)
class NewestRows:
    """An online store that keeps the row with the highest order; `before` is called before every write."""

    before: Callable[[], None] = lambda: None
    rows: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)
    write_count: int = 0

    def write(
        self, view: str, rows: pa.Table, *, number: int | Sequence[int] | None = None, force: bool = False
    ) -> None:
        assert not force
        assert number == rows["created_timestamp"].cast(pa.int64()).to_pylist()
        self.before()
        self.write_count += 1
        held = self.rows.setdefault(view, {})
        for row in rows.to_pylist():
            order = (row["event_timestamp"], row["created_timestamp"])
            there = held.get(row["user_id"])
            if there is None or (there["event_timestamp"], there["created_timestamp"]) <= order:
                held[row["user_id"]] = row

    def write_together(self, rows: Mapping[str, pa.Table]) -> None:
        for view, some in rows.items():
            self.write(view, some, number=some["created_timestamp"].cast(pa.int64()).to_pylist())

    def delete(self, user_ids: Sequence[str | int]) -> int:
        return sum(held.pop(str(one), None) is not None for held in self.rows.values() for one in user_ids)


def publish(memory: Memory, online: NewestRows, user_keys: Sequence[int] | None = None) -> int:
    recent = partial(SequenceRows, length=LENGTH)
    return publish_sequences(memory, projection=recent, online=online, user_keys=user_keys)


def shown(online: NewestRows, user: str) -> tuple[object, object]:
    row = online.rows["behavior_sequence"][user]
    return row["item_ids"], row["behavior_count"]


def stale(memory: Memory) -> list[str]:
    with memory.reading() as connection:
        is_stale = users.c.sequence_published < users.c.sequence_number
        return list(connection.scalars(sa.select(users.c.user_id).where(is_stale).order_by(users.c.user_id)))


def test_users_who_changed_are_written_once_and_others_not_at_all() -> None:
    memory, online = new_memory(), NewestRows()
    append_all(
        memory, [behavior(second, user=user, item=f"i{second}") for user in ("ann", "bob") for second in range(5)]
    )
    assert publish(memory, online) == 2
    assert shown(online, "ann") == (["i2", "i3", "i4"], 5)
    assert (publish(memory, online), online.write_count, stale(memory)) == (0, 2, [])
    append_all(memory, [behavior(7, user="bob", item="i7")])
    assert stale(memory) == ["bob"]
    assert publish(memory, online) == 1
    assert shown(online, "bob") == (["i3", "i4", "i7"], 6)


def test_who_marks_what_is_online_holds_no_user_while_it_waits_for_an_append_of_another(postgres_url: str) -> None:
    memory, online = Memory.open(postgres_url, base=Path()), NewestRows()
    append_all(memory, [behavior(0, user=user) for user in ("ann", "bob")])
    first, second = sorted(user_keys_of(memory).values())
    with memory.writing() as connection:  # from now on the first one's row lies behind the other's, in its index too
        connection.execute(users.update().where(users.c.user_key == first).values(user_id="zoe"))
    thread = threading.Thread(target=publish, args=(memory, online))
    blocked = sa.text("SELECT count(*) FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))")
    with memory.writing() as connection:
        lock(connection, [first])
        thread.start()
        until = time.monotonic() + 20
        while not connection.scalar(blocked):
            assert time.monotonic() < until
            time.sleep(0.01)
        with memory.writing() as other:
            is_second = sa.select(users.c.user_key).where(users.c.user_key == second)
            assert other.scalar(is_second.with_for_update(nowait=True)) == second
    thread.join()
    assert stale(memory) == []
    memory.close()


def user_keys_of(memory: Memory) -> dict[str, int]:
    with memory.reading() as connection:
        return user_keys(connection, ["ann", "bob"])


def test_a_user_who_is_forgotten_while_their_rows_are_written_is_not_left_online() -> None:
    memory, online = new_memory(), NewestRows()
    append_all(memory, [behavior(0, user=user) for user in ("ann", "bob")])

    def forget() -> None:
        online.before = lambda: None
        with memory.writing() as connection:
            forget_user(connection, "ann")

    online.before = forget
    publish(memory, online)
    assert {view: list(rows) for view, rows in online.rows.items()} == {
        "behaviors": ["bob"],
        "behavior_sequence": ["bob"],
    }


def test_only_the_users_asked_for_are_written() -> None:
    memory, online = new_memory(), NewestRows()
    append_all(memory, [behavior(0, user=user) for user in ("ann", "bob", "cid")])
    assert publish(memory, online, [2, 2, 99]) == 1
    assert list(online.rows["behaviors"]) == ["bob"]
    assert stale(memory) == ["ann", "cid"]
    assert publish(memory, online, []) == 0


def test_a_late_behavior_that_changes_the_count_alone_is_written_with_a_higher_number() -> None:
    memory, online = new_memory(), NewestRows()
    append_all(memory, [behavior(second, item=f"i{second}") for second in range(10, 16)])
    publish(memory, online)
    before = dict(online.rows["behavior_sequence"]["ann"])
    append_all(memory, [behavior(1, item="late")])
    publish(memory, online)
    after = online.rows["behavior_sequence"]["ann"]
    assert (before["event_timestamp"], before["item_ids"]) == (after["event_timestamp"], after["item_ids"])
    assert (before["behavior_count"], after["behavior_count"]) == (6, 7)
    assert before["created_timestamp"] < after["created_timestamp"]  # type: ignore[operator]


def test_a_push_during_the_write_waits_for_nothing_and_is_left_to_its_own_publishing(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    pushes = iter([[behavior(9, item="meanwhile")]])
    online = NewestRows(before=lambda: append_all(memory, next(pushes, [])))
    append_all(memory, [behavior(0, item="first")])
    assert publish(memory, online) == 1
    assert shown(online, "ann") == (["first"], 1)
    assert stale(memory) == ["ann"]
    assert publish(memory, online) == 1
    assert shown(online, "ann") == (["first", "meanwhile"], 2)


def test_what_could_not_be_written_stays_to_be_written() -> None:
    def away() -> None:
        raise OnlineStoreAway("The online store does not answer.")

    memory, online = new_memory(), NewestRows(before=away)
    append_all(memory, [behavior(0)])
    with pytest.raises(OnlineStoreAway):
        publish(memory, online)
    assert stale(memory) == ["ann"]
    online.before = lambda: None
    assert publish(memory, online) == 1


def test_more_users_than_one_write_takes_are_all_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liber_feast.sequences.USERS_PER_WRITE", 3)
    memory, online = new_memory(), NewestRows()
    append_all(memory, [behavior(0, user=f"u{number}") for number in range(8)])
    assert publish(memory, online, range(1, 8)) == 7
    assert publish(memory, online) == 1
    assert len(online.rows["behaviors"]) == 8


@at_most(30)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), min_size=1, max_size=20), st.integers(1, 5))
def test_the_sequence_is_the_end_of_the_sorted_history_whatever_shares_a_time(
    sent: list[tuple[str, int]], length: int
) -> None:
    memory = new_memory()
    stream = [
        behavior(second, user=user, name=f"{place:02}", item=f"i{place}") for place, (user, second) in enumerate(sent)
    ]
    append_all(memory, stream)
    with memory.reading() as connection:
        keys = list(connection.scalars(sa.select(users.c.user_key)))
        rows = SequenceRows(connection, length=length).behavior_rows(keys)
    for row in rows["behavior_sequence"].to_pylist():
        own = sorted(
            (one for one in stream if one.user_id == row["user_id"]), key=lambda one: (one.event_time, one.behavior_id)
        )
        assert row["item_ids"] == [one.item_id for one in own][-length:]
        assert row["behavior_count"] == len(own)
        assert row["times"] == sorted(row["times"])
    assert {row["item_id"] for row in rows["behaviors"].to_pylist()} == {
        row["item_ids"][-1] for row in rows["behavior_sequence"].to_pylist()
    }


def test_a_user_who_was_forgotten_has_no_row() -> None:
    memory = new_memory()
    append_all(memory, [behavior(0, user=user) for user in ("ann", "bob")])
    with memory.writing() as connection:
        connection.execute(users.update().where(users.c.user_id == "ann").values(forgotten_time=START_US))
    with memory.reading() as connection:
        rows = SequenceRows(connection, length=LENGTH).behavior_rows([1, 2, 99])
    assert [table["user_id"].to_pylist() for table in rows.values()] == [["bob"], ["bob"]]
