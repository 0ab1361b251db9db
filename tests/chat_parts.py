"""Doubles for everything that calls an LLM: a clock that is moved by waiting, a backend by script, a ledger in a list.

The doubles hold their callers to the rules of the interfaces: a call that breaks one raises AssertionError.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from heapq import heappop, heappush
from itertools import count
from typing import TypeAlias

from liber_feast.budget import CallOutcome, Grant, Ledger, PlannedCall, Prices, SettledCall
from liber_feast.errors import LiberError
from liber_feast.interest import DescribedBehavior, Item, Outcome, Request, ShiftRequest, SummaryRequest
from liber_feast.llm.chat import ChatAnswer, ChatBackend, ChatCall, ChatError, ChatResult, ErrorKind
from liber_feast.llm.chat_learner import PATIENCE_S, ChatLearner
from liber_feast.llm.rate_limit import RateLimits
from liber_feast.prompt import Message, Prompt, load_prompt

TEXT = "The user enjoys slow science fiction."
LATENCY_S = 1.0
PROMPT = load_prompt("movielens")


@dataclass(kw_only=True)
class SimulatedClock:
    """Time that passes only where somebody waits."""

    now: float = 1_000.0
    slept_s: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds < float("inf")
        self.now += seconds
        self.slept_s += seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the backend says to one call, and after how long."""

    text: str = TEXT
    finish_reason: str = "stop"
    error: ErrorKind | None = None
    retry_after_s: float | None = None
    latency_s: float = LATENCY_S


BUSY, UNSENT, LOST, TOO_LONG, BAD_CALL, FATAL = (Reply(error=kind) for kind in ErrorKind)
EMPTY = Reply(text=" ")
ANSWER = Reply()

Script: TypeAlias = Callable[[str, int], Reply]
"""Called with a prompt's last message, and how often this very prompt was sent before."""


def always(*replies: Reply) -> Script:
    """Return a script by which every prompt gets these replies in turn, and the last for good."""
    return lambda _, times: replies[min(times, len(replies) - 1)]


def answers(_prompt: str, _times: int) -> Reply:
    """Answer every call."""
    return ANSWER


