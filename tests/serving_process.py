"""`python -m serving` as a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.services import free_port

PROJECT = Path(__file__).parent.parent
START_S = 180
PATIENT_OPTIONS = ("--request-timeout-s", "60", "--store-timeout-s", "30")
"""For tests of what is answered, not when: the machine may be busy."""


@contextmanager
def serving(*options: str, repo: Path, run: Path, log: Path) -> Iterator[str]:
    """Start `python -m serving` on a free port, yield its address, and stop it at the end."""
    port = free_port()
    command = [sys.executable, "-m", "serving", "--repo", str(repo), "--model", str(run), "--port", str(port), *options]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=errors, env={**os.environ, "PYTHONPATH": str(PROJECT)}
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/healthz", process=process, log=log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            written, _ = process.communicate(timeout=60)
    assert written == b""


def wait_for(address: str, *, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            fetch(address)
        except URLError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text(encoding="utf-8"))


def fetch(address: str, *, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a reply; HTTPError where it is no 200."""
    content = None if body is None else json.dumps(body).encode()
    request = Request(address, data=content, headers={"content-type": "application/json"})
    with urlopen(request, timeout=60) as response:
        found: dict[str, Any] = json.load(response)
        return found
