"""A server that holds its answers to a JSON schema, as vLLM's and OpenAI's do, and writes down what it was sent."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

PROSE = "The user enjoys slow science fiction."


@dataclass(kw_only=True)
class PartsServer:
    """Answers by the schema of a call, in prose where there is none; the first `prose_count` calls in any case."""

    prose_count: int = 0
    base_url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> str:
        """Return the text of an answer."""
        self.bodies.append(body)
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        prompt = body["messages"][-1]["content"]
        if schema is None or len(self.bodies) <= self.prose_count:
            return f"{PROSE} It fills {len(self.bodies)} evenings."
        values: dict[str, Any] = {"string": f"Films of {len(prompt)} letters.", "integer": len(prompt) % 100}
        return json.dumps({name: values[kind["type"]] for name, kind in schema["properties"].items()}, indent=1)


@contextmanager
def parts_server(*, prose_count: int = 0) -> Iterator[PartsServer]:
    """Run a server on a port of its own."""
    server = PartsServer(prose_count=prose_count)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"object": "list", "data": [{"id": "stub", "object": "model", "max_model_len": 8192}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": server.answer(body)}
            usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
            self._reply({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage})

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
            pass

        def _reply(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
