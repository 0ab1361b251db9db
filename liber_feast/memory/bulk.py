"""One statement for many rows, whatever their number."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

ROWS_PER_INSERT, PARAMETERS_PER_STATEMENT = 200, 32_766
"""Of SQLite: more rows in a statement are no faster, more parameters it does not take."""
COPY_FROM = 100
"""Rows from which PostgreSQL gets them by COPY."""


def join_pairs(
    rows: sa.Table,
    pairs: Sequence[tuple[int, int | str]],
    *,
    on: tuple[sa.Column[int], sa.Column[int] | sa.Column[str]],
) -> sa.FromClause:
    """Return those of `rows` in which the columns `on` are one of `pairs`; pairs are distinct.

    SQLite reads the pairs from JSON, PostgreSQL from arrays, and each finds every pair in an index. `(a, b) IN
    (VALUES ...)` makes SQLite scan the table.
    """
    second = sa.Text() if isinstance(on[1].type, sa.String) else sa.BigInteger()
    wanted = _Pairs(
        sa.literal(json.dumps(pairs)),
        sa.literal([first for first, _ in pairs], postgresql.ARRAY(sa.BigInteger())),
        sa.literal([other for _, other in pairs], postgresql.ARRAY(second)),
    ).table_valued(sa.column("first", sa.BigInteger()), sa.column("second", second), name="wanted")
    return sa.join(wanted, rows, (on[0] == wanted.c.first) & (on[1] == wanted.c.second))


class _Pairs(FunctionElement[Any]):
    """Pairs as rows: of their JSON text, of the array of the first ones and that of the second ones."""

    name = "pairs"
    inherit_cache = True


@compiles(_Pairs)
def _of_json(pairs: _Pairs, compiler: SQLCompiler, **options: Any) -> str:
    text, _firsts, _seconds = pairs.clauses
    each = f"json_each({compiler.process(text, **options)})"
    return f"(SELECT json_extract(value, '$[0]') AS first, json_extract(value, '$[1]') AS second FROM {each})"


@compiles(_Pairs, "postgresql")
def _of_arrays(pairs: _Pairs, compiler: SQLCompiler, **options: Any) -> str:
    _text, *arrays = pairs.clauses
    firsts, seconds = (compiler.process(array, **options) for array in arrays)
    return f"(SELECT * FROM unnest({firsts}, {seconds}) AS pair (first, second))"


def insert_rows(connection: sa.Connection, table: sa.Table, columns: Mapping[str, Sequence[Any]]) -> None:
    """Insert a row per value of `columns`, the fastest way there is; defaults of the table are not filled in.

    Values are plain Python objects, as a driver takes them.
    """
    row_count, names = len(next(iter(columns.values()), ())), tuple(columns)
    if connection.dialect.name == "sqlite":
        _insert_by_values(connection, table, columns, row_count=row_count)
    elif row_count >= COPY_FROM and connection.dialect.driver == "psycopg":
        cursor = connection.connection.cursor()
        with cursor.copy(f"COPY {_table(table, names)} FROM STDIN") as copy:
            for row in zip(*columns.values(), strict=True):
                copy.write_row(row)
        cursor.close()
    elif row_count:
        execute_many(connection, table.insert(), columns)


def _insert_by_values(
    connection: sa.Connection, table: sa.Table, columns: Mapping[str, Sequence[Any]], *, row_count: int
) -> None:
    """Insert by statements of many rows: a statement per row costs twice as much."""
    names, width = tuple(columns), len(columns)
    flat = tuple(chain.from_iterable(zip(*columns.values(), strict=True)))
    step = min(ROWS_PER_INSERT, PARAMETERS_PER_STATEMENT // max(width, 1))
    whole = row_count - row_count % max(step, 1)
    if whole:
        some = [flat[start * width : (start + step) * width] for start in range(0, whole, step)]
        connection.exec_driver_sql(_insert_text(table, names, step), some)
    if whole < row_count:
        connection.exec_driver_sql(_insert_text(table, names, row_count - whole), [flat[whole * width :]])


@cache
def _insert_text(table: sa.Table, names: tuple[str, ...], row_count: int) -> str:
    row = f"({', '.join('?' * len(names))})"
    return f"INSERT INTO {_table(table, names)} VALUES {', '.join([row] * row_count)}"


def _table(table: sa.Table, names: Sequence[str]) -> str:
    columns = ", ".join(f'"{name}"' for name in names)
    return f'"{table.name}" ({columns})'


def execute_many(
    connection: sa.Connection, statement: sa.Insert | sa.Update, columns: Mapping[str, Sequence[Any]]
) -> None:
    """Execute `statement` once per row of `columns`, its parameters by name; defaults of the table are not filled in.

    Where the driver counts parameters it gets plain rows: SQLAlchemy's dictionaries cost more than SQLite's inserts.
    """
    compiled = statement.compile(dialect=connection.dialect, column_keys=list(columns))
    names = getattr(compiled, "positiontup", None)
    if names:
        rows = list(zip(*(columns[name] for name in names), strict=True))
        connection.exec_driver_sql(str(compiled), rows)
    else:
        connection.execute(
            statement, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        )


def insert_new(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """Return an insert that leaves a row with a key of the table's as it is: what was kept first stays."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return make(table).on_conflict_do_nothing()


def insert_or_update(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """Return an insert that replaces the row with the same primary key, if there is one."""
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    insert, keys = make(table), list(table.primary_key.columns)
    return insert.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: insert.excluded[column.name] for column in table.columns if column not in set(keys)},
    )
