"""What one process at a time may do, and for how long: rows of `leases`, timed by the database's own clock.

A holder that was paused may find that another one has the lease: whatever it marks in the memory is marked in a
transaction that renews the lease first, and rolls back where that fails.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache

import sqlalchemy as sa

from liber_feast.errors import RetryableError
from liber_feast.memory.bulk import insert_new
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import leases
from liber_feast.memory.store import Memory

PUBLISH, FIT_PCA = "publish", "fit_pca"
LEASE_S = 30.0
WAIT_S = (0.005, 0.1)
"""The shortest and the longest pause between two tries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A lease that was taken."""

    name: str
    owner: str
    number: int
    """Grows whenever the lease is taken: a lease taken again is another one."""
    seconds: float


class LeaseLost(RetryableError):
    """Another process has the lease; nothing was marked."""


@cache
def _process(_pid: int) -> str:
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"


def owner_name() -> str:
    """Return a name of this process that no other one has, nor this one's threads: they share it."""
    return _process(os.getpid())


def acquire(memory: Memory, name: str, *, owner: str, seconds: float = LEASE_S) -> Lease | None:
    """Take a lease for so many seconds, or return None where another owner has it."""
    with memory.writing("lease") as connection:
        connection.execute(insert_new(connection, leases), {"name": name, "owner": None, "until": 0, "number": 0})
        now = now_us(connection)
        asked = {"of_name": name, "now": now, "new_owner": owner, "new_until": now + int(seconds * 1e6)}
        if connection.execute(_TAKE, asked).rowcount != 1:
            return None
        number = connection.scalar(_NUMBER, {"of_name": name})
    return Lease(name=name, owner=owner, number=int(number or 0), seconds=seconds)


def renew(connection: sa.Connection, lease: Lease) -> None:
    """Hold a lease for its seconds from now on, in the caller's transaction.

    Raises:
        LeaseLost: another process has it, or had it since.
    """
    until = now_us(connection) + int(lease.seconds * 1e6)
    if connection.execute(_RENEW, {**_its(lease), "new_until": until}).rowcount != 1:
        raise LeaseLost(f"The lease {lease.name!r} was taken by another process. Nothing was marked; it does the rest.")


def release(memory: Memory, lease: Lease) -> None:
    """Give a lease back; one that was lost stays with who has it."""
    with memory.writing("lease") as connection:
        connection.execute(_RELEASE, _its(lease))


@contextmanager
def held(
    memory: Memory,
    name: str,
    *,
    seconds: float = LEASE_S,
    patience_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Lease]:
    """Hold a lease for the block; a thread renews it. Threads of one process exclude each other, too.

    Where the memory is away at the end, the lease ends by its time. One of a memory that is its thread's alone has
    ended as soon as it is taken: nobody else is there to wait for it.

    Raises:
        RetryableError: another owner kept it for `patience_s` seconds (None: for ever), or `stop` says so.
    """
    seconds = seconds if memory.is_shared else 0.0
    owner, started, pause = f"{owner_name()}/{uuid.uuid4().hex[:8]}", time.monotonic(), WAIT_S[0]
    while (lease := acquire(memory, name, owner=owner, seconds=seconds)) is None:
        if stop() or (patience_s is not None and time.monotonic() - started > patience_s):
            raise RetryableError(f"The lease {name!r} is held by another process. Try again when that one is done.")
        time.sleep(pause)
        pause = min(2 * pause, WAIT_S[1])
    ended = threading.Event()
    beat = threading.Thread(target=_keep, args=(memory, lease, ended), name=f"lease {name}", daemon=True)
    if memory.is_shared:
        beat.start()
    try:
        yield lease
    finally:
        ended.set()
        if beat.ident is not None:
            beat.join()
        with suppress(RetryableError):
            release(memory, lease)


def _keep(memory: Memory, lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(lease.seconds / 3):
        try:
            with memory.writing("lease") as connection:
                renew(connection, lease)
        except LeaseLost:
            return  # whoever marks something next finds out
        except RetryableError:
            continue  # the memory is busy or away: there is time for another try


def _its(lease: Lease) -> dict[str, str | int]:
    return {"of_name": lease.name, "of_owner": lease.owner, "of_number": lease.number}


_IS_OF_NAME = leases.c.name == sa.bindparam("of_name")
_IS_ITS = sa.and_(_IS_OF_NAME, leases.c.owner == sa.bindparam("of_owner"), leases.c.number == sa.bindparam("of_number"))
_NUMBER = sa.select(leases.c.number).where(_IS_OF_NAME)
_TAKE = (
    leases.update()
    .where(_IS_OF_NAME, (leases.c.until < sa.bindparam("now")) | leases.c.owner.is_(None))
    .values(owner=sa.bindparam("new_owner"), until=sa.bindparam("new_until"), number=leases.c.number + 1)
)
_RENEW = leases.update().where(_IS_ITS).values(until=sa.bindparam("new_until"))
_RELEASE = leases.update().where(_IS_ITS).values(owner=None, until=0)
