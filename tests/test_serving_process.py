"""A real server process under load: other weights, a store that is killed, workers, and Redis as the online store."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests import services
from tests.serving_parts import KNOWN_ITEMS, NEW_ITEM, USERS, make_run, make_store
from tests.serving_process import PATIENT_OPTIONS, fetch, serving
from tests.test_serving_swap import point

redis_server = services.redis_server
ITEMS = ["i1", "i2", NEW_ITEM, "ghost"]
CLIENTS = 8
DEADLINE_S = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "din-liber")


@contextmanager
def load(address: str) -> Iterator[list[dict[str, Any]]]:
    """Ask from several threads until the end; what they are answered gathers in the list. A refusal is raised."""
    replies, is_over = list[dict[str, Any]](), threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            replies.append(fetch(f"{address}/v1/score", body={"user_id": "u1", "item_ids": ITEMS}))

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            yield replies
        finally:
            is_over.set()
        for one in asking:
            one.result()


def until(replies: list[dict[str, Any]], found: Any) -> None:
    """Wait until a reply that is asked for from now on is what `found` looks for."""
    start, deadline = len(replies), time.monotonic() + DEADLINE_S
    while not any(found(one) for one in replies[start:]):
        assert time.monotonic() < deadline, replies[-1:]
        time.sleep(0.02)


def scores(reply: dict[str, Any]) -> list[float]:
    return [one["score"] for one in reply["scores"]]


def test_other_weights_are_taken_under_load_without_a_failed_request(run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name, seed in (("first", 1), ("second", 2)):
        make_run(runs / name, features="baseline", seed=seed)
    current, repo = point(runs / "current", to="first"), make_store(tmp_path / "repo", run=run)
    with (
        serving(*PATIENT_OPTIONS, "--look-every-s", "0.1", repo=repo, run=current, log=tmp_path / "log") as address,
        load(address) as replies,
    ):
        until(replies, lambda one: one["model"]["run"] == "first")
        point(current, to="second")
        until(replies, lambda one: one["model"]["run"] == "second")
        point(current, to="first")
        until(replies, lambda one: one["model"]["run"] == "first")
    by_run = {
        name: {tuple(scores(one)) for one in replies if one["model"]["run"] == name} for name in ("first", "second")
    }
    # Batches of other sizes differ in the last bits.
    first, second = (sorted(by_run[name])[0] for name in ("first", "second"))
    assert all(one == pytest.approx(first, abs=1e-6) for one in by_run["first"])
    assert all(one == pytest.approx(second, abs=1e-6) for one in by_run["second"])
    assert first != pytest.approx(second, abs=1e-3)
    assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8")


def test_redis_serves_what_sqlite_serves_and_knows_whom_it_has_not(
    redis_server: services.RedisServer, run: Path, tmp_path: Path
) -> None:
    online = {"type": "redis", "connection_string": redis_server.address}
    questions = [{"user_id": name, "item_ids": [*KNOWN_ITEMS, NEW_ITEM, "ghost"]} for name in (*USERS, "nobody")]
    answers = []
    for name, block in (("sqlite", {}), ("redis", {"online_store": online})):
        repo = make_store(tmp_path / name, run=run, **block)
        with serving(*PATIENT_OPTIONS, repo=repo, run=run, log=tmp_path / f"{name} log") as address:
            answers.append(fetch(f"{address}/v1/score:batch", body={"requests": questions}))
    assert answers[0] == answers[1]
    nobody = answers[1]["replies"][-1]
    assert (nobody["degraded"], nobody["missing"]["user"], nobody["missing"]["store"]) == (True, True, False)


def test_a_redis_that_is_killed_under_load_costs_no_request_and_is_used_again_when_it_is_back(
    redis_server: services.RedisServer, run: Path, tmp_path: Path
) -> None:
    online = {"type": "redis", "connection_string": redis_server.address}
    repo, log = make_store(tmp_path / "repo", run=run, online_store=online), tmp_path / "log"
    options = ("--request-timeout-s", "60", "--store-timeout-s", "2")
    with serving(*options, repo=repo, run=run, log=log) as address, load(address) as replies:
        until(replies, lambda one: not one["degraded"])
        redis_server.stop()
        until(replies, lambda one: one["missing"]["store"])
        assert 'degraded_total{missing="store"}' in metrics(address)
        redis_server.start()
        until(replies, lambda one: not one["degraded"])
        redis_server.hang(is_hanging=True)
        until(replies, lambda one: one["missing"]["store"])
        redis_server.hang(is_hanging=False)
        until(replies, lambda one: not one["degraded"])
    whole, away = ([one for one in replies if one["missing"]["store"] is is_away] for is_away in (False, True))
    assert all(one["degraded"] for one in away)
    assert scores(whole[0]) == pytest.approx(scores(whole[-1]), abs=1e-6)
    assert scores(whole[0]) != pytest.approx(scores(away[0]), abs=1e-3)
    assert "Traceback" not in log.read_text(encoding="utf-8")


def metrics(address: str) -> str:
    with urlopen(f"{address}/metrics", timeout=60) as response:
        return str(response.read().decode())


def test_two_workers_answer_five_hundred_requests_at_once(run: Path, tmp_path: Path) -> None:
    repo = make_store(tmp_path / "repo", run=run)
    names = [*USERS, "nobody"]
    with serving(*PATIENT_OPTIONS, "--workers", "2", repo=repo, run=run, log=tmp_path / "log") as address:

        def ask(number: int) -> dict[str, Any]:
            return fetch(f"{address}/v1/score", body={"user_id": names[number % len(names)], "item_ids": ITEMS})

        with ThreadPoolExecutor(100) as pool:
            replies = list(pool.map(ask, range(500)))
        expected = [ask(number) for number in range(len(names))]
    for number, reply in enumerate(replies):
        assert reply["user_id"] == names[number % len(names)]
        assert scores(reply) == pytest.approx(scores(expected[number % len(names)]), abs=1e-6)
