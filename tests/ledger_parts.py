"""Ledgers in small memories, and what their tables say, for the tests of the budget."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from liber_feast.budget import Amount, Budget, CallOutcome, Limits, PlannedCall, Prices, SettledCall
from liber_feast.memory import Memory
from liber_feast.memory.call_tables import budget_counters, calls
from liber_feast.memory.ledger import MemoryLedger

PRICES = Prices(input=1.0, cached_input=0.5, output=2.0)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TODAY = "2026-11-20"
MOST = 120_000
"""Nanodollars: what a call of `planned` can cost."""


@dataclass(kw_only=True)
class SetClock:
    """A clock that stands still until it is set."""

    now: datetime = NOON

    def __call__(self) -> int:
        return int(self.now.timestamp()) * 1_000_000


def ledger_of(
    memory: Memory,
    *,
    run: Limits | None = None,
    day: Limits | None = None,
    prices: Prices = PRICES,
    clock: SetClock | None = None,
) -> MemoryLedger:
    return MemoryLedger(
        memory,
        budget=Budget(run=run or Limits(), day=day or Limits()),
        prices=prices,
        model="tiny-1",
        prompt_version="test-1",
        clock=clock or SetClock(),
    )


def planned(count: int, *, stage: str = "summary", user_id: str | int = "ann") -> list[PlannedCall]:
    """Return calls of 80 and at most 20 tokens."""
    return [
        PlannedCall(stage=stage, user_id=user_id, partition_index=index, input_tokens=80, max_output_tokens=20)
        for index in range(count)
    ]


def answered(call_id: int, *, input_tokens: int = 80, output_tokens: int = 10, cached_tokens: int = 0) -> SettledCall:
    return SettledCall(
        call_id=call_id,
        outcome=CallOutcome.ANSWERED,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        seconds=0.5,
    )


def counters(memory: Memory) -> dict[str, Amount]:
    """Return what the counters say, by scope."""
    with memory.reading() as connection:
        return {
            row.scope: Amount(calls=row.calls, tokens=row.tokens, nanodollars=row.nanodollars)
            for row in connection.execute(sa.select(budget_counters))
        }


def sums(memory: Memory) -> dict[str, Amount]:
    """Return what the counters should say: the sums over the calls."""
    found: dict[str, Amount] = defaultdict(Amount)
    with memory.reading() as connection:
        for row in connection.execute(sa.select(calls)):
            cost = Amount(calls=1, tokens=row.input_tokens + row.output_tokens, nanodollars=row.nanodollars)
            found[f"run/{row.run_id}"] += cost
            found[f"day/{row.day}"] += cost
    return dict(found)
