"""A memory of several users, published by several publishers at once; run as a program, one of them."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import sqlalchemy as sa
from deltalake import DeltaTable

from liber_feast.delta import DeltaSink
from liber_feast.interest import learn
from liber_feast.memory import Memory
from liber_feast.memory.schema import publications, users
from liber_feast.publish import VIEWS, OnlineSink, Publisher
from tests.failure_parts import VERSION, encode, publisher_into
from tests.memory_parts import EchoLearner, OnlineRows, TickingClock, append_all, behavior, no_progress, waves_of

NOTHING = dict.fromkeys(VIEWS, 0)


def tables_in(folder: Path) -> dict[str, DeltaSink]:
    return {stage: DeltaSink(path=folder / view) for stage, view in VIEWS.items()}


def publisher_of(
    memory: Memory,
    folder: Path,
    *,
    online: OnlineSink,
    tables: dict[str, DeltaSink] | None = None,
    clock: Callable[[], int] | None = None,
) -> Publisher:
    return publisher_into(tables or tables_in(folder), memory, online=online, clock=clock or TickingClock())


def teach(memory: Memory, *names: str, index: int = 0) -> list[int]:
    """Seal the partition `index` of users, with its texts and vectors; return their keys."""
    seconds = (2 * index, 2 * index + 1)
    append_all(memory, [behavior(second, user=name, item=f"{name}{second}") for name in names for second in seconds])
    with memory.reading() as connection:
        keys = list(connection.scalars(sa.select(users.c.user_key).where(users.c.user_id.in_(names))))
    learner = EchoLearner()
    learn(learner, waves_of(memory, learner, user_keys=keys), progress=no_progress)
    encode(memory, version=VERSION)
    return keys


def delta_keys(folder: Path) -> dict[str, list[tuple[str, object]]]:
    """Return user and event time of every row of the Delta tables, by view."""
    found = {}
    for view in VIEWS.values():
        rows = DeltaTable(str(folder / view)).to_pyarrow_table(columns=["user_id", "event_timestamp"]).to_pylist()
        found[view] = sorted((row["user_id"], row["event_timestamp"]) for row in rows)
    return found


def unfinished_count(memory: Memory) -> int:
    with memory.reading() as connection:
        undone = sa.select(sa.func.count()).where(publications.c.done_time.is_(None))
        return connection.scalar(undone) or 0


def check_once(memory: Memory, folder: Path, *, user_count: int, partition_count: int) -> None:
    """Check that every row of so many users with so many partitions is in the Delta tables once."""
    found = delta_keys(folder)
    for keys in found.values():
        assert len(set(keys)) == len(keys)
    every = user_count * partition_count
    assert [len(keys) for keys in found.values()] == [every, every - user_count, every, every]
    assert unfinished_count(memory) == 0


def publish_rounds(
    memory: Memory, folder: Path, names: Sequence[str], *, online: OnlineSink, rounds: int
) -> dict[str, int]:
    """Seal and publish a partition of the users, again and again; return the number of rows that were written."""
    publisher, written = publisher_of(memory, folder, online=online), dict(NOTHING)
    for index in range(rounds):
        keys = teach(memory, *names, index=index)
        for stage, count in publisher.publish(user_keys=keys).items():
            written[stage] += count
        with memory.reading() as connection:
            found = publisher.unpublished(connection, keys, fuser=publisher.fuser(VERSION))
            assert not any(rows for _, rows in found)
    return written


def main(url: str, folder: str, rounds: str, *names: str) -> None:
    memory = Memory.open(url, base=Path(folder))
    publish_rounds(memory, Path(folder), names, online=OnlineRows(), rounds=int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
