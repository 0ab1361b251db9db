"""Publishers at once, as threads and as processes: every row is written once, and the newest is online."""

import subprocess
import sys
import threading
from pathlib import Path

from liber_feast.memory import Memory
from liber_feast.publish import VIEWS
from tests import services
from tests.memory_parts import OnlineRows
from tests.publish_parts import check_once, publish_rounds

memory_url = services.memory_url

NAMES = [[f"user{publisher}{one}" for one in range(2)] for publisher in range(4)]
"""Of the users of each publisher."""
ROUNDS = 3


def test_threads_that_publish_at_once_write_each_row_once_and_together_all_of_them(
    memory_url: str, tmp_path: Path
) -> None:
    start, online, counts = threading.Barrier(len(NAMES)), OnlineRows(), []
    Memory.open(memory_url, base=tmp_path).close()

    def publish(names: list[str]) -> None:
        memory = Memory.open(memory_url, base=tmp_path)  # its own connections, as another process has
        start.wait()
        counts.append(publish_rounds(memory, tmp_path, names, online=online, rounds=ROUNDS))
        memory.close()

    threads = [threading.Thread(target=publish, args=(names,)) for names in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counts) == len(NAMES)
    memory = Memory.open(memory_url, base=tmp_path)
    check_once(memory, tmp_path, user_count=8, partition_count=ROUNDS)
    assert {stage: sum(one[stage] for one in counts) for stage in VIEWS} == {
        "summary": 24,
        "shift": 16,
        "vector": 24,
        "fused": 24,
    }
    assert {row["partition_index"] for row in online.rows["partition_summary"].values()} == {ROUNDS - 1}
    assert len(online.rows["fused_vector"]) == 8
    memory.close()


def test_processes_that_publish_at_once_write_each_row_once(memory_url: str, tmp_path: Path) -> None:
    memory = Memory.open(memory_url, base=tmp_path)
    command = [sys.executable, "-m", "tests.publish_parts", memory_url, str(tmp_path), "2"]
    processes = [subprocess.Popen([*command, *names], stderr=subprocess.PIPE, text=True) for names in NAMES]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    check_once(memory, tmp_path, user_count=8, partition_count=2)
    memory.close()
