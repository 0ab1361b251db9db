"""What serving reads by itself is what Feast reads, value for value, and one statement reads it."""

import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Bool, ComplexFeastType, Float32, Int64, PrimitiveFeastType, String, UnixTimestamp

from liber_feast.errors import ArtifactError, OnlineStoreAway
from serving.online import OnlineFeatures
from serving.rows import FeastRows, ReadView, RowReader, SqliteRows, open_rows
from serving.rows_redis import RedisRows
from tests import feature_repo_kit as kit
from tests.online_parts import BLOCKS, forget_redis
from tests.serving_parts import NOW, write_configuration

NOBODY = ["nobody", "", "о'нет\0 💿", "u0005' OR 1=1 --"]
OF_USERS = ("user_profile", *kit.LIBER_VIEWS)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """A materialized repo whose online store, of the kind that is asked for, is its own."""
    folder, project = tmp_path_factory.mktemp(request.param), f"liber_{uuid.uuid4().hex[:12]}"
    with BLOCKS[request.param](folder) as block:
        repo = kit.set_keys(kit.repo_to_push_to(folder / "repo"), project=project, online_store=block)
        (repo / "data" / "registry.db").unlink()
        kit.apply(repo)
        opened = kit.open_store(repo)
        opened.materialize(kit.START, kit.END)
        yield opened
        kit.close(opened)
        if request.param == "redis":
            forget_redis(project)


def whole(store: FeatureStore, *names: str) -> list[ReadView]:
    views = [store.get_feature_view(name) for name in names]
    return [ReadView(view=one, features=tuple(field.name for field in one.features)) for one in views]


def as_feast_reads(store: FeatureStore, reader: RowReader, views: list[ReadView], ids: list[str]) -> None:
    found, expected = reader.read(ids), FeastRows(store, views).read(ids)
    told = [{name: dict(row) for name, row in rows.items()} for rows in found]
    assert [
        {name: row for name, row in rows.items() if any(one is not None for one in row.values())} for rows in told
    ] == expected
    assert any(len(rows) == len(views) for rows in expected)
    assert (found[-1], expected[-1]) == ({}, {})


def test_users_are_read_as_feast_reads_them(store: FeatureStore) -> None:
    views = whole(store, *OF_USERS)
    reader = open_rows(store, views)
    assert isinstance(reader, SqliteRows | RedisRows)
    users = kit.users_of(store.repo_path)
    as_feast_reads(store, reader, views, [*users, users[0], *NOBODY])


def test_items_are_read_as_feast_reads_them(store: FeatureStore) -> None:
    views = whole(store, "item_attributes", "item_text")
    items = kit.log_of(store.repo_path)["item_id"].unique().to_pylist()
    as_feast_reads(store, open_rows(store, views), views, [*items, items[0], *NOBODY])


def test_some_features_of_a_view_are_read_alone(store: FeatureStore) -> None:
    view = store.get_feature_view("behavior_sequence")
    reader = open_rows(store, [ReadView(view=view, features=("ratings", "behavior_count"))])
    (rows,) = reader.read(kit.users_of(store.repo_path)[:1])
    assert set(rows["behavior_sequence"]) == {"ratings", "behavior_count"}
    assert rows["behavior_sequence"]["behavior_count"] > 0


def test_what_is_pushed_is_read_at_once(store: FeatureStore) -> None:
    views = whole(store, *OF_USERS)
    reader, name = open_rows(store, views), f"new {uuid.uuid4().hex}"
    assert reader.read([name]) == [{}]
    store.push("behavior_push", kit.behavior(name, "i0001", at=kit.END))
    (rows,) = reader.read([name])
    assert set(rows) == {"behavior_sequence"}
    assert list(rows["behavior_sequence"]["item_ids"]) == ["i0001"]


