"""Rows into Feast's PostgreSQL online store, the newest of each user stays.

Feast's table has a time of the event and one of creation, both to the microsecond: together they are the order.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

import psycopg
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStoreConfig
from feast.infra.utils.postgres.connection_utils import _get_conn_kwargs, _get_conninfo
from psycopg import sql

from liber_feast.driver_log import quiet_driver
from liber_feast.errors import OnlineStoreAway, StoreFailure, StoreNotReady
from liber_feast.online_values import EncodedRows

CONNECT_SECONDS = 5

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITE = sql.SQL(
    "INSERT INTO {table} AS held (entity_key, feature_name, value, value_text, event_ts, created_ts)"
    " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = EXCLUDED.value,"
    " value_text = EXCLUDED.value_text, event_ts = EXCLUDED.event_ts, created_ts = EXCLUDED.created_ts{condition}"
)
_NEWEST = sql.SQL(
    " WHERE (EXCLUDED.event_ts, EXCLUDED.created_ts) >= (held.event_ts, COALESCE(held.created_ts, '-infinity'))"
)


class PostgresWriter:
    """Writes with a connection of its own, one write at a time."""

    def __init__(self, config: RepoConfig) -> None:
        quiet_driver()
        self._config = config
        self._block: PostgreSQLOnlineStoreConfig = config.online_store
        self._opened: tuple[int, psycopg.Connection[Any]] | None = None
        self._lock = Lock()

    def write(self, view: FeatureView, rows: EncodedRows, *, force: bool = False) -> int:
        """Write the rows that are not older than what is online, all `force`d; return how many.

        Raises:
            OnlineStoreAway: the server does not answer, restarts or takes no more connections.
            StoreNotReady: the view has no table; `feast apply` makes it.
            StoreFailure: the server refuses the write: no rights, a full disk.
        """
        return self.write_together([(view, rows)], force=force)

    def write_together(self, batches: Sequence[tuple[FeatureView, EncodedRows]], *, force: bool = False) -> int:
        """Do as `write` for several views, in one transaction.

        Raises:
            OnlineStoreAway, StoreNotReady, StoreFailure: as `write`; nothing was written.
        """
        # In the order of names and keys, so that two writers wait for each other and neither for both.
        ordered = sorted(batches, key=lambda batch: batch[0].name)
        writes = [(self._statement(view, force=force), _by_key(rows)) for view, rows in ordered]

        def write_all(connection: psycopg.Connection[Any]) -> int:
            written = 0
            with connection.cursor() as cursor:
                for statement, rows in writes:
                    cursor.executemany(statement, list(_feature_rows(rows)))
                    written += cursor.rowcount // max(1, len(rows.features))
            return written

        return self._run(write_all)

    def delete(self, view: FeatureView, keys: Sequence[bytes]) -> int:
        """Delete the rows of the keys; return how many there were.

        Raises:
            OnlineStoreAway, StoreNotReady, StoreFailure: as `write`.
        """
        statement = sql.SQL("DELETE FROM {} WHERE entity_key = ANY(%s) RETURNING entity_key").format(self._table(view))

        def delete_all(connection: psycopg.Connection[Any]) -> int:
            return len({bytes(key) for (key,) in connection.execute(statement, (list(keys),)).fetchall()})

        return self._run(delete_all)

    def erase(self, views: Sequence[FeatureView]) -> None:
        """Vacuum the tables of the views.

        Raises:
            OnlineStoreAway, StoreNotReady, StoreFailure: as `write`.
        """
        tables = sql.SQL(", ").join(self._table(view) for view in views)
        with self._lock, _in_one_line(self._block):  # outside of a transaction
            (self._open() or self._connect()).execute(sql.SQL("VACUUM {}").format(tables))

    def close(self) -> None:
        """Give back the connection; the next write opens it again."""
        with self._lock:
            if self._opened is not None:
                self._opened[1].close()
                self._opened = None

    def _statement(self, view: FeatureView, *, force: bool) -> sql.Composed:
        return _WRITE.format(table=self._table(view), condition=sql.SQL("") if force else _NEWEST)

    def _table(self, view: FeatureView) -> sql.Identifier:
        is_versioned = self._config.registry.enable_online_feature_view_versioning
        return sql.Identifier(compute_table_id(self._config.project, view, is_versioned))

    def _run(self, work: Callable[[psycopg.Connection[Any]], int]) -> int:
        """Do `work`, which may be done twice, in one transaction; a connection that the server ended is replaced."""
        with self._lock, _in_one_line(self._block):
            before = self._open()
            if before is not None:
                with suppress(psycopg.OperationalError):  # the server may have restarted since
                    return _in_transaction(before, work)
            return _in_transaction(self._connect(), work)

    def _open(self) -> psycopg.Connection[Any] | None:
        """Return the connection of the write before, if it is of this process."""
        if self._opened is not None:
            process, connection = self._opened
            if process == os.getpid() and not connection.closed:
                return connection
        return None

    def _connect(self) -> psycopg.Connection[Any]:
        opened = psycopg.connect(
            _get_conninfo(self._block),
            connect_timeout=CONNECT_SECONDS,
            autocommit=True,  # `transaction` begins and ends them
            **_get_conn_kwargs(self._block),
        )
        self._opened = (os.getpid(), opened)
        return opened


def _in_transaction(connection: psycopg.Connection[Any], work: Callable[[psycopg.Connection[Any]], int]) -> int:
    try:
        with connection.transaction():
            return work(connection)
    except psycopg.OperationalError:
        connection.close()
        raise


def _by_key(rows: EncodedRows) -> EncodedRows:
    return rows.take(sorted(range(len(rows.keys)), key=rows.keys.__getitem__))


def _feature_rows(rows: EncodedRows) -> Iterator[tuple[bytes, str, bytes, str | None, datetime, datetime]]:
    for place, key in enumerate(rows.keys):
        time = _EPOCH + timedelta(microseconds=rows.event_times[place])
        created = _EPOCH + timedelta(microseconds=rows.numbers[place])
        for name, values in rows.features.items():
            yield key, name, values[place], rows.texts[name][place], time, created


@contextmanager
def _in_one_line(block: PostgreSQLOnlineStoreConfig) -> Iterator[None]:
    place = f"PostgreSQL at {block.host}:{block.port}"
    try:
        yield
    except psycopg.errors.UndefinedTable as error:
        raise StoreNotReady(
            f"The online store, {place}, lacks a table of a feature view. Run `feast apply`."
        ) from error
    except psycopg.errors.DiskFull as error:
        raise StoreFailure(f"The online store, {place}, cannot grow: {_reason(error)}.") from error
    except psycopg.OperationalError as error:
        raise OnlineStoreAway(f"The online store, {place}, does not answer: {_reason(error)}.") from error
    except psycopg.Error as error:
        raise StoreFailure(f"The online store, {place}, refuses a write: {_reason(error)}.") from error


def _reason(error: psycopg.Error) -> str:
    """Return the server's message without its detail, which may quote ids."""
    return error.diag.message_primary or str(error).split("\n", maxsplit=1)[0].rstrip(".")
