"""Ways to do one as-of join on narrow keys: ours (composite keys, sort, binary search), pandas and DuckDB.

`python -m benchmarks.as_of [--runs N]`. Each gets the same numpy arrays and returns, for every query, the position of
the last row of its group at or before its time; the answers are compared. Medians of runs in turn, seconds. The
wide columns are no part of it: whatever finds the positions, they are gathered once afterwards.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa

from liber_feast.pit import NO_ROW, Ints, as_of

SPAN_US = 365 * 24 * 3_600 * 1_000_000
CASES = ((2_000, 50, 100_000), (2_000, 50, 1_000_000), (1_000, 400, 200_000))
"""Users, rows per user, queries."""


def main(*, runs: int) -> None:
    """Measure every case and print the figures."""
    print(json.dumps({"cases": [_measure(*case, runs=runs) for case in CASES], "runs": runs}))


def _measure(users: int, per_user: int, queries: int, *, runs: int) -> dict[str, object]:
    arrays = _arrays(users, per_user, queries)
    expected = _ours(*arrays)
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(runs):
        for name, way in list(WAYS.items())[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            found = way(*arrays)
            taken[name].append(time.perf_counter() - start)
            if not np.array_equal(found, expected):
                raise SystemExit(f"{name} gives another answer")
            print(f"{users} x {per_user}, {queries}: {name} {taken[name][-1]:.3f} s", file=sys.stderr, flush=True)
    seconds = {f"{name}_s": round(statistics.median(of), 3) for name, of in taken.items()}
    return {"users": users, "rows_per_user": per_user, "queries": queries, **seconds}


def _arrays(users: int, per_user: int, queries: int) -> tuple[Ints, Ints, Ints, Ints]:
    rng = np.random.default_rng(0)
    count = users * per_user
    groups = rng.permutation(np.repeat(np.arange(users), per_user))
    times = rng.choice(SPAN_US, count, replace=False)  # no two rows tie: then every way has the same answer
    return groups, times, rng.integers(0, users, queries), rng.integers(0, SPAN_US, queries)


def _ours(groups: Ints, times: Ints, query_groups: Ints, query_times: Ints) -> Ints:
    return as_of(groups, times, query_groups=query_groups, query_times=query_times)


def _pandas(groups: Ints, times: Ints, query_groups: Ints, query_times: Ints) -> Ints:
    rows = pd.DataFrame({"user": groups, "time": times, "row": np.arange(len(groups))}).sort_values("time")
    asked = pd.DataFrame({"user": query_groups, "time": query_times, "place": np.arange(len(query_groups))})
    joined = pd.merge_asof(asked.sort_values("time"), rows, on="time", by="user")
    found = np.full(len(query_groups), NO_ROW, np.int64)
    found[joined["place"].to_numpy()] = joined["row"].fillna(NO_ROW).to_numpy().astype(np.int64)
    return found


def _duckdb(groups: Ints, times: Ints, query_groups: Ints, query_times: Ints) -> Ints:
    rows = pa.table({"user": groups, "time": times, "row": np.arange(len(groups))})
    asked = pa.table({"user": query_groups, "time": query_times, "place": np.arange(len(query_groups))})
    with duckdb.connect() as connection:
        connection.register("feature_rows", rows)
        connection.register("asked", asked)
        joined = connection.execute(
            'SELECT a.place, r."row" FROM asked a ASOF LEFT JOIN feature_rows r'
            ' ON a."user" = r."user" AND a."time" >= r."time"'
        ).to_arrow_table()
    found = np.full(len(query_groups), NO_ROW, np.int64)
    found[joined["place"].to_numpy()] = joined["row"].fill_null(NO_ROW).to_numpy()
    return found


WAYS: dict[str, Callable[[Ints, Ints, Ints, Ints], Ints]] = {"ours": _ours, "pandas": _pandas, "duckdb": _duckdb}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    main(runs=parser.parse_args().runs)