def test_users_and_all_their_views_are_one_statement(tmp_path: Path) -> None:
    store = kit.open_store(kit.materialized_repo(tmp_path / "repo"))
    reader = SqliteRows(store, whole(store, *OF_USERS))
    users, seen = kit.users_of(store.repo_path), list[str]()
    reader.read(users[:1])
    reader._connection().set_trace_callback(seen.append)
    reader.read(users)
    kit.close(store)
    (statement,) = seen
    assert statement.count("SELECT") == len(OF_USERS)


def test_more_keys_than_a_statement_takes_are_read_in_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.rows.KEYS_PER_STATEMENT", 2)
    store = kit.open_store(kit.materialized_repo(tmp_path / "repo"))
    views = whole(store, *OF_USERS)
    as_feast_reads(store, SqliteRows(store, views), views, [*kit.users_of(store.repo_path), *NOBODY])
    kit.close(store)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"no database")])
def test_a_file_that_is_gone_or_no_database_is_a_store_that_is_away(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    store = kit.open_store(kit.materialized_repo(tmp_path / "repo"))
    features, file = OnlineFeatures(store, service="ctr_serving"), tmp_path / "repo" / "data" / "online.db"
    (user,) = kit.users_of(store.repo_path)[:1]
    assert features.users([user])[0].views
    kept = file.read_bytes()
    file.unlink()
    file.write_bytes(kept)
    spoil(file)
    with pytest.raises(OnlineStoreAway, match="the online store cannot be read"):
        features.users([user])
    file.unlink(missing_ok=True)
    file.write_bytes(kept)
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert features.users([user])[0].views
    kit.close(store)


def test_every_type_is_decoded_as_feast_decodes_it_and_ids_may_be_numbers(tmp_path: Path) -> None:
    store = FeatureStore(repo_path=str(write_configuration(tmp_path / "repo")))
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)
    types: dict[str, PrimitiveFeastType | ComplexFeastType] = {
        "text": String,
        "count": Int64,
        "share": Float32,
        "is_there": Bool,
        "seen": UnixTimestamp,
        "texts": Array(String),
        "numbers": Array(Float32),
        "times": Array(UnixTimestamp),
    }
    view = FeatureView(
        name="all_types",
        entities=[user],
        schema=[Field(name="user_id", dtype=Int64), *(Field(name=name, dtype=dtype) for name, dtype in types.items())],
        source=FileSource(path="data/all_types.parquet", timestamp_field="event_timestamp"),
    )
    store.apply([user, view])
    values = {
        "text": "о'нет",
        "count": -(2**62),
        "share": 0.1,
        "is_there": False,
        "seen": NOW,
        "texts": ["a", ""],
        "numbers": [0.1, float("inf")],
        "times": [NOW, NOW],
    }
    rows = [{"user_id": 1, **values}, {"user_id": 2, **dict.fromkeys(values)}]
    store.write_to_online_store("all_types", pd.DataFrame([{**row, "event_timestamp": NOW} for row in rows]))
    views = whole(store, "all_types")
    found = open_rows(store, views).read(["1", "2", "3", "no number"])
    expected = FeastRows(store, views).read([1, 2, 3])  # type: ignore[list-item]
    assert [{name: dict(row) for name, row in rows.items()} for rows in found[:1]] == expected[:1]
    assert dict(found[1]["all_types"]) == dict.fromkeys(types)
    assert (found[2], found[3]) == ({}, {})


def test_two_views_of_a_service_with_a_feature_of_one_name_are_refused(tmp_path: Path) -> None:
    store = kit.open_store(kit.materialized_repo(tmp_path / "repo"))
    evidence, memory = (store.get_feature_view(name) for name in ("partition_evidence", "long_term_memory"))
    store.apply([FeatureService(name="both", features=[evidence, memory])])
    with pytest.raises(ArtifactError, match="'partition_evidence' and 'long_term_memory' both have a feature 'enc"):
        OnlineFeatures(store, service="both")
    kit.close(store)
