"""A stub of an OpenAI-compatible server: fixed latency, plausible answers, faults on demand (see `_llm_stub`).

`python -m benchmarks._llm_server --port 0 --latency 0.2 --faults "timeout=0.05,429=0.05,drop=0.05" --seed 7` prints
its port and serves until it is stopped; `LLMServer` runs it as a subprocess.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

from benchmarks._llm_stub import FAULTS, Settings, Stub, header_of

STOP_TIMEOUT_S = 5.0


class Connection(asyncio.Protocol):
    """One keep-alive connection, with one call at a time."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.timer: asyncio.TimerHandle | None = None
        self._buffer = b""
        self._is_busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand on every request that is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, start = self._buffer[:end], end + 4
            length = int(header_of(head, b"content-length") or 0)
            if len(self._buffer) < start + length:
                return
            body, self._buffer = self._buffer[start : start + length], self._buffer[start + length :]
            self.stub.handle(self, head, body)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """Give up the call under way."""
        if self.timer is not None:
            self.timer.cancel()
        self.end_call()

    def begin_call(self) -> None:
        """Count a call in flight."""
        self._is_busy = True
        self.stub.in_flight += 1

    def end_call(self) -> None:
        """Count it no more."""
        self.stub.in_flight -= self._is_busy
        self._is_busy = False

    def reply(self, status: int, payload: Any, *, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole response; a payload that is a text goes out as it is, anything else as JSON."""
        body = _body(payload)
        assert self._transport is not None
        self._transport.write(_head(status, length=len(body), headers=headers or {}) + body)

    def send_part(self, status: int, payload: Any, *, share: float | None) -> None:
        """Send the headers and a share of the body (None: nothing at all), and close."""
        assert self._transport is not None
        if share is not None:
            body = _body(payload)
            self._transport.write(_head(status, length=len(body), headers={}) + body[: int(share * len(body))])
        self._transport.close()


def _body(payload: Any) -> bytes:
    return (payload if isinstance(payload, str) else json.dumps(payload)).encode()


def _head(status: int, *, length: int, headers: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{lines}\r\n"
    return head.encode()


class LLMServer:
    """The stub in a process of its own, which ends with `close`, with `kill` or with this process."""

    def __init__(
        self,
        *,
        port: int = 0,
        latency_s: float = 0.0,
        model: str = "stub",
        api_key: str | None = None,
        refusal: int = 401,
        context_tokens: int | None = None,
        faults: str = "",
        seed: int = 0,
        retry_after: str = "1",
        usage: str = "full",
        refused_key: str | None = None,
        models_status: int = 200,
    ) -> None:
        options = {
            "port": port,
            "latency": latency_s,
            "model": model,
            "api-key": api_key,
            "refusal": refusal,
            "context-tokens": context_tokens,
            "faults": faults,
            "seed": seed,
            "retry-after": retry_after,
            "usage": usage,
            "refused-key": refused_key,
            "models-status": models_status,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        command = [sys.executable, "-m", "benchmarks._llm_server", "--until-eof", *given]
        folder = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        first_line = self._process.stdout.readline()
        if not first_line:
            self.close()
            raise RuntimeError("the stub server did not start")
        self.model = model
        self.port = int(first_line)
        self.base_url = f"http://127.0.0.1:{self.port}/v1"

    def counts(self) -> dict[str, Any]:
        """Return what the server was asked for so far."""
        counts: dict[str, Any] = self._ask("GET", "/counts")
        return counts

    def reset(self) -> None:
        """Count from zero."""
        self._ask("POST", "/reset")

    def kill(self) -> None:
        """End the process at once, whatever it is doing."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """End the process; safe to call twice."""
        self._process.terminate()
        self._process.wait(STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=STOP_TIMEOUT_S)
        try:
            connection.request(method, path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


async def serve(settings: Settings, *, port: int, until_eof: bool) -> None:
    """Print the port, then serve until cancelled, or until standard input ends."""
    stub, loop, stopped = Stub(settings), asyncio.get_running_loop(), asyncio.Event()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    if until_eof:  # whoever started this may be killed, and could not stop it then
        Thread(target=_until_eof, args=(lambda: loop.call_soon_threadsafe(stopped.set),), daemon=True).start()
    await stopped.wait()


def _until_eof(then: Callable[[], object]) -> None:
    while os.read(0, 1024):
        pass
    then()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="A stub of an OpenAI-compatible server on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=0, help="0: any")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from a call to its reply")
    parser.add_argument("--model", default="stub")
    parser.add_argument("--api-key")
    parser.add_argument("--refusal", type=int, default=401, help="status of a call with another key")
    parser.add_argument("--context-tokens", type=int)
    parser.add_argument("--faults", default="", help=f"shares of any status from 400 on, {', '.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-after", default="1", help="value of the header; `date`, `none`")
    parser.add_argument("--usage", default="full", choices=["full", "null", "none"])
    parser.add_argument("--refused-key", help="a key of the body that is answered with 400")
    parser.add_argument("--models-status", type=int, default=200, help="status of GET /models")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    given = vars(parser.parse_args())
    port, until_eof, latency_s = given.pop("port"), given.pop("until_eof"), given.pop("latency")
    try:
        asyncio.run(serve(Settings(latency_s=latency_s, **given), port=port, until_eof=until_eof))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
