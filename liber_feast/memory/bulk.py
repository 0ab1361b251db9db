"""One statement for many rows, whatever their number.

Statements are built once and take many values as one parameter: to build one takes SQLAlchemy longer than SQLite needs
to run it for a push.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
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
STATEMENTS_KEPT, QUERIES_KEPT = 64, 16
"""Statements that are kept as text, and queries of one kind that are kept: one for each version of what it asks for."""


class _Many(sa.types.TypeDecorator[Sequence[Any]]):
    """Values of one parameter: JSON on SQLite, an array on PostgreSQL."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, item: sa.types.TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Return the type that the database knows."""
        is_array = dialect.name == "postgresql"
        return dialect.type_descriptor(postgresql.ARRAY(self.item) if is_array else sa.Text())

    def process_bind_param(self, value: Sequence[Any] | None, dialect: sa.Dialect) -> Any:
        """Return the values as the driver takes them."""
        return list(value or ()) if dialect.name == "postgresql" else json.dumps(list(value or ()))


def among(column: sa.ColumnElement[Any], name: str) -> sa.ColumnElement[bool]:
    """Return whether `column` is one of the values, any number of them, of the parameter `name`."""
    return _Among(column, sa.bindparam(name, type_=_Many(_plain(column))))


def _plain(column: sa.ColumnElement[Any]) -> sa.types.TypeEngine[Any]:
    return sa.Text() if isinstance(column.type, sa.String) else sa.BigInteger()


class _Among(FunctionElement[bool]):
    """Whether a column is among the values of a parameter."""

    name = "among"
    type = sa.Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> "_Among":
        """Return it as it is: as `... = 1`, which SQLAlchemy makes of it, SQLite finds no index for it."""
        del against
        return self


@compiles(_Among)
def _among_json(among: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(one, **options) for one in among.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"


@compiles(_Among, "postgresql")
def _among_array(among: _Among, compiler: SQLCompiler, **options: Any) -> str:
    column, values = (compiler.process(one, **options) for one in among.clauses)
    return f"{column} = ANY({values})"


def join_pairs(rows: sa.Table, *, on: tuple[sa.Column[int], sa.Column[int] | sa.Column[str]]) -> sa.FromClause:
    """Return those of `rows` in which the columns `on` are one of the pairs of `pair_parameters`, which are distinct.

    SQLite reads the pairs from JSON, PostgreSQL from arrays, and each finds every pair in an index. `(a, b) IN
    (VALUES ...)` makes SQLite scan the table.
    """
    kinds = (_Many(sa.Text()), *(_Many(_plain(column)) for column in on))
    values = (sa.bindparam(name, type_=kind) for name, kind in zip(_PAIRS, kinds, strict=True))
    first, second = (sa.column(name, _plain(column)) for name, column in zip(("first", "second"), on, strict=True))
    wanted = _Pairs(*values).table_valued(first, second, name="wanted")
    return sa.join(wanted, rows, (on[0] == wanted.c.first) & (on[1] == wanted.c.second))


def pair_parameters(pairs: Sequence[tuple[int, int | str]]) -> dict[str, Sequence[Any]]:
    """Return the parameters of a statement with `join_pairs`."""
    columns = (pairs, [first for first, _ in pairs], [second for _, second in pairs])
    return dict(zip(_PAIRS, columns, strict=True))


_PAIRS = ("pairs", "firsts", "seconds")


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


def plain_rows(
    connection: sa.Connection, query: sa.Select[Any], parameters: Mapping[str, Any]
) -> list[tuple[Any, ...]]:
    """Return the rows of a query as the driver has them: of many, SQLAlchemy's own cost more than to read them."""
    result = connection.execute(query, parameters)
    found = list(result.cursor.fetchall())
    result.close()
    return found


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
    text, names = _positional(statement, connection.dialect, tuple(columns))
    if names:
        connection.exec_driver_sql(text, list(zip(*(columns[name] for name in names), strict=True)))
    else:
        connection.execute(
            statement, [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        )


@lru_cache(maxsize=STATEMENTS_KEPT)
def _positional(
    statement: sa.Insert | sa.Update, dialect: sa.Dialect, columns: tuple[str, ...]
) -> tuple[str, tuple[str, ...]]:
    """Return a statement as text and the names of its parameters in their order; none where the driver has names."""
    compiled = statement.compile(dialect=dialect, column_keys=list(columns))
    return str(compiled), tuple(getattr(compiled, "positiontup", None) or ())


def insert_new(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """Return an insert that leaves a row with a key of the table's as it is: what was kept first stays."""
    return _insert_new(table, is_on_server=connection.dialect.name == "postgresql")


@cache
def _insert_new(table: sa.Table, *, is_on_server: bool) -> sa.Insert:
    return (postgresql.insert if is_on_server else sqlite.insert)(table).on_conflict_do_nothing()


def insert_or_update(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    """Return an insert that replaces the row with the same primary key, if there is one."""
    return _insert_or_update(table, is_on_server=connection.dialect.name == "postgresql")


@cache
def _insert_or_update(table: sa.Table, *, is_on_server: bool) -> sa.Insert:
    insert = (postgresql.insert if is_on_server else sqlite.insert)(table)
    keys = list(table.primary_key.columns)
    return insert.on_conflict_do_update(
        index_elements=keys,
        set_={column.name: insert.excluded[column.name] for column in table.columns if column not in set(keys)},
    )
