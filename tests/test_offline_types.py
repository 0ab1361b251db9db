"""Every Feast value type as a feature: what lies in the files is what is joined, materialized and served."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as Number
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake
from feast import FeatureView, Field, ValueType
from feast.types import (
    Array,
    Bool,
    Bytes,
    Decimal,
    FeastType,
    Float32,
    Float64,
    ImageBytes,
    Int32,
    Int64,
    Json,
    Map,
    PdfBytes,
    ScalarMap,
    Set,
    String,
    Struct,
    TimeUuid,
    UnixTimestamp,
    Uuid,
    ZonedTimestamp,
    from_feast_type,
)

from tests.offline_repo import LIBER, delta, entity_frame, open_store, parquet, rows_of, second, times, user

pytestmark = pytest.mark.filterwarnings(
    r"ignore:fetch_(arrow_table|record_batch)\(\) is deprecated:DeprecationWarning"  # ibis of Feast's DuckDB store
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A feature, its values for the users a and b (user c has null), and its Arrow type in a Parquet file."""

    feast: FeastType
    arrow: pa.DataType
    values: tuple[Any, Any]
    delta: pa.DataType | None = None
    """Its Arrow type in a Delta table, where that differs; Delta has one type for texts, bytes and lists each."""


MOMENT = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
TEXTS = pa.map_(pa.string(), pa.string())
ID = "6f2c1a52-8d1b-4c7e-9a55-0d6f3f5d0001"
SCALARS: dict[str, Case] = {
    "bytes": Case(feast=Bytes, arrow=pa.binary(), values=(b"\x00\xff", b"")),
    "pdf": Case(feast=PdfBytes, arrow=pa.binary(), values=(b"%PDF", b"")),
    "image": Case(feast=ImageBytes, arrow=pa.binary(), values=(b"\x89PNG", b"")),
    "string": Case(feast=String, arrow=pa.string(), values=("ä\n", "")),
    "int32": Case(feast=Int32, arrow=pa.int32(), values=(-(2**31), 2**31 - 1)),
    "int64": Case(feast=Int64, arrow=pa.int64(), values=(2**53 + 1, -(2**63))),
    "float32": Case(feast=Float32, arrow=pa.float32(), values=(0.5, float("inf"))),
    "float64": Case(feast=Float64, arrow=pa.float64(), values=(0.1, -0.0)),
    "bool": Case(feast=Bool, arrow=pa.bool_(), values=(True, False)),
    "time": Case(feast=UnixTimestamp, arrow=STAMP, values=(MOMENT, MOMENT)),
    "json": Case(feast=Json, arrow=pa.large_string(), delta=pa.string(), values=('{"a":1}', "[]")),
    "uuid": Case(feast=Uuid, arrow=pa.string(), values=(ID, ID)),
    "time_uuid": Case(feast=TimeUuid, arrow=pa.string(), values=(ID, ID)),
    "decimal": Case(feast=Decimal, arrow=pa.string(), values=("1.50", "0")),
    "map": Case(feast=Map, arrow=TEXTS, values=([("k", "v"), ("l", None)], [])),
}
SETS = {name: case for name, case in SCALARS.items() if name not in {"pdf", "image", "json", "map"}}
LISTS = {name: case for name, case in SCALARS.items() if name not in {"pdf", "image"}}
PAIR = Struct({"a": Int64, "b": Array(String)})
PAIR_TYPE = pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))])


def list_of(kind: pa.DataType | None) -> pa.DataType | None:
    return None if kind is None else pa.list_(kind)


