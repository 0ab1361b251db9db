"""The vllm backend on the real engine: answers, chunks, the prefix cache, and prompts that cannot be run."""

import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _vllm_cpu
from liber_feast.errors import BackendRefused, ConfigError
from liber_feast.llm.chat import ChatAnswer, ChatBackend, ChatCall, ChatError, ErrorKind
from tests.vllm.parts import (
    CHUNK_SIZE,
    CONTEXT_TOKENS,
    MAX_OUTPUT_TOKENS,
    TEXT_COUNT,
    OpenForAll,
    ask,
    calls_of,
    messages_of,
    new_work,
    open_engine,
)


def answers_of(backend: ChatBackend, calls: list[ChatCall]) -> list[ChatAnswer]:
    results = ask(backend, calls)
    assert all(isinstance(result, ChatAnswer) for result in results), results
    return [result for result in results if isinstance(result, ChatAnswer)]


def test_every_call_gets_an_answer_that_ends_by_itself(engine: ChatBackend) -> None:
    calls = calls_of(10)
    answers = answers_of(engine, calls)
    assert [answer.call_id for answer in answers] == list(range(10))
    assert {answer.finish_reason for answer in answers} == {"stop"}
    assert all(answer.text.strip() and answer.seconds > 0 for answer in answers)
    assert len({answer.text for answer in answers}) > 1
    assert answers_of(engine, calls)[3].text == answers[3].text


def test_tokens_are_counted_as_the_engine_counts_them(engine: ChatBackend) -> None:
    calls = calls_of(5)
    for call, answer in zip(calls, answers_of(engine, calls), strict=True):
        assert answer.input_tokens == engine.count_tokens(call.messages) == engine.most_tokens(call.messages)
        assert 1 < answer.output_tokens <= MAX_OUTPUT_TOKENS


def test_limits_are_those_of_the_engine_and_of_two_chunks(engine: ChatBackend) -> None:
    assert engine.check()
    assert (engine.context_tokens, engine.max_output_tokens) == (CONTEXT_TOKENS, MAX_OUTPUT_TOKENS)
    assert engine.max_in_flight == 2 * CHUNK_SIZE


def test_what_prompts_share_comes_from_the_prefix_cache(engine: ChatBackend) -> None:
    shared = "A preface that no other test has. " * 12
    calls = [ChatCall(call_id=number, messages=messages_of(f"{shared}{number}")) for number in range(3)]
    first, *later = (answers_of(engine, [call])[0] for call in calls)
    assert first.cached_tokens < engine.count_tokens(messages_of(shared)) / 2
    for answer in later:
        assert answer.input_tokens * 0.7 < answer.cached_tokens < answer.input_tokens


def test_calls_beyond_a_chunk_wait_for_the_next_one(engine: ChatBackend) -> None:
    engine.submit(calls_of(2 * CHUNK_SIZE))
    sizes = []
    while sum(sizes) < 2 * CHUNK_SIZE:
        sizes.append(len(engine.collect(timeout_s=60.0)))
    assert sizes == [CHUNK_SIZE, CHUNK_SIZE]


def test_collecting_waits_no_longer_than_told(engine: ChatBackend) -> None:
    assert list(engine.collect(timeout_s=None)) == []  # nothing is in flight
    engine.submit(calls_of(1))
    results = list(engine.collect(timeout_s=0.0))
    while not results:
        results = list(engine.collect(timeout_s=0.01))
    assert len(results) == 1


@pytest.mark.parametrize("place", [0, 5, 7])
def test_a_prompt_that_is_too_long_fails_alone(engine: ChatBackend, place: int) -> None:
    calls = calls_of(8)
    long = messages_of(f"{place} films " * CONTEXT_TOKENS)
    calls[place] = ChatCall(call_id=place, messages=long)
    results = ask(engine, calls)
    bad = results.pop(place)
    assert isinstance(bad, ChatError)
    assert bad.kind is ErrorKind.TOO_LONG
    assert bad.reason == f"prompt longer than the {CONTEXT_TOKENS} tokens of the model"
    assert all(isinstance(result, ChatAnswer) for result in results)


def test_a_prompt_that_the_chat_template_refuses_fails_alone(engine: ChatBackend) -> None:
    calls = calls_of(3)
    refused: list[Any] = [{"role": "critic", "content": "The Broken Archives"}]
    calls[1] = ChatCall(call_id=1, messages=refused)
    first, bad, last = ask(engine, calls)
    assert isinstance(bad, ChatError)
    assert bad.kind is ErrorKind.BAD_CALL
    assert bad.reason.startswith("vLLM does not take the prompt (")
    assert isinstance(first, ChatAnswer)
    assert isinstance(last, ChatAnswer)


def test_prompts_are_counted_while_the_engine_runs(engine: ChatBackend) -> None:
    counts: list[int] = []
    messages = messages_of("The 3 Archives " * 40)
    counting = threading.Thread(target=lambda: counts.extend(engine.count_tokens(messages) for _ in range(500)))
    counting.start()
    answers_of(engine, calls_of(24))
    counting.join()
    assert set(counts) == {engine.count_tokens(messages)}
    assert len(counts) == 500


def test_both_waves_fill_a_memory(engine: ChatBackend, tmp_path: Path) -> None:
    work = new_work(tmp_path)
    counts = work.learn(lambda: OpenForAll(engine))
    assert counts.failed_count == counts.shortened_count == 0
    assert len(work.texts()) == work.answered_count() == TEXT_COUNT
    assert work.learn(lambda: OpenForAll(engine)).summary_count == 0
    assert work.answered_count() == TEXT_COUNT


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"engine": {"enforce_eagre": True}}, "vllm.LLM has no argument 'enforce_eagre' that can be set here. Did"),
        ({"engine": {"model": "other"}}, "vllm.LLM has no argument 'model' that can be set here."),
        ({"engine": {"hf_token": "hf_abc"}}, "engine.hf_token: keys do not stand in files. Set HF_TOKEN"),
        ({"sampling": {"topp": 0.9}}, "vllm.SamplingParams has no argument 'topp' that can be set here. Did you mean"),
        ({"sampling": {"max_tokens": 9}}, "vllm.SamplingParams has no argument 'max_tokens' that can be set here."),
        ({"sampling": {"top_p": 7.0}}, "batch_engine.interest.sampling: top_p must be in (0, 1]"),
        ({"sampling": {"structured_outputs": {"regexp": "a"}}}, "batch_engine.interest.sampling: "),
    ],
    ids=["engine", "own engine key", "secret", "sampling", "own sampling key", "value", "structured outputs"],
)
def test_what_vllm_does_not_take_is_a_config_error_of_one_line(
    model: Path, keys: dict[str, dict[str, object]], complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        open_engine(model, **keys)
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message
    assert "hf_abc" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "keys", "complaint"),
    [
        ("no/such/folder/at/all", {}, "Repo id must be in the form"),
        (None, {"dtype": "float31"}, "dtype: Input should be 'auto', "),
        (None, {"max_model_len": 10**9}, "max_model_len (1000000000) is greater than"),
        (None, {"engine": {**_vllm_cpu.ENGINE, "block_size": "much"}}, "block_size: Input should be a valid integer"),
    ],
    ids=["model", "dtype", "context", "engine value"],
)
def test_a_model_that_cannot_be_loaded_is_refused_in_one_line(
    model: Path, name: str | None, keys: dict[str, object], complaint: str
) -> None:
    with pytest.raises(BackendRefused, match=r"^vLLM cannot start with model ") as caught:
        open_engine(name or model, **keys)
    assert complaint in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 500
