"""What the offline store writes: saved data sets, logged features, and rows added to a view's source."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource
from feast.data_format import DeltaFormat, ParquetFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import (
    LOG_DATE_FIELD,
    LOG_TIMESTAMP_FIELD,
    REQUEST_ID_FIELD,
    FeatureServiceLoggingSource,
    LoggingConfig,
    LoggingDestination,
)
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Array, Int64, String

from liber_feast.errors import ConfigError
from liber_feast.offline_store import LiberOfflineStore
from tests.offline_repo import (
    LIBER,
    delta,
    entity_frame,
    open_store,
    parquet,
    rows_of,
    second,
    times,
    user,
    write_parquet,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:(Saving dataset|Retrieving datasets|On demand feature view) is an experimental feature:RuntimeWarning"
)

AGES = {"user_id": ["a", "b"], "event_timestamp": times([1, 2]), "age": pa.array([30, None], pa.int64())}
FORMATS = {"saved.parquet": ParquetFormat(), "saved": ParquetFormat(), "deep/saved": DeltaFormat()}
STORE = LiberOfflineStore()


def open_people(root: Path, *, offline: str = LIBER) -> FeatureStore:
    """Return a store with a view, a view without entities, on-demand views of both modes, and services."""
    write_parquet(root / "ages.parquet", {**AGES, "tags": [[["x"], None], []]})
    write_parquet(root / "world.parquet", {"event_timestamp": times([0]), "weather": ["sun"]})
    ages = FeatureView(
        name="ages",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="age", dtype=Int64), Field(name="tags", dtype=Array(Array(String)))],
        source=parquet(str(root / "ages.parquet")),
    )
    world = FeatureView(
        name="world",
        entities=[],
        ttl=timedelta(0),
        schema=[Field(name="weather", dtype=String)],
        source=parquet(str(root / "world.parquet")),
    )
    request = RequestSource(name="request", schema=[Field(name="bonus", dtype=Int64)])

    @on_demand_feature_view(sources=[ages[["age"]], request], schema=[Field(name="older", dtype=Int64)])
    def aged(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"older": (inputs["age"].fillna(0) + inputs["bonus"]).astype("int64")})

    @on_demand_feature_view(sources=[ages[["age"]], request], schema=[Field(name="sum", dtype=Int64)], mode="python")
    def summed(inputs: dict[str, list[Any]]) -> dict[str, list[int]]:
        return {"sum": [(age or 0) + bonus for age, bonus in zip(inputs["age"], inputs["bonus"], strict=True)]}

    logging = LoggingConfig(destination=FileLoggingDestination(path="logs", partition_by=[LOG_DATE_FIELD]))
    flat = LoggingConfig(destination=FileLoggingDestination(path="flat"))
    services = [
        FeatureService(name="partitioned", features=[ages[["age"]], world], logging_config=logging),
        FeatureService(name="flat", features=[ages[["age"]], world], logging_config=flat),
    ]
    store = open_store(root, offline=offline)
    store.apply([user, ages, world, aged, summed, *services])
    return store


@pytest.fixture
def people(tmp_path: Path) -> FeatureStore:
    return open_people(tmp_path)


def storage(path: str) -> SavedDatasetFileStorage:
    return SavedDatasetFileStorage(path=path, file_format=FORMATS[path])


def frame() -> pd.DataFrame:
    return entity_frame(["b", "a", "a"], [5, 6, 6], bonus=[1, 2, 3])


EVERYTHING = ["ages:age", "ages:tags", "aged:older", "summed:sum", "world:weather"]
SAVED = [
    {"user_id": "b", "age": None, "tags": [], "older": 1, "sum": 1, "weather": "sun", "event_timestamp": second(5)},
    {"user_id": "a", "age": 30, "tags": [["x"], None], "older": 32, "sum": 32, "weather": "sun"},
    {"user_id": "a", "age": 30, "tags": [["x"], None], "older": 33, "sum": 33, "weather": "sun"},
]


def saved_rows(store: FeatureStore, name: str) -> list[dict[str, Any]]:
    """Return the rows of a saved data set as Arrow reads them; Feast shows them as a frame only."""
    dataset = store.registry.get_saved_dataset(name, store.project)
    job = store._get_provider().retrieve_saved_dataset(config=store.config, dataset=dataset)
    rows: list[dict[str, Any]] = job.to_arrow().to_pylist()
    return rows


@pytest.mark.parametrize("path", FORMATS)
def test_a_saved_data_set_has_the_rows_of_its_retrieval_in_their_order(people: FeatureStore, path: str) -> None:
    job = people.get_historical_features(frame(), EVERYTHING)
    saved = people.create_saved_dataset(job, name="first", storage=storage(path), tags={"of": "people"})
    moments = [second(5), second(6), second(6)]
    wanted = [row | {"event_timestamp": moment} for row, moment in zip(SAVED, moments, strict=True)]
    assert saved_rows(people, "first") == wanted
    found = people.get_saved_dataset("first")
    assert (found.features, found.join_keys, found.tags) == (EVERYTHING, ["user_id"], {"of": "people"})
    assert (Path(people.config.repo_path) / path).exists()
    for dataset in (saved, found):
        assert dataset.to_df()["older"].tolist() == [1, 32, 33]


@pytest.mark.parametrize("path", FORMATS)
def test_full_names_and_the_frames_own_columns_are_saved_too(people: FeatureStore, path: str) -> None:
    job = people.get_historical_features(frame(), ["ages:age", "aged:older"], full_feature_names=True)
    job.persist(storage(path))
    place = Path(people.config.repo_path) / path
    table = DeltaTable(place).to_pyarrow_table() if "deep" in path else pq.read_table(place)
    assert table.column_names == ["user_id", "event_timestamp", "bonus", "ages__age", "aged__older"]
    people.create_saved_dataset(job, name="full", storage=storage(path), allow_overwrite=True)
    assert people.get_saved_dataset("full").to_df()["aged__older"].tolist() == [1, 32, 33]


@pytest.mark.parametrize("path", FORMATS)
def test_a_saved_data_set_is_replaced_only_where_that_is_allowed(people: FeatureStore, path: str) -> None:
    job = people.get_historical_features(frame(), ["ages:age", "aged:older"])
    people.create_saved_dataset(job, name="first", storage=storage(path))
    before = saved_rows(people, "first")
    smaller = people.get_historical_features(entity_frame(["b"], [9]), ["ages:tags"])
    with pytest.raises(SavedDatasetLocationAlreadyExists, match="saved"):
        people.create_saved_dataset(smaller, name="second", storage=storage(path))
    assert saved_rows(people, "first") == before
    people.create_saved_dataset(smaller, name="second", storage=storage(path), allow_overwrite=True)
    assert saved_rows(people, "second") == [{"user_id": "b", "tags": [], "event_timestamp": second(9)}]


@pytest.mark.parametrize("path", FORMATS)
def test_an_empty_result_is_saved_with_its_columns(people: FeatureStore, path: str) -> None:
    job = people.get_historical_features(entity_frame([], []), ["ages:age", "ages:tags"])
    people.create_saved_dataset(job, name="empty", storage=storage(path))
    assert people.get_saved_dataset("empty").to_df().columns.tolist() == ["user_id", "age", "tags", "event_timestamp"]
    assert saved_rows(people, "empty") == []


def test_a_data_set_of_a_view_without_entities_has_no_key(people: FeatureStore) -> None:
    job = people.get_historical_features(frame(), ["world:weather"])
    people.create_saved_dataset(job, name="world", storage=storage("saved.parquet"))
    assert saved_rows(people, "world")[0] == {"weather": "sun", "event_timestamp": second(5)}


def test_a_data_set_of_a_window_holds_its_feature_rows(people: FeatureStore) -> None:
    job = people.get_historical_features(features=["ages:age"], start_date=second(0), end_date=second(1))
    people.create_saved_dataset(job, name="window", storage=storage("saved.parquet"))
    assert saved_rows(people, "window") == [{"user_id": "a", "age": 30, "event_timestamp": second(1)}]


def test_on_demand_features_are_saved_which_feasts_duckdb_store_forgets(tmp_path: Path) -> None:
    """`IbisRetrievalJob.persist` writes its table before on-demand views ran; right is what `to_df` shows."""
    stored = {}
    for offline in (LIBER, "duckdb"):
        root = tmp_path / offline
        job = open_people(root, offline=offline).get_historical_features(frame(), ["ages:age", "aged:older"])
        job.persist(SavedDatasetFileStorage(path=str(root / "saved.parquet")))
        assert "older" in job.to_arrow().column_names
        stored[offline] = pq.read_table(root / "saved.parquet")
    assert stored[LIBER].column("older").to_pylist() == [1, 32, 33]
    assert "older" not in stored["duckdb"].column_names


def test_a_folder_that_is_replaced_by_an_empty_result_holds_no_row(people: FeatureStore) -> None:
    folder = Path(people.config.repo_path) / "saved"
    write_parquet(folder / "old.parquet", AGES)
    empty = people.get_historical_features(entity_frame([], []), ["ages:age"])
    empty.persist(storage("saved"), allow_overwrite=True)
    assert pq.read_table(folder).num_rows == 0
    assert pq.read_schema(folder / "part-0.parquet").names == ["user_id", "event_timestamp", "age"]


@pytest.mark.parametrize("name", ["to_sql", "to_remote_storage"])
def test_what_files_do_not_have_is_refused_with_what_to_use_instead(people: FeatureStore, name: str) -> None:
    job = people.get_historical_features(frame(), ["ages:age"])
    with pytest.raises(NotImplementedError, match=r"offline store .* use to_arrow\(\), to_df\(\), or persist\(\)"):
        getattr(job, name)()
    assert not job.supports_remote_storage_export()


def logs_of(store: FeatureStore, service: str, *, ids: list[str], at: list[float]) -> pa.Table:
    source = FeatureServiceLoggingSource(store.get_feature_service(service), store.project)
    schema = source.get_schema(store.registry)
    columns = {field.name: pa.nulls(len(ids), field.type) for field in schema}
    columns |= {"user_id": pa.array(ids), "ages__age": pa.array(range(len(ids)), pa.int64())}
    columns |= {REQUEST_ID_FIELD: pa.array(ids), LOG_TIMESTAMP_FIELD: times(at)}
    columns[LOG_DATE_FIELD] = pa.array([second(moment).date() for moment in at], pa.date32())
    return pa.table(columns, schema=schema)


def logged(store: FeatureStore, service: str, low: float, high: float) -> list[dict[str, Any]]:
    provider, asked = store._get_provider(), store.get_feature_service(service)
    job = provider.retrieve_feature_service_logs(asked, second(low), second(high), store.config, store.registry)
    rows: list[dict[str, Any]] = job.to_arrow().to_pylist()
    return sorted(rows, key=lambda row: str(row[REQUEST_ID_FIELD]))


@pytest.mark.parametrize("service", ["flat", "partitioned"])
def test_logged_features_are_read_back(people: FeatureStore, tmp_path: Path, service: str) -> None:
    day, asked = 86_400, people.get_feature_service(service)
    people.write_logged_features(logs_of(people, service, ids=["1", "2"], at=[1, day]), asked)
    (tmp_path / "buffer").mkdir()
    for place, name in enumerate(("3", "4")):  # the feature server hands over a folder of files
        pq.write_table(logs_of(people, service, ids=[name], at=[day + place]), tmp_path / f"buffer/{name}.parquet")
    people.write_logged_features(tmp_path / "buffer", asked)
    found = logged(people, service, 0, 2 * day)
    assert [(row["user_id"], row["ages__age"], row["world__weather"]) for row in found] == [
        ("1", 0, None),
        ("2", 1, None),
        ("3", 0, None),
        ("4", 0, None),
    ]
    assert [row[LOG_TIMESTAMP_FIELD] for row in found] == [second(1), second(day), second(day), second(day + 1)]
    assert {str(row[LOG_DATE_FIELD]) for row in found} == {"2024-01-01", "2024-01-02"}
    assert "__dummy_id" not in found[0]
    assert [row["user_id"] for row in logged(people, service, day + 1, 2 * day)] == ["4"]


@pytest.fixture(params=["parquet", "folder", "delta"])
def ages(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """A repo with one view over a file, a folder of files or a Delta table."""
    if request.param == "delta":
        write_deltalake(tmp_path / "data/ages", pa.table(AGES))
        source: FileSource = delta("data/ages")
    else:
        path = "data/ages.parquet" if request.param == "parquet" else "data/ages"
        write_parquet(tmp_path / path / "1.parquet" if request.param == "folder" else tmp_path / path, AGES)
        source = parquet(path)
    store = open_store(tmp_path)
    store.apply([user, source, FeatureView(name="ages", entities=[user], ttl=timedelta(0), source=source)])
    return store


def ages_at(store: FeatureStore, users: list[str], at: int = 9) -> list[int | None]:
    return [row["age"] for row in rows_of(store, entity_frame(users, [at] * len(users)), ["ages:age"])]


def test_written_rows_come_after_those_that_were_there(ages: FeatureStore) -> None:
    frame = pd.DataFrame({"age": [41, 50], "event_timestamp": [second(2), second(3)], "user_id": ["b", "c"]})
    ages.write_to_offline_store("ages", frame)
    assert ages_at(ages, ["a", "b", "c"]) == [30, 41, 50]
    written: list[int] = []
    table = pa.table({"user_id": ["b"], "event_timestamp": times([2], pa.timestamp("ns")), "age": [42]})
    STORE.offline_write_batch(ages.config, ages.get_feature_view("ages"), table, written.append)
    assert (ages_at(ages, ["b"]), written) == ([42], [1])


def test_a_frame_with_other_columns_is_refused_by_feast_and_nothing_is_written(ages: FeatureStore) -> None:
    rows = pd.DataFrame({"user_id": ["b"], "event_timestamp": [second(2)], "size": [1]})
    with pytest.raises(ValueError, match=r"missing_expected_columns: \['age'\], extra_.*: \['size'\]"):
        ages.write_to_offline_store("ages", rows)
    assert ages_at(ages, ["b"]) == [None]


def test_lists_and_nulls_are_written_as_they_are(people: FeatureStore) -> None:
    rows = pa.table(
        {"user_id": ["c"], "event_timestamp": times([3]), "age": pa.nulls(1, pa.int64()), "tags": [[["y"], None]]}
    )
    STORE.offline_write_batch(people.config, people.get_feature_view("ages"), rows, None)
    found = rows_of(people, entity_frame(["c", "a"], [9, 9]), ["ages:age", "ages:tags"])
    assert [(row["age"], row["tags"]) for row in found] == [(None, [["y"], None]), (30, [["x"], None])]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["c"], "age": [1]}, "missing event_timestamp, unknown none"),
        ({**AGES, "size": [1, 2]}, "missing none, unknown size"),
        ({**AGES, "age": ["old", "older"]}, "column 'age' to write has type string; it does not fit int64"),
    ],
    ids=["missing", "unknown", "type"],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_written(
    ages: FeatureStore, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        STORE.offline_write_batch(ages.config, ages.get_feature_view("ages"), pa.table(columns), None)
    assert ages_at(ages, ["a", "b", "c"]) == [30, None, None]


class Elsewhere(LoggingDestination):
    """A destination of another store."""

    def to_data_source(self) -> FileSource:
        return parquet("elsewhere")

    def to_proto(self) -> None:
        return None

    @classmethod
    def from_proto(cls, config_proto: object) -> "Elsewhere":
        return cls()


def test_logs_go_to_files_alone(tmp_path: Path) -> None:
    logs, store = pa.table({"score": [1.0]}), open_store(tmp_path)
    with pytest.raises(ConfigError, match="the destination is Elsewhere; use FileLoggingDestination"):
        STORE.write_logged_features(store.config, logs, None, LoggingConfig(destination=Elsewhere()), None)
