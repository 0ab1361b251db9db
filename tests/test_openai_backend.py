"""The openai backend against a real server process: answers, limits, refusals, and what it keeps to itself."""

import gc
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks._llm_server import LLMServer
from benchmarks._llm_stub import answer_text
from liber_feast.errors import BackendRefused, BackendUnreachable, ConfigError, LiberError
from liber_feast.llm.chat import ChatAnswer, ChatCall, ChatError, ErrorKind
from liber_feast.llm.fit import estimate_tokens
from tests.llm_server import (
    KEY,
    KEY_ENV,
    SECRET,
    ask,
    ask_once,
    backend_at,
    calls_of,
    collect_all,
    free_port,
    full_port,
    messages_of,
)


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer() as server:
        yield server


def test_every_call_gets_its_own_answer(server: LLMServer) -> None:
    calls = calls_of(100)
    with backend_at(server.base_url) as backend:
        results = ask(backend, calls)
    assert [result.call_id for result in results] == list(range(100))
    for call, result in zip(calls, results, strict=True):
        assert isinstance(result, ChatAnswer)
        assert result.text == answer_text("\n".join(message["content"] for message in call.messages))
        assert result.finish_reason == "stop"
        assert result.seconds > 0


def test_tokens_are_those_that_the_server_counted(server: LLMServer) -> None:
    prompt = messages_of("word " * 100)
    words = sum(len(message["content"].split()) for message in prompt)
    with backend_at(server.base_url) as backend:
        first, second = (ask(backend, [ChatCall(call_id=0, messages=prompt)])[0] for _ in range(2))
    assert isinstance(first, ChatAnswer)
    assert isinstance(second, ChatAnswer)
    assert (first.input_tokens, first.cached_tokens) == (words, 0)
    assert first.output_tokens == len(first.text.split())
    assert second.cached_tokens == words // 16 * 16


def test_a_server_that_does_not_state_cached_tokens_has_none() -> None:
    with LLMServer(usage="null") as server:
        answer = ask_once(server)
    assert isinstance(answer, ChatAnswer)
    assert answer.input_tokens > 0
    assert answer.cached_tokens == 0


def test_a_server_that_states_no_usage_is_taken_to_have_used_the_most() -> None:
    with LLMServer(usage="none") as server:
        answer = ask_once(server)
    assert isinstance(answer, ChatAnswer)
    assert answer.input_tokens == estimate_tokens(calls_of(1)[0].messages)
    assert answer.output_tokens == 256


def test_no_more_calls_are_in_flight_than_the_limit_allows() -> None:
    with LLMServer(latency_s=0.02) as server, backend_at(server.base_url, max_concurrency=4) as backend:
        assert backend.max_in_flight == 4
        ask(backend, calls_of(40))
        assert server.counts()["max_in_flight"] == 4


def test_calls_go_on_while_nobody_waits() -> None:
    with LLMServer(latency_s=0.1) as server, backend_at(server.base_url) as backend:
        backend.submit(calls_of(8))
        while server.counts()["answered_prompts"] < 8:
            time.sleep(0.02)
        assert len(collect_all(backend, 8)) == 8


def test_collecting_waits_no_longer_than_told() -> None:
    with LLMServer(latency_s=1.0) as server, backend_at(server.base_url) as backend:
        assert list(backend.collect(timeout_s=None)) == []  # nothing is in flight
        backend.submit(calls_of(1))
        start = time.perf_counter()
        assert list(backend.collect(timeout_s=0.05)) == []
        assert 0.05 <= time.perf_counter() - start < 0.9


def test_a_prompt_that_cannot_be_sent_fails_alone(server: LLMServer) -> None:
    broken = ChatCall(call_id=7, messages=[{"role": "user", "content": "half a letter: \ud800"}])
    with backend_at(server.base_url) as backend:
        first, second = ask(backend, [broken, calls_of(1)[0]])
    assert isinstance(first, ChatError)
    assert first.kind is ErrorKind.BAD_CALL
    assert isinstance(second, ChatAnswer)


def test_what_goes_wrong_on_our_side_is_no_fault_of_the_call(server: LLMServer) -> None:
    broken = ChatCall(call_id=7, messages=[{"role": "user", "content": object()}])  # type: ignore[typeddict-item]
    with backend_at(server.base_url, max_concurrency=1) as backend:
        first, second = ask(backend, [broken, calls_of(1)[0]])
    assert isinstance(first, ChatError)
    assert (first.kind, first.reason) == (ErrorKind.LOST, "the call went wrong on our side (TypeError)")
    assert isinstance(second, ChatAnswer)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "half a letter: \ud800"], ids=["NaN", "set", "half a letter"])
def test_a_field_that_no_call_can_carry_is_refused_at_once(value: object) -> None:
    with (
        pytest.raises(ConfigError, match=r"^batch_engine\.interest\.extra_body holds a value that JSON does not have"),
        backend_at("http://127.0.0.1:1/v1", extra_body={"seed": {"of": value}}),
    ):
        pass


