"""One statement for many rows, whatever their number."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def join_pairs(
    rows: sa.Table,
    pairs: Sequence[tuple[int, int | str]],
    *,
    on: tuple[sa.Column[int], sa.Column[int] | sa.Column[str]],
) -> sa.FromClause:
    """Return those of `rows` in which the columns `on` are one of `pairs`; pairs are distinct.

    SQLite reads the pairs from JSON and finds each in an index. `(a, b) IN (VALUES ...)` makes it scan the table.
    """
    each = sa.func.json_each(json.dumps(pairs)).table_valued("value")
    first, second = (sa.func.json_extract(each.c.value, f"$[{position}]") for position in (0, 1))
    wanted = sa.select(first.label("first"), second.label("second")).select_from(each).subquery("wanted")
    return sa.join(wanted, rows, (on[0] == wanted.c.first) & (on[1] == wanted.c.second))


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
