"""The benchmark of serving: its load is counted as it is answered, and the forward pass has all the variants."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from benchmarks import serving
from benchmarks._serving_forward import forward_figures
from benchmarks._serving_load import Answers, Load


class Handler(BaseHTTPRequestHandler):
    """Answers 200, and 503 where the body asks for it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if b"fail" in body else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def ports() -> Iterator[list[int]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [server.server_port for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_clients_ask_all_servers_alike_and_failures_are_errors(ports: list[int]) -> None:
    load = Load(ports=ports, bodies=["{}", '"fail"'], clients=3, seconds=1.0, warm_up_s=0.1)
    answers = Answers.of(load)
    first, second = map(len, answers.milliseconds)
    assert min(first, second) > 10
    assert abs(first - second) <= 0.1 * first + 3
    assert answers.errors > 10
    assert 0 < answers.quantile(0.5) <= answers.quantile(0.99)
    assert answers.per_second == pytest.approx((first + second) / answers.seconds)


def test_a_server_that_is_gone_is_an_error(ports: list[int]) -> None:
    answers = Answers.of(Load(ports=[*ports, 1], bodies=["{}"], clients=1, seconds=0.3, warm_up_s=0.0))
    assert answers.errors > 0
    assert answers.milliseconds[2] == []


def test_the_forward_pass_has_each_variant_over_the_base() -> None:
    threads = torch.get_num_threads()
    try:
        figures = forward_figures(data="synthetic", users=30, runs=1)
    finally:
        torch.set_num_threads(threads)
    variants = {"base", "liber", "liber_with_fusion_in_the_pass", "kar", "llm_per_request"}
    assert figures["forward_s_per_1000"].keys() == figures["forward_over_base"].keys() == variants
    assert figures["forward_over_base"]["base"] == 1.0
    assert figures["forward_s_per_1000"]["llm_per_request"] > 2.0
    assert all(part in serving.__doc__ for part in serving.PARTS)
