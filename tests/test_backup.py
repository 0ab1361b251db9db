"""Backup and restore: what was restored and sent the rest is what was never interrupted."""

import shutil
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from feast.data_source import PushMode

from liber_feast.backup import MEMORY_FILE, backup, restore
from liber_feast.errors import ConfigError, MemoryFailure, RetryableError, StoreNotReady
from liber_feast.forget import forget
from liber_feast.job import open_memory
from liber_feast.memory import Memory
from liber_feast.memory.leases import PUBLISH, acquire, release
from liber_feast.repo import repo_status
from tests import services
from tests.feature_repo_kit import (
    ITEM_VIEW,
    LIBER_VIEWS,
    PUBLISHED_TABLES,
    close,
    frame,
    log_of,
    materialized_repo,
    memory_rows,
    online,
    online_items,
    open_store,
    published,
    repo_to_push_to,
)
from tests.memory_parts import TWO, append_all, behavior, contents
from tests.operations_parts import files_with

postgres_url = services.postgres_url


def quietly(_line: str) -> None:
    pass


def push(repo: Path, *parts: pa.Table) -> None:
    store = open_store(repo)
    for part in parts:
        store.push("behavior_push", frame(part), to=PushMode.ONLINE)
    close(store)


def all_features(repo: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what training and serving read, times of creation aside."""
    store = open_store(repo)
    found = online(store, sorted(set(log_of(repo)["user_id"].to_pylist())), "behaviors", *LIBER_VIEWS)
    rows = {name: published(repo, name) for name in PUBLISHED_TABLES}
    rows[ITEM_VIEW] = published(repo, ITEM_VIEW, key="item_id")
    found |= online_items(store, sorted({row["item_id"] for row in rows[ITEM_VIEW]}))
    close(store)
    return rows, found


def test_backup_more_pushes_restore_and_the_rest_are_an_uninterrupted_run(tmp_path: Path) -> None:
    repo, plain = repo_to_push_to(tmp_path / "repo"), repo_to_push_to(tmp_path / "plain")
    log = log_of(repo)
    first, lost, rest = log.slice(0, 24), log.slice(24, 12), log.slice(36, 12)
    push(plain, first, lost, rest)
    push(repo, first)
    at_backup = all_features(repo)
    backup(repo, tmp_path / "backup", say=quietly)
    push(repo, lost)
    facts = restore(repo, tmp_path / "backup", say=quietly)
    assert all_features(repo) == at_backup
    assert facts["forgotten_again"] == 0
    assert Path(facts["kept_aside"]).is_file()
    push(repo, lost, rest)
    assert all_features(repo) == all_features(plain)


def test_users_who_were_forgotten_since_are_forgotten_in_the_backup_too(tmp_path: Path) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    push(repo, log_of(repo).slice(0, 40))
    backup(repo, tmp_path / "backup", say=quietly)
    forget(repo, "u0001", keep_log=True, say=quietly)
    facts = restore(repo, tmp_path / "backup", say=quietly)
    assert facts["forgotten_again"] == 1
    for name in ("memory.db", "online.db", *PUBLISHED_TABLES):
        place = repo / "data" / name
        found = files_with(place, "u0001") if place.is_dir() else b"u0001" in place.read_bytes()
        assert not found, name
    push(repo, log_of(repo))
    assert "u0001" not in {row["user_id"] for row in published(repo, "partition_summary")}


def test_a_repo_and_a_backup_may_be_named_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = repo_to_push_to(tmp_path / "repo")
    push(made, log_of(made).slice(0, 40))
    monkeypatch.chdir(tmp_path)
    repo, target = Path("repo"), Path("backup")
    backup(repo, target, say=quietly)
    forget(repo, "u0001", keep_log=True, say=quietly)
    assert restore(repo, target, say=quietly)["forgotten_again"] == 1
    assert repo_status(repo)["forgotten_users"] == 1
    assert not (repo / "data" / "repo").exists()


def test_what_a_killed_backup_left_goes_with_the_next_one(tmp_path: Path) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    push(repo, log_of(repo).slice(0, 4))
    left, running = tmp_path / f".backup-{2**31 - 1}", tmp_path / ".backup-1"
    for part in (left, running):
        part.mkdir()
        (part / "memory.db").touch()
    backup(repo, tmp_path / "backup", say=quietly)
    assert not left.exists()
    assert running.exists(), "the process 1 runs, and may be making it"


def test_a_restored_memory_is_another_one_and_holds_what_the_backup_does(tmp_path: Path) -> None:
    repo = materialized_repo(tmp_path / "repo")
    before = memory_rows(repo)
    backup(repo, tmp_path / "backup", say=quietly)
    shutil.rmtree(repo / "data" / "encoder")
    (repo / "data" / "memory.db").unlink()
    restore(repo, tmp_path / "backup", say=quietly)
    after = memory_rows(repo)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"settings", "leases", "publications"}
    assert dict(before["settings"])["memory_id"] != dict(after["settings"])["memory_id"]
    assert (repo / "data" / "encoder").is_dir()


def test_a_copy_that_is_made_while_others_write_is_one_state_of_the_memory(tmp_path: Path) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    memory = Memory.open("sqlite:///data/memory.db", base=repo)
    append_all(memory, [behavior(0)])
    ended = threading.Event()

    def write() -> None:
        second = 1
        while not ended.is_set():
            append_all(memory, [behavior(second), behavior(second + 1), behavior(second + 2)])
            second += 3

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            backup(repo, tmp_path / str(number), say=quietly)
    finally:
        ended.set()
        writer.join()
    memory.close()
    for number in range(3):
        copy = Memory.open(f"sqlite:///{MEMORY_FILE}", base=tmp_path / str(number))
        count = len(contents(copy).behavior_ids("ann"))
        assert count % 3 == 1
        copy.close()


def test_a_target_that_exists_and_a_repo_without_memory_are_refused(tmp_path: Path) -> None:
    repo = repo_to_push_to(tmp_path / "repo")
    with pytest.raises(StoreNotReady, match="no memory yet"):
        backup(repo, tmp_path / "backup", say=quietly)
    with pytest.raises(ConfigError, match="exists"):
        backup(repo, tmp_path, say=quietly)
    assert not (tmp_path / "backup").exists()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    """Return a feature repo with a small memory, and its backup."""
    repo = repo_to_push_to(tmp_path / "repo")
    memory = Memory.open("sqlite:///data/memory.db", base=repo)
    append_all(memory, [behavior(second) for second in range(3)], condition=TWO)
    memory.close()
    backup(repo, tmp_path / "backup", say=quietly)
    return repo, tmp_path / "backup"


def test_a_folder_that_is_no_backup_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    repo, source = saved
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ConfigError, match="is no backup"):
            restore(repo, folder, say=quietly)
    (source / MEMORY_FILE).write_bytes(b"no database at all" * 100)
    before = (repo / "data" / "memory.db").read_bytes()
    with pytest.raises(MemoryFailure):
        restore(repo, source, say=quietly)
    assert (repo / "data" / "memory.db").read_bytes() == before


def test_a_memory_that_somebody_works_on_or_has_open_is_not_replaced(saved: tuple[Path, Path]) -> None:
    repo, source = saved
    memory = Memory.open("sqlite:///data/memory.db", base=repo)
    lease = acquire(memory, PUBLISH, owner="somebody")
    assert lease is not None
    with pytest.raises(RetryableError, match="works on the memory"):
        restore(repo, source, say=quietly)
    release(memory, lease)
    with pytest.raises(RetryableError, match="has the memory open"):
        restore(repo, source, say=quietly)
    memory.close()
    restore(repo, source, say=quietly)


def test_a_damaged_memory_is_kept_aside_and_replaced(saved: tuple[Path, Path]) -> None:
    repo, source = saved
    (repo / "data" / "memory.db").write_bytes(b"damaged" * 1_000)
    said: list[str] = []
    facts = restore(repo, source, say=said.append)
    assert "liber forget" in said[0]
    assert Path(facts["kept_aside"]).read_bytes().startswith(b"damaged")
    with sqlite3.connect(repo / "data" / "memory.db") as connection:
        assert connection.execute("SELECT count(*) FROM behaviors").fetchone() == (3,)


def test_of_a_memory_on_postgresql_the_command_that_dumps_it_is_said(postgres_url: str, tmp_path: Path) -> None:
    secret = postgres_url.replace("postgres@", "postgres:secret@")
    repo = repo_to_push_to(tmp_path / "repo", memory=secret)
    store = open_store(repo)
    memory = open_memory(store.config)
    append_all(memory, [behavior(second) for second in range(3)])
    facts = backup(repo, tmp_path / "backup", say=quietly)
    url = sa.make_url(postgres_url)
    place = f"postgresql://{url.username}@{url.host}:{url.port}/{url.database}"
    assert facts["run"] == f"pg_dump --format=custom --file={tmp_path}/backup/memory.dump {place}"
    assert (tmp_path / "backup" / "encoder").is_dir()
    before = memory.setting("memory_id")
    restore(repo, tmp_path / "backup", say=quietly)
    assert memory.setting("memory_id") != before
    assert contents(memory).behavior_ids("ann") == [f"{second:09}" for second in range(3)]
    memory.close()
