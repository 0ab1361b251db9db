"""Values as Feast keeps them online: the same bytes as its own conversion."""

import pyarrow as pa
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.types import Array, Bool, FeastType, Float32, Float64, Int32, Int64, String, UnixTimestamp
from feast.utils import _convert_arrow_to_proto
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.online_values import encode_rows
from tests.online_parts import row_table

SOURCE = FileSource(path="unused", timestamp_field="event_timestamp", created_timestamp_column="created_timestamp")
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
FLOAT32 = st.floats(width=32)

COLUMNS: dict[str, tuple[FeastType, pa.DataType, st.SearchStrategy[object]]] = {
    "text": (String, pa.string(), TEXT),
    "integer": (Int64, pa.int64(), INT64),
    "small integer": (Int32, pa.int64(), INT32),
    "float": (Float64, pa.float64(), st.floats()),
    "small float": (Float32, pa.float32(), FLOAT32),
    "flag, by Feast's conversion": (Bool, pa.bool_(), st.booleans()),
    "texts": (Array(String), pa.list_(pa.string()), st.lists(TEXT, max_size=5)),
    "integers": (Array(Int64), pa.list_(pa.int64()), st.lists(INT64, max_size=60)),
    "small integers": (Array(Int32), pa.list_(pa.int64()), st.lists(INT32, max_size=5)),
    "floats": (Array(Float64), pa.list_(pa.float64()), st.lists(st.floats(), max_size=60)),
    "small floats": (Array(Float32), pa.list_(pa.float32()), st.lists(FLOAT32, max_size=60)),
    "times, by Feast's conversion": (UnixTimestamp, pa.timestamp("us", tz="UTC"), st.datetimes()),
}


def view_of(dtype: FeastType, *, id_type: ValueType = ValueType.STRING) -> FeatureView:
    """Return a view of one feature, as the registry gives it."""
    entity = Entity(name="user", join_keys=["user_id"], value_type=id_type)
    kind = {ValueType.STRING: String, ValueType.INT64: Int64, ValueType.INT32: Int32}[id_type]
    view = FeatureView(name="view", entities=[entity], schema=[Field(name="value", dtype=dtype)], source=SOURCE)
    view.entity_columns = [Field(name="user_id", dtype=kind)]
    return view


def assert_as_feast(view: FeatureView, rows: pa.Table) -> None:
    found = encode_rows(view, rows, number=None)
    join_keys = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    feast = _convert_arrow_to_proto(rows, view, join_keys)
    assert found.keys == [serialize_entity_key(key, 3) for key, *_ in feast]
    assert found.features["value"] == [values["value"].SerializeToString() for _, values, *_ in feast]
    assert found.texts["value"] == [extract_text_and_num(values["value"], False)[0] for _, values, *_ in feast]
    assert found.event_times == [round(time.timestamp() * 1_000_000) for _, _, time, _ in feast]


@pytest.mark.parametrize(("dtype", "kind", "values"), COLUMNS.values(), ids=COLUMNS)
def test_values_are_the_bytes_of_feasts_conversion(
    dtype: FeastType, kind: pa.DataType, values: st.SearchStrategy[object]
) -> None:
    @given(st.lists(values, min_size=1, max_size=4))
    def check(column: list[object]) -> None:
        assert_as_feast(view_of(dtype), row_table(range(len(column)), pa.array(column, kind)))

    check()


@pytest.mark.parametrize(("dtype", "kind"), [(one, kind) for one, kind, _ in COLUMNS.values()], ids=COLUMNS)
def test_a_null_and_a_whole_column_of_nulls_are_feasts_nulls(dtype: FeastType, kind: pa.DataType) -> None:
    assert_as_feast(view_of(dtype), row_table(range(2), pa.nulls(2, kind)))


@pytest.mark.parametrize(
    ("id_type", "ids"),
    [(ValueType.STRING, ["", "a", "é\u4e2d'; DROP"]), (ValueType.INT64, [0, -1, 2**62]), (ValueType.INT32, [7, -7])],
    ids=["text", "integer", "small integer"],
)
def test_keys_are_the_bytes_of_feasts_keys(id_type: ValueType, ids: list[str | int]) -> None:
    assert_as_feast(view_of(Int64, id_type=id_type), row_table(ids, pa.array(range(len(ids)))))


def test_the_number_of_a_row_is_what_is_given_or_when_it_was_created() -> None:
    rows = row_table(["a", "b"], pa.array([1, 2]))
    view = view_of(Int64)
    assert encode_rows(view, rows, number=None).numbers == rows["created_timestamp"].cast(pa.int64()).to_pylist()
    assert encode_rows(view, rows, number=7).numbers == [7, 7]
    assert encode_rows(view, rows, number=[7, 8]).numbers == [7, 8]
