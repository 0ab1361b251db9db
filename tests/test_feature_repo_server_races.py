"""`feast serve` as real processes over one memory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit
from tests.form_parts import form_of
from tests.services import free_port


@contextmanager
def served(repo: Path, *, servers: int = 1, workers: int = 1) -> Iterator[list[str]]:
    """The addresses of several `feast serve` on a repo, each of so many processes, until the end of the block."""
    with ExitStack() as stack:
        running = [stack.enter_context(started(repo, workers=workers)) for _ in range(servers)]
        for address, server, log in running:
            deadline = time.monotonic() + 180
            while not is_healthy(address):
                assert server.poll() is None, log.read_text(encoding="utf-8")
                assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
                time.sleep(0.2)
        yield [address for address, _, _ in running]


@contextmanager
def started(repo: Path, *, workers: int) -> Iterator[tuple[str, "subprocess.Popen[bytes]", Path]]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(repo), "serve", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--workers", str(workers), "--no-access-log"]
    log = repo / f"server-{port}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield f"http://127.0.0.1:{port}", server, log
    finally:
        server.terminate()
        server.wait(60)


def is_healthy(address: str) -> bool:
    try:
        return bool(urlopen(f"{address}/health", timeout=2).status == 200)
    except OSError:
        return False


def post(address: str, path: str, content: dict[str, Any]) -> Any:
    request = Request(f"{address}{path}", json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        found = answer.read()
    return json.loads(found) if found else None


def push_twice(address: str, rows: list[dict[str, Any]]) -> None:
    """Push rows, and once more: a producer that got no answer sends again."""
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("user_id", "item_id", "rating")}
    columns["event_timestamp"] = [row["event_timestamp"].isoformat() for row in rows]
    for _ in range(2):
        post(address, "/push", {"push_source_name": "behavior_push", "df": columns, "to": "online"})


def answers(address: str, users: list[str], features: list[str]) -> dict[str, list[Any]]:
    content = {"entities": {"user_id": users}, "features": features, "full_feature_names": True}
    answer = post(address, "/get-online-features", content)
    return dict(zip(answer["metadata"]["feature_names"], (one["values"] for one in answer["results"]), strict=True))


pytestmark = pytest.mark.skipif(find_spec("gunicorn") is None, reason="feast serve needs gunicorn")


def test_several_processes_of_a_server_share_one_memory_and_lose_and_repeat_nothing(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="inline")
    rows = kit.log_of(repo).slice(0, 48).to_pylist()
    users, features = kit.users_of(repo), ["behavior_sequence:behavior_count", "partition_summary:partition_index"]
    with served(repo, workers=2) as (address,), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda start: push_twice(address, rows[start : start + 4]), range(0, len(rows), 4)))
        found = answers(address, users, features)
    sent = [sum(row["user_id"] == user for row in rows) for user in users]
    assert [count or 0 for count in found["behavior_sequence__behavior_count"]] == sent
    newest = [count // kit.SIZE - 1 for count in sent]
    assert [-1 if index is None else index for index in found["partition_summary__partition_index"]] == newest
    status = repo_status(repo)
    assert (status["behaviors"], status["duplicate_behaviors"]) == (len(rows), len(rows))


def test_servers_that_share_a_memory_on_postgresql_and_a_redis_give_the_same_answers(tmp_path: Path) -> None:
    whole = kit.materialized_repo(tmp_path / "whole")
    with form_of("redis", tmp_path) as form:
        repo = form.bring_to(kit.repo_to_push_to(tmp_path / "repo", on_the_fly="inline"))
        log, users = kit.log_of(repo).to_pylist(), kit.users_of(repo)
        store = kit.open_store(whole)
        features = kit.features_of(store, "behaviors", *kit.LIBER_VIEWS)
        expected = kit.online(store, users, "behaviors", *kit.LIBER_VIEWS)
        kit.close(store)

        def push_of(user: str) -> None:
            """Push a user's behaviors in order, each part to the next server."""
            mine = [row for row in log if row["user_id"] == user]
            for number, start in enumerate(range(0, len(mine), 5)):
                push_twice(addresses[number % 2], mine[start : start + 5])

        with served(repo, servers=2) as addresses, ThreadPoolExecutor(len(users)) as pool:
            list(pool.map(push_of, users))
            one, other = (answers(address, users, features) for address in addresses)
        assert one == other
        assert one == expected
        for table in kit.PUBLISHED_TABLES:
            assert kit.published(repo, table) == kit.published(whole, table), table
        status = repo_status(repo)
        assert (status["behaviors"], status["duplicate_behaviors"]) == (len(log), len(log))
