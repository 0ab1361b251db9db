"""A disk that is full or cannot be written, below the memory and below the stores: one line, and it goes on after."""

import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from liber_feast.errors import MemoryFailure, StoreFailure
from liber_feast.materialize import Report
from liber_feast.memory import Memory
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit
from tests import services
from tests.crash_parts import (
    CALLS,
    append,
    behaviors_by_user,
    fresh_repo,
    opened,
    paid_twice,
    push,
    stores_of,
    streams,
    take_encoder,
    uninterrupted,
)
from tests.memory_parts import append_all, behavior, contents

MEGABYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file system of the test's own."""

    folder: Path

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill it for the block, to the last byte."""
        ballast = self.folder / "ballast"
        try:
            with ballast.open("wb") as file:
                while True:
                    file.write(bytes(MEGABYTE // 64))
                    file.flush()
        except OSError:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let nothing be written on it in the block."""
        subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)
        try:
            yield
        finally:
            subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


@contextmanager
def disk_of(folder: Path, *, megabytes: int) -> Iterator[Disk]:
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system of a few megabytes")
    try:
        yield Disk(folder=folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with disk_of(tmp_path / "disk", megabytes=24) as disk:
        yield disk


@pytest.fixture(scope="module")
def data() -> dict[str, pa.Table]:
    return behaviors_by_user(users=3, count=60)


def test_a_push_whose_memory_has_no_room_is_refused_as_a_whole_and_taken_once_it_has(
    disk: Disk, data: dict[str, pa.Table], tmp_path: Path
) -> None:
    reference = uninterrupted(tmp_path / "reference", data)
    repo = fresh_repo(disk.folder / "repo")
    take_encoder(reference, repo)
    first, second, *rest = streams(data, size=7)
    with opened(repo) as job:
        push(job, first)
        before = contents(job.memory)
        with disk.full():
            for _ in range(3):
                with pytest.raises(MemoryFailure) as caught:
                    push(job, second)
            assert contents(job.memory) == before
        assert caught.value.message.startswith(f"The memory {repo / 'data' / 'memory.db'} cannot ")
        assert "\n" not in caught.value.message
        for batch in (second, *rest):
            push(job, batch)
        job.drain(Report())
    assert stores_of(repo, list(data)) == stores_of(reference, list(data))


def repo_with_its_memory_elsewhere(disk: Disk, elsewhere: Path, reference: Path) -> Path:
    """Return a repo on the disk whose memory and list of calls are not."""
    repo = fresh_repo(disk.folder / "repo", memory=f"sqlite:///{elsewhere / 'memory.db'}")
    (repo / CALLS).symlink_to(elsewhere / CALLS)
    take_encoder(reference, repo)
    return repo


def test_tables_and_online_rows_for_which_there_is_no_room_follow_and_no_text_is_paid_for_again(
    disk: Disk, data: dict[str, pa.Table], tmp_path: Path
) -> None:
    reference = uninterrupted(tmp_path / "reference", data)
    repo = repo_with_its_memory_elsewhere(disk, tmp_path, reference)
    first, *rest = streams(data, size=7)
    with opened(repo) as job:
        push(job, first)
        job.drain(Report())
        with disk.full():
            for batch in rest:
                append(job, batch)
            for _ in range(3):
                with pytest.raises(StoreFailure) as caught:
                    job.drain(Report())
                assert str(repo / "data") in caught.value.message
                assert "\n" not in caught.value.message
        job.drain(Report())
    found = stores_of(repo, list(data))
    assert found == stores_of(reference, list(data))
    assert (found["unfinished"], found["waiting"]) == (0, 0)
    assert paid_twice(repo) == []


def test_what_lies_on_a_disk_that_takes_no_writes_is_named_in_one_line_and_goes_on_afterwards(
    disk: Disk, data: dict[str, pa.Table], tmp_path: Path
) -> None:
    reference = uninterrupted(tmp_path / "reference", data)
    repo = repo_with_its_memory_elsewhere(disk, tmp_path, reference)
    memory = Memory.open("sqlite:///memory.db", base=disk.folder)
    append_all(memory, [behavior(1)])
    memory.close()
    with disk.read_only():  # which it becomes while nothing on it is open
        with pytest.raises(MemoryFailure, match=r"memory.db cannot be opened: .* must be able to write") as of_memory:
            Memory.open("sqlite:///memory.db", base=disk.folder)
        with opened(repo) as job:
            for batch in streams(data, size=7):
                append(job, batch)
            with pytest.raises(StoreFailure, match="Read-only file system") as of_table:
                job.drain(Report())
            with pytest.raises(StoreFailure, match=r"online.db cannot be written: ") as of_online:
                push(job, next(iter(streams(data, size=7))))
    assert not any("\n" in caught.value.message for caught in (of_memory, of_table, of_online))
    with opened(repo) as job:
        job.drain(Report())
    assert stores_of(repo, list(data)) == stores_of(reference, list(data))
    assert paid_twice(repo) == []
    memory = Memory.open("sqlite:///memory.db", base=disk.folder)
    append_all(memory, [behavior(2)])
    assert len(contents(memory).behavior_ids("ann")) == 2
    memory.close()


def test_a_push_whose_online_store_has_no_room_is_taken_and_readable_once_it_has(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", on_the_fly="worker")
    shutil.move(repo / "data" / "online.db", disk.folder)
    kit.set_keys(repo, online_store={"type": "sqlite", "path": str(disk.folder / "online.db")})
    store, log = kit.open_store(repo), kit.log_of(repo)
    with disk.full(), caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        store.push("behavior_push", kit.frame(log))
    (record,) = caplog.records
    assert "; features are left to the workers: The online store " in record.message
    assert "\n" not in record.message
    assert repo_status(repo)["behaviors"] == len(log)
    store.push("behavior_push", kit.frame(log))
    counts = kit.online(store, kit.users_of(repo), "behavior_sequence")["behavior_sequence__behavior_count"]
    kit.close(store)
    assert counts == [sum(user == name for user in log["user_id"].to_pylist()) for name in kit.users_of(repo)]


def test_a_postgresql_whose_disk_is_full_takes_nothing_by_halves_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    with (
        services.cluster_folder() as folder,
        disk_of(folder, megabytes=128) as disk,
        services.running_cluster(folder) as cluster,
    ):
        memory = Memory.open(cluster.url, base=tmp_path)
        append_all(memory, [behavior(second, item="x" * 1_000) for second in range(100)])
        before, many = contents(memory), [behavior(second, item="x" * 1_000) for second in range(100, 3_000)]
        with disk.full():
            for _ in range(2):
                with pytest.raises(MemoryFailure, match="the disk of its server is full") as caught:
                    append_all(memory, many)
            assert "\n" not in caught.value.message
            assert contents(memory) == before
        append_all(memory, many)
        assert len(contents(memory).behavior_ids("ann")) == 3_000
        memory.close()
