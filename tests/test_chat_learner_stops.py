"""What stops a run or slows it down: refusals, silence, a budget, limits per minute."""

from itertools import pairwise

import pytest

from liber_feast.budget import CallOutcome
from liber_feast.errors import BackendRefused, BackendUnreachable, BudgetExhausted, LiberError
from liber_feast.interest import LearnedText
from liber_feast.llm.rate_limit import RateLimits
from tests.chat_parts import (
    ANSWER,
    BAD_CALL,
    BUSY,
    EMPTY,
    FATAL,
    LOST,
    TEXT,
    TOO_LONG,
    UNSENT,
    ListLedger,
    Reply,
    a_backend,
    a_backend_for,
    always,
    film_of,
    flat,
    learner_of,
    shift_request,
    summary_requests,
)


def test_a_refusing_server_stops_the_run_at_once_with_what_was_answered_kept() -> None:
    backend, ledger, kept = a_backend(), ListLedger(), []
    late = Reply(latency_s=9.0)
    backend.script = lambda prompt, _: {0: ANSWER, 1: FATAL, 2: FATAL}.get(film_of(prompt), late)
    with pytest.raises(BackendRefused, match=r"^scripted fatal$"):
        for group in learner_of(backend, ledger=ledger).summarize(summary_requests(20)):
            kept += group
    assert [outcome.text for _, outcome in kept] == [TEXT]
    assert (len(backend.calls), backend.is_closed) == (4, True)
    ended = [CallOutcome.ANSWERED, CallOutcome.REFUSED, CallOutcome.REFUSED, CallOutcome.LOST]
    assert (ledger.outcomes(), ledger.open_ids) == (ended, set())


def test_what_arrives_with_a_refusal_is_kept_as_well_however_much_it_is() -> None:
    backend, ledger, kept = a_backend_for(0, FATAL, max_in_flight=30), ListLedger(), []
    with pytest.raises(BackendRefused):
        for group in learner_of(backend, ledger=ledger).summarize(summary_requests(100)):
            kept += group
    assert (len(kept), len(backend.calls), ledger.open_ids) == (29, 30, set())


@pytest.mark.parametrize("error", [BackendRefused("wrong key"), BackendUnreachable("nobody answers")], ids=str)
def test_a_backend_that_fails_its_check_is_closed_and_no_call_is_made(error: LiberError) -> None:
    backend, ledger = a_backend(), ListLedger()
    backend.check_error = error
    with pytest.raises(type(error), match=str(error)):
        flat(learner_of(backend, ledger=ledger).summarize(summary_requests(3)))
    assert (backend.is_closed, backend.calls, ledger.exchange_count) == (True, [], 0)


@pytest.mark.parametrize("reply", [BUSY, UNSENT, LOST], ids=["busy", "unsent", "lost"])
def test_a_server_that_never_answered_is_unreachable_and_marks_nothing_failed(reply: Reply) -> None:
    backend, ledger, kept = a_backend(reply, check_result=False), ListLedger(), []
    with pytest.raises(
        BackendUnreachable, match=rf"no answer in 3 attempts, the last: scripted {reply.error}\. Run again"
    ):
        for group in learner_of(backend, ledger=ledger).summarize(summary_requests(20)):
            kept += group
    assert (kept, ledger.open_ids, len(backend.calls)) == ([], set(), 3)


def test_one_reply_says_that_the_server_is_there_even_if_it_arrives_after_failures() -> None:
    backend = a_backend(max_in_flight=20)
    backend.script = lambda prompt, _: ANSWER if film_of(prompt) == 19 else LOST
    outcomes = flat(learner_of(backend, max_attempts=1).summarize(summary_requests(20)))
    assert [isinstance(outcome, LearnedText) for _, outcome in outcomes] == [False] * 19 + [True]


@pytest.mark.parametrize("reply", [ANSWER, EMPTY, TOO_LONG, BAD_CALL], ids=["answer", "empty", "too long", "bad call"])
def test_where_the_server_cannot_be_asked_the_first_call_goes_alone_until_a_reply(reply: Reply) -> None:
    backend = a_backend(check_result=False, max_in_flight=8)
    replies = always(BUSY, LOST, reply)
    backend.script = lambda prompt, times: replies(prompt, times) if film_of(prompt) == 0 else ANSWER
    assert len(flat(learner_of(backend, max_attempts=5).summarize(summary_requests(20)))) == 20
    assert backend.submitted_counts[:3] == [1, 1, 1]
    assert max(backend.submitted_counts[3:]) >= 7
    assert backend.most_in_flight == 8


