"""Feast's online stores with views of one test: SQLite in a folder, Redis and PostgreSQL where they run."""

import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import redis
import sqlalchemy as sa

from liber_feast.behavior import CREATED_TIME, EVENT_TIME, TIMESTAMP, USER

POSTGRES = os.environ.get("LIBER_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/test")
REDIS = os.environ.get("LIBER_TEST_REDIS", "127.0.0.1:6379")


def row_table(ids: Iterable[Any], values: pa.Array, *, time: int = 1_700_000_000_123_456, created: int = 5) -> pa.Table:
    """Return rows of a view with the feature `value`; `time` and `created` are microseconds since 1970."""
    users = pa.array([f"u{one}" for one in ids] if isinstance(ids, range) else list(ids))
    times = {
        name: pa.array([at] * len(users)).cast(TIMESTAMP) for name, at in ((EVENT_TIME, time), (CREATED_TIME, created))
    }
    return pa.table({USER: users, "value": values, **times})


@contextmanager
def sqlite_block(folder: Path) -> Iterator[dict[str, Any]]:
    yield {"type": "sqlite", "path": str(folder / "online.db")}


@contextmanager
def redis_block(folder: Path) -> Iterator[dict[str, Any]]:
    """A Redis that other tests use too: keys end with the project, which is to be of the test alone."""
    del folder
    host, _, port = REDIS.partition(":")
    try:
        redis.Redis(host, int(port), socket_connect_timeout=1).ping()
    except redis.RedisError:
        pytest.skip(f"needs Redis at {REDIS} (LIBER_TEST_REDIS)")
    yield {"type": "redis", "connection_string": REDIS}


@contextmanager
def postgres_block(folder: Path) -> Iterator[dict[str, Any]]:
    """A schema of its own, dropped afterwards."""
    del folder
    try:
        url = sa.make_url(POSTGRES).set(drivername="postgresql").render_as_string(hide_password=False)
        connection = psycopg.connect(url, connect_timeout=1, autocommit=True)
    except psycopg.OperationalError:
        pytest.skip(f"needs PostgreSQL at {sa.make_url(POSTGRES)} (LIBER_TEST_POSTGRES)")
    schema, found = f"online_{uuid.uuid4().hex[:12]}", connection.info
    connection.execute(f"CREATE SCHEMA {schema}")
    try:
        yield {
            "type": "postgres",
            "host": found.host,
            "port": found.port,
            "database": found.dbname,
            "user": found.user,
            "password": found.password or "trusted",
            "db_schema": schema,
            "sslmode": "disable",
        }
    finally:
        connection.execute(f"DROP SCHEMA {schema} CASCADE")
        connection.close()


BLOCKS: dict[str, Callable[[Path], Any]] = {"sqlite": sqlite_block, "redis": redis_block, "postgres": postgres_block}


def forget_redis(project: str) -> None:
    """Delete the keys of a project."""
    host, _, port = REDIS.partition(":")
    client = redis.Redis(host, int(port))
    for key in client.scan_iter(b"*" + project.encode()):
        client.delete(key)
