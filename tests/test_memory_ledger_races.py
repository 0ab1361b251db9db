"""Several processes spend one budget; one of them is killed."""

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from liber_feast.budget import Amount, CallOutcome, Limits, SettledCall
from liber_feast.memory import Memory
from liber_feast.memory.call_tables import calls
from liber_feast.memory.ledger import MemoryLedger
from liber_feast.memory.spending import run_spent, spent
from tests import services
from tests.ledger_parts import MOST, TODAY, answered, counters, ledger_of, planned, sums
from tests.processes import PROCESSES

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

WORKERS, CALLS, TOKENS = 4, 200, 15_000
PATIENCE_S = 300


memory_url = services.memory_url


def opened(url: str) -> Memory:
    return Memory.open(url, base=Path())


def shared_ledger(memory: Memory, *, run: Limits | None = None) -> MemoryLedger:
    return ledger_of(memory, run=run, day=Limits(calls=CALLS, tokens=TOKENS))


def spend_until_refused(url: str, ready: "Connection[bool, bool]") -> None:
    """Make calls that use less than is reserved, some of them lost, until nothing is granted and nothing in flight."""
    memory = opened(url)
    ledger = shared_ledger(memory)
    in_flight = ledger.exchange(settled=(), wanted=planned(3)).call_ids
    ready.send(True)
    ready.recv()
    while in_flight:
        time.sleep(0.001)
        settled = [
            SettledCall(call_id=one, outcome=CallOutcome.LOST) if one % 10 == 0 else answered(one) for one in in_flight
        ]
        in_flight = ledger.exchange(settled=settled, wanted=planned(3)).call_ids
    memory.close()


def reserve_and_hang(url: str, ready: "Connection[bool, bool]") -> None:
    """Settle one of three calls, and never the others."""
    ledger = shared_ledger(opened(url))
    first, *_ = ledger.exchange(settled=(), wanted=planned(3)).call_ids
    ledger.exchange(settled=[answered(first)], wanted=())
    ready.send(True)
    ready.recv()


def heard_from(ready: "Connection[bool, bool]") -> None:
    assert ready.poll(PATIENCE_S), "a worker did not get ready"
    ready.recv()


def test_workers_use_up_the_budget_of_a_day_together_and_never_more(memory_url: str) -> None:
    memory = opened(memory_url)
    pipes = [PROCESSES.Pipe() for _ in range(WORKERS)]
    workers = [PROCESSES.Process(target=spend_until_refused, args=(memory_url, theirs)) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    for ours, _ in pipes:
        heard_from(ours)
    for ours, _ in pipes:
        ours.send(True)
    for worker in workers:
        worker.join(PATIENCE_S)
        assert worker.exitcode == 0
    with memory.reading() as connection:
        (day,) = spent(connection, by="day")
        runs = connection.scalars(sa.select(calls.c.run_id).distinct()).all()
        by_run = [run_spent(connection, one).calls for one in runs]
    memory.close()
    assert day.open == 0
    assert sum(by_run) == day.calls
    assert len(runs) == WORKERS
    used = day.input_tokens + day.output_tokens
    assert used == 90 * day.answered + 100 * day.lost <= TOKENS
    assert TOKENS - used < 100, "another call would have fit"


def test_the_calls_of_a_killed_worker_stay_reserved_for_the_next(memory_url: str) -> None:
    memory = opened(memory_url)
    ours, theirs = PROCESSES.Pipe()
    worker = PROCESSES.Process(target=reserve_and_hang, args=(memory_url, theirs))
    worker.start()
    heard_from(ours)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(PATIENCE_S)
    assert worker.exitcode == -signal.SIGKILL
    booked = Amount(calls=3, tokens=290, nanodollars=100_000 + 2 * MOST)
    assert counters(memory) == sums(memory) == dict.fromkeys(counters(memory), booked)
    grant = shared_ledger(memory).exchange(settled=(), wanted=planned(CALLS))
    assert len(grant.call_ids) == (TOKENS - 290) // 100
    assert grant.limit == f"the {TOKENS:,} tokens of {TODAY} (UTC)"
    memory.close()
