"""A memory that is exchanged under an open one: whatever was read of the one before is written to no other one."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from liber_feast.memory import Memory
from liber_feast.memory.schema import users
from liber_feast.memory.store import MEMORY_ID, MemoryReplaced
from tests import services
from tests.memory_parts import append_all, behavior, everything

postgres_url = services.postgres_url


def test_nothing_is_read_or_written_after_the_file_was_replaced(tmp_path: Path) -> None:
    memory = Memory.open("sqlite:///memory.db", base=tmp_path)
    append_all(memory, [behavior(1), behavior(2)])
    with closing(sqlite3.connect(tmp_path / "memory.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    append_all(memory, [behavior(3)])
    assert not memory.is_replaced()
    os.replace(tmp_path / "copy.db", tmp_path / "memory.db")
    for ending in ("-wal", "-shm"):  # `liber restore` does not begin while they are there
        (tmp_path / f"memory.db{ending}").unlink()
    assert memory.is_replaced()
    with pytest.raises(MemoryReplaced, match=r"memory\.db was replaced while this process had it open"):
        append_all(memory, [behavior(4)])
    with pytest.raises(MemoryReplaced):
        memory.setting(MEMORY_ID)
    memory.close()
    again = Memory.open("sqlite:///memory.db", base=tmp_path)
    append_all(again, [behavior(4)])
    assert [row[1] for row in everything(again)["behaviors"]] == [f"{second:09}" for second in (1, 2, 4)]
    again.close()


def test_a_file_that_is_gone_is_not_made_anew_by_who_had_it_open(tmp_path: Path) -> None:
    memory = Memory.open("sqlite:///memory.db", base=tmp_path)
    append_all(memory, [behavior(1)])
    (tmp_path / "memory.db").unlink()
    with pytest.raises(MemoryReplaced):
        append_all(memory, [behavior(2)])
    assert not (tmp_path / "memory.db").exists()
    memory.close()


def test_a_memory_in_main_memory_is_never_replaced() -> None:
    memory = Memory.open("sqlite://", base=Path())
    append_all(memory, [behavior(1)])
    assert not memory.is_replaced()


def test_on_a_server_a_memory_of_another_identity_is_another_one(postgres_url: str) -> None:
    memory = Memory.open(postgres_url, base=Path())
    append_all(memory, [behavior(1)])
    other = Memory.open(postgres_url, base=Path())
    other.keep_setting(MEMORY_ID, "restored")
    with pytest.raises(MemoryReplaced, match="on the server was replaced"):
        append_all(memory, [behavior(2)])
    assert memory.is_replaced()
    with other.reading() as connection:
        assert connection.scalar(sa.select(sa.func.sum(users.c.behavior_count))) == 1
    for one in (memory, other):
        one.close()
