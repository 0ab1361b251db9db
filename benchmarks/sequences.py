"""Last-50 sequences for a million samples: the store's lists against a copy of them, and the gather of the fast path.

`python -m benchmarks.sequences [--runs N]`. A log of 1,000,000 behaviors of 10,000 users; every behavior is a sample.
`sequence_over_copy` is the time of `get_historical_features(...).to_arrow()` over that of copying every buffer of its
result to new memory, in processes of their own: like a training run, each has to get the memory from the system first.
`positions_s` is the time of `sequence_positions` on the same samples.
`gather_over_index_select` is the speed of `WindowTable.gather` over that of a bare `torch.index_select` of as many rows
of the same tensor, (1,000,000, 64) float32 on the CPU, windows of 50, a batch of 512 (`gather_1_thread`: on one). Each
batch is read by one of the two alone, as the other would find it in the processor's cache. Both run as a fit does, with
freed memory kept (`liber_feast.allocator`): without that the time is that of getting pages from the system.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from feast import FeatureStore, Field
from feast.types import Array, Float64, Int64, String

from benchmarks._offline import SPAN_US, START_US, WARM_UP_ROWS, measured_apart, open_view
from liber_feast.allocator import keep_freed_memory
from liber_feast.offline_positions import sequence_positions
from training.windows import load_table

USERS, ITEMS, BEHAVIORS, LENGTH = 10_000, 20_000, 1_000_000, 50
ROWS, WIDTH, BATCH, BATCHES = 1_000_000, 64, 512, 400
FEATURES = ["behavior_sequence:item_ids", "behavior_sequence:ratings", "behavior_sequence:times"]


def main(*, runs: int) -> None:
    """Measure in processes of their own and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder))
        open_store(Path(folder))
        taken = []
        for number in range(runs):
            taken.append(measured_apart("benchmarks.sequences", folder))
            print(f"run {number}: {taken[-1]}", file=sys.stderr, flush=True)
    middle = {name: statistics.median(run[name] for run in taken) for name in taken[0]}
    ratio = statistics.median(run["seconds"] / run["copy_seconds"] for run in taken)
    print(json.dumps({"behaviors": BEHAVIORS, **middle, "sequence_over_copy": round(ratio, 3), **_gather_figures()}))


def one(folder: Path) -> None:
    """Take the sequences once in this process, after a few for the imports; copy them; print the seconds."""
    store = open_store(folder)
    frame = pd.read_parquet(folder / "samples.parquet")
    _sequences(store, frame.head(WARM_UP_ROWS))
    start = time.perf_counter()
    result = _sequences(store, frame)
    seconds = time.perf_counter() - start
    figures = {
        "samples": result.num_rows,
        "result_mib": round(result.nbytes / 2**20),
        "seconds": round(seconds, 3),
        "copy_seconds": round(copy_seconds(result), 3),
        "positions_s": round(_positions_seconds(store, frame), 3),
    }
    print(json.dumps(figures))


def _sequences(store: FeatureStore, frame: pd.DataFrame) -> pa.Table:
    return store.get_historical_features(entity_df=frame, features=FEATURES).to_arrow()


def copy_seconds(table: pa.Table) -> float:
    """Return how long it takes to copy every buffer of `table` to new memory."""
    buffers = [
        np.frombuffer(buffer, np.uint8)
        for column in table.columns
        for chunk in column.chunks
        for buffer in chunk.buffers()
        if buffer is not None
    ]
    start = time.perf_counter()
    copies = [values.copy() for values in buffers]
    seconds = time.perf_counter() - start
    del copies
    return seconds


def _positions_seconds(store: FeatureStore, frame: pd.DataFrame) -> float:
    start = time.perf_counter()
    sequence_positions(store, view_name="behavior_sequence", entity_frame=frame)
    return time.perf_counter() - start


def _gather_figures() -> dict[str, float]:
    """Return the gather's speed over a bare index_select's, with one thread and with all."""
    keep_freed_memory()
    rng, every = np.random.default_rng(0), torch.get_num_threads()
    table = load_table(rng.standard_normal((ROWS, WIDTH)).astype(np.float32), device=torch.device("cpu"))
    stops = rng.integers(LENGTH, ROWS, BATCH * BATCHES)
    starts = torch.from_numpy((stops - LENGTH).astype(np.int32)).view(BATCHES, BATCH)
    lengths = torch.full((BATCH,), LENGTH, dtype=torch.int32)
    figures = {}
    for name, threads in (("gather_1_thread", 1), ("gather_over_index_select", every)):
        torch.set_num_threads(threads)
        ours, bare = [], []
        for row, other in zip(starts[::2], starts[1::2], strict=True):
            index = (other[:, None] + torch.arange(LENGTH, dtype=torch.int32)).view(-1)
            ours.append(_seconds(lambda row=row: table.gather(row, lengths, width=LENGTH)))
            bare.append(_seconds(lambda index=index: table.rows.index_select(0, index)))
        figures[name] = round(statistics.median(bare) / statistics.median(ours), 3)
        print(f"{threads} threads: gather {statistics.median(ours) * 1e3:.3f} ms", file=sys.stderr, flush=True)
    return figures


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def write_log(folder: Path) -> None:
    """Write the log in the order of time, and the samples in another order."""
    rng = np.random.default_rng(0)
    times = pa.array(np.sort(rng.integers(0, SPAN_US, BEHAVIORS)) + START_US, pa.timestamp("us", tz="UTC"))
    users = pa.array([f"user-{number:06}" for number in range(USERS)])
    items = pa.array([f"item-{number:06}" for number in range(ITEMS)])
    log = pa.table(
        {
            "user_id": users.take(pa.array(rng.integers(0, USERS, BEHAVIORS))),
            "item_id": items.take(pa.array(rng.integers(0, ITEMS, BEHAVIORS))),
            "rating": pa.array(rng.integers(1, 6, BEHAVIORS).astype(float)),
            "event_timestamp": times,
        }
    )
    pq.write_table(log, folder / "behaviors.parquet")
    samples = log.select(["user_id", "event_timestamp"]).take(pa.array(rng.permutation(BEHAVIORS)))
    pq.write_table(samples, folder / "samples.parquet")


def open_store(folder: Path) -> FeatureStore:
    """Return a store with the sequence view over the log."""
    schema = [
        Field(name="item_ids", dtype=Array(String)),
        Field(name="ratings", dtype=Array(Float64)),
        Field(name="times", dtype=Array(Int64)),
    ]
    tags = {"liber.stage": "sequence"}
    return open_view(folder, "behavior_sequence", file="behaviors.parquet", schema=schema, tags=tags)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one)
    else:
        main(runs=asked.runs)
