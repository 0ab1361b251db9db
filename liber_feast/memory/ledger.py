"""The ledger in the memory: every call is a row, written before it is made and settled after.

`budget_counters` holds, for every run and every day, the sum over its rows; both change in one transaction, so that a
killed process leaves no difference between them. The calls it had open stay reserved, and count as spent.

A call can cost more than was reserved for it where its prompt was estimated too low. It is booked as it was: such
differences, of the calls in flight when a limit is reached, are all that a budget can be overdrawn by.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import sqlalchemy as sa

from liber_feast.budget import (
    NANODOLLARS,
    Amount,
    Budget,
    CallCost,
    Grant,
    Limits,
    PlannedCall,
    Prices,
    SettledCall,
    cost_of,
)
from liber_feast.memory.bulk import insert_new
from liber_feast.memory.call_tables import budget_counters, calls
from liber_feast.memory.store import Memory

IDS_PER_QUERY = 400

Amounts: TypeAlias = defaultdict[str, Amount]
"""By scope; nothing where a scope is not known."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Remaining:
    """One limit and what is left of it, never below 0."""

    scope: str
    """`run` or `day`."""
    unit: str
    """`calls`, `tokens` or `dollars`."""
    limit: float
    left: float


class MemoryLedger:
    """`Ledger` in a memory that several workers may share.

    Attributes:
        run_id: the run that calls are reserved for; `begin_run` starts another.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        budget: Budget,
        prices: Prices,
        model: str,
        prompt_version: str,
        clock: Callable[[], int],
    ) -> None:
        self._memory, self._budget, self._prices, self._clock = memory, budget, prices, clock
        self._versions = {"model": model, "prompt_version": prompt_version}
        self.run_id = self.begin_run()

    def begin_run(self) -> str:
        """Start a run that has spent nothing, and return its id; calls of the one before can still be settled."""
        self.run_id = uuid.uuid4().hex
        return self.run_id

    def exchange(self, *, settled: Sequence[SettledCall], wanted: Sequence[PlannedCall]) -> Grant:
        """Settle calls that have ended and reserve as many of those wanted as the budget allows, in one transaction.

        Granted is the longest prefix of `wanted` that exceeds no limit even if every call costs the most. A call that
        was settled before, or is not known, changes nothing. Calls in flight are counted at the most: once they are
        settled, what was refused may fit.

        Raises:
            RetryableError: another process holds the memory for longer than a transaction waits.
            MemoryAway: its server does not answer; calls that were reserved without an answer count as spent.
        """
        if not settled and not wanted:
            return Grant(call_ids=())
        with self._memory.writing("ledger") as connection:  # never again by itself: it could reserve twice
            now = self._clock()
            date = _date(now)
            changes = self._settle(connection, settled, now=now)
            spent = _lock(connection, {*changes, *(_scopes(self.run_id, date) if wanted else ())})
            run, day = (spent[scope] + changes[scope] for scope in _scopes(self.run_id, date))
            costs, limit = self._fitting(wanted, run=run, day=day, date=date)
            call_ids = self._reserve(connection, wanted, costs, now=now)
            for cost in costs:
                _add(changes, cost.amount, scopes=_scopes(self.run_id, date))
            _change(connection, changes)
        return Grant(call_ids=call_ids, limit=limit)

    def remaining(self, connection: sa.Connection) -> list[Remaining]:
        """Return what is left of every limit there is, of this run and of today."""
        run, day = _scopes(self.run_id, _date(self._clock()))
        spent = _read(connection, [run, day], query=_COUNTERS)
        of_run = _remaining(self._budget.run, spent[run], scope="run")
        return [*of_run, *_remaining(self._budget.day, spent[day], scope="day")]

    def _settle(self, connection: sa.Connection, settled: Sequence[SettledCall], *, now: int) -> Amounts:
        """Settle the calls; return by how much the counters change."""
        reserved = _reserved(connection, [one.call_id for one in settled])
        changes, rows = Amounts(Amount), []
        for one in settled:
            call = reserved.pop(one.call_id, None)
            if call is None:
                continue
            most = CallCost(
                input_tokens=call.input_tokens, output_tokens=call.output_tokens, nanodollars=call.nanodollars
            )
            cost = cost_of(one, reserved=most, prices=self._prices)
            _add(changes, cost.amount - most.amount, scopes=_scopes(call.run_id, call.day))
            row = {"of_call": one.call_id, "outcome": one.outcome.value, "seconds": one.seconds, "settled_time": now}
            rows.append({**row, **_columns(cost)})
        if rows:
            connection.execute(_SETTLE, rows)
        return changes

    def _fitting(
        self, wanted: Sequence[PlannedCall], *, run: Amount, day: Amount, date: str
    ) -> tuple[list[CallCost], str | None]:
        """Return the most that each of the calls that fit can cost, and the limit that stands against the next one."""
        costs: list[CallCost] = []
        for call in wanted:
            most = call.most(self._prices)
            run, day = run + most.amount, day + most.amount
            if limit := self._budget.exceeded_by(run=run, day=day, date=date):
                return costs, limit
            costs.append(most)
        return costs, None

    def _reserve(
        self, connection: sa.Connection, wanted: Sequence[PlannedCall], costs: Sequence[CallCost], *, now: int
    ) -> Sequence[int]:
        same = {"run_id": self.run_id, "day": _date(now), **self._versions, "seconds": 0.0, "reserved_time": now}
        rows = [
            {
                **same,
                "user_id": str(call.user_id),
                "partition_index": call.partition_index,
                "stage": call.stage,
                **_columns(cost),
            }
            for call, cost in zip(wanted, costs, strict=False)
        ]
        return connection.scalars(_RESERVE, rows).all() if rows else ()


_COST_COLUMNS = ("input_tokens", "output_tokens", "cached_tokens", "nanodollars")
_SETTLE = (
    calls.update()
    .where(calls.c.call_id == sa.bindparam("of_call"))
    .values({name: sa.bindparam(name) for name in (*_COST_COLUMNS, "outcome", "seconds", "settled_time")})
)
_OPEN = (
    sa.select(calls.c.call_id, calls.c.run_id, calls.c.day, *(calls.c[name] for name in _COST_COLUMNS))
    .where(calls.c.call_id.in_(sa.bindparam("call_ids", expanding=True)), calls.c.outcome.is_(None))
    .order_by(calls.c.call_id)
    .with_for_update()
)
_RESERVE = calls.insert().returning(calls.c.call_id, sort_by_parameter_order=True)
_COUNTED = ("calls", "tokens", "nanodollars")
_COUNTERS = (
    sa.select(budget_counters)
    .where(budget_counters.c.scope.in_(sa.bindparam("scopes", expanding=True)))
    .order_by(budget_counters.c.scope)
)
_LOCKED = _COUNTERS.with_for_update()
_CHANGE = (
    budget_counters.update()
    .where(budget_counters.c.scope == sa.bindparam("of_scope"))
    .values({name: budget_counters.c[name] + sa.bindparam(f"more_{name}") for name in _COUNTED})
)


def _scopes(run_id: str, date: str) -> tuple[str, str]:
    """Return the keys of the counters of a run and of a day."""
    return f"run/{run_id}", f"day/{date}"


def _date(time: int) -> str:
    """Return the ISO date (UTC) of a time in microseconds."""
    return (_EPOCH + timedelta(microseconds=time)).date().isoformat()


def _columns(cost: CallCost) -> dict[str, Any]:
    return {name: getattr(cost, name) for name in _COST_COLUMNS}


def _add(amounts: Amounts, amount: Amount, *, scopes: Iterable[str]) -> None:
    for scope in scopes:
        amounts[scope] += amount


def _reserved(connection: sa.Connection, call_ids: Sequence[int]) -> dict[int, sa.Row[Any]]:
    """Return the calls that are reserved and not settled, by id, and keep others from settling them."""
    found: dict[int, sa.Row[Any]] = {}
    for start in range(0, len(call_ids), IDS_PER_QUERY):
        some = {"call_ids": call_ids[start : start + IDS_PER_QUERY]}
        found |= {row.call_id: row for row in connection.execute(_OPEN, some)}
    return found


def _lock(connection: sa.Connection, scopes: Iterable[str]) -> Amounts:
    """Return the counters of the scopes, made if need be; nobody else changes them before this transaction ends.

    Always in the same order, so that no two transactions wait for each other.
    """
    names = sorted(scopes)
    found = _read(connection, names, query=_LOCKED)
    missing = [name for name in names if name not in found]
    if missing:
        empty = [{"scope": name, "calls": 0, "tokens": 0, "nanodollars": 0} for name in missing]
        connection.execute(insert_new(connection, budget_counters), empty)
        found |= _read(connection, missing, query=_LOCKED)
    return found


def _read(connection: sa.Connection, scopes: Sequence[str], *, query: sa.Select[Any]) -> Amounts:
    found = Amounts(Amount)
    if scopes:
        for scope, *amounts in connection.execute(query, {"scopes": scopes}):
            found[scope] = Amount(**dict(zip(_COUNTED, amounts, strict=True)))
    return found


def _change(connection: sa.Connection, changes: Mapping[str, Amount]) -> None:
    rows = [
        {
            "of_scope": scope,
            "more_calls": change.calls,
            "more_tokens": change.tokens,
            "more_nanodollars": change.nanodollars,
        }
        for scope, change in changes.items()
        if change != Amount()
    ]
    if rows:
        connection.execute(_CHANGE, rows)


def _remaining(limits: Limits, spent: Amount, *, scope: str) -> Iterator[Remaining]:
    for unit, limit, left in (
        ("calls", limits.calls, (limits.calls or 0) - spent.calls),
        ("tokens", limits.tokens, (limits.tokens or 0) - spent.tokens),
        ("dollars", limits.dollars, ((limits.nanodollars or 0) - spent.nanodollars) / NANODOLLARS),
    ):
        if limit is not None:
            yield Remaining(scope=scope, unit=unit, limit=limit, left=max(left, 0))
