"""The load on a server, from a process of its own: keep-alive connections, one request at a time on each.

`python -m benchmarks._serving_load` reads a `Load` as one JSON object from stdin and prints what came of it as another.
Sockets are plain, so that little of the machine goes into asking.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, Self

OK = 200
TIMEOUT_S = 60
"""A server that does not answer for so long counts as an error."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of servers on loopback."""

    ports: Sequence[int]
    """Each client asks them in turn."""
    bodies: Sequence[str]
    """Of `POST /v1/score`; taken in turn, each for all ports."""
    clients: int
    seconds: float
    warm_up_s: float = 1.0
    """What is asked before this has passed is not counted."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of it."""

    milliseconds: Sequence[Sequence[float]]
    """By port, of each request that was answered with 200."""
    errors: int
    """Other answers, and connections that ended."""
    seconds: float

    def quantile(self, share: float, *, port: int = 0) -> float:
        """Return a quantile of one port's milliseconds."""
        ordered = sorted(self.milliseconds[port])
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    @property
    def per_second(self) -> float:
        """Requests a second, of all ports."""
        return sum(map(len, self.milliseconds)) / self.seconds

    @classmethod
    def of(cls, load: Load) -> Self:
        """Put `load` on the servers, from another process."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks._serving_load"],
            input=json.dumps(asdict(load)).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
        return cls(**json.loads(done.stdout))


class Client:
    """A connection to each server."""

    def __init__(self) -> None:
        self._opened: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def ask(self, port: int, request: bytes) -> bool:
        """Return whether a request was answered with 200, its reply read whole."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = self._opened.get(port) or await self._open(port)
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(_length(head))
            return int(head.split(b" ", 2)[1]) == OK
        except (OSError, ValueError, asyncio.IncompleteReadError):
            opened = self._opened.pop(port, None)
            if opened is not None:
                opened[1].close()
            return False

    async def _open(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._opened[port] = await asyncio.open_connection("127.0.0.1", port)
        return self._opened[port]


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("a reply has no content-length")


def _request(body: str) -> bytes:
    payload = body.encode()
    head = f"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}"
    return head.encode() + b"\r\n\r\n" + payload


async def put(load: Load) -> Mapping[str, Any]:
    """Ask until the time is up."""
    requests = [_request(body) for body in load.bodies]
    places, found = count(), {port: list[float]() for port in load.ports}
    errors, start = 0, time.perf_counter()
    counted_from, end = start + load.warm_up_s, start + load.warm_up_s + load.seconds

    async def ask_all() -> None:
        nonlocal errors
        client = Client()
        while time.perf_counter() < end:
            place = next(places)
            # Which server comes first changes, too.
            for turn in range(len(load.ports)):
                port = load.ports[(place + turn) % len(load.ports)]
                asked = time.perf_counter()
                is_ok = await client.ask(port, requests[place % len(requests)])
                if asked >= counted_from:
                    errors += not is_ok
                    if is_ok:
                        found[port].append((time.perf_counter() - asked) * 1e3)

    await asyncio.gather(*(ask_all() for _ in range(load.clients)))
    return {
        "milliseconds": [found[port] for port in load.ports],
        "errors": errors,
        "seconds": time.perf_counter() - counted_from,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(put(Load(**json.load(sys.stdin))))))
