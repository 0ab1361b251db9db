"""Publishing: whatever crashes, and whoever publishes at once, each row is written once and the newest is online."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

import liber_feast.memory.publications
import liber_feast.publish
from liber_feast.delta import DeltaSink
from liber_feast.fuser import Fuser, mean_fuser
from liber_feast.memory import Memory
from liber_feast.memory.publications import drop_encoder, forget_online, next_unfinished, use_encoder
from liber_feast.memory.schema import publications, users
from liber_feast.publish import VIEWS, Publisher
from liber_feast.sequences import publish_sequences
from tests.folders import lasting_folder
from tests.memory_parts import (
    SECOND_US,
    START_US,
    Crash,
    Faults,
    OneAfterTheOther,
    OnlineRows,
    TickingClock,
    append_all,
    behavior,
    encode_all,
    learn_all,
    new_memory,
)

NOTHING = dict.fromkeys(VIEWS, 0)
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultyDelta(DeltaSink):
    """A real Delta table that may crash before or after a commit."""

    faults: Faults

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        self.faults.reach()
        is_new = DeltaSink.append(self, rows, app_id=app_id, version=version)
        self.faults.reach()
        return is_new


def fuser_named(version: str) -> Callable[[str | None], Fuser]:
    return lambda _encoder_version: replace(mean_fuser(width=4), version=version)


def publisher_of(
    memory: Memory,
    folder: Path,
    *,
    version: str | None,
    online: OnlineRows,
    clock: Callable[[], int] | None = None,
) -> Publisher:
    return Publisher(
        memory=memory,
        tables={stage: FaultyDelta(path=folder / view, faults=online.faults) for stage, view in VIEWS.items()},
        online=online,
        fuser=fuser_named("mean"),
        encoder_version=version,
        vector_width=2,
        memory_window=2,
        sequence_length=3,
        clock=clock or TickingClock(),
        executor=OneAfterTheOther,  # so that a crash comes where a test says
    )


def delta_rows(folder: Path) -> Rows:
    """Return what the Delta tables hold, in one order."""
    found: Rows = {}
    for view in VIEWS.values():
        if DeltaTable.is_deltatable(str(folder / view)):
            rows = DeltaTable(str(folder / view)).to_pyarrow_table().to_pylist()
            found[view] = sorted(
                rows, key=lambda row: (row["event_timestamp"], row["user_id"], row["created_timestamp"])
            )
    return found


def shown(online: OnlineRows) -> Rows:
    """Return the online rows; when recent behaviors were appended differs from memory to memory."""
    rows = {view: [dict(some[user]) for user in sorted(some)] for view, some in sorted(online.rows.items())}
    for view in ("behaviors", "behavior_sequence"):
        for row in rows.get(view, []):
            del row["created_timestamp"]
    return rows


def first_behaviors(memory: Memory) -> None:
    append_all(memory, [behavior(second, item=f"a{second}") for second in range(7)])
    append_all(memory, [behavior(second, user="bob", item=f"b{second}") for second in range(4)])


def taught(folder: Path) -> tuple[Memory, str]:
    """Return a memory of five partitions of two users with all texts and vectors, and the encoder version."""
    made, version = taught_once()
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return new_memory(folder), version


@cache
def taught_once() -> tuple[Path, str]:
    """Make the memory that tests get copies of."""
    folder = lasting_folder()
    memory = new_memory(folder)
    first_behaviors(memory)
    learn_all(memory)
    version = encode_all(memory, folder=folder / "encoder")
    memory.close()
    return folder, version


def more(memory: Memory, folder: Path) -> None:
    """Add a partition of bob, with its texts and vectors."""
    append_all(memory, [behavior(second, user="bob", item=f"b{second}") for second in (4, 5)])
    learn_all(memory)
    encode_all(memory, folder=folder / "encoder")


def versions(folder: Path) -> dict[str, int]:
    return {view: DeltaTable(str(folder / view)).version() for view in VIEWS.values()}


def test_one_publish_writes_every_row_once_and_a_second_one_writes_none(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=version, online=online)
    assert publisher.publish() == {"summary": 5, "shift": 3, "vector": 5, "fused": 5}
    rows, written, before = delta_rows(tmp_path), online.write_count, versions(tmp_path)
    assert {view: len(some) for view, some in rows.items()} == {
        "partition_summary": 5,
        "partition_shift": 3,
        "long_term_memory": 5,
        "fused_vector": 5,
    }
    assert publisher.publish() == NOTHING
    assert (delta_rows(tmp_path), online.write_count, versions(tmp_path)) == (rows, written, before)


def test_online_is_the_newest_row_of_every_view(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows()
    publisher_of(memory, tmp_path, version=version, online=online).publish()
    seen = {
        name: {user: row[name] for user, row in online.rows[view].items()}
        for view, name in (
            ("partition_summary", "partition_index"),
            ("partition_shift", "previous_partition_index"),
            ("long_term_memory", "partition_count"),
            ("behavior_sequence", "behavior_count"),
        )
    }
    assert seen == {
        "partition_index": {"ann": 2, "bob": 1},
        "previous_partition_index": {"ann": 1, "bob": 0},
        "partition_count": {"ann": 2, "bob": 2},
        "behavior_count": {"ann": 7, "bob": 4},
    }
    assert online.rows["behaviors"]["ann"]["item_id"] == "a6"
    newest = {row["user_id"]: row for row in delta_rows(tmp_path)["fused_vector"]}
    assert online.rows["fused_vector"] == newest


@dataclass(kw_only=True)
class StoppedClock:
    """A clock that stands at `time`."""

    time: int = START_US + 10**10 * SECOND_US

    def __call__(self) -> int:
        return self.time


def published_in_two_runs(folder: Path, *, steps: int | None, and_more: bool) -> tuple[bool, Rows, OnlineRows]:
    """Publish, perhaps with a crash on the way, then publish again as a new process would, an hour later."""
    memory, version = taught(folder)
    online, clock, crashed = OnlineRows(faults=Faults(steps=steps)), StoppedClock(), False
    try:
        publisher_of(memory, folder, version=version, online=online, clock=clock).publish()
    except Crash:
        crashed = True
    memory.close()
    memory, online.faults.steps = new_memory(folder), None
    clock.time += 3_600 * SECOND_US
    if and_more:
        more(memory, folder)
    again = publisher_of(memory, folder, version=version, online=online, clock=clock)
    again.publish()
    assert again.publish() == NOTHING
    return crashed, delta_rows(folder), online


@pytest.mark.parametrize("and_more", [False, True], ids=["at once", "after more behaviors"])
def test_wherever_it_crashes_the_next_publish_gives_what_an_uninterrupted_one_gives(
    tmp_path: Path, and_more: bool
) -> None:
    _, expected, online = published_in_two_runs(tmp_path / "whole", steps=None, and_more=and_more)
    assert len(expected["fused_vector"]) == 5 + and_more
    for steps in range(21):
        crashed, rows, found = published_in_two_runs(tmp_path / str(steps), steps=steps, and_more=and_more)
        assert crashed == (steps < 20)  # before and after: four Delta tables, six online views
        assert rows == expected
        assert shown(found) == shown(online)


def test_while_the_pca_waits_texts_are_published_and_vectors_follow_when_it_is_fitted(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows()
    waiting = publisher_of(memory, tmp_path, version=None, online=online)
    assert waiting.publish() == {"summary": 5, "shift": 3, "vector": 0, "fused": 0}
    assert set(online.rows) == {"partition_summary", "partition_shift", "behaviors", "behavior_sequence"}
    fitted = publisher_of(memory, tmp_path, version=version, online=online)
    assert fitted.publish() == {"summary": 0, "shift": 0, "vector": 5, "fused": 5}


def test_rows_for_some_users_leave_the_others_waiting(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    publisher = publisher_of(memory, tmp_path, version=version, online=OnlineRows())
    with memory.reading() as connection:
        bob = connection.scalar(sa.select(users.c.user_key).where(users.c.user_id == "bob"))
    assert publisher.publish(user_keys=[bob]) == {"summary": 2, "shift": 1, "vector": 2, "fused": 2}
    assert publisher.publish(user_keys=[]) == NOTHING
    assert publisher.publish() == {"summary": 3, "shift": 2, "vector": 3, "fused": 3}


def test_new_behaviors_write_the_new_rows_alone(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=version, online=online)
    publisher.publish()
    more(memory, tmp_path)
    assert publisher.publish() == {"summary": 1, "shift": 1, "vector": 1, "fused": 1}
    assert online.rows["partition_summary"]["bob"]["partition_index"] == 2


def test_other_weights_append_fused_vectors_with_a_later_created_time_and_nothing_else(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online, clock = OnlineRows(), StoppedClock()
    publisher = publisher_of(memory, tmp_path, version=version, online=online, clock=clock)
    publisher.publish()
    before = delta_rows(tmp_path)
    clock.time += SECOND_US
    activated = replace(publisher, fuser=fuser_named("trained"))
    assert activated.publish() == {**NOTHING, "fused": 5}
    after = delta_rows(tmp_path)
    old, new = ([row for row in after["fused_vector"] if row["fusion_version"] == name] for name in ("mean", "trained"))
    assert old == before.pop("fused_vector")
    assert {view: rows for view, rows in after.items() if view != "fused_vector"} == before
    assert [row["event_timestamp"] for row in new] == [row["event_timestamp"] for row in old]
    assert min(row["created_timestamp"] for row in new) > max(row["created_timestamp"] for row in old)
    assert {row["fusion_version"] for row in online.rows["fused_vector"].values()} == {"trained"}
    assert activated.publish() == NOTHING


def test_weights_that_come_into_use_again_are_published_again(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    publisher = publisher_of(memory, tmp_path, version=version, online=OnlineRows())
    for version in ("mean", "trained", "mean"):
        assert replace(publisher, fuser=fuser_named(version)).publish()["fused"] == 5
    assert len(delta_rows(tmp_path)["fused_vector"]) == 15
    assert isinstance(publisher.online, OnlineRows)
    assert {row["fusion_version"] for row in publisher.online.rows["fused_vector"].values()} == {"mean"}
    newest = {row["user_id"]: row for row in delta_rows(tmp_path)["fused_vector"]}
    assert publisher.online.rows["fused_vector"] == newest


def test_planned_rows_of_weights_that_were_away_for_a_crashed_run_are_written_in_the_end(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows(faults=Faults(steps=6))  # three tables are written
    publisher = publisher_of(memory, tmp_path, version=version, online=online)
    with pytest.raises(Crash):
        publisher.publish()
    # The rows are superseded; three tables and four views later the first ones of the other weights crash.
    online.faults.steps = online.faults.reached + 6 + 8
    with pytest.raises(Crash):
        replace(publisher, fuser=fuser_named("trained")).publish()
    online.faults.steps = None
    assert publisher.publish()["fused"] == 5
    assert [row["fusion_version"] for row in delta_rows(tmp_path)["fused_vector"]] == ["mean"] * 5


def test_an_encoder_that_comes_into_use_again_is_published_again_and_serves(tmp_path: Path) -> None:
    memory, first = taught(tmp_path)
    bring_in(memory, None)
    second = encode_all(memory, folder=tmp_path / "other", seed=1)
    assert first != second
    online = OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=first, online=online)
    for version in (first, second, first):
        bring_in(memory, version)
        counts = replace(publisher, encoder_version=version).publish()
        assert (counts["vector"], counts["fused"]) == (5, 5)
        assert {row["encoder_version"] for row in online.rows["long_term_memory"].values()} == {version}
    assert len(delta_rows(tmp_path)["long_term_memory"]) == 15


def bring_in(memory: Memory, version: str | None) -> None:
    """Let vectors be made by a PCA from now on; None: by whatever comes next."""
    with memory.writing() as connection:
        drop_encoder(connection)
        if version is not None:
            use_encoder(connection, version)


@pytest.mark.parametrize("view", VIEWS.values())
def test_a_delta_table_that_was_deleted_is_written_anew_and_the_others_are_left_alone(
    tmp_path: Path, view: str
) -> None:
    memory, version = taught(tmp_path)
    publisher = publisher_of(memory, tmp_path, version=version, online=OnlineRows(), clock=StoppedClock())
    counts, before = publisher.publish(), delta_rows(tmp_path)
    shutil.rmtree(tmp_path / view)
    stage = next(stage for stage, found in VIEWS.items() if found == view)
    assert publisher.publish() == {**NOTHING, stage: counts[stage]}
    after = delta_rows(tmp_path)
    times = [[row.pop("created_timestamp") for row in rows[view]] for rows in (before, after)]
    assert after == before
    assert all(first <= again for first, again in zip(*times, strict=True))
    assert publisher.publish() == NOTHING


def test_a_delta_table_that_was_deleted_after_a_crash_half_way_holds_every_row_once_again(tmp_path: Path) -> None:
    for steps in range(20):
        folder = tmp_path / str(steps)
        memory, version = taught(folder)
        online = OnlineRows(faults=Faults(steps=steps))
        publisher = publisher_of(memory, folder, version=version, online=online)
        with pytest.raises(Crash):
            publisher.publish()
        online.faults.steps = None
        shutil.rmtree(folder / "long_term_memory")
        publisher.publish()
        assert [len(rows) for rows in delta_rows(folder).values()] == [5, 3, 5, 5]
        assert len(online.rows["long_term_memory"]) == 2


def forget(memory: Memory) -> None:
    with memory.writing() as connection:
        forget_online(connection)


def test_an_online_store_that_was_emptied_is_written_anew_and_no_delta_row_is_appended(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=version, online=online, clock=StoppedClock())
    publisher.publish()
    before, tables = dict(online.rows), versions(tmp_path)
    online.rows.clear()
    forget(memory)
    assert publisher.publish() == NOTHING
    assert (online.rows, versions(tmp_path)) == (before, tables)
    written = online.write_count
    publisher.publish()
    assert online.write_count == written


def test_an_online_store_is_written_anew_wherever_the_writing_crashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liber_feast.publish, "USERS_PER_WRITE", 1)
    memory, version = taught(tmp_path)
    online = OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=version, online=online, clock=StoppedClock())
    publisher.publish()
    before = dict(online.rows)
    for steps in range(20):  # before and after: four views of two users, two views of both
        online.rows.clear()
        forget(memory)
        online.faults.steps = online.faults.reached + steps
        with pytest.raises(Crash):
            publisher.publish()
        online.faults.steps = None
        publisher.publish()
        assert online.rows == before


def test_fused_rows_planned_before_other_weights_came_into_use_are_never_written(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows(faults=Faults(steps=6))  # three tables are written
    publisher = publisher_of(memory, tmp_path, version=version, online=online)
    with pytest.raises(Crash):
        publisher.publish()
    online.faults.steps = None
    activated = replace(publisher, fuser=fuser_named("trained"))
    assert activated.publish() == {"summary": 5, "shift": 3, "vector": 5, "fused": 5}
    rows = delta_rows(tmp_path)["fused_vector"]
    assert [row["fusion_version"] for row in rows] == ["trained"] * 5


def test_vectors_that_were_planned_are_written_even_where_the_encoder_is_gone(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows(faults=Faults(steps=4))  # the tables of both stages of texts are written
    publisher = publisher_of(memory, tmp_path, version=version, online=online)
    with pytest.raises(Crash):
        publisher.publish()
    online.faults.steps = None
    bring_in(memory, None)
    counts = replace(publisher, encoder_version=None).publish()
    assert counts == {"summary": 5, "shift": 3, "vector": 5, "fused": 0}
    assert len(delta_rows(tmp_path)["long_term_memory"]) == 5
    assert "long_term_memory" not in online.rows


def test_many_rows_are_published_in_pieces_each_of_which_is_finished_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, version = taught(tmp_path)
    monkeypatch.setattr(liber_feast.memory.publications, "ROWS_PER_PUBLICATION", 2)
    publisher = publisher_of(memory, tmp_path, version=version, online=OnlineRows())
    assert publisher.publish() == {"summary": 5, "shift": 3, "vector": 5, "fused": 5}
    assert versions(tmp_path) == {  # version 0 is the empty table
        "partition_summary": 3,
        "partition_shift": 2,
        "long_term_memory": 3,
        "fused_vector": 3,
    }
    with memory.reading() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(publications)) == 11
        assert next_unfinished(connection) == []


def test_an_online_row_is_as_new_as_the_memory_even_where_its_publication_is_old(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows(faults=Faults(steps=0))
    publisher = publisher_of(memory, tmp_path, version=version, online=online)
    with pytest.raises(Crash):
        publisher.publish()
    more(memory, tmp_path)
    online.faults.steps = online.faults.reached + 8 + 2  # four tables, and the first view, which is old, and no more
    with pytest.raises(Crash):
        publisher.publish()
    assert online.rows["partition_summary"]["bob"]["partition_index"] == 2


def test_recent_behaviors_go_online_for_the_users_who_sent_some_and_no_others(tmp_path: Path) -> None:
    memory, version = taught(tmp_path)
    online = OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=version, online=online)

    def sequences() -> int:
        return publish_sequences(memory, projection=publisher.projection, online=online)

    assert sequences() == 2
    online.rows.clear()
    append_all(memory, [behavior(9, user="bob", item="new"), behavior(0)])
    assert sequences() == 1
    assert set(online.rows["behavior_sequence"]) == {"bob"}
    assert online.rows["behavior_sequence"]["bob"]["item_ids"] == ["b2", "b3", "new"]
    assert sequences() == 0


def test_a_memory_in_which_nothing_happened_publishes_nothing(tmp_path: Path) -> None:
    online = OnlineRows()
    assert publisher_of(new_memory(tmp_path), tmp_path, version="none", online=online).publish() == NOTHING
    assert (online.rows, delta_rows(tmp_path)) == ({}, {})


def test_once_a_behavior_has_come_every_table_is_there_and_takes_its_type_of_ids(tmp_path: Path) -> None:
    memory, online = new_memory(tmp_path), OnlineRows()
    publisher = publisher_of(memory, tmp_path, version=None, online=online)
    publisher.publish()
    append_all(memory, [behavior(1, user=7, item=70)])
    publisher.publish()
    assert delta_rows(tmp_path) == {view: [] for view in VIEWS.values()}
    append_all(memory, [behavior(second, user=7, item=70 + second) for second in (2, 3, 4)])
    learn_all(memory)
    fitted = replace(publisher, encoder_version=encode_all(memory, folder=tmp_path / "encoder"))
    assert fitted.publish() == {"summary": 2, "shift": 1, "vector": 2, "fused": 2}
    assert {row["user_id"] for rows in delta_rows(tmp_path).values() for row in rows} == {7}


@settings(max_examples=8)
@given(st.lists(st.integers(0, 19), min_size=1, max_size=5))
def test_pushes_that_crash_again_and_again_end_as_one_publish(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[int]
) -> None:
    folder, whole = tmp_path_factory.mktemp("crashing"), tmp_path_factory.mktemp("whole")
    expected = OnlineRows()
    memory, version = taught(whole)
    publisher_of(memory, whole, version=version, online=expected, clock=StoppedClock()).publish()
    memory, version = taught(folder)
    online = OnlineRows()
    publisher = publisher_of(memory, folder, version=version, online=online, clock=StoppedClock())
    for steps in crashes:
        online.faults.steps = online.faults.reached + steps
        try:
            publisher.publish()
        except Crash:
            continue
    online.faults.steps = None
    publisher.publish()
    assert delta_rows(folder) == delta_rows(whole)
    assert shown(online) == shown(expected)
