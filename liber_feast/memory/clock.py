"""The database's clock: leases and orders of several machines are timed by one."""

import time

import sqlalchemy as sa


def now_us(connection: sa.Connection) -> int:
    """Return the database's time, microseconds since 1970 UTC; SQLite has that of the machine."""
    if connection.dialect.name == "postgresql":
        micros = sa.cast(sa.extract("epoch", sa.func.clock_timestamp()) * 1_000_000, sa.BigInteger)
        return int(connection.scalar(sa.select(micros)) or 0)
    return time.time_ns() // 1_000
