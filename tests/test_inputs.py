import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.encoded import DISTINCT, PLACES
from liber_feast.errors import ConfigError, DataSetError
from liber_feast.fields import FEW, look_up
from liber_feast.inputs import Batch, InputSpec
from liber_feast.ragged import Ragged, RaggedValues, list_values
from tests.training_parts import ITEM_COLUMNS, USER_COLUMNS, WIDTH, sample_table, without_vectors
from training.fit_inputs import InputOptions, fit_inputs, item_versions

FUSED_WIDTH = 4
OPTIONS = InputOptions(sequence_length=5, memory_width=WIDTH, fused_width=FUSED_WIDTH, max_partitions=3)
BASELINE = replace(OPTIONS, memory_width=0, fused_width=0)


@cache
def table() -> pa.Table:
    return sample_table(count=200)


def fitted(options: InputOptions = OPTIONS, **changes: Any) -> InputSpec:
    arguments: dict[str, Any] = {"user_columns": USER_COLUMNS, "item_columns": ITEM_COLUMNS, "catalog": None}
    return fit_inputs(table(), **(arguments | changes), options=options)


@cache
def spec() -> InputSpec:
    return fitted()


@cache
def baseline() -> InputSpec:
    return fitted(BASELINE)


def one_user(**values: Any) -> pa.Table:
    row = {"age_group": "18-24", "item_ids": ["i1", "i2"], "ratings": [5.0, 1.0], "behavior_count": 2}
    return pa.Table.from_pylist([row | values])


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_shapes_are_those_the_module_states() -> None:
    batch, shape = spec().encode(table()), spec().shape
    slots = sum(shape.item_slots)
    assert {name: array.shape for name, array in batch.items()} == {
        "user_codes": (200, 1),
        "user_numbers": (200, 0, 2),
        "item_codes": (200, slots),
        "item_numbers": (200, 1, 2),
        "history_codes": (200, 5, slots),
        "history_numbers": (200, 5, 1, 2),
        "history_mask": (200, 5),
        "history_liked": (200, 5),
        "history_rating": (200, 5),
        "dense": (200, 3),
        "vectors": (200, 3, WIDTH),
        "sealed": (200, 3),
    }
    assert batch["item_codes"].max() < shape.item_code_count
    assert batch["user_codes"].max() < shape.user_code_count
    assert all(np.isfinite(array).all() for array in batch.values())


def test_free_text_and_the_user_id_are_no_fields() -> None:
    assert [field.name for field in spec().user_fields] == ["age_group"]
    assert [field.name for field in spec().item_fields] == ["item_id", "categories", "period", "price"]


def test_the_user_id_is_a_field_where_it_is_asked_for() -> None:
    found = fitted(replace(BASELINE, user_id=True))
    assert [field.name for field in found.user_fields] == ["user_id", "age_group"]


def test_a_value_seen_too_rarely_is_unknown() -> None:
    often = fitted(replace(BASELINE, least_count=5)).item_fields[0].values
    counts = {name.as_py(): 0 for name in table()["item_id"].unique()}
    for name in table()["item_id"].to_pylist():
        counts[name] += 1
    assert set(often) == {name for name, count in counts.items() if count >= 5}
    assert 0 < len(often) < len(counts)


def test_a_column_that_is_neither_text_nor_number_nor_often_filled_is_no_field() -> None:
    odd = table().append_column("flags", pa.array([[1, 2]] * 200)).append_column("note", pa.nulls(200, pa.string()))
    found = fit_inputs(odd, user_columns=["flags", "note", "absent"], item_columns=[], options=BASELINE)
    assert found.user_fields == ()


@given(st.lists(st.integers(0, 199), max_size=20))
def test_a_row_is_encoded_the_same_whatever_stands_beside_it(rows: list[int]) -> None:
    whole = baseline().encode(table())
    assert_equal(baseline().encode(table().take(pa.array(rows, pa.int64()))), {k: v[rows] for k, v in whole.items()})


@given(st.lists(st.integers(0, 199), min_size=1, max_size=20))
def test_a_padded_batch_of_vectors_holds_the_last_partitions_and_zeros(rows: list[int]) -> None:
    some = table().take(pa.array(rows, pa.int64()))
    batch = spec().encode(some)
    for row, given_ in enumerate(some["vectors"].to_pylist()):
        kept = np.array(given_[-3 * WIDTH :], np.float32).reshape(-1, WIDTH)
        assert batch["sealed"][row].sum() == len(kept)
        np.testing.assert_array_equal(batch["vectors"][row][: len(kept)], kept)
        assert not batch["vectors"][row][len(kept) :].any()
        assert not batch["sealed"][row][len(kept) :].any()


