"""Metrics over several processes: programs of their own, because the shared folder is named at the first import."""

import os
import subprocess
import sys
from pathlib import Path

FOLDERS = "PROMETHEUS_MULTIPROC"
"""What the names of variables begin with that name the folder of this process' own counts, if it has one by now."""
PROJECT = Path(__file__).parent.parent
KILLED = """
import os, signal
from serving import metrics

def away():
    return [line for line in metrics.exposition().decode().splitlines() if line.startswith("liber_serving_store_away ")]

reading, writing = os.pipe()
worker = os.fork()
if not worker:
    metrics.STORE_AWAY.set(1)
    metrics.REQUESTS.labels("/v1/score", "200").inc(7)
    os.write(writing, b".")
    signal.pause()
metrics.STORE_AWAY.set(0)
os.read(reading, 1)
print(*away())
os.kill(worker, signal.SIGKILL)
os.waitpid(worker, 0)
print(*away())
print('requests_total{route="/v1/score",status="200"} 7.0' in metrics.exposition().decode())
"""


def test_a_worker_that_was_killed_leaves_its_counts_and_no_gauge() -> None:
    assert _alone(KILLED) == ["liber_serving_store_away 1.0", "liber_serving_store_away 0.0", "True"]


STARTS = """
import os, pathlib
from serving import metrics

metrics.REQUESTS.labels("/v1/score", "200").inc(7)
(pathlib.Path(os.environ[metrics.FOLDER]) / "counter_1.db").touch()
print('requests_total{route="/v1/score",status="200"} 7.0' in metrics.exposition().decode())
"""


def test_a_worker_that_has_just_made_its_file_hides_nobodys_counts() -> None:
    assert _alone(STARTS) == ["True"]


def _alone(program: str) -> list[str]:
    alone = {name: value for name, value in os.environ.items() if not name.startswith(FOLDERS)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PROJECT, env=alone, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
