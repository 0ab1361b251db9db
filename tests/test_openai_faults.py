"""What the openai backend makes of a server that fails, one way at a time and all at once."""

from collections import Counter

import pytest

from benchmarks._llm_server import LLMServer
from liber_feast.llm.chat import ChatAnswer, ChatCall, ChatError, ErrorKind
from tests.llm_server import SECRET, ask, ask_once, backend_at, calls_of


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        ("408", ErrorKind.LOST, "no answer came back from the server (408)"),
        ("409", ErrorKind.BUSY, "the server is busy (409)"),
        ("429", ErrorKind.BUSY, "the server is busy (429)"),
        ("500", ErrorKind.BUSY, "the server failed (500)"),
        ("502", ErrorKind.LOST, "no answer came back from the server (502)"),
        ("503", ErrorKind.BUSY, "the server failed (503)"),
        ("504", ErrorKind.LOST, "no answer came back from the server (504)"),
        ("529", ErrorKind.BUSY, "the server failed (529)"),
        ("timeout", ErrorKind.LOST, "no answer within 0.3 s"),
        ("drop", ErrorKind.LOST, "the connection failed (RemoteProtocolError)"),
        ("truncate", ErrorKind.LOST, "the connection failed (RemoteProtocolError)"),
        ("garbage", ErrorKind.LOST, "the server's answer cannot be read"),
        ("nochoice", ErrorKind.LOST, "the server's answer cannot be read"),
        ("413", ErrorKind.TOO_LONG, "the prompt is too long for the model (413)"),
        ("400", ErrorKind.BAD_CALL, "the server refuses the call (400)"),
        ("418", ErrorKind.BAD_CALL, "the server refuses the call (418)"),
        ("422", ErrorKind.BAD_CALL, "the server refuses the call (422)"),
    ],
)
def test_every_fault_is_of_one_kind(fault: str, kind: ErrorKind, reason: str) -> None:
    with LLMServer(faults=f"{fault}=1") as server:
        result = ask_once(server, timeout_s=0.3 if fault == "timeout" else 10.0)
    assert isinstance(result, ChatError)
    assert (result.kind, result.reason) == (kind, reason)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("quota", "the account at http://127.0.0.1:{port}/v1 is out of quota (429)."),
        ("402", "the account at http://127.0.0.1:{port}/v1 is out of quota (402)."),
        ("401", "http://127.0.0.1:{port}/v1 wants an API key (401). Name its environment variable"),
        ("403", "http://127.0.0.1:{port}/v1 does not allow calls without an API key"),
        ("404", "http://127.0.0.1:{port}/v1 does not know the model 'stub'"),
        ("405", "http://127.0.0.1:{port}/v1 does not know the model 'stub'"),
    ],
)
def test_a_fatal_fault_says_what_to_do(fault: str, words: str) -> None:
    with LLMServer(faults=f"{fault}=1") as server:
        result = ask_once(server)
    assert isinstance(result, ChatError)
    assert result.kind is ErrorKind.FATAL
    assert result.reason.startswith(words.format(port=server.port))
    assert result.reason.endswith(".")
    assert "\n" not in result.reason


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7.0, 7.0), ("0.25", 0.25, 0.25), ("date", 0.0, 1.0), ("none", None, None), ("soon", None, None)],
)
@pytest.mark.parametrize("status", [429, 503, 504])
def test_a_busy_server_says_how_long_to_wait(status: int, header: str, least: float | None, most: float | None) -> None:
    with LLMServer(faults=f"{status}=1", retry_after=header) as server:
        result = ask_once(server)
    assert isinstance(result, ChatError)
    if least is None or most is None:
        assert result.retry_after_s is None
    else:
        assert result.retry_after_s is not None
        assert least <= result.retry_after_s <= most


@pytest.mark.parametrize(
    ("fault", "finish_reason", "words"),
    [
        ("empty", "stop", None),
        ("filter", "content_filter", None),
        ("cutoff", "length", " "),
        ("think", "stop", "<think>"),
        ("echo", "stop", SECRET),
    ],
)
def test_an_answer_of_no_use_is_still_an_answer(fault: str, finish_reason: str, words: str | None) -> None:
    with LLMServer(faults=f"{fault}=1") as server:
        result = ask_once(server)
    assert isinstance(result, ChatAnswer)
    assert result.finish_reason == finish_reason
    assert words in result.text if words else result.text == ""


def test_calls_that_fail_at_random_are_all_answered_when_asked_for_again() -> None:
    faults = "timeout=0.02,429=0.06,500=0.06,drop=0.06,truncate=0.06,garbage=0.04"
    waiting: dict[int, ChatCall] = {call.call_id: call for call in calls_of(64)}
    failed: Counter[ErrorKind] = Counter()
    with LLMServer(faults=faults, seed=3) as server, backend_at(server.base_url, timeout_s=1.0) as backend:
        while waiting:
            for result in ask(backend, list(waiting.values())):
                if isinstance(result, ChatAnswer):
                    del waiting[result.call_id]
                else:
                    failed[result.kind] += 1
        counts = server.counts()
    assert set(failed) == {ErrorKind.BUSY, ErrorKind.LOST}
    assert counts["calls"] <= 64 + failed.total()
    assert counts["answered_prompts"] == 64