def test_an_item_of_a_history_is_as_it_was_when_the_behavior_was_and_a_candidate_as_its_row_says() -> None:
    moments = pa.array([10, 20, 30], pa.timestamp("us", tz="UTC"))
    versions = {
        "item_id": ["i1", "i1", "i2"],
        "categories": [["War"], ["Drama"], ["Horror"]],
        "event_timestamp": moments,
    }
    catalog = item_versions(pa.table({**versions, "title": pa.nulls(3), "period": pa.nulls(3), "price": pa.nulls(3)}))
    found = fitted(BASELINE, catalog=catalog)
    names = {code: name for name, code in found._item_lookups["categories"].items()}
    history = {"item_ids": [["i1", "i1", "i1", "i2"]], "ratings": [[4.0] * 4], "times": [[9, 10, 25, 25]]}
    row = pa.table({**history, "item_id": ["i1"], "categories": pa.array([["Comedy"]])})
    shown = found.encode(row)

    def categories(codes: np.ndarray[Any, Any]) -> list[set[str]]:
        return [{names[code] for code in some if code in names} for some in codes.tolist()]

    assert categories(shown["history_codes"][0])[:4] == [set(), {"War"}, {"Drama"}, set()]
    assert categories(shown["item_codes"]) == [{"Comedy"}]
    without_times = found.encode(row.drop_columns(["times"]))
    assert categories(without_times["history_codes"][0])[:4] == [{"Drama"}, {"Drama"}, {"Drama"}, {"Horror"}]


def test_of_versions_of_one_item_and_time_the_one_created_last_counts() -> None:
    moments = pa.array([20, 20, 10, None], pa.timestamp("us", tz="UTC"))
    created = pa.array([7, 5, None, 1], pa.timestamp("us", tz="UTC"))
    rows = pa.table(
        {
            "item_id": ["b", "b", "b", "b"],
            "title": list("pqrs"),
            "event_timestamp": moments,
            "created_timestamp": created,
        }
    )
    assert item_versions(rows)["title"].to_pylist() == ["r", "p"]
    assert item_versions(rows.slice(0, 0)).num_rows == 0


def test_a_behavior_without_a_rating_has_the_mean_one_and_is_not_liked() -> None:
    batch = baseline().encode_request(one_user(ratings=[None, 5.0]), item_ids=["i1"])
    assert batch["history_rating"][0, 0] == 0
    assert batch["history_liked"][0, :2].tolist() == [False, True]
    assert batch["history_mask"][0, :2].all()


def test_a_request_gives_what_its_rows_give() -> None:
    user = {"age_group": ["25-34"], "item_ids": [["i3", "new"]], "ratings": [[4.0, 2.0]], "behavior_count": [9]}
    known = {row["item_id"]: row for row in table().select(["item_id", *ITEM_COLUMNS]).to_pylist()}
    new = {"item_id": "new", "categories": ["Drama", "War"], "period": "1990s", "title": None, "price": 3.0}
    attributes = pa.Table.from_pylist([known["i1"], new, known["i2"]])
    ids = attributes["item_id"].to_pylist()
    rows = pa.table({name: value * 3 for name, value in user.items()})
    for name in attributes.column_names:
        rows = rows.append_column(name, attributes[name])
    found = baseline().encode_request(pa.table(user), item_ids=ids, attributes=attributes)
    assert_equal({name: found[name] for name in found.keys() - {*DISTINCT, PLACES}}, baseline().encode(rows))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_a_request_names_the_items_of_its_windows_once(user_rows: list[int]) -> None:
    windows = [["i1", "i2"], [], ["i2", "i1", "i2"]]
    users = pa.table({"item_ids": windows, "ratings": [[4.0] * len(window) for window in windows]})
    found = baseline().encode_request(users, item_ids=["i3"] * len(user_rows), user_rows=np.array(user_rows))
    codes, numbers = (found[name] for name in DISTINCT)
    np.testing.assert_array_equal(codes[found[PLACES]], found["history_codes"])
    np.testing.assert_array_equal(numbers[found[PLACES]], found["history_numbers"])
    assert len(codes) == len(np.unique(found["history_codes"].reshape(-1, codes.shape[1]), axis=0))


