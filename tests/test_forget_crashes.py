"""Forgetting that ends anywhere: a second run removes what is left, and the end is the same."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from liber_feast import delta_maintenance, forget
from liber_feast.forget import Forgetting
from liber_feast.memory import Memory
from tests.memory_parts import TWO, Crash, Faults, contents, table_of
from tests.operations_parts import (
    ANN,
    OnlineUsers,
    files_with,
    forgetting,
    known_users,
    published_folder,
    publisher_of,
    stream_of,
    tables_of,
)

STEPS = 60
"""More than there are; a run that reaches fewer ends without a crash."""


def before(work: Callable[..., Any], faults: Faults, *, and_after: bool = False) -> Callable[..., Any]:
    """Return `work`, before which there may be a crash; what comes after one step comes before the next."""

    def done(*given: Any, **named: Any) -> Any:
        faults.reach()
        result = work(*given, **named)
        if and_after:
            faults.reach()
        return result

    return done


def copied(prepared: Path, target: Path, online: OnlineUsers, *, version: str) -> Forgetting:
    shutil.copytree(prepared, target)
    memory = Memory.open("sqlite:///memory.db", base=target)
    return forgetting(publisher_of(target, memory, online, version=version), online, folder=target)


def end_of(one: Forgetting, folder: Path, online: OnlineUsers) -> dict[str, Any]:
    """Return everything that readers see."""
    memory = one.publisher.memory
    return {
        "tables": tables_of(folder),
        "online": online.rows,
        "memory": contents(memory).partitions,
        "users": known_users(memory),
        "files": files_with(folder, ANN),
        "refused": memory.append(table_of(stream_of(range(7))), condition=TWO).forgotten_count,
    }


def rows_of(online: OnlineUsers) -> OnlineUsers:
    """Return a copy of an online store."""
    copy = OnlineUsers(numbers=dict(online.numbers))
    copy.rows = {view: dict(rows) for view, rows in online.rows.items()}
    return copy


def test_a_crash_at_any_step_and_a_second_run_end_as_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = OnlineUsers()
    publisher = published_folder(tmp_path / "prepared", users)
    version = str(publisher.encoder_version)
    publisher.memory.close()
    online = rows_of(users)
    whole = copied(tmp_path / "prepared", tmp_path / "whole", online, version=version)
    whole.run()
    wanted = end_of(whole, tmp_path / "whole", online)
    assert (wanted["files"], wanted["users"], wanted["refused"]) == ([], ["bob"], 7)
    delete, purge, erase = delta_maintenance.delete_users, delta_maintenance.purge, forget.erase_deleted
    crash_count = 0
    for steps in range(STEPS):
        faults = Faults(steps=steps)
        online = rows_of(users)
        online.faults = faults
        folder = tmp_path / str(steps)
        one = copied(tmp_path / "prepared", folder, online, version=version)
        with monkeypatch.context() as patched:
            patched.setattr(delta_maintenance, "delete_users", before(delete, faults))
            patched.setattr(delta_maintenance, "purge", before(purge, faults))
            patched.setattr(forget, "erase_deleted", before(erase, faults))
            patched.setattr(forget, "forget_user", before(forget.forget_user, faults, and_after=True))
            try:
                one.run()
                break
            except Crash:
                crash_count += 1
        one.run()
        assert end_of(one, folder, online) == wanted, f"after {steps} steps"
        one.publisher.memory.close()
        shutil.rmtree(folder)
    assert crash_count >= 17  # 5 tables twice, the memory twice, its files, the online store four times
