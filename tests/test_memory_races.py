"""Several processes push the same users at once: every behavior is kept once, in one partition or in the cache.

With three workers beside them: every partition has its texts, each paid for once.
"""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from liber_feast.behavior import Behavior
from liber_feast.condition import Condition, CountCondition, TimeCondition
from liber_feast.errors import InvalidBehaviors
from liber_feast.materialize import Job
from liber_feast.memory import Memory
from liber_feast.memory.schema import users, waiting
from liber_feast.pace import Pace
from liber_feast.partition import partition_hash
from liber_feast.worker import run_worker
from tests import services
from tests.memory_parts import START, Contents, behavior, contents, table_of
from tests.processes import PROCESSES
from tests.worker_parts import asked, kept_texts, small_job, waiting_rows

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

memory_url = services.memory_url

PRODUCERS, WORKERS, USERS, PER_USER, SIZE = 8, 3, 6, 90, 4
PATIENCE_S = 120


def stream() -> list[Behavior]:
    """Return the behaviors of all users, some of them at one time."""
    names = [(f"user{user}", number) for user in range(USERS) for number in range(PER_USER)]
    return [behavior(number - number % 5 // 4, user=user, name=f"{number:03}") for user, number in names]


def share(producer: int) -> list[list[Behavior]]:
    """Return what a producer sends: its own behaviors in no order, and some of its neighbor's; batches come again."""
    source = random.Random(producer)
    own = [one for place, one in enumerate(stream()) if (place - producer) % PRODUCERS in (0, PRODUCERS // 2 + 1)]
    source.shuffle(own)
    cuts = sorted(source.sample(range(1, len(own)), 11))
    batches = [own[left:right] for left, right in zip([0, *cuts], [*cuts, len(own)], strict=True)]
    return batches + source.sample(batches, 2)


def produce(url: str, producer: int, condition: Condition, parent: "Connection[object, object]") -> None:
    """Push a share, sealing idle caches in between, and say what was counted."""
    memory, counted = Memory.open(url, base=Path()), Counter[str]()
    parent.send("ready")
    parent.recv()
    for number, batch in enumerate(share(producer)):
        counted += pushed(memory, batch, condition)
        counted["sealed"] += memory.seal_idle(START + timedelta(seconds=number * 5), condition=condition)
    memory.close()
    parent.send(dict(counted))


def pushed(memory: Memory, batch: Sequence[Behavior], condition: Condition) -> Counter[str]:
    appended = memory.append(table_of(batch), condition=condition, pushed_time=1)
    return Counter(
        new=appended.behavior_count,
        duplicate=appended.duplicate_count,
        late=appended.late_count,
        sealed=appended.sealed_count,
    )


def run_all(url: str, condition: Condition) -> Counter[str]:
    """Run all producers at once; return what they counted together."""
    pipes = [PROCESSES.Pipe() for _ in range(PRODUCERS)]
    producers = [
        PROCESSES.Process(target=produce, args=(url, number, condition, theirs))
        for number, (_, theirs) in enumerate(pipes)
    ]
    for process in producers:
        process.start()
    total = Counter[str]()
    for ours, _ in pipes:
        heard(ours)
    for ours, _ in pipes:
        ours.send("go")
    for ours, _ in pipes:
        total += Counter(heard(ours))
    for process in producers:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    return total


def heard(pipe: "Connection[object, object]") -> object:
    assert pipe.poll(PATIENCE_S), "a producer did not answer"
    return pipe.recv()


def check_contents(found: Contents, counted: Counter[str], condition: Condition) -> None:
    """Every behavior is once in a partition or in the cache; partitions are complete, and lie without gaps."""
    sent = {(one.user_id, one.behavior_id): one for one in stream()}
    assert counted["new"] == len(sent)
    repeated = sum(len(batch) for producer in range(PRODUCERS) for batch in share(producer)) - len(sent)
    assert counted["duplicate"] == repeated
    assert counted["sealed"] == sum(map(len, found.partitions.values()))
    for user in {one.user_id for one in sent.values()}:
        assert sorted(found.behavior_ids(str(user))) == [f"{number:03}" for number in range(PER_USER)]
        sealed = found.partitions[str(user)]
        seals = [one.seal_time for one in sealed]
        assert seals == sorted(set(seals))
        for one in sealed:
            assert one.partition_hash == partition_hash(sent[user, name] for name in one.behavior_ids)
        if isinstance(condition, CountCondition):
            assert {len(one.behavior_ids) for one in sealed} == {SIZE}
            assert len(found.caches.get(str(user), ())) == PER_USER % SIZE


@pytest.mark.parametrize(
    "condition", [CountCondition(SIZE), TimeCondition(idle=timedelta(seconds=3))], ids=["count", "idle"]
)
def test_eight_producers_of_the_same_users_lose_double_and_reorder_nothing(
    memory_url: str, condition: Condition
) -> None:
    memory = Memory.open(memory_url, base=Path())
    counted = run_all(memory_url, condition)
    check_contents(contents(memory), counted, condition)
    with memory.reading() as connection:
        rows = connection.execute(sa.select(users)).all()
        waits = set(connection.scalars(sa.select(waiting.c.user_key)))
    memory.close()
    assert {row.behavior_count for row in rows} == {PER_USER}
    assert sum(row.late_count for row in rows) == counted["late"]
    assert sum(row.duplicate_count for row in rows) == counted["duplicate"]
    assert waits == {row.user_key for row in rows}


def job_of(folder: Path, url: str) -> Job:
    job = small_job(folder, url, pace=Pace(wait_ms=0, poll_ms=20, lease_s=20.0))
    return replace(job, condition=CountCondition(SIZE))


def test_three_workers_beside_eight_producers_write_the_texts_of_each_partition_once(
    memory_url: str, tmp_path: Path
) -> None:
    condition, memory = CountCondition(SIZE), Memory.open(memory_url, base=Path())
    open_job = partial(job_of, tmp_path, memory_url)
    workers = [PROCESSES.Process(target=run_worker, args=(open_job,)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    counted = run_all(memory_url, condition)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(PATIENCE_S)
        assert worker.exitcode == 0
    during = len(asked(tmp_path))
    run_worker(open_job, once=True)
    found = contents(memory)
    check_contents(found, counted, condition)
    texts = [
        (stage, user, index)
        for user, some in found.partitions.items()
        for index in range(len(some))
        for stage in ("summary", "shift")[: 1 + (index > 0)]
    ]
    assert sorted(asked(tmp_path)) == kept_texts(memory) == sorted(texts)
    assert waiting_rows(memory) == {}
    memory.close()
    assert during, "the workers did nothing while the producers pushed"


def test_of_first_appends_with_ids_of_two_types_one_type_wins_and_the_others_are_refused(memory_url: str) -> None:
    memory, barrier = Memory.open(memory_url, base=Path()), threading.Barrier(PRODUCERS)

    def first(number: int) -> str | None:
        user: str | int = number if number % 2 else f"user {number}"
        barrier.wait(PATIENCE_S)
        try:
            memory.append(table_of([behavior(1, user=user)]), condition=CountCondition(SIZE))
        except InvalidBehaviors:
            return None
        return type(user).__name__

    with ThreadPoolExecutor(PRODUCERS) as threads:
        outcomes = list(threads.map(first, range(PRODUCERS)))
    (won,) = {one for one in outcomes if one}
    assert outcomes.count(won) == PRODUCERS // 2
    assert len(contents(memory).caches) == PRODUCERS // 2
    assert memory.setting("user_id_type") == {"int": "int64", "str": "string"}[won]
    memory.close()