@dataclass(kw_only=True)
class ScriptedBackend:
    """A backend whose replies a script decides; `collect` moves the clock. A word is a token."""

    clock: SimulatedClock
    script: Script = answers
    max_in_flight: int = 4
    max_output_tokens: int = 16
    context_tokens: int | None = None
    check_result: bool = True
    check_error: LiberError | None = None
    told_context_tokens: int | None = None
    """The context that `check` learns from the server."""
    margin: int = 0
    """By how much the bound of a prompt's tokens is above their number."""
    calls: list[ChatCall] = field(default_factory=list)
    call_times: list[float] = field(default_factory=list)
    submitted_counts: list[int] = field(default_factory=list)
    most_in_flight: int = 0
    check_count: int = 0
    is_closed: bool = False
    is_dead: bool = False
    _sent: dict[str, int] = field(default_factory=dict)
    _arriving: list[tuple[float, int, ChatResult]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def in_flight(self) -> int:
        """Calls submitted and not collected."""
        return len(self._arriving)

    def check(self) -> bool:
        self.check_count += 1
        if self.check_error:
            raise self.check_error
        self.context_tokens = self.told_context_tokens or self.context_tokens
        return self.check_result

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def most_tokens(self, messages: Sequence[Message]) -> int:
        return self.count_tokens(messages) + self.margin

    def submit(self, calls: Sequence[ChatCall]) -> None:
        assert calls
        assert not self.is_closed
        assert not self.is_dead, "a call after FATAL"
        for call in calls:
            prompt = call.messages[-1]["content"]
            reply = self.script(prompt, self._sent.setdefault(prompt, 0))
            self._sent[prompt] += 1
            arrival = self.clock.now + reply.latency_s
            heappush(self._arriving, (arrival, next(self._numbers), self._result(call, reply)))
        self.calls.extend(calls)
        self.call_times.extend([self.clock.now] * len(calls))
        self.submitted_counts.append(len(calls))
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        assert self.in_flight <= self.max_in_flight

    def collect(self, *, timeout_s: float | None) -> Sequence[ChatResult]:
        assert not self.is_closed
        assert self._arriving, "waits for a call, and none is in flight"
        assert timeout_s is None or timeout_s >= 0
        until = self._arriving[0][0]
        if timeout_s is not None and until > self.clock.now + timeout_s:
            self.clock.now += timeout_s
            return ()
        self.clock.now = max(self.clock.now, until)
        results = []
        while self._arriving and self._arriving[0][0] <= self.clock.now:
            results.append(heappop(self._arriving)[2])
        self.is_dead |= any(isinstance(one, ChatError) and one.kind is ErrorKind.FATAL for one in results)
        return results

    def close(self) -> None:
        self._arriving.clear()
        self.is_closed = True

    def _result(self, call: ChatCall, reply: Reply) -> ChatResult:
        if reply.error:
            return ChatError(
                call_id=call.call_id,
                kind=reply.error,
                reason=f"scripted {reply.error}",
                retry_after_s=reply.retry_after_s,
                seconds=reply.latency_s,
            )
        return ChatAnswer(
            call_id=call.call_id,
            text=reply.text,
            finish_reason=reply.finish_reason,
            input_tokens=self.count_tokens(call.messages),
            output_tokens=len(reply.text.split()),
            cached_tokens=3,
            seconds=reply.latency_s,
        )


@dataclass(kw_only=True)
class ListLedger:
    """A ledger in memory with limits on calls and tokens; both of calls reserved and of calls settled."""

    call_limit: int | None = None
    token_limit: int | None = None
    planned: dict[int, PlannedCall] = field(default_factory=dict)
    settled: dict[int, SettledCall] = field(default_factory=dict)
    exchange_count: int = 0

    @property
    def open_ids(self) -> set[int]:
        """Calls reserved and not settled."""
        return self.planned.keys() - self.settled.keys()

    @property
    def tokens(self) -> int:
        """Tokens spent, and reserved by calls that have not ended."""
        return sum(self._tokens_of(call_id) for call_id in self.planned)

    def outcomes(self) -> list[CallOutcome]:
        """Return how calls ended, in the order of their reservation."""
        return [self.settled[call_id].outcome for call_id in sorted(self.settled)]

    def exchange(self, *, settled: Sequence[SettledCall], wanted: Sequence[PlannedCall]) -> Grant:
        assert settled or wanted
        self.exchange_count += 1
        for call in settled:
            assert call.call_id in self.open_ids, "settled twice, or never reserved"
            self.settled[call.call_id] = call
        call_ids, tokens = [], self.tokens if self.token_limit is not None else 0
        for call in wanted:
            tokens += call.input_tokens + call.max_output_tokens
            if self.call_limit is not None and len(self.planned) >= self.call_limit:
                return Grant(call_ids=call_ids, limit=f"the {self.call_limit} calls of this run")
            if self.token_limit is not None and tokens > self.token_limit:
                return Grant(call_ids=call_ids, limit=f"the {self.token_limit} tokens of this run")
            call_ids.append(len(self.planned) + 1)
            self.planned[call_ids[-1]] = call
        return Grant(call_ids=call_ids)

    def _tokens_of(self, call_id: int) -> int:
        planned, settled = self.planned[call_id], self.settled.get(call_id)
        if settled is None or settled.outcome is CallOutcome.LOST:
            return planned.input_tokens + planned.max_output_tokens
        return settled.input_tokens + settled.output_tokens


def a_backend(*replies: Reply, max_in_flight: int = 4, check_result: bool = True) -> ScriptedBackend:
    """Return a backend that gives every prompt these replies in turn."""
    script = always(*(replies or (ANSWER,)))
    return ScriptedBackend(
        clock=SimulatedClock(), script=script, max_in_flight=max_in_flight, check_result=check_result
    )


def a_backend_for(odd: int, *replies: Reply, max_in_flight: int = 4) -> ScriptedBackend:
    """Return a backend that gives one request these replies in turn, and answers all others."""
    theirs = always(*replies)
    return ScriptedBackend(
        clock=SimulatedClock(),
        script=lambda prompt, times: theirs(prompt, times) if film_of(prompt) == odd else ANSWER,
        max_in_flight=max_in_flight,
    )


def film_of(prompt: str) -> int:
    """Return the number of the request that a prompt was rendered from."""
    found = re.search(r"[Ff]ilm (\d+)", prompt)
    assert found
    return int(found[1])


def summary_request(number: int, *, title_words: int = 2, profile: str = "") -> SummaryRequest:
    """Return a request that no other number has. Brevity shortens its title, and leaves its profile as it is."""
    title = " ".join([f"Film {number}", *["long"] * (title_words - 2)])
    item = Item(item_id=number, title=title, categories=("Drama", "War"), attributes={"director": "Ann Author"})
    seen = DescribedBehavior(item=item, rating=4.0, liked=True, event_time=datetime(2020, 1, 1, tzinfo=UTC))
    return SummaryRequest(user_id=f"user-{number}", partition_index=0, profile=profile, behaviors=(seen,))


def shift_request(number: int) -> ShiftRequest:
    """Return a request that no other number has."""
    return ShiftRequest(
        user_id=f"user-{number}",
        partition_index=1,
        previous_partition_index=0,
        previous_summary=f"Liked film {number}.",
        summary=f"Liked film {number + 1}.",
        previous_behaviors=(),
        behaviors=(),
    )


def summary_requests(number: int) -> list[SummaryRequest]:
    """Return so many different requests."""
    return [summary_request(one) for one in range(number)]


def learner_of(
    backend: ScriptedBackend,
    *,
    ledger: Ledger | None = None,
    rates: RateLimits | None = None,
    prices: Prices | None = None,
    max_attempts: int = 3,
    patience_s: float = PATIENCE_S,
    chance: float = 0.5,
    open_backend: Callable[[], ChatBackend] | None = None,
    prompt: Prompt = PROMPT,
) -> ChatLearner:
    """Return a learner on the backend's clock."""
    return ChatLearner(
        prompt=prompt,
        model="scripted-1",
        open_backend=open_backend or (lambda: backend),
        ledger=ledger or ListLedger(),
        rates=rates or RateLimits(),
        prices=prices or Prices(),
        max_attempts=max_attempts,
        patience_s=patience_s,
        clock=backend.clock,
        sleep=backend.clock.sleep,
        chance=lambda: chance,
    )


def number_of(request: Request) -> int:
    """Return the number that a request was made of."""
    return int(str(request.user_id).removeprefix("user-"))


def flat(groups: Iterator[Sequence[tuple[Request, Outcome]]]) -> list[tuple[int, Outcome]]:
    """Return all outcomes in the order they came, by the number of their request."""
    return [(number_of(request), outcome) for group in groups for request, outcome in group]
