"""The newest row of a user stays online, whatever the order of the writers."""

import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.errors import OnlineStoreAway, StoreFailure, StoreNotReady
from liber_feast.online import FeastOnlineSink, FeastWriter, open_writer
from liber_feast.online_values import EncodedRows, entity_keys
from tests import services
from tests.online_parts import BLOCKS, POSTGRES, forget_redis, row_table

redis_server = services.redis_server
TIME = 1_700_000_000_000_000
SOURCE = FileSource(path="unused", timestamp_field="event_timestamp", created_timestamp_column="created_timestamp")
OURS, THEIRS = "view", "attributes"


def view_named(name: str, **tags: str) -> FeatureView:
    view = FeatureView(
        name=name,
        entities=[Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)],
        schema=[Field(name="value", dtype=Int64)],
        source=SOURCE,
        tags=tags,
    )
    view.entity_columns = [Field(name="user_id", dtype=String)]
    return view


@dataclass(frozen=True, kw_only=True)
class Online:
    """A store of Feast with two views, one of them filled by the plugin."""

    config: RepoConfig
    store: OnlineStore
    views: dict[str, FeatureView]
    sinks: list[FeastOnlineSink] = field(default_factory=list)

    @cached_property
    def writers(self) -> tuple[FeastOnlineSink, FeastOnlineSink]:
        return self.sink(), self.sink()

    def sink(self) -> FeastOnlineSink:
        """Return a sink with connections of its own, as another process has."""
        self.sinks.append(FeastOnlineSink(store=self.store, config=self.config, views=self.views))
        return self.sinks[-1]

    def close(self) -> None:
        for sink in self.sinks:
            sink.close()
        connection = getattr(self.store, "_conn", None)  # Feast has no way to close it
        if connection is not None:
            connection.close()

    def read(self, user: str, view: str = OURS) -> tuple[datetime | None, int | None]:
        """Return what Feast reads: the event time and the value."""
        key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=user)])
        ((time, values),) = self.store.online_read(self.config, self.views[view], [key], ["value"])
        found = None if values is None or values["value"].WhichOneof("val") is None else values["value"].int64_val
        return time, found