def test_a_known_item_is_what_training_knew_and_a_new_one_what_the_store_says() -> None:
    attributes = pa.Table.from_pylist([{"categories": ["War"], "period": "1990s", "price": 7.0}] * 2)
    batch = baseline().encode_request(one_user(), item_ids=["i1", "new"], attributes=attributes)
    row = spec().items.ids.index("i1") + 1
    np.testing.assert_array_equal(batch["item_codes"][0], baseline().items.codes[row])
    values = {code: value for field in baseline().item_fields for value, code in _codes_of(field.name).items()}
    assert {values[code] for code in batch["item_codes"][1] if code} == {"War", "1990s"}
    assert batch["item_numbers"][1, 0, 1] == 1


def _codes_of(name: str) -> dict[str, int]:
    return baseline()._item_lookups.get(name, {})


def test_an_item_that_nobody_has_seen_is_all_zeros() -> None:
    batch = baseline().encode_request(one_user(), item_ids=["new"])
    assert not batch["item_codes"].any()
    assert not batch["item_numbers"].any()


@pytest.mark.parametrize(
    "user",
    [
        pa.table(
            {"age_group": pa.nulls(1), "item_ids": pa.nulls(1), "ratings": pa.nulls(1), "behavior_count": pa.nulls(1)}
        ),
        pa.table({"user_id": ["nobody"]}),
        one_user(age_group="never seen", item_ids=[], ratings=[], behavior_count=0),
    ],
    ids=["nulls", "no columns", "empty lists"],
)
def test_a_user_that_nobody_has_seen_has_arrays_of_zeros(user: pa.Table) -> None:
    batch = baseline().encode_request(user, item_ids=["i1"])
    assert not batch["user_codes"].any()
    assert not batch["history_mask"].any()
    assert not batch["history_codes"].any()
    assert not batch["history_rating"].any()
    np.testing.assert_allclose(batch["dense"][0, [0, 2]], 0)


def test_the_window_is_the_last_behaviors_oldest_first_with_their_feedback() -> None:
    ids, ratings = [f"i{number}" for number in range(8)], [1.0, 5.0, 3.0, 4.0, 2.0, 3.5, 3.0, 5.0]
    user = one_user(item_ids=ids, ratings=ratings, behavior_count=100)
    batch = baseline().encode_request(user, item_ids=["i1"])
    rows = [baseline().items.ids.index(name) + 1 for name in ids[-5:]]
    np.testing.assert_array_equal(batch["history_codes"][0], baseline().items.codes[rows])
    assert batch["history_liked"][0].tolist() == [True, False, True, False, True]
    restored = batch["history_rating"][0] * baseline().rating_deviation + baseline().rating_mean
    np.testing.assert_allclose(restored, ratings[-5:], rtol=1e-6)


def test_the_like_rate_of_a_short_window_is_drawn_to_the_mean() -> None:
    rates = [
        baseline().encode_request(one_user(item_ids=["i1"] * n, ratings=[5.0] * n), item_ids=["i1"])["dense"][0, 0]
        for n in (0, 1, 5)
    ]
    assert rates[0] == 0
    assert 0 < rates[1] < rates[2] < 1


def test_a_missing_number_is_told_from_the_mean() -> None:
    rows = pa.Table.from_pylist([{"item_id": f"new{n}", "price": price} for n, price in enumerate([None, 30.0, 1e9])])
    numbers = baseline().encode_items(rows).numbers[:, 0]
    assert numbers[0].tolist() == [0, 0]
    assert numbers[1:, 1].tolist() == [1, 1]
    assert numbers[2, 0] == 4


def test_a_spec_survives_its_json() -> None:
    document = json.loads(json.dumps(spec().to_json()))
    back = InputSpec.from_json(document, items=replace(spec().items, ids=()))
    assert back.shape == spec().shape
    assert back.item_fields == spec().item_fields
    assert_equal(back.encode(table()), spec().encode(table()))


def test_fused_vectors_take_the_place_of_partition_vectors_and_zeros_where_there_are_none() -> None:
    rows = without_vectors(table()).slice(0, 3)
    rows = rows.append_column("fused", pa.array([None, [1.0, 2.0, 3.0, 4.0], []], pa.list_(pa.float32())))
    batch = spec().encode(rows)
    assert batch["fused"].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]
    assert "vectors" not in batch


