"""Pushes of 100 behaviors by 1 and by 8 producers into one memory on PostgreSQL, the texts left to workers.

A producer is a process with a feature store of its own. All push behaviors of the same 200 users, so that most pushes
meet users whom another one is writing; the online store is the feature repo's SQLite file, which they share, too.
"""

import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from benchmarks._pusher import ROWS, frames, pushers
from liber_feast.memory import Memory
from liber_feast.memory.status import memory_status
from tests import feature_repo_kit as kit
from tests.services import POSTGRES

PRODUCERS, WARM, PUSHES = (1, 8), 2, 160
"""How many produce at once, pushes of each before those that are timed, and how many are timed in all."""


def run() -> dict[str, float | None]:
    """Return the behaviors a second of all producers together; None where no PostgreSQL answers."""
    names = {count: f"postgres_{count}_producer{'s' * (count > 1)}_behaviors_per_second" for count in PRODUCERS}
    try:
        found = {name: _behaviors_per_second(count) for count, name in names.items()}
    except sa.exc.OperationalError:
        print("postgres: no server answers (LIBER_TEST_POSTGRES names one); its figures are null", file=sys.stderr)
        return dict.fromkeys(names.values())
    return dict(found)


def _behaviors_per_second(count: int) -> float:
    pushed = list(frames(count * WARM + PUSHES))
    with tempfile.TemporaryDirectory(prefix="ingest-postgres-") as folder, _schema() as url:
        repo = _repo(Path(folder) / "repo", memory=url)
        with pushers(*[repo] * count) as producers:
            for number, producer in enumerate(producers):
                for frame in pushed[number : count * WARM : count]:
                    producer.push(frame)
            for number, producer in enumerate(producers):
                producer.hand(pushed[count * WARM + number :: count])
            begun = time.perf_counter()
            for producer in producers:
                producer.begin()
            for producer in producers:
                producer.taken()
            seconds = time.perf_counter() - begun
        _check_kept(url, len(pushed) * ROWS)
    print(f"postgres: {count} producers, {PUSHES} pushes in {seconds:.1f} s", file=sys.stderr, flush=True)
    return round(PUSHES * ROWS / seconds)


def _check_kept(url: str, sent: int) -> None:
    memory = Memory.open(url, base=Path())
    with memory.reading() as connection:
        status = memory_status(connection)
    memory.close()
    if status["behaviors"] + status["duplicate_behaviors"] != sent:
        raise SystemExit(f"{status['behaviors']} of {sent} behaviors were kept")


def _repo(target: Path, *, memory: str) -> Path:
    size = {"condition": "count", "size": 20}
    return kit.repo_to_push_to(target, memory=memory, partition=size, sequence={"length": 50}, on_the_fly="worker")


@contextmanager
def _schema() -> Iterator[str]:
    """The URL of an empty schema, dropped afterwards."""
    server = sa.create_engine(POSTGRES, connect_args={"connect_timeout": 5})
    name = f"liber_ingest_{uuid.uuid4().hex}"
    with server.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    try:
        yield sa.make_url(POSTGRES).update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(False)
    finally:
        with server.begin() as connection:
            connection.execute(sa.schema.DropSchema(name, cascade=True))
        server.dispose()


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name}: {value}")  # noqa: T201
