"""Chat calls to any server that speaks OpenAI's API, with OpenAI's client.

Calls run in an event loop in a thread of their own, so that they go on while answers are kept. The client does not
retry: every attempt is the caller's. Its log messages and errors are never passed on, as a server's words may repeat
the prompt or the key.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from os import environ
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeAlias
from uuid import uuid4

from liber_feast.errors import BackendRefused, BackendUnreachable, ConfigError, MissingExtra
from liber_feast.interest_config import INTEREST
from liber_feast.llm.chat import ChatCall, ChatError, ChatResult, ErrorKind
from liber_feast.llm.fit import estimate_tokens, most_tokens
from liber_feast.llm.openai_reply import (
    UNSUPPORTED,
    Server,
    judge,
    model_context,
    read_answer,
    read_error,
    retry_after_s,
)
from liber_feast.llm.parts_answer import SCHEMA_NAME
from liber_feast.prompt import Message

try:
    from httpx2 import (
        ConnectError,
        ConnectTimeout,
        InvalidURL,
        Limits,
        ProxyError,
        Response,
        Timeout,
        create_ssl_context,
    )
    from openai import APIError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, RequestOptions
except ImportError as error:
    raise MissingExtra(package=(error.name or "openai").partition(".")[0], extra="openai") from error

try:  # a call takes a fifth less of the CPU than in asyncio's own loop
    from uvloop import new_event_loop
except ImportError:  # there is none for Windows
    from asyncio import new_event_loop  # type: ignore[assignment]

UNSENT = (ConnectError, ConnectTimeout, ProxyError)
"""Nothing of a call was sent: refused connections, names without address, failed TLS handshakes and proxies."""

LOGGERS = ("openai", "httpx2", "httpcore2")
"""They log every request, and at the level DEBUG every prompt."""

CountTokens: TypeAlias = Callable[[Sequence[Message]], int]

NO_KEY = "none"
"""Sent where there is no key. The client would else take OPENAI_API_KEY, which is not meant for another server."""

CONNECT_TIMEOUT_S = 10.0
"""At the most; half of a call's timeout where that is less, so that it can be told that nothing was sent."""

KEEPALIVE_S = 4.0
"""Idle connections are closed before common servers close them, after five seconds."""

CHECKS, CHECK_TIMEOUT_S, CHECK_PAUSE_S = 3, 5.0, 0.3
CLOSE_TIMEOUT_S = 5.0

BAD_ADDRESS = (
    f"{INTEREST}.base_url (or OPENAI_BASE_URL) must be an http or https address without user, password and query, for"
    " example http://localhost:8000/v1."
)

LIMIT_KEY, NEWER_LIMIT_KEY = "max_tokens", "max_completion_tokens"
"""Most servers know the first key, and some ignore the second; OpenAI's newer models refuse the first."""


@dataclass(kw_only=True, slots=True)
class _Slot:
    """One connection, as a worker uses it."""

    client: AsyncOpenAI
    call: ChatCall | None = None