def test_the_second_wave_does_not_begin_alone() -> None:
    backend = a_backend(check_result=False)
    learner = learner_of(backend)
    flat(learner.summarize(summary_requests(3)))
    del backend.submitted_counts[:]
    flat(learner.learn_shifts([shift_request(number) for number in range(9)]))
    assert max(backend.submitted_counts) == 4


def test_out_of_budget_what_is_in_flight_is_finished_and_settled_and_no_text_fails() -> None:
    backend, ledger, kept = a_backend(), ListLedger(call_limit=10), []
    with pytest.raises(BudgetExhausted) as raised:
        for group in learner_of(backend, ledger=ledger).summarize(summary_requests(25)):
            kept += group
    assert (raised.value.limit, raised.value.exit_code) == ("the 10 calls of this run", 4)
    assert raised.value.message == "Out of budget: the 10 calls of this run allow no further call."
    assert [isinstance(outcome, LearnedText) for _, outcome in kept] == [True] * 10
    assert (len(backend.calls), len(ledger.settled), ledger.open_ids) == (10, 10, set())
    assert not backend.is_closed


def test_a_budget_that_is_just_enough_is_not_exhausted() -> None:
    backend, ledger = a_backend(), ListLedger(call_limit=10)
    assert len(flat(learner_of(backend, ledger=ledger).summarize(summary_requests(10)))) == 10


@pytest.mark.parametrize(
    "ledger", [ListLedger(call_limit=0), ListLedger(token_limit=100)], ids=["no calls", "too few tokens"]
)
def test_a_budget_smaller_than_one_call_makes_none(ledger: ListLedger) -> None:
    backend = a_backend()
    with pytest.raises(BudgetExhausted):
        flat(learner_of(backend, ledger=ledger).summarize(summary_requests(3)))
    assert (backend.calls, ledger.planned) == ([], {})


def test_a_retry_that_the_budget_does_not_grant_leaves_its_text_pending() -> None:
    backend, ledger, kept = a_backend_for(0, BUSY), ListLedger(call_limit=4), []
    with pytest.raises(BudgetExhausted):
        for group in learner_of(backend, ledger=ledger).summarize(summary_requests(4)):
            kept += group
    assert [isinstance(outcome, LearnedText) for _, outcome in kept] == [True] * 3
    assert (len(backend.calls), ledger.open_ids) == (4, set())


def test_what_calls_give_back_is_spent_on_further_calls() -> None:
    backend, ledger, kept = a_backend(max_in_flight=8), ListLedger(token_limit=2_000), []
    backend.max_output_tokens = 300
    with pytest.raises(BudgetExhausted, match="the 2000 tokens of this run"):
        for group in learner_of(backend, ledger=ledger).summarize(summary_requests(30)):
            kept += group
    most = max(call.input_tokens + call.max_output_tokens for call in ledger.planned.values())
    assert 2_000 - most < ledger.tokens <= 2_000
    assert len(kept) == len(backend.calls) > 2_000 // most


def test_requests_a_minute_are_kept() -> None:
    backend = a_backend()
    rates = RateLimits(requests_per_minute=6)
    assert len(flat(learner_of(backend, rates=rates).summarize(summary_requests(20)))) == 20
    assert _most_in_a_minute(backend.call_times) == 6
    assert backend.call_times[-1] - backend.call_times[0] == pytest.approx(180.0, abs=5)


def test_attempts_count_as_requests_of_their_minute() -> None:
    backend = a_backend(BUSY, LOST, ANSWER, max_in_flight=3)
    flat(learner_of(backend, rates=RateLimits(requests_per_minute=4)).summarize(summary_requests(5)))
    assert (len(backend.calls), _most_in_a_minute(backend.call_times)) == (15, 4)


def test_tokens_a_minute_are_kept_and_a_call_larger_than_that_goes_alone() -> None:
    backend, ledger = a_backend(), ListLedger()
    flat(learner_of(backend, ledger=ledger, rates=RateLimits(tokens_per_minute=100)).summarize(summary_requests(5)))
    assert all(call.input_tokens > 100 for call in ledger.planned.values())
    assert [later - earlier for earlier, later in pairwise(backend.call_times)] == pytest.approx([60.0] * 4, abs=0.1)


def _most_in_a_minute(times: list[float]) -> int:
    return max(sum(start <= time < start + 60 for time in times) for start in times)
