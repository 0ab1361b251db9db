"""The stub server behaves as it is told: the tests and benchmarks that use it rest on this."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest

from benchmarks._llm_server import LLMServer
from benchmarks._llm_stub import FAULTS, PrefixCache, Settings, Stub, answer_text


def chat(server: LLMServer, text: str = "Alien, Heat", *, key: str = "") -> tuple[int, Mapping[str, str], Any]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        body = json.dumps({"model": "stub", "messages": [{"role": "user", "content": text}], "max_tokens": 99})
        connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())
    finally:
        connection.close()


def test_the_same_prompt_has_the_same_answer_and_another_has_another() -> None:
    prompt = "Summarize: Alien, Heat, Fargo"
    with LLMServer() as server:
        texts = [chat(server, text)[2]["choices"][0]["message"]["content"] for text in (prompt, prompt, "Fargo")]
    assert texts[0] == texts[1] == answer_text(prompt)
    assert texts[2] != texts[0]
    assert not {"Alien", "Heat", "Fargo"}.intersection(texts[0].split())


def test_calls_are_counted_and_the_list_of_models_is_not() -> None:
    with LLMServer(context_tokens=2048) as server:
        for text in ("one", "two", "one"):
            chat(server, text)
        connection = HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/v1/models")
        card = json.loads(connection.getresponse().read())["data"][0]
        connection.close()
        counts = server.counts()
        server.reset()
        assert server.counts()["calls"] == 0
    assert (card["id"], card["max_model_len"]) == ("stub", 2048)
    assert (counts["calls"], counts["statuses"], counts["faults"]) == (3, {"200": 3}, {})
    assert (counts["distinct_prompts"], counts["repeated_prompts"]) == (2, 1)
    assert (counts["answered_prompts"], counts["answered_again"]) == (2, 1)


def test_calls_take_the_latency_side_by_side() -> None:
    with LLMServer(latency_s=0.2) as server, ThreadPoolExecutor(8) as pool:
        start = time.perf_counter()
        list(pool.map(lambda number: chat(server, str(number)), range(8)))
        assert 0.2 <= time.perf_counter() - start < 1.2
        assert server.counts()["max_in_flight"] > 1


def test_faults_are_the_same_for_the_same_seed() -> None:
    faults = "429=0.2,500=0.2"

    def statuses(seed: int) -> list[int]:
        with LLMServer(faults=faults, seed=seed) as server:
            return [chat(server, str(number))[0] for number in range(40)]

    first = statuses(1)
    assert first == statuses(1)
    assert first != statuses(2)
    assert set(first) == {200, 429, 500}


def test_errors_repeat_key_and_prompt_as_those_of_some_servers_do() -> None:
    with LLMServer(api_key="right", faults="429=1", retry_after="3") as server:
        status, _, body = chat(server, "my prompt", key="wrong")
        assert status == 401
        assert "wrong" in body["error"]["message"]
        status, headers, body = chat(server, "my prompt", key="right")
    assert (status, headers["Retry-After"]) == (429, "3")
    assert "my prompt" in body["error"]["message"]


def test_a_prefix_is_cached_in_whole_blocks() -> None:
    cache = PrefixCache()
    words = [f"w{number}" for number in range(40)]
    assert cache.cached(words) == 0
    assert cache.cached(words) == 32
    assert cache.cached(words[:16] + ["other"] * 24) == 16
    assert cache.cached(["other", *words]) == 0


def test_every_fault_has_a_name() -> None:
    assert "timeout" in FAULTS
    with pytest.raises(SystemExit, match="fault 'tiemout' is not known"):
        Stub(Settings(faults="tiemout=0.1"))


def test_the_server_ends_with_whoever_started_it() -> None:
    script = (
        "import time; from benchmarks._llm_server import LLMServer; server = LLMServer();"
        " print(server.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        port = int(owner.stdout.readline())
        owner.kill()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        connection = HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/counts")
            connection.getresponse().read()
        except ConnectionError:
            return
        finally:
            connection.close()
        time.sleep(0.05)
    pytest.fail("the server outlived its owner")
