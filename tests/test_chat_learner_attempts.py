"""One text among others: when it is asked for again, and when it is given up."""

from itertools import pairwise

import pytest

from liber_feast.budget import CallOutcome
from liber_feast.interest import Failure, LearnedText
from liber_feast.llm.chat import ChatCall, ErrorKind
from tests.chat_parts import (
    ANSWER,
    BAD_CALL,
    BUSY,
    EMPTY,
    LATENCY_S,
    LOST,
    TEXT,
    TOO_LONG,
    ListLedger,
    Reply,
    ScriptedBackend,
    a_backend,
    a_backend_for,
    film_of,
    flat,
    learner_of,
    shift_request,
    summary_request,
    summary_requests,
)

CUT_OFF = Reply(text="The user enjoys", finish_reason="length")


@pytest.mark.parametrize(
    ("useless", "reason"),
    [
        (EMPTY, "empty answer"),
        (CUT_OFF, "answer cut off at 16 tokens"),
        (Reply(text="", finish_reason="content_filter"), "answer withheld by the content filter"),
        (Reply(text="<think>hm"), "reasoning without an answer"),
        (
            Reply(text='2020-01-01: "Film 2" (genre: Drama, War; director: Ann Author)'),
            "answer only repeats the prompt",
        ),
    ],
    ids=["empty", "cut off", "filtered", "reasoning", "echo"],
)
def test_a_useless_answer_is_asked_for_once_more_and_then_given_up(useless: Reply, reason: str) -> None:
    backend, ledger = a_backend_for(2, useless), ListLedger()
    outcomes = dict(flat(learner_of(backend, ledger=ledger).summarize(summary_requests(5))))
    assert outcomes.pop(2) == Failure(reason=reason, attempt_count=2)
    assert all(isinstance(outcome, LearnedText) for outcome in outcomes.values())
    assert (len(backend.calls), ledger.outcomes().count(CallOutcome.REJECTED)) == (6, 2)


def test_a_text_counts_all_that_was_paid_for_it() -> None:
    backend = a_backend_for(0, CUT_OFF, BUSY, ANSWER)
    outcomes = dict(flat(learner_of(backend).summarize(summary_requests(2))))
    assert outcomes[0] == LearnedText(
        text=TEXT,
        input_tokens=2 * outcomes[1].input_tokens,
        output_tokens=3 + 6,
        cached_tokens=6,
        seconds=2 * LATENCY_S,
        attempt_count=3,
    )


@pytest.mark.parametrize("reply", [BUSY, LOST], ids=["busy", "lost"])
@pytest.mark.parametrize("max_attempts", [1, 2, 5])
def test_a_call_without_an_answer_is_made_so_often_and_then_its_text_is_given_up(
    reply: Reply, max_attempts: int
) -> None:
    backend, ledger = a_backend_for(1, reply), ListLedger()
    outcomes = dict(flat(learner_of(backend, ledger=ledger, max_attempts=max_attempts).summarize(summary_requests(4))))
    failure = outcomes.pop(1)
    times = "1 attempt" if max_attempts == 1 else f"{max_attempts} attempts"
    assert failure == Failure(
        reason=f"no answer in {times}, the last: scripted {reply.error}", attempt_count=max_attempts
    )
    assert all(isinstance(outcome, LearnedText) for outcome in outcomes.values())
    ended = CallOutcome.REFUSED if reply is BUSY else CallOutcome.LOST
    assert (ledger.outcomes().count(ended), len(ledger.settled)) == (max_attempts, 3 + max_attempts)


def test_a_call_that_succeeds_at_its_last_attempt_is_a_text() -> None:
    outcomes = flat(learner_of(a_backend(BUSY, LOST, ANSWER)).summarize(summary_requests(3)))
    assert [(outcome.text, outcome.attempt_count) for _, outcome in outcomes] == [(TEXT, 3)] * 3


def test_attempts_wait_twice_as_long_each_time_up_to_half_a_minute() -> None:
    backend = a_backend_for(0, *[BUSY] * 7, ANSWER)
    flat(learner_of(backend, max_attempts=8, chance=0.5).summarize(summary_requests(2)))
    times = [time for call, time in zip(backend.calls, backend.call_times, strict=True) if _is_film(call, 0)]
    waits = [later - earlier - LATENCY_S for earlier, later in pairwise(times)]
    assert waits == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0])


@pytest.mark.parametrize(("asked", "waited"), [(7.0, 7.5), (590.0, 590.5), (0.0, 0.5), (-3.0, 0.5)])
def test_retry_after_is_the_least_that_is_waited(asked: float, waited: float) -> None:
    backend = a_backend_for(0, Reply(error=ErrorKind.BUSY, retry_after_s=asked), ANSWER)
    flat(learner_of(backend).summarize(summary_requests(1)))
    assert backend.call_times[1] - backend.call_times[0] - LATENCY_S == pytest.approx(waited)


