"""Point-in-time joins of wide vectors: our offline store against Feast's DuckDB store, time and peak memory.

`python -m benchmarks.pit_join [--runs N] [--cases 1,2,3]`. Every figure is of a process of its own that joins a small
frame first (imports, plans), then the whole one, from `get_historical_features` to an Arrow table. The stores take
turns. `speedup` is the median of Feast's seconds over the median of ours. `memory_ratio` is our peak resident memory
over theirs, each beyond what the process had before its first join; `process_memory_ratio` counts Python and all
libraries in (Feast itself imports torch: 350 MiB). Both results are compared, row for row. Source: one Parquet file of
partitions with a vector of 64 floats, an event time and a created time.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore, Field
from feast.types import Array, Float32

from benchmarks._offline import LIBER, SPAN_US, START_US, WARM_UP_ROWS, measured_apart, open_view

WIDTH = 64
STORES = {"liber": LIBER, "feast": "duckdb"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One size of the question."""

    users: int
    partitions: int
    rows: int


CASES = (
    Case(users=2_000, partitions=50, rows=100_000),
    Case(users=2_000, partitions=50, rows=1_000_000),
    Case(users=1_000, partitions=400, rows=200_000),
)


def main(*, runs: int, cases: list[Case]) -> None:
    """Measure every case and print the figures."""
    found = [_measure(case, runs=runs) for case in cases]
    print(json.dumps({"cases": found, "runs": runs, "width": WIDTH}))


def _measure(case: Case, *, runs: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        write_case(Path(folder), case)
        taken: dict[str, list[dict[str, float | str]]] = {name: [] for name in STORES}
        for number in range(runs):
            for name in list(STORES)[:: 1 if number % 2 else -1]:
                taken[name].append(measured_apart("benchmarks.pit_join", name, folder))
                print(f"{case.users} x {case.partitions}, {case.rows}: {name} {taken[name][-1]}", file=sys.stderr)
    if len({run["checksum"] for runs_of in taken.values() for run in runs_of}) != 1:
        raise SystemExit(f"the stores give different results: {taken}")
    seconds = {name: statistics.median(float(run["seconds"]) for run in of) for name, of in taken.items()}
    peaks = {name: statistics.median(float(run["peak_mib"]) for run in of) for name, of in taken.items()}
    joins = {name: statistics.median(float(run["join_mib"]) for run in of) for name, of in taken.items()}
    return {
        "users": case.users,
        "partitions": case.partitions,
        "rows": case.rows,
        "seconds": round(seconds["liber"], 3),
        "feast_seconds": round(seconds["feast"], 3),
        "speedup": round(seconds["feast"] / seconds["liber"], 1),
        "join_mib": round(joins["liber"]),
        "feast_join_mib": round(joins["feast"]),
        "peak_mib": round(peaks["liber"]),
        "feast_peak_mib": round(peaks["feast"]),
        "memory_ratio": round(joins["liber"] / joins["feast"], 3),
        "process_memory_ratio": round(peaks["liber"] / peaks["feast"], 3),
        "microseconds_per_row": round(seconds["liber"] / case.rows * 1e6, 3),
    }


def write_case(folder: Path, case: Case) -> None:
    """Write partitions and entity rows; some entity rows lie before their user's first partition."""
    rng = np.random.default_rng(0)
    count = case.users * case.partitions
    users = np.array([f"user-{number:06}" for number in range(case.users)])
    sealed = np.sort(rng.integers(0, SPAN_US, (case.users, case.partitions)), axis=1).reshape(-1)
    times = pa.array(sealed + START_US, pa.timestamp("us", tz="UTC"))
    vectors = pa.array(rng.standard_normal(count * WIDTH).astype(np.float32))
    shuffled = pa.array(rng.permutation(count))
    table = pa.table(
        {
            "user_id": pa.array(np.repeat(users, case.partitions)),
            "event_timestamp": times,
            "created": times,
            "vector": pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * WIDTH), vectors),
        }
    )
    pq.write_table(table.take(shuffled), folder / "vectors.parquet")
    asked = pa.table(
        {
            "user_id": pa.array(users[rng.integers(0, case.users, case.rows)]),
            "event_timestamp": pa.array(rng.integers(0, SPAN_US, case.rows) + START_US, pa.timestamp("us", tz="UTC")),
            "place": pa.array(np.arange(case.rows)),
        }
    )
    pq.write_table(asked, folder / "asked.parquet")


def one(name: str, folder: Path) -> None:
    """Join once in this process and print seconds, peak memory and a checksum of the result."""
    store = open_case(folder, STORES[name])
    frame = pd.read_parquet(folder / "asked.parquet")
    before = _memory_mib("VmRSS")
    _join(store, frame.head(WARM_UP_ROWS))
    start = time.perf_counter()
    result = _join(store, frame)
    seconds = time.perf_counter() - start
    peak = _memory_mib("VmHWM")
    figures = {"seconds": round(seconds, 4), "peak_mib": round(peak, 1), "join_mib": round(peak - before, 1)}
    print(json.dumps({**figures, "checksum": checksum(result)}))


def open_case(folder: Path, offline: str) -> FeatureStore:
    """Return a store with one view of the vectors."""
    schema = [Field(name="vector", dtype=Array(Float32))]
    return open_view(folder, "partitions", file="vectors.parquet", schema=schema, offline=offline, created="created")


def _join(store: FeatureStore, frame: pd.DataFrame) -> pa.Table:
    return store.get_historical_features(entity_df=frame, features=["partitions:vector"]).to_arrow()


def checksum(result: pa.Table) -> str:
    """Return a hash of the vectors in the order of `place`; null differs from every vector."""
    vectors = result.column("vector").combine_chunks()
    order = np.argsort(result.column("place").to_numpy())
    digest = hashlib.sha256()
    for part in np.array_split(order, max(len(order) // 50_000, 1)):
        rows = vectors.take(pa.array(part))
        digest.update(rows.is_valid().to_numpy(zero_copy_only=False).tobytes())
        digest.update(rows.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()[:16]


def _memory_mib(name: str) -> float:
    """Return what the kernel calls VmRSS (resident memory) or VmHWM (its peak) of this process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cases", default="1,2,3", help="which of the cases, by number")
    parser.add_argument("--one", nargs=2, metavar=("STORE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one[0], Path(asked.one[1]))
    else:
        main(runs=asked.runs, cases=[CASES[int(number) - 1] for number in asked.cases.split(",")])
