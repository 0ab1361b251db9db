"""The call loop: what is in flight, when it is settled, and what is left when it ends."""

import gc
from collections.abc import Iterator

import pytest

from liber_feast.budget import CallOutcome, Prices
from liber_feast.interest import LearnedText, SummaryRequest
from liber_feast.llm.chat_learner import ChatLearner
from liber_feast.llm.spending import Spending
from tests.chat_parts import (
    ANSWER,
    BAD_CALL,
    LATENCY_S,
    LOST,
    PROMPT,
    TEXT,
    ListLedger,
    Reply,
    ScriptedBackend,
    SimulatedClock,
    a_backend,
    a_backend_for,
    film_of,
    flat,
    learner_of,
    shift_request,
    summary_requests,
)


class KeepingBroke(Exception):
    """The memory could not keep a group."""


def test_every_request_gets_its_text_and_both_waves_share_one_backend() -> None:
    backend, opened = a_backend(), []
    learner = learner_of(backend, open_backend=lambda: opened.append(1) or backend)
    summaries = flat(learner.summarize(summary_requests(10)))
    shifts = flat(learner.learn_shifts([shift_request(number) for number in range(5)]))
    assert sorted(number for number, _ in summaries) == list(range(10))
    assert sorted(number for number, _ in shifts) == list(range(5))
    assert {outcome.text for _, outcome in (*summaries, *shifts) if isinstance(outcome, LearnedText)} == {TEXT}
    assert (len(opened), backend.check_count, len(backend.calls), backend.is_closed) == (1, 1, 15, False)
    learner.close()
    assert backend.is_closed
    learner.close()


def test_with_nothing_to_do_nothing_is_opened() -> None:
    backend, opened = a_backend(), []
    learner = learner_of(backend, open_backend=lambda: opened.append(1) or backend)
    assert flat(learner.summarize([])) == []
    assert flat(learner.learn_shifts(iter(()))) == []
    learner.close()
    assert (opened, learner.spent()) == ([], Spending())


def test_a_learner_says_which_model_and_prompt_it_asks() -> None:
    learner = learner_of(a_backend())
    assert (learner.model, learner.prompt_version) == ("scripted-1", PROMPT.version)


@pytest.mark.parametrize("end", ["whole", "closed", "failed"])
def test_a_wave_keeps_the_garbage_collector_off_what_is_there_and_lets_it_go_after(end: str) -> None:
    assert gc.get_freeze_count() == 0
    groups = learner_of(a_backend(max_in_flight=2)).summarize(summary_requests(6))
    next(iter(groups))
    assert gc.get_freeze_count() > 0
    if end == "closed":
        groups.close()  # type: ignore[attr-defined]  # a generator
    elif end == "failed":
        with pytest.raises(KeepingBroke):
            groups.throw(KeepingBroke)  # type: ignore[attr-defined]
    else:
        flat(groups)
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        flat(learner_of(a_backend()).summarize(summary_requests(3)))
        assert gc.get_freeze_count() == frozen > 0
    finally:
        gc.unfreeze()


def test_calls_go_in_the_order_of_the_requests() -> None:
    backend = a_backend()
    flat(learner_of(backend).summarize(summary_requests(20)))
    assert [film_of(call.messages[-1]["content"]) for call in backend.calls] == list(range(20))


@pytest.mark.parametrize("max_in_flight", [1, 3, 8, 40])
def test_calls_are_never_more_than_the_window_ahead_of_what_was_kept(max_in_flight: int) -> None:
    backend, kept = a_backend(max_in_flight=max_in_flight), 0
    for group in learner_of(backend).summarize(summary_requests(30)):
        assert len(backend.calls) - kept <= max_in_flight
        assert backend.in_flight + len(group) <= max_in_flight
        kept += len(group)
    assert (kept, backend.most_in_flight) == (30, min(max_in_flight, 30))


def test_the_window_stays_full_as_long_as_there_are_requests() -> None:
    backend = a_backend(max_in_flight=8)
    start = backend.clock()
    flat(learner_of(backend).summarize(summary_requests(64)))
    assert backend.clock() - start == 64 / 8 * LATENCY_S


def test_a_window_of_prompts_is_rendered_ahead_while_calls_are_in_flight_and_no_more() -> None:
    backend, pulled, kept = a_backend(max_in_flight=8), 0, 0

    def requests() -> Iterator[SummaryRequest]:
        nonlocal pulled
        for request in summary_requests(50):
            pulled += 1
            yield request

    for group in learner_of(backend).summarize(requests()):
        assert min(len(backend.calls) + 8, 50) == pulled
        assert pulled - kept <= 2 * 8
        kept += len(group)
    assert kept == 50


def test_freed_places_are_filled_before_anything_more_is_read() -> None:
    events: list[str] = []

    def requests() -> Iterator[SummaryRequest]:
        for request in summary_requests(40):
            events.append("read")
            yield request

    def noting(prompt: str, times: int) -> Reply:
        events.append("sent")
        return ANSWER

    backend = ScriptedBackend(clock=SimulatedClock(), script=noting, max_in_flight=8)
    groups = learner_of(backend).summarize(requests())
    next(groups)
    del events[:]
    next(groups)
    assert events[:8] == ["sent"] * 8


