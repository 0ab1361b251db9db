"""vLLM's HTTP server behind the openai backend; and it writes what the engine in this process writes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liber_feast.errors import BackendRefused, BackendUnreachable
from liber_feast.interest import SUMMARY
from liber_feast.llm.chat import ChatAnswer, ChatBackend, ChatCall, ChatError, ErrorKind
from liber_feast.llm.openai import OpenAIBackend
from tests.vllm.parts import (
    CONTEXT_TOKENS,
    MAX_OUTPUT_TOKENS,
    TEXT_COUNT,
    OpenForAll,
    ask,
    calls_of,
    messages_of,
    new_work,
)
from tests.vllm.server import MODEL, VllmServer


def open_client(server: VllmServer, *, model: str = MODEL, timeout_s: float = 60.0) -> OpenAIBackend:
    return OpenAIBackend(
        model=model,
        base_url=server.base_url,
        api_key=None,
        api_key_env=None,
        max_concurrency=4,
        timeout_s=timeout_s,
        temperature=0.0,
        max_output_tokens=MAX_OUTPUT_TOKENS,
        context_tokens=None,
        tokenizer=None,
        extra_body={},
    )


@contextmanager
def client(server: VllmServer, *, model: str = MODEL) -> Iterator[OpenAIBackend]:
    backend = open_client(server, model=model)
    try:
        yield backend
    finally:
        backend.close()


def test_the_server_says_what_it_serves_and_how_much_fits(server: VllmServer) -> None:
    with client(server) as backend:
        assert backend.check()
        assert backend.context_tokens == CONTEXT_TOKENS


def test_answers_end_by_themselves_and_tokens_are_those_of_the_engine(server: VllmServer, engine: ChatBackend) -> None:
    calls = calls_of(8)
    with client(server) as backend:
        answers = ask(backend, calls)
    for call, answer in zip(calls, answers, strict=True):
        assert isinstance(answer, ChatAnswer)
        assert answer.finish_reason == "stop"
        assert answer.text.strip()
        assert answer.input_tokens == engine.count_tokens(call.messages)
        assert 1 < answer.output_tokens <= MAX_OUTPUT_TOKENS


def test_cached_tokens_are_reported(server: VllmServer) -> None:
    call = ChatCall(call_id=0, messages=messages_of("A preface that no other test has. " * 12))
    with client(server) as backend:
        first, second = (ask(backend, [call])[0] for _ in range(2))
    assert isinstance(first, ChatAnswer)
    assert isinstance(second, ChatAnswer)
    assert first.cached_tokens < second.cached_tokens < second.input_tokens
    assert second.cached_tokens > second.input_tokens * 0.7
    assert first.text == second.text


def test_an_unknown_model_stops_the_run(server: VllmServer, tmp_path: Path) -> None:
    with client(server, model="another") as backend:
        assert not backend.check()
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.FATAL
    work = new_work(tmp_path)
    counts = work.learn(lambda: open_client(server, model="another"), model="another")
    assert isinstance(counts.stopped, BackendRefused)
    assert "another" in counts.stopped.message
    assert "\n" not in counts.stopped.message
    assert work.texts() == {}


def test_a_prompt_that_is_too_long_fails_alone(server: VllmServer) -> None:
    calls = calls_of(3)
    calls[1] = ChatCall(call_id=1, messages=messages_of("film " * 2 * CONTEXT_TOKENS))
    with client(server) as backend:
        first, bad, last = ask(backend, calls)
    assert isinstance(bad, ChatError)
    assert bad.kind is ErrorKind.TOO_LONG
    assert isinstance(first, ChatAnswer)
    assert isinstance(last, ChatAnswer)


def test_engine_and_server_write_the_same_texts(server: VllmServer, engine: ChatBackend, tmp_path: Path) -> None:
    here, there = new_work(tmp_path / "here"), new_work(tmp_path / "there")
    assert here.learn(lambda: OpenForAll(engine)).stopped is None
    assert there.learn(lambda: open_client(server)).stopped is None
    assert len(here.texts()) == TEXT_COUNT
    assert here.texts() == there.texts()
    assert len(set(here.texts().values())) > 1


def test_engine_and_server_follow_the_generation_config_of_the_model(server: VllmServer, engine: ChatBackend) -> None:
    from benchmarks._tiny_model import first_words  # noqa: PLC0415 (torch)

    penalized = first_words()[::2]
    calls = [ChatCall(call_id=number, messages=messages_of(f"{''.join(penalized)} {number}")) for number in range(12)]
    texts = texts_of(engine, calls)
    assert not any(text.startswith(tuple(penalized)) for text in texts)
    with client(server) as backend:
        assert texts_of(backend, calls) == texts


def texts_of(backend: ChatBackend, calls: list[ChatCall]) -> list[str]:
    return [result.text for result in ask(backend, calls) if isinstance(result, ChatAnswer)]


def test_a_killed_server_ends_the_run_and_a_new_one_completes_it_with_nothing_twice(
    server: VllmServer, tmp_path: Path
) -> None:
    work = new_work(tmp_path)
    kept: list[int] = []

    def kill_once(_stage: str, count: int, _total: int | None) -> None:
        kept.append(count)
        if sum(kept) >= 4:
            server.kill()

    counts = work.learn(lambda: open_client(server, timeout_s=5.0), progress=kill_once, patience_s=1.0)
    assert isinstance(counts.stopped, BackendUnreachable)
    assert "\n" not in counts.stopped.message
    before = work.texts()
    assert 4 <= len(before) < TEXT_COUNT
    assert {stage for stage, _, _ in before} == {SUMMARY}
    server.start()
    counts = work.learn(lambda: open_client(server))
    assert counts.stopped is None
    assert counts.failed_count == 0
    assert counts.summary_count + counts.shift_count == TEXT_COUNT - len(before)
    assert len(work.texts()) == work.answered_count() == TEXT_COUNT
    assert work.texts().items() >= before.items()
