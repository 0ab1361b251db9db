"""A connection that PostgreSQL ended is given up without a word of the driver: who called has the error."""

import logging
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from liber_feast.driver_log import quiet_driver
from liber_feast.memory.connect import PoolOptions, make_engine
from tests import services

postgres_url = services.postgres_url

PIPELINED = "INSERT INTO kept VALUES (%s)"
"""psycopg sends many of one statement through a pipeline, which it ends with an error of its own."""


def to_memory(url: str) -> None:
    engine = make_engine(sa.make_url(url), base=Path(), pool=PoolOptions())
    try:
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE kept (number integer)"))
            pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            end(pid)
            connection.exec_driver_sql(PIPELINED, [(number,) for number in range(5)])
    finally:
        engine.dispose()


def to_driver(url: str) -> None:
    quiet_driver()
    with psycopg.connect(url.replace("+psycopg", "")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept (number integer)")
        end(connection.info.backend_pid)
        cursor.executemany(PIPELINED, [(number,) for number in range(5)])


def end(pid: int) -> None:
    with psycopg.connect(services.POSTGRES.replace("+psycopg", "")) as other:
        assert other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)


@pytest.mark.parametrize("write", [to_memory, to_driver])
def test_the_error_of_a_lost_connection_is_raised_and_nothing_is_logged(
    write: Callable[[str], None], postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((psycopg.OperationalError, sa.exc.OperationalError)):
        write(postgres_url)
    assert caplog.messages == []


def test_other_warnings_of_the_driver_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    quiet_driver()
    quiet_driver()
    logging.getLogger("psycopg").warning("the server is %s", "odd")
    logging.getLogger("psycopg.pool").warning("error ignored by the pool")
    assert caplog.messages == ["the server is odd", "error ignored by the pool"]
    assert len(logging.getLogger("psycopg").filters) == 1