def test_vectors_of_another_width_are_refused() -> None:
    rows = without_vectors(table()).slice(0, 2)
    fused = rows.append_column("fused", pa.array([None, [1.0]], pa.list_(pa.float32())))
    with pytest.raises(ConfigError, match="'fused' is 1 wide in row 1, the run needs 4"):
        spec().encode(fused)
    vectors = rows.append_column("vectors", pa.array([[], [1.0] * (WIDTH + 1)], pa.list_(pa.float32())))
    with pytest.raises(ConfigError, match="7 floats in row 1"):
        spec().encode(vectors)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_refused_with_its_row(value: float) -> None:
    rows = without_vectors(table()).slice(0, 3)
    vectors = pa.array([[], [0.0] * WIDTH, [0.0] * (WIDTH - 1) + [value]], pa.list_(pa.float32()))
    with pytest.raises(DataSetError, match="not finite in row 2"):
        spec().encode(rows.append_column("vectors", vectors))


def test_liber_features_need_vectors_or_fused() -> None:
    with pytest.raises(ConfigError, match="`vectors` or `fused`"):
        spec().encode(without_vectors(table()))


def test_sequences_of_unequal_length_are_refused() -> None:
    with pytest.raises(DataSetError, match="differ in length"):
        baseline().encode_request(one_user(ratings=[1.0]), item_ids=["i1"])


def test_a_request_of_two_users_is_refused() -> None:
    with pytest.raises(ConfigError, match="one user row"):
        baseline().encode_request(table().slice(0, 2), item_ids=["i1"])


@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8), st.integers(1, 8))
def test_padding_and_cutting_keep_the_first_values_of_each_row(rows: list[list[int]], width: int) -> None:
    lengths = np.array([len(row) for row in rows])
    values = np.array([value for row in rows for value in row], np.int32)
    ragged = Ragged(starts=np.cumsum(lengths) - lengths, lengths=lengths, values=values)
    padded, there = ragged.pad(np.arange(len(rows)), width=width)
    for row, values_of_row in enumerate(rows):
        assert padded[row][there[row]].tolist() == values_of_row[:width]
        assert not padded[row][~there[row]].any()
    assert as_lists(ragged.select(lambda found: found > 4)) == [[value for value in row if value > 4] for row in rows]
    assert ragged.sums(values > 4).tolist() == [sum(value > 4 for value in row) for row in rows]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted), min_size=1, max_size=8))
def test_rows_may_share_their_values(bounds: list[list[int]]) -> None:
    starts, stops = np.array(bounds).T
    ragged = Ragged(starts=starts, lengths=stops - starts, values=np.arange(1, 10, dtype=np.float32))
    rows = [list(range(start + 1, stop + 1)) for start, stop in bounds]
    assert as_lists(ragged) == rows
    assert as_lists(ragged.select(lambda found: found > 4)) == [[value for value in row if value > 4] for row in rows]
    assert ragged.sums(ragged.values > 4).tolist() == [sum(value > 4 for value in row) for row in rows]
    padded, there = ragged.pad(np.arange(len(rows)), width=None)
    assert padded.shape[1] == max(1, *(len(row) for row in rows), 1)
    assert [padded[row][there[row]].tolist() for row in range(len(rows))] == rows


def as_lists(ragged: Ragged[Any] | RaggedValues) -> list[list[Any]]:
    values = ragged.values.tolist() if isinstance(ragged, Ragged) else ragged.values.to_pylist()
    return [values[start : start + length] for start, length in zip(ragged.starts, ragged.lengths, strict=True)]


@given(st.lists(st.none() | st.lists(st.integers(0, 9), max_size=6), max_size=8), st.integers(1, 4), st.integers(0, 8))
def test_the_last_values_of_a_list_column_are_read_from_any_slice(
    rows: list[list[int] | None], last: int, start: int
) -> None:
    column = pa.chunked_array([pa.array(rows[:3], pa.list_(pa.int64())), pa.array(rows[3:], pa.list_(pa.int64()))])
    found = list_values(pa.table({"x": column}).slice(start), "x", kind=pa.int64(), last=last)
    assert as_lists(found) == [(row or [])[-last:] for row in rows[start:]]
    assert len(found.values) == found.lengths.sum()
    assert as_lists(found.last(2)) == [(row or [])[-min(last, 2) :] for row in rows[start:]]


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, 1_000])
def test_few_and_many_values_are_looked_up_alike(count: int) -> None:
    values = [("a", "b", None, "unknown")[place % 4] for place in range(count)]
    found = look_up(pa.array(values, pa.string()), {"a": 3, "b": 5})
    assert found.dtype == np.int32
    assert found.tolist() == [{"a": 3, "b": 5}.get(value or "", 0) for value in values]
