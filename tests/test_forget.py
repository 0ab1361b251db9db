"""Forgetting: nothing of the user is left in any file, everything of the others is, and a second time finds nothing."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore, FileSource
from feast.data_source import PushMode

from liber_feast.cli import app
from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.forget import BehaviorLog, Forgetting, forget
from liber_feast.memory.forgetting import Removed
from liber_feast.memory.schema import publications
from liber_feast.offline_read import Location
from liber_feast.republish import republish_all
from tests import services
from tests.feature_repo_kit import (
    END,
    PUBLISHED_TABLES,
    START,
    close,
    frame,
    log_of,
    materialized_repo,
    online,
    open_store,
    published,
    repo_to_push_to,
)
from tests.feature_repo_kit import behavior as pushed_behavior
from tests.memory_parts import TWO, append_all, behavior, contents, encode_all, learn_all, table_of
from tests.operations_parts import (
    ANN,
    OnlineUsers,
    files_with,
    forgetting,
    known_users,
    of_bob,
    published_folder,
    send,
    stream_of,
    tables_of,
)

postgres_url = services.postgres_url
WHO = "zoe-who-is-forgotten"


def test_no_file_holds_the_id_and_the_rows_of_others_are_what_they_were(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    assert files_with(tmp_path, ANN)
    tables, bob = tables_of(tmp_path), contents(publisher.memory)
    bob_online = {view: rows["bob"] for view, rows in users.rows.items()}
    found = forgetting(publisher, users, folder=tmp_path).run()
    assert files_with(tmp_path, ANN) == []
    assert tables_of(tmp_path) == of_bob(tables)
    for name in tables:  # what is compressed is not found by its bytes
        table = DeltaTable(str(tmp_path / name))
        assert {Path(one).name for one in table.file_uris()} == {
            one.name for one in (tmp_path / name).glob("*.parquet")
        }
    assert users.rows == {view: {"bob": row} for view, row in bob_online.items()}
    after = contents(publisher.memory)
    assert (after.partitions["bob"], after.caches["bob"]) == (bob.partitions["bob"], bob.caches["bob"])
    assert known_users(publisher.memory) == ["bob"]
    assert (found.memory.behaviors, found.memory.partitions, found.memory.summaries, found.memory.shifts) == (
        7,
        3,
        3,
        2,
    )
    assert found.memory.vectors == 5
    assert found.rows == {
        "partition_summary": 3,
        "partition_shift": 2,
        "long_term_memory": 3,
        "fused_vector": 3,
        "behaviors": 7,
    }
    assert found.online_rows == 6
    assert found.files_removed > 0


def test_a_second_time_finds_nothing_and_changes_no_row(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    forgetting(publisher, users, folder=tmp_path).run()
    tables, rows = tables_of(tmp_path), {view: dict(some) for view, some in users.rows.items()}
    again = forgetting(publisher, users, folder=tmp_path).run()
    assert set(again.rows.values()) == {0}
    assert (again.memory, again.online_rows) == (Removed(), 0)
    assert (tables_of(tmp_path), users.rows) == (tables, rows)


def test_a_user_whom_nobody_knows_is_forgotten_with_zeros(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    tables = tables_of(tmp_path)
    found = forgetting(publisher, users, folder=tmp_path, user_id="nobody").run()
    assert (found.memory.behaviors, found.online_rows, set(found.rows.values())) == (0, 0, {0})
    assert tables_of(tmp_path) == tables


def test_what_was_begun_before_is_published_and_what_follows_is_too(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    append_all(publisher.memory, stream_of([10, 11]))
    learn_all(publisher.memory)
    encode_all(publisher.memory, folder=tmp_path / "encoder")
    publisher.publish()
    with publisher.memory.writing() as connection:  # as if it had crashed before it marked them
        connection.execute(publications.update().where(publications.c.publication_id >= 9).values(done_time=None))
    forgetting(publisher, users, folder=tmp_path).run()
    assert {name: len(rows) for name, rows in tables_of(tmp_path).items() if name != "log"} == {
        "partition_summary": 4,
        "partition_shift": 3,
        "long_term_memory": 4,
        "fused_vector": 4,
    }
    send(publisher, [behavior(second, user="bob") for second in (20, 21)], folder=tmp_path)
    assert len(tables_of(tmp_path)["fused_vector"]) == 5


def test_a_user_who_comes_back_is_published_from_partition_0(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    forgetting(publisher, users, folder=tmp_path).run()
    send(publisher, [behavior(10**9 + second, user=ANN) for second in range(3)], folder=tmp_path)
    mine = [row for row in tables_of(tmp_path)["partition_summary"] if row["user_id"] == ANN]
    assert [row["partition_index"] for row in mine] == [0]
    assert users.rows["behavior_sequence"][ANN]["behavior_count"] == 3
    assert publisher.memory.append(table_of(stream_of(range(7))), condition=TWO).forgotten_count == 7


def test_what_killed_writers_left_is_removed_as_well(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    table = tmp_path / "partition_summary"
    own = next(path for path in table.glob("*.parquet") if ANN.encode() in path.read_bytes())
    shutil.copy(own, table / "part-00000-never-committed.parquet")
    shutil.copy(own, table / "part-00000-half-written.parquet#1")
    (table / "_delta_log" / "00000000000000000009.json#1").write_text(ANN)
    forgetting(publisher, users, folder=tmp_path).run()
    assert files_with(tmp_path, ANN) == []


def push(store: FeatureStore, rows: pd.DataFrame) -> None:
    store.push("behavior_push", rows, to=PushMode.ONLINE_AND_OFFLINE)


def test_the_command_removes_a_user_from_every_file_of_a_feature_repo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    items = log_of(repo)["item_id"].to_pylist()[:9]
    store = open_store(repo)
    times = pd.date_range("2024-02-01", periods=9, freq="h", tz="UTC")
    mine = pd.concat([pushed_behavior(WHO, item, at=time) for item, time in zip(items, times, strict=True)])
    others = pd.concat([pushed_behavior("u0001", item, at=time) for item, time in zip(items, times, strict=True)])
    push(store, pd.concat([mine, others]))
    before = online(store, ["u0001"])
    assert online(store, [WHO])["fused_vector__fused"] != [None]
    close(store)
    assert files_with(repo / "data", WHO)

    capsys.readouterr()
    app(["forget", WHO, "--repo", str(repo), "--json"], standalone_mode=False)
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["behaviors"], found["partitions"], found["rows"]["behaviors"]) == (9, 2, 9)
    assert found["left"] == "user_profile"
    assert WHO not in said.out + said.err
    assert files_with(repo / "data", WHO) == []

    store = open_store(repo)
    assert online(store, ["u0001"]) == before
    assert set(map(str, online(store, [WHO]).values())) <= {"[None]", f"['{WHO}']"}
    close(store)


def test_materializing_the_log_again_brings_nobody_back(tmp_path: Path) -> None:
    repo = materialized_repo(tmp_path / "repo")
    before = {name: published(repo, name) for name in PUBLISHED_TABLES}
    forget(repo, "u0001", keep_log=True, say=print)
    store = open_store(repo)
    store.materialize(START, END)
    assert online(store, ["u0001"])["behavior_sequence__item_ids"] == [None]
    close(store)
    assert {name: published(repo, name) for name in PUBLISHED_TABLES} == {
        name: [row for row in rows if row["user_id"] != "u0001"] for name, rows in before.items()
    }
    assert forget(repo, "u0001", keep_log=False, say=print)["behaviors"] == 0


def test_a_push_that_is_sent_again_brings_nobody_back_into_the_log_either(tmp_path: Path) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    store, log = open_store(repo), log_of(repo)
    of_both = log.filter(pc.is_in(log["user_id"], value_set=pa.array(["u0001", "u0002"])))

    def users_of_log() -> set[str]:
        return set(DeltaTable(str(repo / "data" / "behaviors")).to_pyarrow_table()["user_id"].to_pylist())

    forget(repo, "u0001", keep_log=False, say=print)
    forget(repo, "u0002", keep_log=False, say=print)
    assert not users_of_log() & {"u0001", "u0002"}
    for mode in (PushMode.ONLINE_AND_OFFLINE, PushMode.OFFLINE):
        store.push("behavior_push", frame(of_both), to=mode)
    assert not users_of_log() & {"u0001", "u0002"}
    later = frame(of_both.slice(0, 1)).assign(user_id="u0002", event_timestamp=pd.Timestamp.now("UTC"))
    store.push("behavior_push", later, to=PushMode.ONLINE_AND_OFFLINE)
    assert users_of_log() & {"u0001", "u0002"} == {"u0002"}, "who comes back is a new user"
    close(store)


@pytest.mark.parametrize("folder", ["nowhere", "never applied"])
def test_a_folder_that_is_no_applied_feature_repo_is_refused(tmp_path: Path, folder: str) -> None:
    if folder == "never applied":
        shutil.copytree(Path(__file__).resolve().parents[1] / "feature_repo", tmp_path / folder)
        shutil.rmtree(tmp_path / folder / "data", ignore_errors=True)
    with pytest.raises(StoreNotReady):
        forget(tmp_path / folder, "ann", keep_log=False, say=print)


def test_an_empty_id_is_refused(tmp_path: Path) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    with pytest.raises(ConfigError, match="empty"):
        forget(repo, "", keep_log=False, say=print)


def test_the_log_stays_where_that_is_asked_for_and_brings_nothing_back(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    whole = forgetting(publisher, users, folder=tmp_path)
    keeping = type(whole)(publisher=publisher, online=users, user_id=ANN, log=None)
    assert "behaviors" not in keeping.run().rows
    log = DeltaTable(str(tmp_path / "log")).to_pyarrow_table()
    assert log["user_id"].to_pylist().count(ANN) == 7
    append_all(publisher.memory, stream_of(range(7)))
    assert set(contents(publisher.memory).partitions) == {"bob"}
    write_deltalake(str(tmp_path / "log"), log.slice(0, 1), mode="append")
    assert whole.run().rows["behaviors"] == 8


def test_a_memory_on_postgresql_forgets_and_is_republished_as_well(postgres_url: str, tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users, url=postgres_url)
    tables = tables_of(tmp_path)
    found = forgetting(publisher, users, folder=tmp_path).run()
    assert (found.memory.behaviors, found.memory.vectors, found.rows["fused_vector"], found.online_rows) == (7, 5, 3, 6)
    assert tables_of(tmp_path) == of_bob(tables)
    republish_all(publisher, say=print)
    assert tables_of(tmp_path) == of_bob(tables)
    assert known_users(publisher.memory) == ["bob"]
    publisher.memory.close()


def test_a_log_in_parquet_loses_the_user_and_nobody_else(tmp_path: Path) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path, users)
    rows = table_of(stream_of(range(7)))
    pq.write_table(rows, tmp_path / "log.parquet")
    source = FileSource(path=str(tmp_path / "log.parquet"), timestamp_field="event_timestamp")
    location = Location(source=source, path=source.path, owner="the test")
    log = BehaviorLog(location=location, user_column="user_id")
    found = Forgetting(publisher=publisher, online=users, user_id=ANN, log=log).run()
    assert found.rows["behaviors"] == 7
    assert pq.read_table(tmp_path / "log.parquet") == rows.filter(pc.equal(rows["user_id"], "bob"))
