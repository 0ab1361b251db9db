"""`liber backup` and `liber restore`: a copy of the memory, of the PCAs and of the fusion weights, and back.

Without the PCAs vectors cannot be continued; Delta tables and online store are made from the memory.
"""

import filecmp
import os
import shlex
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from liber_feast.abandoned import remove_abandoned
from liber_feast.errors import ConfigError, MemoryFailure, RetryableError, StoreNotReady
from liber_feast.job import open_memory, repo_folder
from liber_feast.memory import Memory
from liber_feast.memory.clock import now_us
from liber_feast.memory.connect import database_file, parse_url
from liber_feast.memory.forgetting import erase_deleted, forget_again
from liber_feast.memory.schema import leases, waiting
from liber_feast.memory.settings import keep_setting
from liber_feast.memory.tombstones import Tombstone, tombstones_of, users_by_hash
from liber_feast.repo import open_applied_store
from liber_feast.republish import republish

if TYPE_CHECKING:
    from feast import RepoConfig

MEMORY_FILE, DUMP = "memory.db", "memory.dump"
FOLDERS = ("encoder", "item_encoder", "fusion")
"""Below data/: the PCAs of texts and of items, and fusion weights by version."""
LOCK_SECONDS = 60.0


def backup(repo: Path, target: Path, *, say: Callable[[str], object]) -> dict[str, Any]:
    """Copy the memory of a feature repo, its PCA and its fusion weights to a new folder, beside whoever writes.

    A memory on PostgreSQL is not copied: the facts have the command that does it.

    Raises:
        StoreNotReady: the repo was never applied, or has no memory yet.
        ConfigError: the target exists.
        MemoryFailure: it cannot be written.
    """
    config = open_applied_store(repo).config
    if target.exists():
        raise ConfigError(f"{target} exists. Name a new folder: a backup is never written over another one.")
    open_memory(config, create=False).close()
    base, file = repo_folder(config), _file(config)
    remove_abandoned(target.parent, prefix=f".{target.name}-")
    part = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        if file is not None:
            say("memory ...")
            _copy_database(file, part / MEMORY_FILE)
        say("encoders and fusion ...")  # after the memory, which may name them
        for name in FOLDERS:
            if (base / "data" / name).is_dir():
                shutil.copytree(base / "data" / name, part / name)
        part.rename(target)
    except OSError as error:
        raise MemoryFailure(f"The backup {target} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    facts = {"backup": str(target), "bytes": sum(one.stat().st_size for one in target.rglob("*") if one.is_file())}
    return facts if file is not None else {**facts, "run": _dump_command(config, target)}


def restore(repo: Path, source: Path, *, say: Callable[[str], object]) -> dict[str, Any]:
    """Put a backup in the place of the memory, and write Delta tables and online store anew from it.

    Users who were forgotten since the backup are forgotten in it, too. A memory on PostgreSQL was brought back before
    this, by `pg_restore`. Whoever else uses the feature repo was stopped before.

    Raises:
        StoreNotReady: the repo was never applied.
        ConfigError: the source is no backup.
        RetryableError: somebody works on the memory.
        MemoryFailure: the backup cannot be used, or the memory not be written.
    """
    config = open_applied_store(repo).config
    file = _file(config)
    if not source.is_dir() or (file is not None and not (source / MEMORY_FILE).is_file()):
        raise ConfigError(f"{source} is no backup: it has no {MEMORY_FILE}. Name a folder that `liber backup` made.")
    known = _known_now(config, say=say)
    if file is not None and (waits := file.with_name(f"{file.name}-wal")).exists():
        raise RetryableError(
            f"{waits} is there: a process has the memory open. Stop it and run the same command again."
        )
    try:
        aside = [*_folders_in_place(source, data=repo_folder(config) / "data")]
        if file is None:
            say(
                "The memory on PostgreSQL is taken as `pg_restore` left it. Run `liber forget` again for users who were"
                " forgotten since the backup."
            )
            memory = open_memory(config)
            forgotten_count = _make_own(memory, known.tombstones)
            memory.close()
        else:
            say("memory ...")
            forgotten_count, before = _file_in_place(source / MEMORY_FILE, file=file, known=known.tombstones)
            aside += before
    except OSError as error:
        raise MemoryFailure(f"The backup {source} cannot be restored: {error.strerror}.") from error
    facts = {"restored": str(source), "forgotten_again": forgotten_count, "kept_aside": ", ".join(map(str, aside))}
    return {**facts, **republish(repo, stage=None, user_id=None, say=say, were_online=known.user_ids)}


def _file(config: "RepoConfig") -> Path | None:
    """Return the file of the memory, absolute: a URL made of it is relative to no folder."""
    file = database_file(parse_url(config.batch_engine.memory), base=repo_folder(config))
    return None if file is None else file.absolute()


def _copy_database(file: Path, target: Path) -> None:
    try:
        with closing(sqlite3.connect(file, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute("VACUUM INTO ?", (str(target),))
    except sqlite3.Error as error:
        raise MemoryFailure(f"The memory {file} cannot be copied to {target.parent}: {error}.") from error


def _dump_command(config: "RepoConfig", target: Path) -> str:
    """Return the command that dumps a memory on PostgreSQL; it asks for the password as `psql` does."""
    url = parse_url(config.batch_engine.memory)
    place = sa.URL.create(
        "postgresql", username=url.username, host=url.host, port=url.port, database=url.database
    ).render_as_string()
    return shlex.join(["pg_dump", "--format=custom", f"--file={target / DUMP}", place])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What the memory that is replaced knows: whom it has forgotten, and of whom there may be online rows."""

    tombstones: Mapping[str, Tombstone] = field(default_factory=dict)
    user_ids: Collection[str] = ()


def _known_now(config: "RepoConfig", *, say: Callable[[str], object]) -> _Known:
    """Return what the memory knows that is there; nobody may be working on it."""
    try:
        memory = open_memory(config, create=False)
    except StoreNotReady:
        return _Known()
    except MemoryFailure as error:
        say(f"{error.message} Run `liber forget` again for users who were forgotten since the backup.")
        return _Known()
    try:
        with memory.reading() as connection:
            now = now_us(connection)
            is_leased = sa.select(leases.c.name).where(leases.c.owner.is_not(None), leases.c.until >= now)
            is_claimed = sa.select(waiting.c.user_key).where(waiting.c.lease_until >= now)
            if connection.execute(is_leased).first() or connection.execute(is_claimed).first():
                raise RetryableError(
                    "Somebody works on the memory. Stop workers, servers and pushes, wait until their leases end"
                    " (30 s), and run the same command again."
                )
            return _Known(tombstones=tombstones_of(connection), user_ids=users_by_hash(connection).values())
    finally:
        memory.close()


def _folders_in_place(source: Path, *, data: Path) -> list[Path]:
    """Bring back the PCA and fusion weights; return under which names others are kept that were there."""
    aside = []
    for name in FOLDERS:
        for one in sorted((source / name).iterdir()) if (source / name).is_dir() else ():
            target = data / name / one.name
            if target.exists() and _is_same(one, target):
                continue
            if target.exists():
                aside.append(_aside(target))
                target.rename(aside[-1])
            part = target.with_name(f".{target.name}-{os.getpid()}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(one, part) if one.is_dir() else shutil.copy2(one, part)
            part.rename(target)
    return aside


def _is_same(one: Path, other: Path) -> bool:
    if one.is_file():
        return other.is_file() and filecmp.cmp(one, other, shallow=False)
    names = sorted(path.relative_to(one) for path in one.rglob("*"))
    if not other.is_dir() or names != sorted(path.relative_to(other) for path in other.rglob("*")):
        return False
    return all(_is_same(one / name, other / name) for name in names if (one / name).is_file())


def _file_in_place(source: Path, *, file: Path, known: Mapping[str, Tombstone]) -> tuple[int, list[Path]]:
    """Put a copy of a memory in its place; return how many users it forgot, and what the one before is called now."""
    part = file.with_name(f".{file.name}-{os.getpid()}")
    try:
        _copy_database(source, part)
        url = sa.URL.create("sqlite", database=str(part)).render_as_string()
        memory = Memory.open(url, base=part.parent, create=False)
        forgotten_count = _make_own(memory, known)
        if forgotten_count:
            erase_deleted(memory)
        memory.close()
        aside = [_aside(file)] if file.exists() else []
        for one in aside:
            os.link(file, one)  # so that there is a memory at every moment
        os.replace(part, file)
    finally:
        for ending in ("", "-wal", "-shm"):
            part.with_name(part.name + ending).unlink(missing_ok=True)
    return forgotten_count, aside


def _make_own(memory: Memory, known: Mapping[str, Tombstone]) -> int:
    """Give a memory a name of its own, under which no table has a number yet; return how many users it forgot."""
    with memory.writing("restore") as connection:
        keep_setting(connection, "memory_id", uuid.uuid4().hex)
        connection.execute(leases.delete())
        connection.execute(waiting.update().values(lease_owner=None, lease_until=None, claim_count=0))
        return forget_again(connection, known)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
