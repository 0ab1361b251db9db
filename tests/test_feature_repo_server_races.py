"""`feast serve` as real processes over one memory."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit
from tests.services import free_port


@contextmanager
def served(repo: Path, *, workers: int) -> Iterator[str]:
    """The address of `feast serve` on a repo, in so many processes, until the end of the block."""
    port, log = free_port(), repo / "server.log"
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(repo), "serve", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--workers", str(workers), "--no-access-log"]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while not is_healthy(address):
            assert server.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


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


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="feast serve needs gunicorn for several processes")
def test_several_server_processes_share_one_memory_and_lose_and_repeat_nothing(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="inline")
    rows = kit.log_of(repo).slice(0, 48).to_pylist()

    def push_some(start: int) -> None:
        some = rows[start : start + 4]
        columns: dict[str, list[Any]] = {name: [row[name] for row in some] for name in ("user_id", "item_id", "rating")}
        columns["event_timestamp"] = [row["event_timestamp"].isoformat() for row in some]
        for _ in range(2):  # a producer that got no answer sends again
            post(address, "/push", {"push_source_name": "behavior_push", "df": columns, "to": "online"})

    with served(repo, workers=2) as address, ThreadPoolExecutor(4) as pool:
        list(pool.map(push_some, range(0, len(rows), 4)))
        users, features = kit.users_of(repo), ["behavior_sequence:behavior_count", "partition_summary:partition_index"]
        content = {"entities": {"user_id": users}, "features": features}
        answer = post(address, "/get-online-features", content)
    found = dict(zip(answer["metadata"]["feature_names"], (one["values"] for one in answer["results"]), strict=True))
    sent = [sum(row["user_id"] == user for row in rows) for user in users]
    assert [count or 0 for count in found["behavior_count"]] == sent
    newest = [count // kit.SIZE - 1 for count in sent]
    assert [-1 if index is None else index for index in found["partition_index"]] == newest
    status = repo_status(repo)
    assert (status["behaviors"], status["duplicate_behaviors"]) == (len(rows), len(rows))
