"""Named values kept with the memory, read and written in the caller's transaction."""

import sqlalchemy as sa

from liber_feast.memory.bulk import insert_or_update
from liber_feast.memory.schema import settings


def setting(connection: sa.Connection, name: str) -> str | None:
    """Return a setting, or None where it was never kept."""
    return connection.scalar(_VALUE, {"of_name": name})


_VALUE = sa.select(settings.c.value).where(settings.c.name == sa.bindparam("of_name"))


def keep_setting(connection: sa.Connection, name: str, value: str | None) -> None:
    """Keep a setting, whoever keeps another value at once; None forgets it."""
    if value is None:
        connection.execute(settings.delete().where(settings.c.name == name))
    else:
        connection.execute(insert_or_update(connection, settings).values(name=name, value=value))
