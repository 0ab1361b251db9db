"""Calls to a stub server by the real backend, as a learner makes them."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks._llm_server import LLMServer
from liber_feast.llm.chat import ChatCall, ChatResult
from liber_feast.llm.openai import OpenAIBackend
from liber_feast.prompt import Message

KEY, KEY_ENV = "sk-a-key-that-nobody-may-see", "STUB_API_KEY"
SECRET = "Xylophonia Quartermaine"
"""Stands in prompts and may stand nowhere else."""


def messages_of(text: str) -> list[Message]:
    return [
        {"role": "system", "content": "You describe tastes."},
        {"role": "user", "content": f"{SECRET} rated: {text}"},
    ]


def calls_of(count: int, *, first: int = 0) -> list[ChatCall]:
    return [
        ChatCall(call_id=call_id, messages=messages_of(f"film {call_id}")) for call_id in range(first, first + count)
    ]


@contextmanager
def backend_at(
    base_url: str | None,
    *,
    model: str = "stub",
    api_key: str | None = None,
    max_concurrency: int = 64,
    timeout_s: float = 10.0,
    context_tokens: int | None = None,
    tokenizer: str | None = None,
    extra_body: dict[str, Any] | None = None,
) -> Iterator[OpenAIBackend]:
    backend = OpenAIBackend(
        model=model,
        base_url=base_url,
        api_key=api_key,
        api_key_env=None if api_key is None else KEY_ENV,
        max_concurrency=max_concurrency,
        timeout_s=timeout_s,
        temperature=0.0,
        max_output_tokens=256,
        context_tokens=context_tokens,
        tokenizer=tokenizer,
        extra_body=extra_body or {},
    )
    try:
        yield backend
    finally:
        backend.close()


def ask(backend: OpenAIBackend, calls: Sequence[ChatCall]) -> list[ChatResult]:
    """Return the result of every call, in the order of the calls."""
    backend.submit(calls)
    results = {result.call_id: result for result in collect_all(backend, len(calls))}
    return [results[call.call_id] for call in calls]


def collect_all(backend: OpenAIBackend, count: int) -> list[ChatResult]:
    """Return the results of all calls in flight, which must be `count`."""
    results: list[ChatResult] = []
    while len(results) < count:
        results += backend.collect(timeout_s=5.0)
    assert len(results) == count
    assert list(backend.collect(timeout_s=None)) == []
    return results


def ask_once(server: LLMServer, *, api_key: str | None = None, timeout_s: float = 10.0) -> ChatResult:
    with backend_at(server.base_url, api_key=api_key, timeout_s=timeout_s) as backend:
        (result,) = ask(backend, calls_of(1))
    return result


@contextmanager
def full_port() -> Iterator[int]:
    """Yield a port whose queue is full: a further connection neither opens nor fails."""
    with ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003 (the signature is the standard library's)
            waiting.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port: int = some.getsockname()[1]
        return port