class OpenAIBackend:
    """A connection to one model of one server. Nothing is sent before `check` or `submit`.

    Raises:
        ConfigError: the address, `extra_body` or the tokenizer cannot be used.
        MissingExtra: `tokenizer` is given and transformers is not installed.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None,
        api_key: str | None,
        api_key_env: str | None,
        max_concurrency: int,
        timeout_s: float,
        temperature: float,
        max_output_tokens: int,
        context_tokens: int | None,
        tokenizer: str | None,
        extra_body: Mapping[str, Any],
        answer_schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.max_in_flight = max_concurrency
        self.max_output_tokens = max_output_tokens
        self.context_tokens = context_tokens
        self._timeout_s = timeout_s
        _quiet_loggers()
        self._clients = _open_clients(base_url, api_key=api_key, size=max_concurrency, timeout_s=timeout_s)
        address = _checked_address(self._clients[0])
        self._server = Server(address=address, model=model, api_key_env=api_key_env)
        self._chat_url = f"{address}/chat/completions"  # whole: the client would put it together at every call
        asked = {"model": model, "temperature": temperature, **_response_format(answer_schema)}
        self._fixed = {**asked, **_sendable(extra_body)}
        is_openai = base_url is None and not environ.get("OPENAI_BASE_URL")
        self._limit_key = NEWER_LIMIT_KEY if is_openai else LIMIT_KEY
        self._count, self._most = _token_counters(tokenizer)
        self._results: SimpleQueue[ChatResult] = SimpleQueue()
        self._outstanding = 0
        self._waiting: deque[ChatCall] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._workers: dict[asyncio.Task[None], _Slot] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None
        self._stop = asyncio.Event()
        self._name = uuid4().hex

    def check(self) -> bool:
        """Ask for the list of models, which costs nothing; True: the model is in it.

        Where the list states the model's context, as vLLM's does, and none is configured, it is taken from there.
        A key that may not see the list (403) may still be one that can chat.

        Raises:
            BackendRefused: the server refuses the key.
            BackendUnreachable: nobody answers, tried a few times in a row.
        """
        reply = asyncio.run_coroutine_threadsafe(self._list_models(), self._running_loop()).result()
        address = self._server.address
        if reply is None:
            raise BackendUnreachable(f"{address} does not answer. Start the server, or correct {INTEREST}.base_url.")
        status, body = reply
        if status == HTTPStatus.UNAUTHORIZED:
            raise BackendRefused(judge(read_error(status, body), server=self._server, body_keys=())[1])
        is_listed, context_tokens = model_context(body, model=self._server.model)
        if is_listed and self.context_tokens is None:
            self.context_tokens = context_tokens
        return is_listed

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of a prompt by the configured tokenizer, else a high estimate."""
        return self._count(messages)

    def most_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of a prompt by the configured tokenizer, else what no tokenizer exceeds."""
        return self._most(messages)

    def submit(self, calls: Sequence[ChatCall]) -> None:
        """Start calls; does not wait."""
        loop = self._running_loop()
        self._outstanding += len(calls)
        self._waiting.extend(calls)
        loop.call_soon_threadsafe(self._wake)

    def collect(self, *, timeout_s: float | None) -> Sequence[ChatResult]:
        """Return all results that are there, waiting for the first at most `timeout_s` if any call is in flight."""
        results: list[ChatResult] = []
        if self._outstanding:
            try:
                results.append(self._results.get(timeout=timeout_s))
                while True:
                    results.append(self._results.get_nowait())
            except Empty:
                pass
        self._outstanding -= len(results)
        return results

    def close(self) -> None:
        """Give up the calls in flight and every connection; safe to call twice."""
        self._stop_loop()
        self._outstanding = 0

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            ready = Event()
            self._thread = Thread(target=self._run_loop, args=(ready,), name="openai", daemon=True)
            self._thread.start()
            ready.wait()
        assert self._loop is not None
        return self._loop

    def _run_loop(self, ready: Event) -> None:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(self._live(ready))

    def _stop_loop(self) -> None:
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(CLOSE_TIMEOUT_S)

    async def _live(self, ready: Event) -> None:
        self._loop = asyncio.get_running_loop()
        for client in self._clients:
            self._hire(_Slot(client=client))
        ready.set()
        await self._stop.wait()
        workers = tuple(self._workers)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for client in self._clients:
            await client.close()

    def _hire(self, slot: _Slot) -> None:
        worker = asyncio.get_running_loop().create_task(self._work(slot))
        self._workers[worker] = slot
        worker.add_done_callback(self._replace)

    def _replace(self, worker: asyncio.Task[None]) -> None:
        """Put a result for a call that went wrong on our own side, and go on with the others.

        Text that cannot be encoded is the call's own fault. Anything else may befall every call, sent or not, and must
        not look like a fault of this one.
        """
        slot = self._workers.pop(worker)
        error = None if worker.cancelled() else worker.exception()
        if error is None or slot.call is None:
            return
        kind, reason = ErrorKind.LOST, "the call went wrong on our side"
        if isinstance(error, UnicodeEncodeError):
            kind, reason = ErrorKind.BAD_CALL, "the call cannot be sent"
        reason = f"{reason} ({type(error).__name__})"
        self._results.put(ChatError(call_id=slot.call.call_id, kind=kind, reason=reason))
        self._hire(slot)

    async def _work(self, slot: _Slot) -> None:
        """Make one call after the other. A worker that is done takes what waits at once, without a turn of the loop."""
        while True:
            while not self._waiting:
                idle = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle
            slot.call = self._waiting.popleft()
            self._results.put(await self._ask(slot.client, slot.call))

    def _wake(self) -> None:
        for _ in range(min(len(self._waiting), len(self._idle))):
            self._idle.pop().set_result(None)

    async def _ask(self, client: AsyncOpenAI, call: ChatCall) -> ChatResult:
        body = {**self._fixed, "messages": list(call.messages), self._limit_key: self.max_output_tokens}
        options: RequestOptions = {"idempotency_key": f"{self._name}-{call.call_id}"}  # else the client draws one
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await client.post(self._chat_url, body=body, cast_to=Response, options=options)
        except APIStatusError as error:
            return self._refused(call, error.response, seconds=time.perf_counter() - start)
        except (APIError, TimeoutError) as error:
            kind, reason = _cause(error, timeout_s=self._timeout_s)
            return ChatError(call_id=call.call_id, kind=kind, reason=reason, seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        answer = read_answer(
            response.content,
            call_id=call.call_id,
            seconds=seconds,
            input_estimate=partial(estimate_tokens, call.messages),
            max_output_tokens=self.max_output_tokens,
        )
        if answer is not None:
            return answer
        reason = "the server's answer cannot be read"
        return ChatError(call_id=call.call_id, kind=ErrorKind.LOST, reason=reason, seconds=seconds)

    def _refused(self, call: ChatCall, response: Response, *, seconds: float) -> ChatError:
        error = read_error(response.status_code, response.content)
        if error.parameter == LIMIT_KEY and UNSUPPORTED in error.codes:
            self._limit_key = NEWER_LIMIT_KEY
            kind, reason = ErrorKind.BUSY, f"the server wants {NEWER_LIMIT_KEY} ({error.status})"
        else:
            kind, reason = judge(error, server=self._server, body_keys={*self._fixed, self._limit_key})
        is_passing = kind in {ErrorKind.BUSY, ErrorKind.LOST}
        wait = retry_after_s(response.headers, now=datetime.now(UTC)) if is_passing else None
        return ChatError(call_id=call.call_id, kind=kind, reason=reason, retry_after_s=wait, seconds=seconds)

    async def _list_models(self) -> tuple[int, bytes] | None:
        """Return status and body of the list of models; None: no reply."""
        for check in range(CHECKS):
            if check:
                await asyncio.sleep(CHECK_PAUSE_S)
            try:
                async with asyncio.timeout(min(self._timeout_s, CHECK_TIMEOUT_S)):
                    response = await self._clients[0].get("/models", cast_to=Response)
            except APIStatusError as error:
                return error.status_code, error.response.content
            except (APIError, TimeoutError):
                continue
            return response.status_code, response.content
        return None


def _quiet_loggers() -> None:
    """Let nothing below WARNING through; OPENAI_LOG has set its level when the client was imported."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))


