"""A backend that is gone for a while, or refuses every call: no text pays for it."""

from itertools import pairwise

import pytest

from liber_feast.budget import CallOutcome
from liber_feast.errors import BackendRefused, BackendUnreachable
from liber_feast.interest import Failure, LearnedText
from liber_feast.llm.chat import ErrorKind
from liber_feast.llm.rate_limit import RateLimits
from tests.chat_parts import (
    ANSWER,
    BAD_CALL,
    BUSY,
    LOST,
    UNSENT,
    ListLedger,
    Reply,
    ScriptedBackend,
    a_backend,
    a_backend_for,
    film_of,
    flat,
    learner_of,
    summary_requests,
)

QUICK = Reply(error=ErrorKind.UNSENT, latency_s=0.01)
HANGS = Reply(error=ErrorKind.LOST, latency_s=60.0)
unanswered = pytest.mark.parametrize(
    "reply", [BUSY, UNSENT, LOST, QUICK, HANGS], ids=["busy", "unsent", "lost", "unsent at once", "hangs"]
)


def with_outage(reply: Reply, *, seconds: float, max_in_flight: int = 8, begin: float = 5.5) -> ScriptedBackend:
    """Return a backend that gives `reply` to calls made in an outage; the latencies of the others differ."""
    backend = a_backend(max_in_flight=max_in_flight)
    start = backend.clock()

    def script(prompt: str, _times: int) -> Reply:
        is_out = begin <= backend.clock() - start < begin + seconds
        return reply if is_out else Reply(latency_s=0.7 + film_of(prompt) % 5 / 10)

    backend.script = script
    return backend


@unanswered
@pytest.mark.parametrize("seconds", [20.0, 540.0])
@pytest.mark.parametrize("max_in_flight", [1, 2, 8, 64])
def test_an_outage_within_the_patience_fails_nothing(reply: Reply, seconds: float, max_in_flight: int) -> None:
    backend, ledger = with_outage(reply, seconds=seconds, max_in_flight=max_in_flight), ListLedger()
    outcomes = dict(flat(learner_of(backend, ledger=ledger, max_attempts=5).summarize(summary_requests(700))))
    assert len(outcomes) == 700
    assert all(isinstance(outcome, LearnedText) for outcome in outcomes.values())
    assert ledger.open_ids == set()


@unanswered
def test_an_outage_beyond_the_patience_ends_the_run_and_fails_nothing(reply: Reply) -> None:
    backend, ledger, kept = with_outage(reply, seconds=660.0), ListLedger(), []
    start = backend.clock()
    with pytest.raises(BackendUnreachable, match=r"no answer for 600 s, the last: scripted"):
        for group in learner_of(backend, ledger=ledger, max_attempts=5).summarize(summary_requests(700)):
            kept += group
    assert all(isinstance(outcome, LearnedText) for _, outcome in kept)
    assert ledger.outcomes().count(CallOutcome.ANSWERED) == len(kept)
    assert ledger.open_ids == set()
    assert 600.0 <= backend.clock() - start <= 720.0


def test_a_long_outage_is_probed_by_one_call_at_a_time() -> None:
    backend = with_outage(LOST, seconds=540.0, max_in_flight=64)
    start = backend.clock()
    flat(learner_of(backend).summarize(summary_requests(700)))
    probes = [time for time in backend.call_times if 40.0 <= time - start < 540.0]
    assert 10 <= len(probes) <= 500
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(probes))


@pytest.mark.parametrize("reply", [BUSY, UNSENT, LOST], ids=["busy", "unsent", "lost"])
@pytest.mark.parametrize("max_in_flight", [2, 4, 64])
def test_a_text_without_an_answer_while_others_are_answered_runs_out_of_attempts(
    reply: Reply, max_in_flight: int
) -> None:
    backend = a_backend_for(7, reply, max_in_flight=max_in_flight)
    outcomes = dict(flat(learner_of(backend, max_attempts=5).summarize(summary_requests(2_000))))
    failure = outcomes.pop(7)
    assert failure == Failure(reason=f"no answer in 5 attempts, the last: scripted {reply.error}", attempt_count=5)
    assert all(isinstance(outcome, LearnedText) for outcome in outcomes.values())


