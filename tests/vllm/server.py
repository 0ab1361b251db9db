"""vLLM's own HTTP server in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

from benchmarks import _vllm_cpu
from tests.llm_server import free_port

START_TIMEOUT_S = 180.0
MODEL = "tiny"
"""The name it serves the model under."""


class VllmServer:
    """A server of one model; killed and started again, it listens at the same address."""

    def __init__(self, model: Path, *, log: Path, context_tokens: int) -> None:
        self._log, self.port = log, free_port()
        options = {"model": model, "served-model-name": MODEL, "host": "127.0.0.1", "port": self.port}
        options |= {"dtype": "float32", "max-model-len": context_tokens}
        options |= {key.replace("_", "-"): value for key, value in _vllm_cpu.ENGINE.items() if value is not True}
        self._command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
        self._command += [text for key, value in options.items() for text in (f"--{key}", str(value))]
        self._command += ["--enforce-eager", "--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO"}
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_healthy():
            assert self._process.poll() is None, self._log.read_text()[-5_000:]
            assert time.monotonic() < deadline, self._log.read_text()[-5_000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and its engine's process with SIGKILL."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _is_healthy(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
