"""The call loop under random faults: nothing twice, nothing lost, nothing unpaid, never stuck."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.budget import CallOutcome, Grant, PlannedCall, SettledCall
from liber_feast.errors import BackendRefused, BackendUnreachable, BudgetExhausted, LiberError
from liber_feast.interest import Failure, LearnedText, Outcome
from liber_feast.llm.chat import ErrorKind
from liber_feast.llm.contact import REFUSED_IN_ROW
from liber_feast.llm.rate_limit import RateLimits
from tests.chat_parts import (
    FATAL,
    ListLedger,
    Reply,
    ScriptedBackend,
    SimulatedClock,
    film_of,
    learner_of,
    number_of,
    summary_requests,
)

latencies = st.sampled_from([0.0, 0.2, 1.0, 7.0])
good = st.builds(Reply, latency_s=latencies)
useless = st.builds(Reply, text=st.sampled_from(["", "cut"]), finish_reason=st.just("length"), latency_s=latencies)
errors = st.builds(
    Reply,
    error=st.sampled_from([kind for kind in ErrorKind if kind is not ErrorKind.FATAL]),
    retry_after_s=st.sampled_from([None, 0.0, 3.0]),
    latency_s=latencies,
)


@dataclass(kw_only=True)
class WatchedLedger(ListLedger):
    """A ledger that sees to it that no more than a window of calls would be lost if the process died now."""

    window: int
    most_open: int = 0

    def exchange(self, *, settled: Sequence[SettledCall], wanted: Sequence[PlannedCall]) -> Grant:
        grant = super().exchange(settled=settled, wanted=wanted)
        self.most_open = max(self.most_open, len(self.open_ids))
        assert self.most_open <= self.window
        return grant


@dataclass(kw_only=True)
class Run:
    """One wave of a backend that gives these replies in turn, whichever call comes, over and over."""

    replies: Sequence[Reply]
    request_count: int
    window: int
    max_attempts: int = 3
    check_result: bool = True
    call_limit: int | None = None
    token_limit: int | None = None
    rates: RateLimits = RateLimits()
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)
    error: LiberError | None = None
    started: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clock, turns = SimulatedClock(), cycle(self.replies)
        self.backend = ScriptedBackend(
            clock=self.clock,
            script=lambda prompt, _: self._reply(prompt, next(turns)),
            max_in_flight=self.window,
            check_result=self.check_result,
        )
        self.ledger = WatchedLedger(window=self.window, call_limit=self.call_limit, token_limit=self.token_limit)
        learner = learner_of(self.backend, ledger=self.ledger, rates=self.rates, max_attempts=self.max_attempts)
        try:
            for group in learner.summarize(summary_requests(self.request_count)):
                self.outcomes += [(number_of(request), outcome) for request, outcome in group]
        except (BackendRefused, BackendUnreachable, BudgetExhausted) as error:
            self.error = error

    def _reply(self, prompt: str, reply: Reply) -> Reply:
        # A text whose place is not free yet, and one that is had already, must not be asked for.
        self.started.add(film_of(prompt))
        had = {number for number, _ in self.outcomes}
        assert film_of(prompt) not in had
        assert len(self.started - had - self.refused) <= self.window
        # A refusal is held back until a call is answered; it costs nothing, and keeps no place.
        self.refused |= {film_of(prompt)} if reply.error is ErrorKind.BAD_CALL else set()
        return reply


@st.composite
def runs(draw: st.DrawFn, *, replies: st.SearchStrategy[Reply], has_limits: bool = False) -> Run:
    limits = st.none() | st.integers(1, 40)
    return Run(
        replies=draw(st.lists(replies, min_size=1, max_size=30)),
        request_count=draw(st.integers(0, 30)),
        window=draw(st.integers(1, 20)),
        max_attempts=draw(st.integers(1, 4)),
        check_result=draw(st.booleans()),
        call_limit=draw(limits) if has_limits else None,
        token_limit=draw(st.none() | st.integers(1, 5_000)) if has_limits else None,
        rates=RateLimits(requests_per_minute=draw(limits), tokens_per_minute=draw(st.none() | st.integers(100, 2_000))),
    )


@given(runs(replies=good | good | useless | errors))
def test_every_request_ends_as_one_text_or_one_failure_unless_the_backend_is_gone(run: Run) -> None:
    numbers = [number for number, _ in run.outcomes]
    assert len(numbers) == len(set(numbers))
    assert run.error is None or isinstance(run.error, BackendUnreachable | BackendRefused)
    if run.error is None:
        assert sorted(numbers) == list(range(run.request_count))


@given(runs(replies=good | useless | errors | st.just(FATAL), has_limits=True))
def test_every_call_is_reserved_once_submitted_once_and_settled_once(run: Run) -> None:
    assert [call.call_id for call in run.backend.calls] == list(run.ledger.planned)
    assert run.ledger.open_ids == set()
    for call in run.backend.calls:
        planned = run.ledger.planned[call.call_id]
        assert film_of(call.messages[-1]["content"]) == int(str(planned.user_id).removeprefix("user-"))
        assert planned.input_tokens == run.backend.count_tokens(call.messages)
    assert run.backend.most_in_flight <= run.window


@given(runs(replies=good | useless | errors | st.just(FATAL), has_limits=True))
def test_outcomes_count_the_calls_that_were_made_for_them(run: Run) -> None:
    made: dict[int, int] = {}
    for planned in run.ledger.planned.values():
        number = int(str(planned.user_id).removeprefix("user-"))
        made[number] = made.get(number, 0) + 1
    assert {number: made.get(number, 0) for number, _ in run.outcomes} == {
        number: outcome.attempt_count for number, outcome in run.outcomes
    }
    answered = run.ledger.outcomes().count(CallOutcome.ANSWERED)
    assert answered == sum(isinstance(outcome, LearnedText) for _, outcome in run.outcomes)


@given(runs(replies=good | useless | errors | st.just(FATAL), has_limits=True))
def test_a_wave_that_ends_early_says_why_and_leaves_the_rest_pending(run: Run) -> None:
    left = run.request_count - len(run.outcomes)
    assert (left > 0) == (run.error is not None) or isinstance(run.error, BackendRefused | BackendUnreachable)
    if isinstance(run.error, BudgetExhausted):
        assert left > 0
        assert run.call_limit is not None or run.token_limit is not None
    if isinstance(run.error, BackendRefused):
        assert run.backend.is_dead or len(run.refused) >= REFUSED_IN_ROW
    if run.error is None:
        assert not run.backend.is_dead


@given(runs(replies=good | useless | errors, has_limits=True))
def test_no_limit_is_ever_overdrawn(run: Run) -> None:
    assert run.call_limit is None or len(run.ledger.planned) <= run.call_limit
    assert run.token_limit is None or run.ledger.tokens <= run.token_limit
    times = run.backend.call_times
    if run.rates.requests_per_minute:
        most = max((sum(start <= time < start + 60 for time in times) for start in times), default=0)
        assert most <= run.rates.requests_per_minute


@given(
    replies=st.lists(good | useless | errors, min_size=1, max_size=20),
    window=st.integers(1, 6),
    groups=st.integers(0, 5),
)
def test_a_run_that_is_cut_off_loses_a_window_of_calls_at_most(replies: list[Reply], window: int, groups: int) -> None:
    turns, refused = cycle(replies), set()

    def script(prompt: str, _times: int) -> Reply:
        reply = next(turns)
        refused.update({film_of(prompt)} if reply.error is ErrorKind.BAD_CALL else set())
        return reply

    backend = ScriptedBackend(clock=SimulatedClock(), script=script, max_in_flight=window)
    ledger = ListLedger()
    waiting = learner_of(backend, ledger=ledger).summarize(summary_requests(20))
    kept: set[int] = set()
    try:
        for _ in range(groups):
            kept |= {number_of(request) for request, _ in next(waiting, ())}
        next(waiting, None)  # a group that is never kept
    except (BackendUnreachable, BackendRefused):
        return
    waiting.close()
    asked = {int(str(call.user_id).removeprefix("user-")) for call in ledger.planned.values()}
    assert len(asked - kept - refused) <= window  # a refusal that is held back cost nothing
    assert len(asked - kept) < window + REFUSED_IN_ROW
    assert len(ledger.open_ids) <= window
    answered = {
        ledger.planned[call_id].user_id for call_id, call in ledger.settled.items() if call.outcome == "answered"
    }
    assert answered <= {f"user-{number}" for number in kept}


@pytest.mark.parametrize("window", [1, 5, 64])
def test_with_a_third_of_the_calls_failing_nearly_every_text_is_had(window: int) -> None:
    chances = random.Random(7)
    faults = [Reply(error=ErrorKind.LOST), Reply(error=ErrorKind.BUSY, retry_after_s=2.0), Reply(text="")]
    replies = [chances.choice(faults) if chances.random() < 0.3 else Reply() for _ in range(2_000)]
    run = Run(replies=replies, request_count=500, window=window, max_attempts=5)
    assert run.error is None
    assert sorted(number for number, _ in run.outcomes) == list(range(500))
    reasons = [outcome.reason for _, outcome in run.outcomes if isinstance(outcome, Failure)]
    assert all(reason == "empty answer" or reason.startswith("no answer in 5 attempts") for reason in reasons)
    assert 0 < len(reasons) < 15
