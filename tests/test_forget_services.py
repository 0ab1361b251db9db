"""Forgetting and republishing where the memory is on PostgreSQL and the online store on Redis or PostgreSQL."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psycopg
import pytest
import redis
import sqlalchemy as sa
from feast.data_source import PushMode
from psycopg import sql

from liber_feast import delta_maintenance, forget
from liber_feast.cli import app
from liber_feast.memory.schema import metadata
from liber_feast.online import FeastOnlineSink
from tests import feature_repo_kit as kit
from tests.form_parts import Form, form_of
from tests.online_parts import forget_redis
from tests.operations_parts import files_with
from tests.processes import PROCESSES

WHO = "zoe-who-is-forgotten"
VIEWS = ("behaviors", *kit.LIBER_VIEWS)


@pytest.fixture(params=["redis", "postgres"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Form]:
    with form_of(request.param, tmp_path) as form:
        yield form


def pushed_repo(form: Form, folder: Path) -> Path:
    """Return a repo to which the log was pushed, and behaviors of `WHO`."""
    repo = form.bring_to(kit.repo_to_push_to(folder))
    store, log = kit.open_store(repo), kit.log_of(repo)
    items, times = log["item_id"].to_pylist()[:9], pd.date_range("2023-12-01", periods=9, freq="h", tz="UTC")
    mine = pd.concat([kit.behavior(WHO, item, at=time) for item, time in zip(items, times, strict=True)])
    store.push("behavior_push", mine, to=PushMode.ONLINE_AND_OFFLINE)
    store.push("behavior_push", kit.frame(log))
    kit.close(store)
    return repo


def features_of(repo: Path, users: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what training and serving read of users."""
    store = kit.open_store(repo)
    found = kit.online(store, users, *VIEWS)
    kit.close(store)
    tables = {name: kit.published(repo, name, without=()) for name in kit.PUBLISHED_TABLES}
    return {name: [row for row in rows if row["user_id"] in users] for name, rows in tables.items()}, found


def online_rows(form: Form) -> Iterator[bytes]:
    """Yield everything that the online store of a form holds."""
    block = form.online
    if block["type"] == "redis":
        host, _, port = block["connection_string"].partition(":")
        client = redis.Redis(host, int(port))
        for key in client.scan_iter(b"*" + form.project.encode()):
            yield key + repr(client.hgetall(key) if client.type(key) == b"hash" else b"").encode()
        client.close()
        return
    with psycopg.connect(
        dbname=block["database"], host=block["host"], port=block["port"], user=block["user"]
    ) as server:
        for (name,) in tables_of(server, block["db_schema"]):
            for key, value in server.execute(
                sql.SQL("SELECT entity_key, value FROM {}").format(sql.Identifier(block["db_schema"], name))
            ):
                yield bytes(key) + bytes(value or b"")


def connected(block: dict[str, Any]) -> "psycopg.Connection[Any]":
    return psycopg.connect(dbname=block["database"], host=block["host"], port=block["port"], user=block["user"])


def tables_of(server: "psycopg.Connection[Any]", schema: str) -> list[tuple[str]]:
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = %s"
    return server.execute(query, [schema]).fetchall()


def traces(form: Form, repo: Path) -> list[str]:
    """Return where there is something of `WHO`: tables of the memory, the online store, and files."""
    engine, found = sa.create_engine(form.memory), []
    with engine.connect() as connection:
        for name in metadata.tables:
            rows = connection.exec_driver_sql(f"SELECT count(*) FROM {name} AS t WHERE t::text LIKE '%%{WHO}%%'")
            found += [name] if rows.scalar() else []
    engine.dispose()
    found += ["online"] if any(WHO.encode() in row for row in online_rows(form)) else []
    return found + files_with(repo / "data", WHO)


def forget_until(repo: Path, step: int) -> None:
    """Be `liber forget` in a process that dies before its step of that number, from 0."""
    passed = 0

    def before(work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any, **named: Any) -> Any:
            nonlocal passed
            if passed == step:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1
            return work(*given, **named)

        return done

    for place, name in (
        *((delta_maintenance, one) for one in ("delete_users", "purge")),
        *((forget, one) for one in ("forget_user", "erase_deleted")),
        (FeastOnlineSink, "delete"),
    ):
        setattr(place, name, before(getattr(place, name)))
    forget.forget(repo, WHO, keep_log=False, say=lambda _line: None)


STEPS = {"redis": (1, 9, 12), "postgres": (4, 11, 13)}
"""After the memory, before the log, the files; amid the tables, before the online store and the last look at it."""


def test_a_forgotten_user_is_nowhere_after_crashes_and_a_second_time_finds_nothing(
    form: Form, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = pushed_repo(form, tmp_path / "repo")
    users = [user for user in kit.users_of(repo) if user != WHO]
    before = features_of(repo, users)
    assert {"users", "online"} < set(traces(form, repo))
    for step in STEPS[form.online["type"]]:
        process = PROCESSES.Process(target=forget_until, args=(repo, step))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, step
    app(["forget", WHO, "--repo", str(repo)], standalone_mode=False)
    assert traces(form, repo) == []
    capsys.readouterr()
    app(["forget", WHO, "--repo", str(repo), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["behaviors"], found["online_rows"], set(found["rows"].values())) == (0, 0, {0})
    assert features_of(repo, users) == before
    store = kit.open_store(repo)
    store.push("behavior_push", kit.frame(kit.log_of(repo)))
    kit.close(store)
    assert features_of(repo, users) == before


def lose_stores(form: Form, repo: Path) -> None:
    """Lose what is online, and a table."""
    shutil.rmtree(repo / "data" / "fused_vector")
    if form.online["type"] == "redis":
        forget_redis(form.project)
        return
    block = form.online
    with psycopg.connect(
        dbname=block["database"], host=block["host"], port=block["port"], user=block["user"]
    ) as server:
        for (name,) in tables_of(server, block["db_schema"]):
            server.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(block["db_schema"], name)))


def test_stores_that_were_lost_are_what_they_were_after_one_republish_or_two(form: Form, tmp_path: Path) -> None:
    repo = pushed_repo(form, tmp_path / "repo")
    users = kit.users_of(repo)
    before = features_of(repo, users)
    lose_stores(form, repo)
    assert features_of(repo, users) != before
    for _ in range(2):
        app(["republish", "--repo", str(repo)], standalone_mode=False)
        assert features_of(repo, users) == before
    app(["republish", "--repo", str(repo), "--stage", "fused", "--user", WHO], standalone_mode=False)
    assert features_of(repo, users) == before