@pytest.fixture(scope="module", params=list(BLOCKS))
def online(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    folder = tmp_path_factory.mktemp("online")
    project = f"writers_{uuid.uuid4().hex[:12]}"
    with BLOCKS[request.param](folder) as block:
        config = RepoConfig(
            project=project,
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=block,
            entity_key_serialization_version=3,
        )
        store = get_online_store_from_config(config.online_store)
        views = {OURS: view_named(OURS, **{"liber.stage": "summary"}), THEIRS: view_named(THEIRS)}
        store.update(config, [], list(views.values()), [], [], partial=False)
        online = Online(config=config, store=store, views=views)
        yield online
        online.close()
        if request.param == "redis":
            forget_redis(project)


def new_user() -> str:
    return uuid.uuid4().hex


def write(
    sink: FeastOnlineSink, user: str, value: int, *, time: int = TIME, number: int = 0, force: bool = False
) -> None:
    sink.write(OURS, row_table([user], pa.array([value]), time=time), number=number, force=force)


orders = st.tuples(
    st.sampled_from((TIME - 1_000_000, TIME, TIME + 1, TIME + 2)), st.sampled_from((-1, 0, 127, 128, 2**50))
)


@settings(max_examples=25)
@given(st.lists(st.tuples(orders, st.booleans()), min_size=1, max_size=8))
def test_any_order_of_two_writers_ends_at_the_newest(
    online: Online, writes: Sequence[tuple[tuple[int, int], bool]]
) -> None:
    user, writers = new_user(), online.writers
    for place, ((time, number), is_second) in enumerate(writes):
        write(writers[is_second], user, place, time=time, number=number)
    newest = max(range(len(writes)), key=lambda place: (writes[place][0], place))
    assert online.read(user)[1] == newest


def test_writers_at_the_same_time_end_at_the_newest(online: Online) -> None:
    users, start = [new_user() for _ in range(20)], threading.Barrier(4)

    def run(first: int) -> None:
        sink = online.sink()
        start.wait()
        for number in range(first, 24, 4):
            values = pa.array([number] * len(users))
            sink.write(OURS, row_table(users[:: 1 if first % 2 else -1], values, time=TIME), number=number)

    threads = [threading.Thread(target=run, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [online.read(user)[1] for user in users] == [23] * len(users)


def test_a_forced_row_replaces_a_newer_one_and_is_the_newest_from_then_on(online: Online) -> None:
    sink, user = online.sink(), new_user()
    write(sink, user, 1, number=5)
    write(sink, user, 2, number=3, force=True)
    assert online.read(user)[1] == 2
    write(sink, user, 3, number=4)
    assert online.read(user)[1] == 3


def test_a_row_of_the_same_order_is_written_again(online: Online) -> None:
    sink, user = online.sink(), new_user()
    write(sink, user, 1)
    write(sink, user, 2)
    assert online.read(user)[1] == 2


def test_feast_reads_the_event_time_that_was_written(online: Online) -> None:
    user = new_user()
    write(online.sink(), user, 1, time=TIME)
    time, _ = online.read(user)
    assert time is not None
    assert time.replace(tzinfo=time.tzinfo or UTC).timestamp() == TIME / 1_000_000


def test_a_row_that_feast_wrote_is_replaced(online: Online) -> None:
    user = new_user()
    key = EntityKey(join_keys=["user_id"], entity_values=[Value(string_val=user)])
    at = datetime.fromtimestamp(TIME / 1_000_000, UTC)
    online.store.online_write_batch(
        online.config, online.views[OURS], [(key, {"value": Value(int64_val=1)}, at, at)], None
    )
    write(online.sink(), user, 2, time=TIME + 1, number=TIME)
    assert online.read(user)[1] == 2


def test_deleted_rows_are_gone_and_those_of_others_and_of_other_views_stay(online: Online) -> None:
    sink, gone, stays = online.sink(), new_user(), new_user()
    for user in (gone, stays):
        write(sink, user, 1, number=9)
        sink.write(THEIRS, row_table([user], pa.array([2])))
    assert sink.delete([gone, new_user()]) == 1
    assert sink.delete([gone]) == 0
    assert [online.read(user)[1] for user in (gone, stays)] == [None, 1]
    assert [online.read(user, THEIRS)[1] for user in (gone, stays)] == [2, 2]
    write(sink, gone, 3, number=1)  # nothing of the order is kept
    assert online.read(gone)[1] == 3


def test_what_was_deleted_is_erased_and_the_rest_stays(online: Online) -> None:
    sink, gone, stays = online.sink(), new_user(), new_user()
    for user in (gone, stays):
        write(sink, user, 1)
    sink.delete([gone])
    sink.erase()
    assert [online.read(user)[1] for user in (gone, stays)] == [None, 1]
    if online.config.online_store.type == "postgres":
        with psycopg.connect(POSTGRES.replace("+psycopg", "")) as server:
            name = f"{online.config.online_store.db_schema}.{online.config.project}_{OURS}"
            counts = server.execute("SELECT pg_stat_get_vacuum_count(%s::regclass)", [name]).fetchone()
        assert counts == (1,)


def test_a_view_that_the_sink_does_not_know_is_passed_over(online: Online) -> None:
    online.sink().write("another", row_table(["a"], pa.array([1])))


def test_many_rows_are_written_at_once(online: Online) -> None:
    users = [new_user() for _ in range(450)]
    online.sink().write(OURS, row_table(users, pa.array(range(450))), number=range(450))
    assert [online.read(user)[1] for user in users[::90]] == list(range(0, 450, 90))


def test_views_written_together_each_keep_their_newest_row(online: Online) -> None:
    sink, user, other = online.sink(), new_user(), new_user()
    write(sink, user, 1, number=9)
    newer, older = (pa.concat_tables([one, row_table([other], pa.array([2]))]) for one in rows_of_one(user))
    sink.write_together({OURS: newer, THEIRS: newer, "another": newer})
    assert [online.read(one, view)[1] for one in (user, other) for view in (OURS, THEIRS)] == [3, 3, 2, 2]
    sink.write_together({THEIRS: older, OURS: older.slice(0, 0)})
    assert [online.read(user, view)[1] for view in (OURS, THEIRS)] == [3, 3]
    sink.write_together({})


def rows_of_one(user: str) -> tuple[pa.Table, pa.Table]:
    """Return a row with the value 3, and one of the same time with the value 4 that was created earlier."""
    newer, older = ((3, TIME + 2), (4, TIME + 1))
    return tuple(row_table([user], pa.array([value]), created=at) for value, at in (newer, older))  # type: ignore[return-value]


def test_views_written_together_are_all_written_or_none(online: Online) -> None:
    if online.config.online_store.type == "redis":
        pytest.skip("Redis has no tables, so no view can be refused")
    user, missing = new_user(), "zz_without_a_table"  # PostgreSQL's are written by name
    views = {**online.views, missing: view_named(missing)}
    sink = FeastOnlineSink(store=online.store, config=online.config, views=views)
    online.sinks.append(sink)
    rows = row_table([user], pa.array([1]))
    with pytest.raises(StoreNotReady, match="lacks a table of a feature view"):
        sink.write_together({OURS: rows, missing: rows})
    assert online.read(user) == (None, None)
    sink.write_together({OURS: rows, THEIRS: rows})
    assert [online.read(user, view)[1] for view in (OURS, THEIRS)] == [1, 1]


def config_of(block: dict[str, Any], folder: Path) -> RepoConfig:
    return RepoConfig(
        project="away", provider="local", registry=str(folder / "registry.db"), online_store=block,
        entity_key_serialization_version=3,
    )  # fmt: skip


AWAY = {
    "redis": {"type": "redis", "connection_string": "127.0.0.1:1"},
    "postgres": {
        "type": "postgres", "host": "127.0.0.1", "port": 1, "database": "test", "user": "u", "password": "secret"
    },
}  # fmt: skip


@pytest.mark.parametrize("block", AWAY.values(), ids=AWAY)
def test_a_store_that_does_not_answer_is_away_in_one_line_without_its_password(
    tmp_path: Path, block: dict[str, Any]
) -> None:
    config = config_of(block, tmp_path)
    sink = FeastOnlineSink(
        store=get_online_store_from_config(config.online_store), config=config, views={OURS: view_named(OURS)}
    )
    with pytest.raises(OnlineStoreAway, match="127.0.0.1:1, does not answer: ") as away:
        write(sink, "u1", 1)
    assert "\n" not in away.value.message
    assert "secret" not in away.value.message


def test_a_redis_that_hangs_is_away_after_its_timeout_and_written_once_it_answers(
    redis_server: services.RedisServer, tmp_path: Path
) -> None:
    connection_string = f"{redis_server.address},socket_timeout=0.3"
    config = config_of({"type": "redis", "connection_string": connection_string}, tmp_path)
    store, views = get_online_store_from_config(config.online_store), {OURS: view_named(OURS)}
    sink = FeastOnlineSink(store=store, config=config, views=views)
    online = Online(config=config, store=store, views=views)
    write(sink, "u1", 1, number=1)
    redis_server.hang(is_hanging=True)
    with pytest.raises(OnlineStoreAway, match=r"Redis at 127.0.0.1:\d+, does not answer: Timeout"):
        write(sink, "u1", 2, number=2)
    redis_server.hang(is_hanging=False)
    write(sink, "u1", 3, number=3)
    assert online.read("u1")[1] == 3
    sink.close()


def test_a_connection_that_postgresql_ended_is_replaced(tmp_path: Path) -> None:
    with BLOCKS["postgres"](tmp_path) as block:
        config = config_of(block, tmp_path)
        writer, view = open_writer(get_online_store_from_config(config.online_store), config), view_named(OURS)
        store = get_online_store_from_config(config.online_store)
        store.update(config, [], [view], [], [], partial=False)
        online = Online(config=config, store=store, views={OURS: view})
        keys = entity_keys(view, ["u1"])
        for value in range(2):
            features = {"value": [Value(int64_val=value).SerializeToString()]}
            rows = EncodedRows(
                keys=keys, event_times=[TIME], numbers=[value], features=features, texts={"value": [None]}
            )
            assert writer.write(view, rows) == 1
            assert online.read("u1")[1] == value
            with psycopg.connect(POSTGRES.replace("+psycopg", "")) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [writer._opened[1].info.backend_pid])
        writer.close()
        online.close()


@dataclass(frozen=True, kw_only=True)
class Sqlite:
    """A SQLite store that is not shared with other tests."""

    path: Path
    online: Online


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Sqlite]:
    path = tmp_path / "online.db"
    config = config_of({"type": "sqlite", "path": str(path)}, tmp_path)
    store, views = get_online_store_from_config(config.online_store), {OURS: view_named(OURS, **{"liber.stage": "x"})}
    store.update(config, [], list(views.values()), [], [], partial=False)
    online = Online(config=config, store=store, views=views)
    yield Sqlite(path=path, online=online)
    online.close()


def test_a_locked_sqlite_file_is_away(sqlite: Sqlite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("liber_feast.online_sqlite.LOCK_SECONDS", 0.05)
    other = sqlite3.connect(sqlite.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sink = sqlite.online.sink()
    with pytest.raises(OnlineStoreAway, match=r"online.db is locked by another process"):
        write(sink, "u1", 1)
    other.execute("ROLLBACK")
    other.close()
    write(sink, "u1", 1)
    assert sqlite.online.read("u1")[1] == 1


def test_a_damaged_sqlite_file_and_a_missing_table_are_named(sqlite: Sqlite, tmp_path: Path) -> None:
    with pytest.raises(StoreNotReady, match="lacks a table of a feature view. Run `feast apply`"):
        sink = FeastOnlineSink(store=sqlite.online.store, config=sqlite.online.config, views={"no": view_named("no")})
        sink.write("no", row_table(["u1"], pa.array([1])))
    damaged = config_of({"type": "sqlite", "path": str(tmp_path / "damaged.db")}, tmp_path)
    (tmp_path / "damaged.db").write_bytes(b"no database, but long enough to have a header" * 40)
    with pytest.raises(StoreFailure, match=r"damaged.db cannot be written: file is not a database"):
        write(FeastOnlineSink(store=sqlite.online.store, config=damaged, views=sqlite.online.views), "u1", 1)


def test_a_sqlite_file_that_was_torn_down_is_opened_anew(sqlite: Sqlite) -> None:
    sink, online = sqlite.online.sink(), sqlite.online
    write(sink, "u1", 1, number=9)
    online.store.teardown(online.config, list(online.views.values()), [])
    online.store.update(online.config, [], list(online.views.values()), [], [], partial=False)
    write(sink, "u1", 2, number=1)
    assert online.read("u1")[1] == 2


def test_nothing_of_a_deleted_user_is_left_in_the_sqlite_files(sqlite: Sqlite) -> None:
    sink, users = sqlite.online.sink(), [f"somebody-{number:04}" for number in range(50)]
    for number in range(3):
        sink.write(OURS, row_table(users, pa.array(range(50))), number=number)
    sink.delete(["somebody-0007"])
    left = b"".join(path.read_bytes() for path in sqlite.path.parent.glob("online.db*"))
    assert b"somebody-0007" not in left
    assert b"somebody-0008" in left


class OnlineStoreOfSomebody(SqliteOnlineStore):
    """A store that the plugin has no writer for."""


def test_another_store_is_written_as_feast_does_and_emptied_to_delete(sqlite: Sqlite) -> None:
    online = sqlite.online
    view, writer = online.views[OURS], FeastWriter(online.store, online.config)
    keys = entity_keys(view, ["u1", "u2"])
    values = {"value": [Value(int64_val=number).SerializeToString() for number in (1, 2)]}
    rows = EncodedRows(keys=keys, event_times=[TIME] * 2, numbers=[0, 0], features=values, texts={})
    assert writer.write(view, rows) == 2
    assert writer.delete(view, [keys[0], *entity_keys(view, ["u3"])]) == 1
    assert [online.read(user)[1] for user in ("u1", "u2", "u3")] == [None, 2, None]
    assert isinstance(open_writer(OnlineStoreOfSomebody(), online.config), FeastWriter)