def test_the_last_texts_of_a_wave_run_out_of_attempts_though_nothing_else_is_left_to_answer() -> None:
    backend = a_backend(max_in_flight=16)
    backend.script = lambda prompt, _: BUSY if film_of(prompt) in {14, 15} else ANSWER
    outcomes = dict(flat(learner_of(backend).summarize(summary_requests(16))))
    assert [number for number, outcome in outcomes.items() if isinstance(outcome, Failure)] == [14, 15]
    assert backend.clock.slept_s < 10.0


@pytest.mark.parametrize("check_result", [True, False], ids=["checked", "not checked"])
@pytest.mark.parametrize("answered_before", [True, False], ids=["answered before", "never answered"])
def test_a_short_patience_ends_soon_and_alike_whatever_was_before(check_result: bool, answered_before: bool) -> None:
    backend = a_backend(check_result=check_result)
    learner = learner_of(backend, max_attempts=5)
    if answered_before:
        flat(learner.summarize(summary_requests(3)))
        backend.clock.sleep(3_600.0)
    learner.patience_s, backend.script = 10.0, lambda *_: UNSENT
    start = backend.clock()
    with pytest.raises(BackendUnreachable):
        flat(learner.summarize(summary_requests(3)))
    assert 7.0 <= backend.clock() - start <= 13.0
    backend.script = lambda *_: ANSWER
    assert len(flat(learner.summarize(summary_requests(3)))) == 3


@pytest.mark.parametrize("patience_s", [10.0, 600.0])
def test_a_server_that_asks_to_wait_beyond_the_patience_is_not_waited_for(patience_s: float) -> None:
    backend, ledger = a_backend(Reply(error=ErrorKind.BUSY, retry_after_s=patience_s + 5)), ListLedger()
    with pytest.raises(BackendUnreachable, match=rf"asks to wait {patience_s + 5:.0f} s"):
        flat(learner_of(backend, ledger=ledger, patience_s=patience_s).summarize(summary_requests(3)))
    assert (backend.clock.slept_s, len(backend.calls), ledger.open_ids) == (0.0, 3, set())


def test_a_refused_connection_costs_nothing_and_a_lost_call_the_most() -> None:
    backend, ledger = a_backend(UNSENT, LOST, ANSWER), ListLedger()
    flat(learner_of(backend, ledger=ledger).summarize(summary_requests(1)))
    assert ledger.outcomes() == [CallOutcome.REFUSED, CallOutcome.LOST, CallOutcome.ANSWERED]


def test_the_bound_of_a_prompt_is_reserved_and_its_estimate_counts_for_limits_per_minute() -> None:
    backend, ledger = a_backend(), ListLedger()
    backend.margin = 10_000
    start = backend.clock()
    rates = RateLimits(tokens_per_minute=1_000)
    flat(learner_of(backend, ledger=ledger, rates=rates).summarize(summary_requests(4)))
    tokens = backend.count_tokens(backend.calls[0].messages)
    assert {call.input_tokens for call in ledger.planned.values()} == {tokens + 10_000}
    assert backend.clock() - start < 60.0


@pytest.mark.parametrize("max_in_flight", [1, 4, 64])
def test_a_server_that_refuses_every_call_is_refusing_and_marks_nothing_failed(max_in_flight: int) -> None:
    backend, ledger = a_backend(BAD_CALL, max_in_flight=max_in_flight), ListLedger()
    groups = learner_of(backend, ledger=ledger).summarize(summary_requests(100))
    with pytest.raises(BackendRefused, match=r"refuses every call \(scripted bad_call\)"):
        next(groups)
    assert len(backend.calls) < max_in_flight + 10
    assert ledger.open_ids == set()


@pytest.mark.parametrize("max_in_flight", [1, 4, 64])
def test_calls_that_are_refused_before_the_first_answer_fail_with_it(max_in_flight: int) -> None:
    backend = a_backend(max_in_flight=max_in_flight)
    backend.script = lambda prompt, _: BAD_CALL if film_of(prompt) < 9 or film_of(prompt) > 80 else ANSWER
    outcomes = dict(flat(learner_of(backend).summarize(summary_requests(100))))
    failed = {number for number, outcome in outcomes.items() if isinstance(outcome, Failure)}
    assert (failed, len(outcomes)) == ({*range(9), *range(81, 100)}, 100)


def test_few_calls_that_are_all_refused_fail_at_the_end_of_the_wave() -> None:
    outcomes = flat(learner_of(a_backend(BAD_CALL)).summarize(summary_requests(9)))
    assert [outcome for _, outcome in outcomes] == [Failure(reason="scripted bad_call", attempt_count=1)] * 9