def test_the_first_calls_are_sent_before_the_whole_window_is_rendered() -> None:
    backend = a_backend(max_in_flight=16)
    next(learner_of(backend).summarize(summary_requests(40)))
    assert backend.submitted_counts == [4, 4, 4, 4]


def test_answers_that_arrive_all_at_once_are_kept_in_groups_and_each_group_frees_its_places() -> None:
    backend = a_backend(max_in_flight=64)
    groups = learner_of(backend).summarize(summary_requests(200))
    made = []
    for _ in range(8):
        assert len(next(groups)) == 8
        made.append(len(backend.calls))
    assert made == [64, 72, 80, 88, 96, 104, 112, 120]


def test_a_call_is_settled_only_once_its_text_was_kept() -> None:
    backend, ledger = a_backend(), ListLedger()
    groups = learner_of(backend, ledger=ledger).summarize(summary_requests(12))
    assert [len(next(groups)), len(ledger.settled), len(ledger.open_ids)] == [4, 0, 4]
    assert [len(next(groups)), len(ledger.settled), len(ledger.open_ids)] == [4, 4, 4]
    assert [len(next(groups)), len(ledger.settled), len(ledger.open_ids)] == [4, 8, 4]
    assert next(groups, None) is None
    assert set(ledger.outcomes()) == {CallOutcome.ANSWERED}
    assert (len(ledger.settled), ledger.open_ids) == (12, set())


def test_a_call_is_settled_at_what_the_server_says_that_it_cost() -> None:
    backend, ledger = a_backend(), ListLedger()
    ((_, outcome),) = flat(learner_of(backend, ledger=ledger).summarize(summary_requests(1)))
    (settled,) = ledger.settled.values()
    assert isinstance(outcome, LearnedText)
    assert (settled.input_tokens, settled.output_tokens) == (outcome.input_tokens, outcome.output_tokens)
    assert (settled.cached_tokens, settled.seconds) == (outcome.cached_tokens, outcome.seconds) == (3, LATENCY_S)
    (planned,) = ledger.planned.values()
    assert (planned.stage, planned.user_id, planned.partition_index) == ("summary", "user-0", 0)
    assert (planned.input_tokens, planned.max_output_tokens) == (settled.input_tokens, 16)


def test_a_generator_that_is_closed_gives_up_its_calls_and_settles_what_was_kept_alone() -> None:
    backend, ledger = a_backend(), ListLedger()
    backend.script = lambda prompt, _: Reply(latency_s=1.0 + film_of(prompt))
    groups = learner_of(backend, ledger=ledger).summarize(summary_requests(40))
    next(groups)
    next(groups)
    made = len(backend.calls)
    groups.close()
    assert (backend.is_closed, len(backend.calls), len(ledger.settled)) == (True, made, 1)
    assert len(ledger.open_ids) == 4


def test_a_consumer_that_breaks_gives_up_the_calls_in_flight_and_the_next_wave_opens_again() -> None:
    backends = [a_backend(), a_backend()]
    backends[0].script = lambda prompt, _: Reply(latency_s=1.0 + film_of(prompt))
    waiting = iter(backends)
    learner = learner_of(backends[0], open_backend=lambda: next(waiting))
    with pytest.raises(KeepingBroke):
        keep_none(learner)
    assert backends[0].is_closed
    assert len(flat(learner.summarize(summary_requests(3)))) == 3
    assert (backends[1].check_count, backends[1].is_closed) == (1, False)


def keep_none(learner: ChatLearner) -> None:
    for _ in learner.summarize(summary_requests(40)):
        raise KeepingBroke


def test_a_generator_that_is_closed_with_nothing_in_flight_leaves_the_backend_open() -> None:
    backend = a_backend()
    groups = learner_of(backend).summarize(summary_requests(4))
    next(groups)
    groups.close()
    assert not backend.is_closed


def test_requests_that_cannot_be_read_end_the_wave_with_what_was_kept_settled() -> None:
    backend, ledger = a_backend(), ListLedger()

    def requests() -> Iterator[SummaryRequest]:
        yield from summary_requests(10)
        raise KeepingBroke

    with pytest.raises(KeepingBroke):
        flat(learner_of(backend, ledger=ledger).summarize(requests()))
    assert backend.is_closed
    assert len(ledger.settled) == 4


def test_what_was_spent_is_known_at_any_time() -> None:
    backend = a_backend_for(1, BAD_CALL)
    learner = learner_of(backend, prices=Prices(input=1.0, cached_input=0.0, output=10.0))
    groups = learner.summarize(summary_requests(4))
    next(groups)
    spent = learner.spent()
    assert (spent.call_count, spent.failed_count, spent.output_tokens, spent.cached_tokens) == (4, 1, 18, 9)
    assert spent.dollars == pytest.approx((spent.input_tokens - 9 + 10 * 18) / 1e6)
    assert spent.seconds == LATENCY_S


def test_a_lost_call_counts_at_the_most_it_can_have_cost() -> None:
    backend, ledger = a_backend(LOST, ANSWER), ListLedger()
    learner = learner_of(backend, ledger=ledger, prices=Prices(input=1.0, cached_input=0.0, output=10.0))
    flat(learner.summarize(summary_requests(1)))
    tokens = ledger.planned[1].input_tokens
    assert learner.spent().dollars == pytest.approx((tokens + 10 * 16 + (tokens - 3) + 10 * 6) / 1e6)
