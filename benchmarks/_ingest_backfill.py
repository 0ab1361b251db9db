"""Backfill: partitioning and sealing a log into an empty memory on SQLite, the interest stage excluded.

A log of users with 200 behaviors each, in the order of time, given in tables of 64k rows with generated ids. Timed is
`append_in_groups`: spilling by user, sorting, appending, sealing and committing. The check of the rows goes on within
it and its seconds are taken out and told apart. Every run is a process of its own with a memory of its own; the peak is
what that process needed more than before the run, when everything was imported and the log lay in memory.
"""

import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from liber_feast.behavior import (
    BEHAVIOR_ID,
    EVENT_TIME,
    ITEM,
    RATING,
    TIMESTAMP,
    USER,
    CheckedBehaviors,
    RatingScale,
    behavior_ids,
    check_behaviors,
)
from liber_feast.condition import CountCondition
from liber_feast.memory import Memory
from liber_feast.memory.backfill import BATCH, append_in_groups

START_US, SPAN_US = 1_704_067_200_000_000, 365 * 24 * 3_600 * 1_000_000
"""The log is of 2024."""
SMALL, LARGE, PER_USER, ITEMS, TABLE_ROWS = 500, 5_000, 200, 20_000, 65_536
CONDITION = CountCondition(50)


def figures(*, runs: int, measured: Callable[[str], dict[str, float]]) -> dict[str, float]:
    """Measure `runs` times the large log, with a small one before and after each.

    `measured` runs this module in a process of its own, for so many users.
    """
    taken: dict[int, list[dict[str, float]]] = {SMALL: [], LARGE: []}
    for number in range(runs):
        for users in (SMALL, LARGE, SMALL):
            taken[users].append(measured(str(users)))
            print(f"backfill {number}: {users * PER_USER:,} behaviors {taken[users][-1]}", file=sys.stderr, flush=True)
    per_behavior = {users: statistics.median(run["us_per_behavior"] for run in of) for users, of in taken.items()}
    large = {name: statistics.median(run[name] for run in taken[LARGE]) for name in taken[LARGE][0]}
    return {
        "backfill_behaviors_per_second": round(1e6 / per_behavior[LARGE]),
        "backfill_scaling": round(per_behavior[LARGE] / per_behavior[SMALL], 3),
        "behaviors": LARGE * PER_USER,
        "batch_size": BATCH,
        "peak_memory_mib": round(large["peak_memory_mib"]),
        "check_seconds": round(large["check_seconds"], 2),
        "backfill_seconds": round(large["seconds"], 2),
        "backfill_cpu_seconds": round(large["cpu_seconds"], 2),
    }


def log(users: int) -> list[pa.Table]:
    """Return the log of so many users in tables of TABLE_ROWS."""
    rng, count = np.random.default_rng(0), users * PER_USER
    names = pa.array([f"user-{number:06}" for number in range(users)])
    items = pa.array([f"item-{number:06}" for number in range(ITEMS)])
    columns = {
        USER: names.take(pa.array(rng.permutation(np.repeat(np.arange(users), PER_USER)))),
        ITEM: items.take(pa.array(rng.integers(0, ITEMS, count))),
        RATING: pa.array(rng.integers(1, 6, count).astype(float)),
        EVENT_TIME: pa.array(np.sort(rng.integers(0, SPAN_US, count)) + START_US, TIMESTAMP),
    }
    columns[BEHAVIOR_ID] = behavior_ids(columns[USER], columns[ITEM], columns[EVENT_TIME])
    whole = pa.table(columns)
    return [whole.slice(start, TABLE_ROWS) for start in range(0, count, TABLE_ROWS)]


class TimedCheck:
    """`check_behaviors`, and the seconds it took in all."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __call__(self, table: pa.Table) -> CheckedBehaviors:
        start, cpu_start = time.perf_counter(), time.process_time()
        checked = check_behaviors(table, scale=RatingScale(), now=datetime.now(UTC))
        self.seconds += time.perf_counter() - start
        self.cpu_seconds += time.process_time() - cpu_start
        return checked


def one(users: int) -> dict[str, float]:
    """Backfill once in this process."""
    with tempfile.TemporaryDirectory() as folder:
        _backfill(iter(log(1)), folder=Path(folder) / "first", check=TimedCheck())  # what is loaded when it is used
        tables, check = log(users), TimedCheck()
        gc.collect()
        _forget_peak()
        before = _memory_mib("VmRSS")
        start, cpu_start = time.perf_counter(), time.process_time()
        sealed_count = _backfill(iter(tables), folder=Path(folder) / "timed", check=check)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    if sealed_count != users * PER_USER // CONDITION.size:
        raise SystemExit(f"{sealed_count} partitions were sealed")
    seconds, cpu_seconds = seconds - check.seconds, cpu_seconds - check.cpu_seconds
    return {
        "us_per_behavior": round(seconds / users / PER_USER * 1e6, 3),
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "check_seconds": round(check.seconds, 3),
        "peak_memory_mib": round(_memory_mib("VmHWM") - before, 1),
    }


def _backfill(tables: Iterator[pa.Table], *, folder: Path, check: TimedCheck) -> int:
    folder.mkdir()
    memory = Memory.open("sqlite:///memory.db", base=folder)
    appended = append_in_groups(memory, tables, condition=CONDITION, folder=folder, check=check)
    memory.close()
    return appended.sealed_count


def _forget_peak() -> None:
    """Let the kernel measure this process's peak from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory_mib(name: str) -> float:
    """Return what the kernel calls VmRSS (resident memory) or VmHWM (its peak) of this process."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")) / 1024


if __name__ == "__main__":
    print(json.dumps(one(int(sys.argv[-1]))))
