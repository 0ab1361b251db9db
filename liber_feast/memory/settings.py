"""Named values kept with the memory, read and written in the caller's transaction."""

import sqlalchemy as sa

from liber_feast.memory.schema import settings


def setting(connection: sa.Connection, name: str) -> str | None:
    """Return a setting, or None where it was never kept."""
    return connection.scalar(sa.select(settings.c.value).where(settings.c.name == name))


def keep_setting(connection: sa.Connection, name: str, value: str | None) -> None:
    """Keep a setting; None forgets it."""
    connection.execute(settings.delete().where(settings.c.name == name))
    if value is not None:
        connection.execute(settings.insert().values(name=name, value=value))