def test_a_call_that_waits_keeps_its_place() -> None:
    backend = a_backend(max_in_flight=2)
    waits = Reply(error=ErrorKind.BUSY, retry_after_s=100.0)
    backend.script = lambda prompt, times: waits if film_of(prompt) == 0 and times == 0 else ANSWER
    start = backend.clock()
    flat(learner_of(backend).summarize(summary_requests(20)))
    counts = [count for count, time in zip(backend.submitted_counts, _send_times(backend), strict=True) if time > start]
    assert max(counts[:-1]) == 1


def test_waiting_with_nothing_in_flight_is_sleeping() -> None:
    backend = a_backend(Reply(error=ErrorKind.BUSY, retry_after_s=30.0), ANSWER)
    flat(learner_of(backend).summarize(summary_requests(4)))
    assert backend.clock.slept_s == pytest.approx(30.5)


def test_a_prompt_too_long_for_the_server_is_sent_shorter_at_once_and_counts_as_no_attempt() -> None:
    backend, ledger = a_backend_for(1, TOO_LONG, TOO_LONG, ANSWER), ListLedger()
    backend.script = lambda prompt, _: TOO_LONG if film_of(prompt) == 1 and "Drama" in prompt else ANSWER
    outcomes = dict(flat(learner_of(backend, ledger=ledger, max_attempts=1).summarize(summary_requests(3))))
    assert (outcomes[1].is_shortened, outcomes[1].attempt_count, outcomes[1].text) == (True, 2, TEXT)
    assert (outcomes[0].is_shortened, backend.clock.slept_s) == (False, 0.0)
    shorter = [call.input_tokens for call in ledger.planned.values() if call.user_id == "user-1"]
    assert shorter[0] > shorter[1]
    assert ledger.outcomes().count(CallOutcome.REFUSED) == 1


def test_a_prompt_too_long_at_its_shortest_fails_alone() -> None:
    backend = a_backend_for(1, TOO_LONG)
    outcomes = dict(flat(learner_of(backend).summarize(summary_requests(3))))
    failure = outcomes.pop(1)
    assert isinstance(failure, Failure)
    assert failure.attempt_count == sum(_is_film(call, 1) for call in backend.calls) > 1
    assert "does not fit the model's context" in failure.reason
    assert all(isinstance(outcome, LearnedText) for outcome in outcomes.values())


def test_a_shift_too_long_for_the_server_has_no_shorter_prompt() -> None:
    ((_, failure),) = flat(learner_of(a_backend(TOO_LONG)).learn_shifts([shift_request(0)]))
    assert isinstance(failure, Failure)
    assert failure.attempt_count == 1


def test_a_prompt_that_is_known_to_be_too_long_is_shortened_or_fails_without_a_call_and_harms_no_other() -> None:
    backend, ledger = a_backend(), ListLedger()
    backend.context_tokens = 200
    requests = [
        summary_request(number, title_words=150 if number % 3 == 1 else 2, profile="old " * 150 * (number % 3 == 2))
        for number in range(30)
    ]
    outcomes = dict(flat(learner_of(backend, ledger=ledger).summarize(requests)))
    failed = {number: outcome for number, outcome in outcomes.items() if isinstance(outcome, Failure)}
    shortened = {
        number for number, outcome in outcomes.items() if isinstance(outcome, LearnedText) and outcome.is_shortened
    }
    assert (set(failed), shortened) == (set(range(2, 30, 3)), set(range(1, 30, 3)))
    assert {one.attempt_count for one in failed.values()} == {0}
    assert len(outcomes) == 30
    assert len(backend.calls) == len(ledger.planned) == 20


def test_a_context_that_the_server_tells_when_it_is_asked_is_kept_to() -> None:
    backend = a_backend()
    backend.told_context_tokens = 20
    ((_, outcome),) = flat(learner_of(backend).summarize(summary_requests(1)))
    assert (isinstance(outcome, Failure), backend.calls) == (True, [])


def test_requests_that_all_do_not_fit_come_back_in_groups_of_a_window_without_a_call() -> None:
    backend, ledger = a_backend(), ListLedger()
    backend.context_tokens = 20
    groups = list(learner_of(backend, ledger=ledger).summarize(summary_requests(10)))
    assert [len(group) for group in groups] == [4, 4, 2]
    assert {outcome.attempt_count for group in groups for _, outcome in group} == {0}
    assert (backend.calls, ledger.exchange_count) == ([], 0)


def test_a_call_that_cannot_succeed_fails_at_once_and_alone() -> None:
    backend = a_backend_for(2, BAD_CALL)
    outcomes = dict(flat(learner_of(backend).summarize(summary_requests(5))))
    assert outcomes.pop(2) == Failure(reason="scripted bad_call", attempt_count=1)
    assert all(isinstance(outcome, LearnedText) for outcome in outcomes.values())
    assert len(backend.calls) == 5


def _is_film(call: ChatCall, number: int) -> bool:
    return film_of(call.messages[-1]["content"]) == number


def _send_times(backend: ScriptedBackend) -> list[float]:
    """Return when each submission was made."""
    ends = [sum(backend.submitted_counts[: position + 1]) for position in range(len(backend.submitted_counts))]
    return [backend.call_times[end - 1] for end in ends]
