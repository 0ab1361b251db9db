"""What calls to an LLM have cost, read from the ledger's rows.

Calls that are open (reserved and never settled) and lost ones count at the most, as they do in a budget.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import sqlalchemy as sa

from liber_feast.budget import NANODOLLARS, CallOutcome
from liber_feast.memory.call_tables import calls

SpentBy: TypeAlias = Literal["day", "model", "stage", "user"]

_COLUMN_OF: dict[SpentBy, sa.Column[str]] = {
    "day": calls.c.day,
    "model": calls.c.model,
    "stage": calls.c.stage,
    "user": calls.c.user_id,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What the calls of one day, model, stage, user or run have cost."""

    key: str
    calls: int
    answered: int
    rejected: int
    refused: int
    lost: int
    open: int
    """Reserved and not settled: in flight, or of a process that was killed."""
    input_tokens: int
    cached_tokens: int
    """Of the input tokens."""
    output_tokens: int
    dollars: float
    seconds: float
    """Of all calls, one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TypicalCall:
    """Means over the answered calls of a model and stage."""

    calls: int
    seconds: float
    output_tokens: float
    cached_share: float
    """Cached over input tokens, 0 to 1."""


def spent(connection: sa.Connection, *, by: SpentBy) -> list[Spent]:
    """Return what all calls have cost, in the order of their days (UTC, of reservation), models, stages or users."""
    key = _COLUMN_OF[by]
    return [_spent(row.key, row) for row in connection.execute(_totals(key.label("key")).group_by(key).order_by(key))]


def run_spent(connection: sa.Connection, run_id: str) -> Spent:
    """Return what the calls of one run have cost; a run without calls has cost nothing."""
    return _spent(run_id, connection.execute(_totals().where(calls.c.run_id == run_id)).one())


def typical_call(connection: sa.Connection, *, model: str, stage: str) -> TypicalCall | None:
    """Return what an answered call of a model and stage is like, or None before the first."""
    is_like_it = (
        calls.c.model == model,
        calls.c.stage == stage,
        calls.c.outcome == CallOutcome.ANSWERED.value,
    )
    row = connection.execute(_totals().where(*is_like_it)).one()
    if not row.calls:
        return None
    return TypicalCall(
        calls=row.calls,
        seconds=row.seconds / row.calls,
        output_tokens=int(row.output_tokens) / row.calls,
        cached_share=int(row.cached_tokens) / max(int(row.input_tokens), 1),
    )


def _totals(*columns: sa.ColumnElement[str]) -> sa.Select[*tuple[Any, ...]]:
    outcomes = [_count(calls.c.outcome == outcome.value).label(outcome.value) for outcome in CallOutcome]
    sums = [
        sa.func.coalesce(sa.func.sum(calls.c[name]), 0).label(name)
        for name in ("input_tokens", "cached_tokens", "output_tokens", "nanodollars", "seconds")
    ]
    is_open = _count(calls.c.outcome.is_(None)).label("open")
    return sa.select(*columns, sa.func.count().label("calls"), is_open, *outcomes, *sums).select_from(calls)


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.count(sa.case((condition, 1)))


def _spent(key: str, row: sa.Row[Any]) -> Spent:
    return Spent(
        key=key,
        calls=row.calls,
        answered=row.answered,
        rejected=row.rejected,
        refused=row.refused,
        lost=row.lost,
        open=row.open,
        input_tokens=int(row.input_tokens),
        cached_tokens=int(row.cached_tokens),
        output_tokens=int(row.output_tokens),
        dollars=int(row.nanodollars) / NANODOLLARS,
        seconds=float(row.seconds),
    )
