"""What missing texts would cost: measured where calls were made, assumed where none was."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from liber_feast.budget import CallOutcome, PlannedCall, SettledCall
from liber_feast.estimate import (
    ASSUMED_OUTPUT_TOKENS,
    ASSUMED_SECONDS,
    Estimate,
    Estimator,
    StageEstimate,
    missing_text_counts,
)
from liber_feast.interest import DescribedBehavior, Item, SummaryRequest
from liber_feast.interest_config import OpenAIConfig, VllmConfig
from liber_feast.llm_backend import configure_llm
from liber_feast.memory import Memory
from liber_feast.memory.ledger import MemoryLedger
from liber_feast.prompt import Message, load_prompt
from tests.memory_parts import append_all, behavior, learn_all, new_memory
from tests.test_openai_tokenizer import TEMPLATE, tokenizer_in

PROMPT = load_prompt("movielens")
PROMPT_TOKENS = 100


def hundred(_messages: Sequence[Message]) -> int:
    return PROMPT_TOKENS


def requests(count: int) -> list[SummaryRequest]:
    one = DescribedBehavior(
        item=Item(item_id="a", title="Alien"), rating=4.0, liked=True, event_time=datetime(2024, 1, 1, tzinfo=UTC)
    )
    return [
        SummaryRequest(user_id="ann", partition_index=index, profile="", behaviors=(one,)) for index in range(count)
    ]


def config(**keys: Any) -> OpenAIConfig:
    return OpenAIConfig(model="tiny-1", prices={"input": 1, "cached_input": 0.5, "output": 2}, **keys)


def estimate(memory: Memory, *, summaries: int, shifts: int, of: OpenAIConfig | VllmConfig, **limits: int) -> Estimate:
    estimator = Estimator(config=of, prompt=PROMPT, count_tokens=hundred)
    with memory.reading() as connection:
        missing = {"summary": summaries, "shift": shifts}
        return estimator.estimate(connection, missing=missing, summaries=requests(summaries), **limits)


def stages(found: Estimate) -> tuple[StageEstimate, StageEstimate]:
    summary, shift = found.stages
    return summary, shift


def make_calls(memory: Memory, of: OpenAIConfig, *, stage: str) -> None:
    """Let three calls of a stage be answered: 200 tokens in, half of them cached, 30 out, in 4 seconds."""
    ledger = MemoryLedger(
        memory, budget=of.limits(), prices=of.dollar_prices(), model=of.model, prompt_version="1", clock=lambda: 1
    )
    call = PlannedCall(stage=stage, user_id="ann", partition_index=0, input_tokens=300, max_output_tokens=256)
    ids = ledger.exchange(settled=[], wanted=[call] * 3).call_ids
    answers = [
        SettledCall(
            call_id=one,
            outcome=CallOutcome.ANSWERED,
            input_tokens=200,
            cached_tokens=100,
            output_tokens=30,
            seconds=4.0,
        )
        for one in ids
    ]
    ledger.exchange(settled=answers, wanted=[])


def test_before_the_first_call_answers_are_assumed(tmp_path: Path) -> None:
    summary, shift = stages(estimate(new_memory(tmp_path), summaries=10, shifts=5, of=config(max_concurrency=4)))
    assert (summary.calls, summary.input_tokens, summary.basis) == (10, 10 * PROMPT_TOKENS, "assumed")
    assert summary.output_tokens == 10 * ASSUMED_OUTPUT_TOKENS["summary"]
    assert summary.seconds == pytest.approx(10 * ASSUMED_SECONDS / 4)
    assert summary.dollars == pytest.approx((10 * PROMPT_TOKENS + 2 * summary.output_tokens) / 1e6)
    # A shift's prompt holds two summaries.
    assert shift.input_tokens == 5 * (PROMPT_TOKENS + 2 * ASSUMED_OUTPUT_TOKENS["summary"])
    assert shift.output_tokens == 5 * ASSUMED_OUTPUT_TOKENS["shift"]


def test_no_answer_is_assumed_longer_than_allowed(tmp_path: Path) -> None:
    summary, shift = stages(estimate(new_memory(tmp_path), summaries=1, shifts=1, of=config(max_output_tokens=20)))
    assert (summary.output_tokens, shift.output_tokens) == (20, 20)


def test_what_calls_were_like_is_measured_stage_by_stage(tmp_path: Path) -> None:
    memory, of = new_memory(tmp_path), config(max_concurrency=2)
    make_calls(memory, of, stage="summary")
    summary, shift = stages(estimate(memory, summaries=10, shifts=4, of=of))
    assert (summary.basis, shift.basis) == ("measured", "assumed")
    assert (summary.output_tokens, summary.seconds) == (300, pytest.approx(10 * 4.0 / 2))
    assert summary.dollars == pytest.approx((500 * 1 + 500 * 0.5 + 300 * 2) / 1e6)
    assert shift.input_tokens == 4 * (PROMPT_TOKENS + 2 * 30)
    other = config(max_concurrency=2).model_copy(update={"model": "other"})
    assert stages(estimate(memory, summaries=10, shifts=4, of=other))[0].basis == "assumed"


def test_nothing_missing_costs_nothing(tmp_path: Path) -> None:
    found = estimate(new_memory(tmp_path), summaries=0, shifts=0, of=config())
    assert (found.calls, found.tokens, found.dollars) == (0, 0, 0)
    assert sum(found.facts()["total"].values()) == 0


def test_of_many_prompts_some_stand_for_the_rest(tmp_path: Path) -> None:
    summary, _ = stages(estimate(new_memory(tmp_path), summaries=1_000, shifts=0, of=config(), at_most=7))
    assert summary.input_tokens == 1_000 * PROMPT_TOKENS


def test_prompts_that_fit_no_context_are_no_calls(tmp_path: Path) -> None:
    summary, _ = stages(
        estimate(new_memory(tmp_path), summaries=20, shifts=0, of=config(context_tokens=300), at_most=5)
    )
    assert (summary.calls, summary.too_long, summary.input_tokens, summary.dollars) == (0, 20, 0, 0)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({"requests_per_minute": 60}, 540),
        ({"tokens_per_minute": 21_360}, 540),
        ({"requests_per_minute": 10**6, "tokens_per_minute": 10**9}, 600 * ASSUMED_SECONDS / 64),
    ],
    ids=["requests", "tokens", "none that matters"],
)
def test_a_limit_per_minute_takes_its_time(tmp_path: Path, limits: dict[str, int], seconds: float) -> None:
    of = config(max_output_tokens=256, **limits)
    summary, _ = stages(estimate(new_memory(tmp_path), summaries=600, shifts=0, of=of))
    assert summary.seconds == pytest.approx(seconds)


def test_a_model_in_this_process_takes_its_calls_in_chunks(tmp_path: Path) -> None:
    of = VllmConfig(model="tiny-1", chunk_size=100)
    summary, _ = stages(estimate(new_memory(tmp_path), summaries=400, shifts=0, of=of))
    assert summary.seconds == pytest.approx(4 * 20.0)


def test_the_calls_of_an_opened_llm_are_counted_by_its_tokenizer(tmp_path: Path) -> None:
    path = tokenizer_in(tmp_path / "tokenizer", template=TEMPLATE)
    memory = new_memory(tmp_path)
    for tokenizer, basis in ((None, "estimated"), (path, "counted")):
        of = config(base_url="http://127.0.0.1:9/v1", tokenizer=tokenizer)
        llm = configure_llm(of, base=tmp_path).open(memory, clock=lambda: 1)
        with memory.reading() as connection:
            missing = {"summary": 1, "shift": 0}
            found = llm.open_estimator().estimate(connection, missing=missing, summaries=requests(1))
        assert found.prompt_tokens == basis


def test_missing_texts_count_shifts_whose_summaries_are_missing_too(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(second) for second in range(6)])
    append_all(memory, [behavior(second, user="bob") for second in range(2)])
    with memory.reading() as connection:
        assert missing_text_counts(connection) == {"summary": 4, "shift": 2}
    learn_all(memory)
    with memory.reading() as connection:
        assert missing_text_counts(connection) == {"summary": 0, "shift": 0}