def test_checking_costs_no_call_and_takes_over_the_context() -> None:
    with LLMServer(context_tokens=4096) as server, backend_at(server.base_url) as backend:
        assert backend.check()
        assert backend.context_tokens == 4096
        assert server.counts()["calls"] == 0


def test_a_configured_context_stands() -> None:
    with LLMServer(context_tokens=4096) as server, backend_at(server.base_url, context_tokens=512) as backend:
        assert backend.check()
        assert backend.context_tokens == 512


@pytest.mark.parametrize("status", [403, 404, 405, 500])
def test_a_server_without_a_list_of_models_cannot_be_checked(status: int) -> None:
    with LLMServer(models_status=status) as server, backend_at(server.base_url) as backend:
        assert not backend.check()
        assert isinstance(ask(backend, calls_of(1))[0], ChatAnswer)


def test_a_model_that_is_not_listed_is_for_the_first_call_to_try(server: LLMServer) -> None:
    with backend_at(server.base_url, model="other") as backend:
        assert not backend.check()
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.FATAL
    assert "'other'" in result.reason
    assert f"http://127.0.0.1:{server.port}/v1" in result.reason


def test_a_server_that_nobody_started_is_unreachable() -> None:
    with backend_at(f"http://127.0.0.1:{free_port()}/v1") as backend:
        with pytest.raises(BackendUnreachable, match=r"^http://127\.0\.0\.1:\d+/v1 does not answer\."):
            backend.check()
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert (result.kind, result.reason) == (ErrorKind.UNSENT, "the connection failed (ConnectError)")


def test_a_name_without_an_address_costs_nothing() -> None:
    with backend_at("http://no-such-host.invalid/v1") as backend:
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.UNSENT


def test_a_failed_handshake_costs_nothing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        backend_at(f"https://127.0.0.1:{listening.getsockname()[1]}/v1") as backend,
    ):
        backend.submit(calls_of(1))
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 This is no TLS\r\n\r\n")
            (result,) = collect_all(backend, 1)
    assert isinstance(result, ChatError)
    assert (result.kind, result.reason) == (ErrorKind.UNSENT, "the connection failed (ConnectError)")


def test_a_connection_that_does_not_open_in_time_costs_nothing() -> None:
    with full_port() as port, backend_at(f"http://127.0.0.1:{port}/v1", timeout_s=2.0) as backend:
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert (result.kind, result.reason) == (ErrorKind.UNSENT, "the connection failed (ConnectTimeout)")


@pytest.mark.parametrize("key", ["another-key", None], ids=["wrong key", "no key"])
def test_a_refused_key_is_fatal(key: str | None) -> None:
    with LLMServer(api_key=KEY) as server, backend_at(server.base_url, api_key=key) as backend:
        with pytest.raises(BackendRefused) as refused:
            backend.check()
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.FATAL
    assert result.reason == str(refused.value)
    assert (KEY_ENV if key else "API key") in result.reason
    assert "(401)" in result.reason


def test_a_key_that_may_do_nothing_is_found_out_by_the_first_call() -> None:
    with LLMServer(api_key=KEY, refusal=403) as server, backend_at(server.base_url, api_key="another") as backend:
        assert not backend.check()
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.FATAL
    assert f"does not allow the API key in {KEY_ENV}" in result.reason


def test_the_right_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with LLMServer(api_key=KEY) as server:
        assert isinstance(ask_once(server, api_key=KEY), ChatAnswer)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)  # meant for another server
        assert isinstance(ask_once(server), ChatError)


def test_neither_key_nor_prompt_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    settings: list[dict[str, object]] = [
        {"api_key": KEY},
        {"api_key": KEY, "model": "another"},
        {"api_key": KEY, "context_tokens": 10},
        {"api_key": KEY, "refused_key": "temperature"},
        {"api_key": KEY, "faults": "500=1"},
        {"api_key": KEY, "faults": "quota=1"},
        {"api_key": "sk-the-server-wants-another"},
    ]
    for setting in settings:
        with LLMServer(**setting) as server, backend_at(server.base_url, api_key=KEY) as backend:  # type: ignore[arg-type]
            told += [repr(backend), str(backend)]
            try:
                backend.check()
            except LiberError as error:
                told += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
            told += [repr(result) for result in ask(backend, calls_of(1))]
    told.append(caplog.text)
    assert not [text for text in told if KEY in text or SECRET in text]
    assert not [record for record in caplog.records if record.name.startswith(("openai", "http"))]


