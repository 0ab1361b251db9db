"""What calls to an LLM cost, and how much of it a run and a day may spend.

A call is reserved at the most that it can cost before it is made, and settled at what it did cost when its answer is
there. A call whose answer never came stays at the most: the server may have charged for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

NANODOLLARS = 1_000_000_000
"""In a dollar; money is counted in whole nanodollars, rounded up a call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """Dollars per million tokens."""

    input: float = 0.0
    cached_input: float | None = None
    """Of input tokens that the server had in its prefix cache; None: the price of `input`."""
    output: float = 0.0

    def nanodollars(self, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """Return the price of a call; `cached_tokens` are part of `input_tokens`."""
        cached = min(cached_tokens, input_tokens)
        cached_price = self.input if self.cached_input is None else self.cached_input
        micro = (input_tokens - cached) * self.input + cached * cached_price + output_tokens * self.output
        return math.ceil(round(micro * 1_000, 6))

    def most(self, *, input_tokens: int, output_tokens: int) -> int:
        """Return the most that a call of so many tokens can cost, cached or not."""
        dearest = max(self.input, self.cached_input or 0.0)
        return Prices(input=dearest, output=self.output).nanodollars(
            input_tokens=input_tokens, output_tokens=output_tokens
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """What calls cost together, or may cost at the most; tokens of input and output."""

    calls: int = 0
    tokens: int = 0
    nanodollars: int = 0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            calls=self.calls + other.calls,
            tokens=self.tokens + other.tokens,
            nanodollars=self.nanodollars + other.nanodollars,
        )

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(
            calls=self.calls - other.calls,
            tokens=self.tokens - other.tokens,
            nanodollars=self.nanodollars - other.nanodollars,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most that a run or a day may spend; None: no limit."""

    calls: int | None = None
    tokens: int | None = None
    """Input and output together."""
    dollars: float | None = None

    @property
    def nanodollars(self) -> int | None:
        """`dollars` as they are written in decimals; what is less than a nanodollar is not to be spent."""
        return None if self.dollars is None else int(Decimal(str(self.dollars)) * NANODOLLARS)

    def exceeded_by(self, amount: Amount) -> str | None:
        """Return the first limit that `amount` is more than, in words (`100 calls`), or None."""
        if self.calls is not None and amount.calls > self.calls:
            return "1 call" if self.calls == 1 else f"{self.calls:,} calls"
        if self.tokens is not None and amount.tokens > self.tokens:
            return f"{self.tokens:,} tokens"
        if self.dollars is not None and self.nanodollars is not None and amount.nanodollars > self.nanodollars:
            return f"{dollars_in_words(self.dollars)} dollars"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """The limits of one run, and of one day (UTC) over all runs and workers of a memory."""

    run: Limits = Limits()
    day: Limits = Limits()

    def exceeded_by(self, *, run: Amount, day: Amount, date: str) -> str | None:
        """Return the first limit that a run or the day `date` would exceed, in words, or None."""
        if exceeded := self.run.exceeded_by(run):
            return f"the {exceeded} of this run"
        if exceeded := self.day.exceeded_by(day):
            return f"the {exceeded} of {date} (UTC)"
        return None


def dollars_in_words(dollars: float) -> str:
    """Return dollars with cents, and with as many more decimals as they have: `2.00`, `0.0005`."""
    cents = f"{dollars:,.2f}"
    exact = f"{Decimal(str(dollars)):,f}"
    return cents if float(cents.replace(",", "")) == dollars else exact


class CallOutcome(StrEnum):
    """How a call ended."""

    ANSWERED = "answered"
    """Its text was kept."""
    REJECTED = "rejected"
    """It was answered, and paid for, but the text was of no use."""
    REFUSED = "refused"
    """The server answered with an error, and charged nothing."""
    LOST = "lost"
    """No answer came, or half of one: what it cost is not known, and counted at the most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedCall:
    """A call that is to be made: one attempt at one text."""

    stage: str
    user_id: str | int
    partition_index: int
    input_tokens: int
    """Of the prompt: counted by the model's tokenizer, else a bound that no server's count exceeds."""
    max_output_tokens: int

    def most(self, prices: Prices) -> "CallCost":
        """Return what is reserved for it."""
        return CallCost(
            input_tokens=self.input_tokens,
            output_tokens=self.max_output_tokens,
            nanodollars=prices.most(input_tokens=self.input_tokens, output_tokens=self.max_output_tokens),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SettledCall:
    """A call that has ended. Token counts are the server's; of a LOST call they do not count.

    An answer without input tokens is one whose server does not count: it costs the most, as a LOST call does.
    """

    call_id: int
    outcome: CallOutcome
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CallCost:
    """What one call costs, or may cost at the most; `cached_tokens` are part of `input_tokens`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    nanodollars: int = 0

    @property
    def amount(self) -> Amount:
        """What it takes of a budget."""
        return Amount(calls=1, tokens=self.input_tokens + self.output_tokens, nanodollars=self.nanodollars)


def cost_of(settled: SettledCall, *, reserved: CallCost, prices: Prices) -> CallCost:
    """Return what a call did cost."""
    if settled.outcome is CallOutcome.REFUSED:
        return CallCost()
    if settled.outcome is CallOutcome.LOST or settled.input_tokens <= 0:
        return reserved
    output_tokens = max(settled.output_tokens, 0)
    cached_tokens = min(max(settled.cached_tokens, 0), settled.input_tokens)
    return CallCost(
        input_tokens=settled.input_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        nanodollars=prices.nanodollars(
            input_tokens=settled.input_tokens, output_tokens=output_tokens, cached_tokens=cached_tokens
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """The calls that may be made: the first of those wanted, by the ids that they are settled under."""

    call_ids: Sequence[int]
    limit: str | None = None
    """The limit that stands against the next one, in words: `the 100 calls of this run`; None: all were granted."""


class Ledger(Protocol):
    """Where every call is written down before it is made, and what it cost after."""

    def exchange(self, *, settled: Sequence[SettledCall], wanted: Sequence[PlannedCall]) -> Grant:
        """Settle calls that have ended and reserve as many of those wanted as the budget allows, in one transaction.

        Workers that share a memory share its ledger: together they never spend more than the budget of a day.
        """
        ...