CASES: dict[str, Case] = {
    **SCALARS,
    **{
        f"list_of_{name}": Case(
            feast=Array(case.feast),
            arrow=pa.list_(case.arrow),
            delta=list_of(case.delta),
            values=([case.values[0], None], []),
        )
        for name, case in LISTS.items()
    },
    **{
        f"lists_of_{name}": Case(
            feast=Array(Array(case.feast)),
            arrow=pa.list_(pa.list_(case.arrow)),
            delta=list_of(list_of(case.delta)),
            values=([[case.values[0], None], [], None], []),
        )
        for name, case in LISTS.items()
    },
    **{
        f"set_of_{name}": Case(feast=Set(case.feast), arrow=pa.list_(case.arrow), values=([case.values[0]], []))
        for name, case in SETS.items()
    },
    "set_of_lists": Case(feast=Set(Array(Int64)), arrow=pa.list_(pa.list_(pa.int64())), values=([[1, 2], [3]], [])),
    "struct": Case(feast=PAIR, arrow=PAIR_TYPE, values=({"a": 1, "b": ["x", None]}, {"a": None, "b": []})),
    "list_of_structs": Case(
        feast=Array(PAIR), arrow=pa.list_(PAIR_TYPE), values=([{"a": 1, "b": None}, {"a": None, "b": ["x"]}], [])
    ),
    "scalar_map": Case(feast=ScalarMap, arrow=TEXTS, values=([("1", "v")], [])),
    "zoned_time": Case(feast=ZonedTimestamp, arrow=STAMP, values=(MOMENT, MOMENT)),
    "naive_time": Case(
        feast=UnixTimestamp, arrow=pa.timestamp("us"), values=(datetime(2024, 5, 6, 7), datetime(1960, 1, 1))
    ),
    "date": Case(feast=UnixTimestamp, arrow=pa.date32(), values=(date(2024, 5, 6), date(1960, 1, 1))),
    "number": Case(feast=Decimal, arrow=pa.decimal128(9, 2), values=(Number("1.50"), Number("-0.01"))),
    "code": Case(feast=Bytes, arrow=pa.binary(2), delta=pa.binary(), values=(b"ab", b"cd")),
    "vector": Case(
        feast=Array(Float32),
        arrow=pa.list_(pa.float32(), 2),
        delta=pa.list_(pa.float32()),
        values=([0.5, 1.5], [None, 2.0]),
    ),
    "long_list": Case(
        feast=Array(Int64), arrow=pa.large_list(pa.int64()), delta=pa.list_(pa.int64()), values=([1, None], [])
    ),
    "category": Case(
        feast=String, arrow=pa.dictionary(pa.int32(), pa.string()), delta=pa.string(), values=("x", "y" * 20)
    ),
}
EXPECTED_ORDER = ("b", "c", "a", "unknown", "a", "b")


def column_of(case: Case) -> pa.Array:
    return pa.array([*case.values, None], case.arrow)


def source_rows() -> pa.Table:
    columns = {name: column_of(case) for name, case in CASES.items()}
    return pa.table({"user_id": ["a", "b", "c"], "event_timestamp": times([0, 1, 2]), **columns})


def view(name: str, source: Any, cases: Mapping[str, Case] = CASES) -> FeatureView:
    schema = [Field(name=feature, dtype=case.feast) for feature, case in cases.items()]
    return FeatureView(name=name, entities=[user], ttl=timedelta(0), schema=schema, source=source)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """The six entity rows with every feature: from Parquet, from Delta, and from Feast's DuckDB store."""
    root = tmp_path_factory.mktemp("types")
    rows = source_rows()
    (root / "parquet").mkdir()
    for place in range(3):  # more than one file: types must meet across them
        pq.write_table(rows.slice(place, 1), root / f"parquet/{place}.parquet")
        write_deltalake(root / "delta", rows.slice(place, 1), mode="append")
    frame = entity_frame(list(EXPECTED_ORDER), [9] * 6, place=range(6))
    found = {}
    for name, offline, source in (
        ("parquet", LIBER, parquet("parquet")),
        ("delta", LIBER, delta("delta")),
        ("duckdb", "duckdb", parquet(str(root / "parquet/*.parquet"))),
    ):
        store = open_store(root, offline=offline)
        store.apply([user, view(name, source)])
        job = store.get_historical_features(frame, [f"{name}:{feature}" for feature in CASES])
        found[name] = job.to_arrow().sort_by("place")
        found[name].validate(full=True)
    return found


@pytest.mark.parametrize("kind", ["parquet", "delta"])
@pytest.mark.parametrize("name", CASES)
def test_a_feature_of_any_type_comes_as_it_lies_in_the_file(results: dict[str, pa.Table], name: str, kind: str) -> None:
    case, column = CASES[name], results[kind].column(name)
    by_user = dict(zip("abc", column_of(case).to_pylist(), strict=True))
    assert column.to_pylist() == [by_user.get(key) for key in EXPECTED_ORDER]
    wanted = case.arrow if kind == "parquet" or case.delta is None else case.delta
    assert plain(column.type) == plain(wanted)


def plain(kind: pa.DataType) -> str:
    """A type without the names that a format gives to the items of its lists and maps."""
    return re.sub(r" \('\w+'\)", "", str(kind)).replace("element:", "item:")


@pytest.mark.parametrize("name", CASES)
def test_a_feature_of_any_type_equals_that_of_feasts_duckdb_store(results: dict[str, pa.Table], name: str) -> None:
    assert results["parquet"].column(name).to_pylist() == results["duckdb"].column(name).to_pylist()


def test_no_value_type_of_feast_is_left_out() -> None:
    covered = {from_feast_type(case.feast) for case in CASES.values()}
    without_data = {ValueType.UNKNOWN, ValueType.NULL}
    assert set(ValueType) - covered - without_data == set()