def _open_clients(base_url: str | None, *, api_key: str | None, size: int, timeout_s: float) -> list[AsyncOpenAI]:
    """Return `size` clients, which never retry; how long a call may take is up to its caller.

    Each has one connection: a client asks the kernel about all of its connections twice a call.
    """
    context = create_ssl_context()
    timeout = Timeout(None, connect=min(CONNECT_TIMEOUT_S, timeout_s / 2))
    limits = Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEPALIVE_S)
    clients = []
    for _ in range(size):
        transport = DefaultAsyncHttpxClient(limits=limits, verify=context)
        try:
            client = AsyncOpenAI(
                api_key=api_key or NO_KEY, base_url=base_url, max_retries=0, timeout=timeout, http_client=transport
            )
        except InvalidURL:
            raise ConfigError(BAD_ADDRESS) from None  # the error repeats the address
        clients.append(client)
    return clients


def _response_format(schema: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the field by which OpenAI's API and vLLM's server hold an answer to a schema; none without one."""
    if schema is None:
        return {}
    named = {"name": SCHEMA_NAME, "strict": True, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _sendable(extra_body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the further fields; raises ConfigError where JSON has no such value, as no call could be sent."""
    try:
        json.dumps(extra_body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise ConfigError(f"{INTEREST}.extra_body holds a value that JSON does not have.") from None
    return extra_body


def _checked_address(client: AsyncOpenAI) -> str:
    """Return the address for messages; raises ConfigError where it carries a secret, as messages show it.

    The client may have it from OPENAI_BASE_URL, which no other check sees.
    """
    url = client.base_url
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query or url.fragment:
        raise ConfigError(BAD_ADDRESS)
    return str(url).rstrip("/")


def _token_counters(tokenizer: str | None) -> tuple[CountTokens, CountTokens]:
    """Return what counts a prompt's tokens, and what says how many they are at the most."""
    if tokenizer is None:
        return estimate_tokens, most_tokens
    from liber_feast.llm.tokenizer import open_token_counter  # noqa: PLC0415  # loads transformers

    count = open_token_counter(tokenizer)
    return count, count


def _cause(error: Exception, *, timeout_s: float) -> tuple[ErrorKind, str]:
    """Say why no reply came; `error` is named by its type alone."""
    if isinstance(error, TimeoutError):
        return ErrorKind.LOST, f"no answer within {timeout_s:g} s"
    cause = error.__cause__ or error
    kind = ErrorKind.UNSENT if isinstance(cause, UNSENT) else ErrorKind.LOST
    return kind, f"the connection failed ({type(cause).__name__})"
