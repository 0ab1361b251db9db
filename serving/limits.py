"""What a server accepts, and the gate in front of the routes that holds it: token, size and time of a body."""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from liber_feast.errors import ConfigError

TOKEN_VARIABLE = "LIBER_SERVING_TOKEN"  # noqa: S105  (the name of the variable)
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What the probes of an orchestrator ask for; they have no token."""
ITEM_LIMIT, USER_LIMIT, BATCH_ITEM_LIMIT, ID_LENGTH_LIMIT = 1_000, 256, 10_000, 512
RETRY_AFTER_S = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one process takes."""

    body_bytes: int = 4 << 20
    """A thousand of the longest ids, each character escaped, fit."""
    request_timeout_s: float = 2.0
    """From the last byte of a body to the answer; and as long for the body to arrive."""
    store_timeout_s: float = 0.25
    """How long a request waits for a read of the online store, before it is scored without."""
    waiting_questions: int = 512
    """Questions in the queue; more are answered with 429."""
    look_every_s: float = 2.0
    """How often a process looks whether other weights are to be served."""


class Gate:
    """ASGI: answers 401, 413 and 408 itself and hands every other request on, with its body whole."""

    def __init__(self, app: ASGIApp, *, limits: Limits, token: str | None) -> None:
        self._app, self._limits = app, limits
        self._expected = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or hand on one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not self._may_enter(scope):
            await _refuse(send, 401, "a bearer token is needed.", headers=[(b"www-authenticate", b"Bearer")])
        else:
            await self._with_body(scope, receive, send)

    def _may_enter(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN_PATHS:
            return True
        given = _header(scope, b"authorization") or b""
        return hmac.compare_digest(given, self._expected)

    async def _with_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self._limits.body_bytes
        stated = _header(scope, b"content-length") or b"0"
        if stated.isdigit() and int(stated[:20]) > limit:
            await _refuse(send, 413, f"a body has at most {limit} bytes.")
            return
        try:
            async with asyncio.timeout(self._limits.request_timeout_s):
                body = await _read(receive, limit=limit)
        except TimeoutError:
            await _refuse(send, 408, "the body did not arrive in time.")
            return
        if body is None:
            await _refuse(send, 413, f"a body has at most {limit} bytes.")
            return
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        await self._app(scope, replay, send)


def open_token(host: str, *, environment: str | None) -> str | None:
    """Return the token that requests must bear, None where none is needed; an empty one counts as none.

    Raises:
        ConfigError: `host` can be reached from other machines, and there is no token; or one that no header can hold.
    """
    if not environment:
        if is_loopback(host):
            return None
        raise ConfigError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to the bearer token that requests"
            " must have."
        )
    if not environment.isascii() or not environment.isprintable() or " " in environment:
        raise ConfigError(f"{TOKEN_VARIABLE}: a token has printable ASCII characters and no spaces.")
    return environment


def is_loopback(host: str) -> bool:
    """Say whether an address is reached from this machine alone; a name other than localhost is not known to be."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _header(scope: Scope, name: bytes) -> bytes | None:
    found: bytes | None = next((value for key, value in scope["headers"] if key == name), None)
    return found


async def _read(receive: Receive, *, limit: int) -> bytes | None:
    """Return a body, None where it is longer than `limit`."""
    parts, size = [], 0
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _refuse(send: Send, status: int, reason: str, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Answer, and close the connection: the rest of the body is not read."""
    content = json.dumps({"detail": reason}).encode()
    every = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": [*every, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})
