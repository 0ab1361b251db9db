"""Ingest: how fast behaviors come into the memory, from a log and on the fly.

`python -m benchmarks.ingest [--runs N] [--parts backfill,...]`. Progress goes to stderr, one JSON object to the last
line. Figures are medians.

`backfill` (see `_ingest_backfill`): 1,000,000 behaviors of 5,000 users into a fresh memory on SQLite.
`backfill_behaviors_per_second` is of partitioning and sealing; `check_seconds`, the check of the rows that goes on
meanwhile, is not in it. `backfill_scaling` is the time per behavior at 1,000,000 over that at 100,000.
`peak_memory_mib` is what the backfill needs beside the log itself, with transactions of at most `batch_size` behaviors.

`push` (see `_ingest_push`): pushes of 100 behaviors through `store.push`. `push_over_feast` is our behaviors per
second, with the memory on SQLite and the texts left to workers, over those of Feast's own push of the same rows to its
SQLite online store; `push_over_feast_cpu` is the same of the processor's time. In `push_over_feast_same_registry` Feast
has our registry store, too, so that neither makes feature views anew. `push_over_feast_full_sequences` is of users who
have 50 behaviors and more, `push_inline_behaviors_per_second` with the texts made before the push returns.

`postgres` (see `_ingest_postgres`): the same pushes with the memory on PostgreSQL, by 1 and by 8 producers at once;
null where no PostgreSQL answers.

`freshness` (see `_ingest_freshness`): from a push that fills a cache to its vector being readable online, without the
encoder's own time, which is `encoder_ms`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks import _ingest_backfill, _ingest_freshness, _ingest_postgres, _ingest_push
from benchmarks._offline import measured_apart

PARTS: Mapping[str, Callable[[int], Mapping[str, float | None]]] = {
    "backfill": lambda runs: _ingest_backfill.figures(
        runs=runs, measured=partial(measured_apart, "benchmarks._ingest_backfill")
    ),
    "push": lambda _runs: _ingest_push.run(),
    "postgres": lambda _runs: _ingest_postgres.run(),
    "freshness": lambda _runs: _ingest_freshness.run(),
}
"""The figures of each part, from the number of runs; only those of `backfill` are runs of their own."""


def main(*, runs: int, parts: Sequence[str]) -> None:
    """Measure the parts one after the other and print the figures."""
    found: dict[str, float | None] = {}
    for part in parts:
        print(f"{part}:", file=sys.stderr, flush=True)
        found |= PARTS[part](runs)
    print(json.dumps({**found, "runs": runs}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS), help="which of the parts, by name")
    asked = parser.parse_args()
    main(runs=asked.runs, parts=asked.parts.split(","))