def test_a_client_that_is_told_to_log_everything_logs_no_prompt(server: LLMServer) -> None:
    script = f"""
import logging
from tests.llm_server import ask, backend_at, calls_of
with backend_at({server.base_url!r}) as backend:
    logging.getLogger("openai").debug("not listened to")
    logging.warning("listened to")
    ask(backend, calls_of(1))
"""
    told = {**os.environ, "OPENAI_LOG": "debug"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=told)
    assert run.stderr.endswith("listened to\n")
    assert run.stderr.count("\n") == 1


def test_a_key_that_no_header_can_carry_is_not_repeated(
    server: LLMServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with backend_at(server.base_url, api_key=f"{KEY}\nsecond line") as backend:
        with pytest.raises(BackendUnreachable) as refused:
            backend.check()
        told = [repr(result) for result in ask(backend, calls_of(1))]
    told += [repr(refused.value), repr(refused.value.__context__), caplog.text, *capfd.readouterr()]
    assert not [text for text in told if KEY in text]


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:8000/v1", "ftp://127.0.0.1/v1", "http:///v1", "http://[::1/v1", "http://127.0.0.1:port/v1"),
        *("http://me:hunter2@127.0.0.1/v1", "http://127.0.0.1/v1?token=hunter2"),
    ],
)
def test_an_address_that_cannot_be_used_or_carries_a_secret_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match=r"base_url .* must be an http or https address") as refused,
        backend_at(address),
    ):
        pass
    assert "hunter2" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_a_server_that_wants_the_newer_name_of_the_limit_gets_it() -> None:
    with LLMServer(refused_key="max_tokens") as server, backend_at(server.base_url) as backend:
        first, second = (ask(backend, calls_of(1))[0] for _ in range(2))
    assert isinstance(first, ChatError)
    assert first.kind is ErrorKind.BUSY
    assert isinstance(second, ChatAnswer)


def test_openai_itself_gets_the_newer_name_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with backend_at(None) as backend:
        assert backend._limit_key == "max_completion_tokens"
    with LLMServer(refused_key="max_completion_tokens") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        with backend_at(None) as backend:
            assert isinstance(ask(backend, calls_of(1))[0], ChatAnswer)


@pytest.mark.parametrize(("key", "value"), [("temperature", None), ("top_k", 5)], ids=["ours", "of extra_body"])
def test_a_parameter_that_the_server_refuses_is_fatal(key: str, value: int | None) -> None:
    with LLMServer(refused_key=key) as server, backend_at(server.base_url, extra_body={key: value}) as backend:
        (result,) = ask(backend, calls_of(1))
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.FATAL
    assert f"refuses the parameter '{key}' (400)" in result.reason


def test_a_prompt_beyond_the_context_is_too_long() -> None:
    with LLMServer(context_tokens=260) as server:
        result = ask_once(server)
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.TOO_LONG


def test_a_killed_server_loses_its_calls_and_a_new_one_answers_them() -> None:
    with LLMServer(latency_s=5.0) as server, backend_at(server.base_url) as backend:
        backend.submit(calls_of(8))
        while server.counts()["in_flight"] < 8:
            time.sleep(0.01)
        server.kill()
        lost = collect_all(backend, 8)
        assert {result.kind for result in lost if isinstance(result, ChatError)} == {ErrorKind.LOST}
        assert sorted(result.call_id for result in lost) == list(range(8))
        with LLMServer(port=server.port):
            assert isinstance(ask(backend, calls_of(1))[0], ChatAnswer)


def test_a_slow_server_loses_its_calls() -> None:
    with LLMServer(latency_s=5.0) as server:
        result = ask_once(server, timeout_s=0.2)
    assert isinstance(result, ChatError)
    assert (result.kind, result.reason) == (ErrorKind.LOST, "no answer within 0.2 s")
    assert 0.199 <= result.seconds < 3.0  # timers of the event loop count milliseconds


def test_closing_gives_up_the_calls_in_flight() -> None:
    with LLMServer(latency_s=30.0) as server, backend_at(server.base_url) as backend:
        backend.submit(calls_of(8))
        while server.counts()["in_flight"] < 8:
            time.sleep(0.01)
        start = time.perf_counter()
        backend.close()
        assert time.perf_counter() - start < 3.0
        assert list(backend.collect(timeout_s=None)) == []
        while server.counts()["in_flight"]:
            time.sleep(0.01)
    gc.collect()
    assert "openai" not in {thread.name for thread in threading.enumerate()}


def test_closing_twice_or_unused_is_fine(server: LLMServer) -> None:
    with backend_at(server.base_url) as unused:
        unused.close()
    with backend_at(server.base_url) as backend:
        ask(backend, calls_of(3))
        backend.close()
        backend.close()
    gc.collect()


@pytest.mark.parametrize("package", ["openai", "httpx2", "anyio"])
def test_a_missing_package_is_named_with_what_to_install(package: str) -> None:
    script = f"import sys; sys.modules[{package!r}] = None; import liber_feast.llm.openai"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"MissingExtra: {package} is not installed. Run: pip install 'liber-feast[openai]'" in run.stderr
