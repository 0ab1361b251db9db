"""Replies of OpenAI-compatible servers, as their projects send them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.llm.chat import ErrorKind
from liber_feast.llm.openai_reply import Server, judge, model_context, read_answer, read_error, retry_after_s

SERVER = Server(address="http://llm.example:8000/v1", model="tiny", api_key_env="TINY_KEY")
KEYS = {"model", "temperature", "max_tokens"}
NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def judged(status: int, body: Any) -> tuple[ErrorKind, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return judge(read_error(status, raw), server=SERVER, body_keys=KEYS)


def openai_error(message: str, *, code: str | int | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, openai_error("...", code="context_length_exceeded", param="messages")),
        (400, openai_error("This model's maximum context length is 512 tokens. However, ...", code=400)),
        (400, openai_error("max_tokens is too large. The maximum context length is 512.", param="max_tokens")),
        (400, {"object": "error", "message": "The input (99 tokens) is longer than the model's context length."}),
        (400, openai_error("request (36146 tokens) exceeds the available context size (32768 tokens)", code=400)),
        (400, openai_error("Requested tokens (2285) exceed context window of 2048")),
        (400, openai_error("The decoder prompt is longer than the maximum model length of 300.")),
        (400, openai_error("The input token count (70000) exceeds the maximum number of tokens allowed (32768).")),
        (400, openai_error("prompt is too long: 210000 tokens > 200000 maximum")),
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096.", "x": 1}),
        (413, b"<html>Request Entity Too Large</html>"),
    ],
    ids=[
        "OpenAI",
        "vLLM",
        "limit",
        "SGLang",
        "llama.cpp",
        "llama-cpp-python",
        "engine",
        "Gemini",
        "Claude",
        "TGI",
        "proxy",
    ],
)
def test_a_prompt_beyond_the_context_is_told_from_other_errors(status: int, body: Any) -> None:
    assert judged(status, body) == (ErrorKind.TOO_LONG, f"the prompt is too long for the model ({status})")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, {"error": "Unauthorized"}),
        (403, openai_error("Project does not have access to model")),
        (404, openai_error("The model `tiny` does not exist.", code="model_not_found")),
        (404, {"detail": "Not Found"}),
        (405, b""),
        (400, openai_error("Invalid model: tiny", code="invalid_model")),
        (429, openai_error("You exceeded your current quota.", code="insufficient_quota")),
        (429, {"error": {"message": "suspended", "type": "exceeded_current_quota_error"}}),
        (400, {"error": {"message": "Your credit balance is too low to access the API.", "type": "invalid"}}),
        (402, openai_error("Insufficient Balance")),
        (400, openai_error("temperature does not support 0.0", code="unsupported_value", param="temperature")),
        (400, openai_error("Input should be a valid number", code=400, param="body.temperature")),
        (400, openai_error("max_tokens=256 cannot be greater than max_model_len=200", code=400, param="max_tokens")),
    ],
)
def test_an_error_of_every_call_is_fatal(status: int, body: Any) -> None:
    kind, reason = judged(status, body)
    assert kind is ErrorKind.FATAL
    assert SERVER.address in reason
    assert f"({status})" in reason


@pytest.mark.parametrize(
    "body",
    [
        openai_error("Model Not Exist", code="invalid_request_error"),
        openai_error(
            "The model `tiny` has been decommissioned and is no longer supported.", code="model_decommissioned"
        ),
        openai_error("The model `tiny` has been decommissioned."),
        openai_error("tiny is not a valid model ID", code=400),
        openai_error("{'error': '/chat/completions: Invalid model name passed in model=tiny. Call `/v1/models`'}"),
        {"object": "error", "message": "Invalid model: tiny", "type": "invalid_model", "code": "1500"},
        {"error": "model 'tiny' not found"},
    ],
    ids=["DeepSeek", "Groq", "Groq in words", "OpenRouter", "LiteLLM", "Mistral", "plain"],
)
def test_a_model_that_nobody_knows_is_fatal_however_it_is_said(body: Any) -> None:
    kind, reason = judged(400, body)
    assert kind is ErrorKind.FATAL
    assert "does not know the model 'tiny'" in reason


@pytest.mark.parametrize(
    "body",
    [
        openai_error("Wrong.", code="invalid_api_key"),
        openai_error("Incorrect API key provided: sk-12****34."),
        {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: sk****34."},
        [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID"}}],
        {"error": {"code": 400, "message": "API key expired. Please renew the API key."}},
    ],
    ids=["code", "words", "xAI", "Gemini", "Gemini expired"],
)
def test_a_key_that_is_refused_is_fatal_however_it_is_said(body: Any) -> None:
    kind, reason = judged(400, body)
    assert kind is ErrorKind.FATAL
    assert "Correct the environment variable TINY_KEY" in reason


@given(st.sampled_from([400, 422]), st.sampled_from(["Invalid content: ", "Bad request. ", "'", "messages[1]: "]))
def test_no_words_of_a_prompt_stop_a_run(status: int, before: str) -> None:
    for title in ("Model Not Exist", "API key not valid", "Invalid model", "Insufficient balance", "model not found"):
        said = f"{before}You describe the tastes of a user. The user rated: {title}"
        assert judged(status, openai_error(said))[0] is ErrorKind.BAD_CALL


@pytest.mark.parametrize("status", [408, 502, 504, 524])
def test_a_call_that_may_have_been_worked_on_is_lost(status: int) -> None:
    assert judged(status, b"<html>")[0] is ErrorKind.LOST


@pytest.mark.parametrize("status", [401, 403])
def test_an_error_names_the_variable_of_the_key_or_says_that_there_is_none(status: int) -> None:
    keyless = Server(address=SERVER.address, model="tiny", api_key_env=None)
    error = read_error(status, b"")
    assert "TINY_KEY" in judge(error, server=SERVER, body_keys=KEYS)[1]
    reason = judge(error, server=keyless, body_keys=KEYS)[1]
    assert "API key" in reason
    assert "None" not in reason


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, openai_error("Rate limit reached", code="rate_limit_exceeded"), ErrorKind.BUSY),
        (500, openai_error("the request exceeds the available context size", code=500), ErrorKind.BUSY),
        (599, b"", ErrorKind.BUSY),
        (400, openai_error("Invalid content", param="messages.[0].content"), ErrorKind.BAD_CALL),
        (400, openai_error("The response was filtered", code="content_filter", param="prompt"), ErrorKind.BAD_CALL),
        (400, [1, 2], ErrorKind.BAD_CALL),
        (400, b"\xff\xfe", ErrorKind.BAD_CALL),
        (302, b"", ErrorKind.BAD_CALL),
    ],
)
def test_other_errors_are_of_one_call(status: int, body: Any, kind: ErrorKind) -> None:
    assert judged(status, body)[0] is kind


@given(st.integers(300, 599), st.text() | st.binary().map(repr), st.sampled_from(["message", "detail", "type", "code"]))
def test_no_reason_repeats_the_server(status: int, words: str, key: str) -> None:
    marked = f"Xylophonia {words}"
    for body in ({"error": {key: marked}}, {key: marked}, {"error": marked}, [marked]):
        _, reason = judged(status, body)
        assert "Xylophonia" not in reason
        assert "\n" not in reason


@given(
    st.integers(200, 599),
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["error", "code", "param", "message", "choices", "usage", "data", "id"]), inner
            )
        ),
    ),
)
def test_whatever_a_server_sends_can_be_read(status: int, body: Any) -> None:
    raw = json.dumps(body).encode()
    judged(status, body)
    model_context(raw, model="tiny")
    read_answer(raw, call_id=1, seconds=0.0, input_estimate=lambda: 9, max_output_tokens=8)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "20"}, 20.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 -0000"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Sun, 01 Mar 2026 12:00:30 +99999999999999"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "1500", "retry-after": "20"}, 1.5),
        ({"retry-after-ms": "x", "retry-after": "20"}, 20.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, now=NOW) == expected


def completion(**parts: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": "A text."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 50, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 32}}
    return json.dumps({"choices": [choice], "usage": usage} | parts).encode()


def read(body: bytes) -> Any:
    return read_answer(body, call_id=5, seconds=1.5, input_estimate=lambda: 70, max_output_tokens=256)


def test_an_answer_is_read_with_its_usage() -> None:
    answer = read(completion())
    assert (answer.call_id, answer.text, answer.finish_reason, answer.seconds) == (5, "A text.", "stop", 1.5)
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == (50, 4, 32)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, (70, 256, 0)),
        ({}, (70, 256, 0)),
        ({"prompt_tokens": 50, "completion_tokens": None, "prompt_tokens_details": None}, (50, 256, 0)),
        ({"prompt_tokens": 50, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": None}}, (50, 4, 0)),
        ({"prompt_tokens": 50, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 99}}, (50, 4, 50)),
        ({"prompt_tokens": -1, "completion_tokens": "4"}, (70, 256, 0)),
        ({"prompt_tokens": 10**20, "completion_tokens": 10**8 + 1}, (70, 256, 0)),
        ({"prompt_tokens": True, "prompt_tokens_details": {"cached_tokens": True}}, (70, 256, 0)),
    ],
    ids=["null", "none", "null details", "null cached", "more cached than sent", "nonsense", "huge", "true"],
)
def test_tokens_that_are_not_stated_count_at_the_most(usage: Any, expected: tuple[int, int, int]) -> None:
    answer = read(completion(usage=usage))
    assert (answer.input_tokens, answer.output_tokens, answer.cached_tokens) == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([{"type": "text", "text": "A "}, {"type": "text", "text": "text."}], "A text."),
        (5, ""),
        ("half \ud83d a letter", "half ? a letter"),
    ],
    ids=["null", "parts", "number", "half a letter"],
)
def test_content_is_text_whatever_its_form(content: Any, text: str) -> None:
    answer = read(completion(choices=[{"message": {"content": content, "refusal": "No."}, "finish_reason": None}]))
    assert (answer.text, answer.finish_reason) == (text, "stop")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"null", b"[]", b'{"error": {"message": "busy"}}', b'{"choices": []}', b'{"choices": [{}]}'],
)
def test_a_reply_without_an_answer_is_none(body: bytes) -> None:
    assert read(body) is None


def test_a_list_of_models_says_whether_ours_is_there_and_its_context() -> None:
    body = json.dumps({"data": [{"id": "other", "max_model_len": 9}, {"id": "tiny", "max_model_len": 4096}]}).encode()
    assert model_context(body, model="tiny") == (True, 4096)
    assert model_context(body, model="missing") == (False, None)
    assert model_context(b'{"data": [{"id": "tiny"}]}', model="tiny") == (True, None)
    assert model_context(b"<html>", model="tiny") == (False, None)
