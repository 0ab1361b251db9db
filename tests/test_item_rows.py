"""Items found by id and time: what a point-in-time join of the item table gives, without a pass over the table."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.encoded import ItemTable
from liber_feast.item_rows import ItemRows
from liber_feast.pit import as_of, key_codes

VERSIONS = st.dictionaries(st.sampled_from("abcd"), st.sets(st.integers(-9, 9), min_size=1, max_size=7))
ASKED = st.lists(st.tuples(st.sampled_from([*"abcde", None]), st.integers(-11, 11)), max_size=40)


def table(versions: dict[str, set[int]]) -> ItemTable:
    rows = [(name, time) for name in sorted(versions) for time in sorted(versions[name])]
    return ItemTable(
        ids=tuple(name for name, _ in rows),
        times=np.array([time for _, time in rows], np.int64),
        codes=np.zeros((len(rows) + 1, 0), np.int32),
        numbers=np.zeros((len(rows) + 1, 0, 2), np.float32),
    )


@given(versions=VERSIONS, asked=ASKED)
def test_rows_are_those_of_a_point_in_time_join(versions: dict[str, set[int]], asked: list[tuple[str, int]]) -> None:
    items = table(versions)
    names = pa.array([name for name, _ in asked], pa.large_string())
    times = np.array([time for _, time in asked], np.int64)
    wanted, groups = key_codes([names], [pa.array(items.ids, pa.large_string())])
    known = np.flatnonzero(groups >= 0)
    joined = as_of(groups[known], items.times[known], query_groups=wanted, query_times=times)
    expected = np.append(known + 1, 0)[joined]
    np.testing.assert_array_equal(ItemRows(items).at(names, times=times), expected)


@given(versions=VERSIONS, asked=ASKED)
def test_without_a_time_the_last_version_counts(versions: dict[str, set[int]], asked: list[tuple[str, int]]) -> None:
    items = table(versions)
    names = pa.array([name for name, _ in asked], pa.string())
    late = np.full(len(asked), 99, np.int64)
    rows = ItemRows(items)
    np.testing.assert_array_equal(rows.last(names), rows.at(names, times=late))
