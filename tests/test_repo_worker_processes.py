"""Worker processes on a feature repo: metrics, a file for each, and what they do when their repo changes."""

import re
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import yaml

from liber_feast.repo import open_repo_job, repo_status
from liber_feast.worker import Crew, Signals, run_worker
from tests import feature_repo_kit as kit
from tests.processes import PROCESSES

PATIENCE_S = 300.0


def work(repo: Path, number: int, once: bool) -> None:
    """Be a worker whose stderr is a file."""
    with (repo / "stderr").open("a", buffering=1, encoding="utf-8") as sys.stderr:
        run_worker(partial(open_repo_job, repo), number=number, once=once)


def start(repo: Path, number: int, *, once: bool) -> BaseProcess:
    process = PROCESSES.Process(target=work, args=(repo, number, once))
    process.start()
    return process


def said(repo: Path) -> str:
    return (repo / "stderr").read_text(encoding="utf-8")


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def push(repo: Path, user: str, *, number: int = 0) -> None:
    """Push what seals a partition of a user, and one behavior of it twice."""
    store, start = kit.open_store(repo), kit.END - timedelta(days=9 - number)
    rows = [kit.behavior(user, f"i000{row + 1}", at=start + timedelta(seconds=row // 2)) for row in range(kit.SIZE)]
    store.push("behavior_push", pd.concat(rows))
    store.push("behavior_push", rows[0])
    kit.close(store)


def samples(repo: Path) -> dict[str, float]:
    """Return what the files of all workers hold together, by metric and labels without that of the worker."""
    found: dict[str, float] = {}
    for path in sorted((repo / "data").glob("liber-worker-*.prom")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                key = re.sub(r',?worker="\d+"', "", name).replace("{}", "")
                found[key] = found.get(key, 0.0) + float(value)
    return found


def set_key(repo: Path, name: str, value: object) -> None:
    path = repo / "feature_store.yaml"
    block = yaml.safe_load(path.read_text(encoding="utf-8"))
    block["batch_engine"][name] = value
    path.write_text(yaml.safe_dump(block), encoding="utf-8")


def test_each_worker_writes_its_metrics_and_together_they_say_what_was_done(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker", metrics={"textfile": "data/liber.prom"})
    for user in ("u0001", "u0002", "u0003"):
        push(repo, user)
    for process in [start(repo, number, once=True) for number in range(2)]:
        process.join(PATIENCE_S)
        assert process.exitcode == 0
    files = sorted(path.name for path in (repo / "data").glob("*.prom"))
    assert files == ["liber-worker-0.prom", "liber-worker-1.prom"]
    found, status = samples(repo), repo_status(repo)
    assert found['liber_claims_total{outcome="done"}'] == 3
    assert found['liber_claims_total{outcome="lost"}'] == 0
    assert found["liber_freshness_seconds_count"] == 3
    # What the memory holds is the same from each of the two.
    assert found["liber_waiting_users"] == found["liber_failed_partitions"] == found["liber_pending_partitions"] == 0
    assert found['liber_memory_behaviors{kind="duplicate"}'] == 2 * status["duplicate_behaviors"] == 6
    assert found['liber_memory_behaviors{kind="tied"}'] == 2 * status["tied_behaviors"] == 2 * 3 * (kit.SIZE // 2)
    assert found['liber_memory_behaviors{kind="late"}'] == found['liber_memory_behaviors{kind="ahead"}'] == 0
    assert found['liber_memory_freshness_seconds{quantile="0.5"}'] == 2 * status["freshness_p50_s"] > 0
    assert found['liber_memory_freshness_seconds{quantile="0.99"}'] == 2 * status["freshness_p99_s"] > 0


def test_a_running_worker_follows_its_configuration_and_goes_on_while_that_cannot_be_used(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker")
    stop, codes = Signals(), list[int]()
    crew = Crew(start=lambda number: start(repo, number, once=False), concurrency=1, stop=stop)
    running = threading.Thread(target=lambda: codes.append(crew.run()))
    running.start()
    try:
        push(repo, "u0001")
        until(lambda: repo_status(repo)["waiting_users"] == 0)
        whole = (repo / "feature_store.yaml").read_text(encoding="utf-8")
        set_key(repo, "memory_windows", 2)
        until(lambda: "goes on with what it has read before" in said(repo))
        (repo / "feature_store.yaml").write_text(whole, encoding="utf-8")
        set_key(repo, "interest", {"backend": "extractive", "prompt": "amazon_books"})
        until(lambda: "feature_store.yaml changed: the feature repo is opened anew" in said(repo))
        push(repo, "u0002")
        until(lambda: repo_status(repo)["waiting_users"] == 0)
    finally:
        stop.set()
        running.join(PATIENCE_S)
    assert codes == [0]
    versions = repo_status(repo)["prompt_versions"]
    assert sorted((re.split(r"\W", name)[0], count) for name, count in versions.items()) == [
        ("amazon_books", 1),
        ("movielens", 1),
    ]
    warnings = [line for line in said(repo).splitlines() if line.startswith("Warning")]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "Warning: feature_store.yaml changed, and cannot be used as it is now: feature_store.yaml: unknown key"
        " 'batch_engine.memory_windows'; allowed: "
    )