# Feast's local engine reads lists and maps through pandas, where a null within a list of integers becomes a float and a
# map an array of pairs; it then refuses them ("Expected dict for MAP type, got ndarray"), whatever the offline store.
SERVED: dict[str, tuple[Any, Any]] = {
    "bytes": (b"\x00\xff", b""),
    "pdf": (b"%PDF", b""),
    "image": (b"\x89PNG", b""),
    "string": ("ä\n", ""),
    "int32": (-(2**31), 2**31 - 1),
    "float32": (0.5, float("inf")),
    "float64": (0.1, 0.0),
    "bool": (True, False),
    "time": (MOMENT, MOMENT),
    "json": ({"a": 1}, []),
    "decimal": (Number("1.50"), Number(0)),
    "number": (Number("1.50"), Number("-0.01")),
    "code": (b"ab", b"cd"),
    "category": ("x", "y" * 20),
    "list_of_bytes": ([b"\x00\xff", b""], []),
    "list_of_string": (["ä\n", ""], []),
    "list_of_bool": ([True, False], []),
    "list_of_time": ([MOMENT, None], []),
    "set_of_string": ({"ä\n"}, set()),
    "set_of_int64": ({2**53 + 1}, set()),
    "set_of_bool": ({True}, set()),
    "set_of_decimal": ({Number("1.50")}, set()),
    "set_of_lists": ([[1, 2], [3]], []),
}
"""What Feast serves of the features that its local engine can materialize: a null in a list is its type's zero."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    root = tmp_path_factory.mktemp("served")
    pq.write_table(source_rows(), root / "rows.parquet")
    store = open_store(root)
    store.apply([user, view("types", parquet("rows.parquet"), {name: CASES[name] for name in SERVED})])
    store.materialize(second(-1), second(9))
    rows = [{"user_id": key} for key in ("a", "b", "c", "unknown")]
    found: dict[str, list[Any]] = store.get_online_features([f"types:{name}" for name in SERVED], rows).to_dict()
    return found


@pytest.mark.parametrize("name", SERVED)
def test_a_materialized_feature_is_served_as_it_lies_in_the_file(served: dict[str, list[Any]], name: str) -> None:
    assert served[name] == [*SERVED[name], None, None]


def test_texts_and_lists_as_views_are_joined_as_texts_and_lists(tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["a", "b" * 20, None], pa.string_view()),
        "texts": pa.array([["a"], [None, "b" * 20], None], pa.list_(pa.string_view())),
        "counts": pa.array([[1], [], None], pa.list_view(pa.int64())),
        "pair": pa.array([{"x": "a"}, {"x": None}, None], pa.struct([("x", pa.string_view())])),
    }
    rows = pa.table(
        {"user_id": pa.array(["a", "b", "c"], pa.string_view()), "event_timestamp": times([0] * 3), **columns}
    )
    (tmp_path / "rows").mkdir()
    for name in ("1", "2"):
        pq.write_table(rows, tmp_path / f"rows/{name}.parquet")
    schema = [Field(name="text", dtype=String), Field(name="texts", dtype=Array(String))]
    schema += [Field(name="counts", dtype=Array(Int64)), Field(name="pair", dtype=Struct({"x": String}))]
    store = open_store(tmp_path)
    source = parquet("rows")
    store.apply([user, FeatureView(name="views", entities=[user], ttl=timedelta(0), schema=schema, source=source)])
    found = rows_of(store, entity_frame(["c", "b", "a"], [5] * 3), [f"views:{name}" for name in columns])
    for name, column in columns.items():
        assert [row[name] for row in found] == column.to_pylist()[::-1]


def test_a_result_is_arrow_without_a_round_trip_through_pandas(tmp_path: Path) -> None:
    exact = 2**53 + 1  # in pandas a column with nulls would hold floats, and this as 2**53
    columns = {
        "count": pa.array([exact, None], pa.int64()),
        "counts": pa.array([[exact, None], []], pa.list_(pa.int64())),
        "flag": pa.array([True, None], pa.bool_()),
        "day": pa.array([date(1, 1, 1), None], pa.date32()),
    }
    rows = pa.table({"user_id": ["a", "b"], "event_timestamp": times([0, 0]), **columns})
    pq.write_table(rows, tmp_path / "rows.parquet")
    types = {"count": Int64, "counts": Array(Int64), "flag": Bool, "day": UnixTimestamp}
    schema = [Field(name=name, dtype=kind) for name, kind in types.items()]
    store = open_store(tmp_path)
    source = parquet("rows.parquet")
    store.apply([user, FeatureView(name="exact", entities=[user], ttl=timedelta(0), schema=schema, source=source)])
    frame = entity_frame(["b", "unknown", "a"], [5] * 3, label=pd.array([exact, None, 1], dtype="Int64"))
    job = store.get_historical_features(frame, [f"exact:{name}" for name in columns])
    table = job.to_arrow()
    assert table.column("label").to_pylist() == [exact, None, 1]
    for name, column in columns.items():
        assert table.schema.field(name).type == column.type
        assert table.column(name).to_pylist() == [None if name != "counts" else [], None, column[0].as_py()]
    assert job.to_df()["user_id"].tolist() == ["b", "unknown", "a"]
