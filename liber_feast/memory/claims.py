"""Which process works on which user: rows of `waiting`, claimed for a time by the database's own clock.

A claim is of a user with all that waits for it: a shift needs the summaries before it, so two processes could not
share a user. Whoever dies leaves a claim that ends by itself. A user whose claims ended that way is claimed alone
from then on, and after too many of them its next text is marked failed: it stops nobody, nor itself for ever.
"""

import math
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from typing import Any

import sqlalchemy as sa

from liber_feast import stream_metrics
from liber_feast.errors import LiberError, RetryableError
from liber_feast.memory.bulk import among, insert_new
from liber_feast.memory.clock import now_us
from liber_feast.memory.leases import LEASE_S, owner_name
from liber_feast.memory.missing import missing_shifts, missing_summaries
from liber_feast.memory.schema import partitions, waiting
from liber_feast.memory.store import Memory
from liber_feast.memory.texts import Whose, of_users, user_chunks

MAX_CLAIMS = 5
USERS_PER_CLAIM = 1_000
PUT_ASIDE_S = 3_600
"""How long a user rests that no worker survives although no text of it is missing."""
RETRY_S = 5
"""How long workers leave a user alone whose work ended in an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Users that one process works on; empty where nobody was free."""

    owner: str
    """Of this claim alone: no other one, of any process or thread, has it."""
    numbers: Mapping[int, int]
    """By user key, the number that the row of `waiting` had."""
    waited_s: float = 0.0
    """How long the oldest of them had waited."""
    is_alone: bool = False
    """Whether this is a user whose claims did not end before."""
    held_until: float = field(default=math.inf, compare=False)
    """Until then nobody can have taken it, by the clock `time.monotonic` of this process."""


def enqueue(connection: sa.Connection, user_keys: Collection[int]) -> None:
    """Let users wait who do not."""
    if user_keys:
        row = {"number": 1, "since": now_us(connection)}
        connection.execute(insert_new(connection, waiting), [{"user_key": key, **row} for key in sorted(user_keys)])


def waiting_keys(connection: sa.Connection, user_keys: Sequence[int] | None = None) -> list[int]:
    """Return who waits, claimed or not: everybody, or those of some users."""
    return sorted(row.user_key for row in of_users(connection, _waiting, user_keys))


@cache
def _waiting(whose: Whose) -> sa.Select[Any]:
    return sa.select(waiting.c.user_key).where(whose(waiting.c.user_key))


def claim(
    memory: Memory,
    *,
    seconds: float = LEASE_S,
    limit: int = USERS_PER_CLAIM,
    user_keys: Sequence[int] | None = None,
    max_claims: int = MAX_CLAIMS,
    joining: Claim | None = None,
) -> Claim:
    """Claim those who wait and nobody works on, the longest waiting first; of everybody, or of at most 1,000 users.

    Users who were put off are claimed only where `user_keys` names them. Nobody is waited for. Users `joining` a claim
    are part of what is returned.

    Raises:
        RetryableError: the memory is locked or away.
    """
    claimed = joining or Claim(owner=f"{owner_name()}/{uuid.uuid4().hex[:8]}", numbers={})
    is_of_all, asked = user_keys is None, {} if user_keys is None else {"user_keys": user_keys}
    with memory.reading() as connection:  # most often there is nothing, and then nothing is locked
        free = connection.execute(_one_free(is_of_all=is_of_all), {**asked, "now": now_us(connection)})
        if free.first() is None:
            return claimed

    def take(connection: sa.Connection) -> Claim:
        held_until = min(claimed.held_until, time.monotonic() + seconds)
        now = now_us(connection)
        new = {"owner": claimed.owner, "until": now + int(seconds * 1e6)}
        taken = connection.execute(_taken(is_of_all=is_of_all), {**asked, **new, "now": now, "most": limit}).all()
        rows = sorted(taken, key=lambda row: (row.since, row.user_key))
        kept = _together(rows, is_joining=joining is not None)
        _let_go(connection, claimed.owner, [row.user_key for row in rows[len(kept) :]])
        is_alone = bool(kept) and kept[0].claim_count > 1
        if is_alone and kept[0].claim_count > max_claims:
            kept = kept if _survive(connection, kept[0].user_key, now=now, max_claims=max_claims) else []
        numbers = {**claimed.numbers, **{row.user_key: row.number for row in kept}}
        waited_s = max(claimed.waited_s, (now - kept[0].since) / 1e6 if kept else 0.0)
        return replace(claimed, numbers=numbers, waited_s=waited_s, is_alone=is_alone, held_until=held_until)

    return memory.retrying(take, what="claim")


def is_anyone_waiting(connection: sa.Connection) -> bool:
    """Return whether there is somebody who was not put off, claimed or not."""
    is_there = sa.exists().where(waiting.c.not_before <= now_us(connection))
    return bool(connection.scalar(sa.select(is_there)))


def renew(memory: Memory, claimed: Claim, *, seconds: float = LEASE_S) -> Claim:
    """Hold a claim for so many seconds from now on; return it without the users that were lost to another one.

    Raises:
        RetryableError: the memory is locked or away.
    """
    held: set[int] = set()
    held_until = time.monotonic() + seconds
    with memory.writing("renew") as connection:
        until = now_us(connection) + int(seconds * 1e6)
        for some in user_chunks(sorted(claimed.numbers)):
            asked = {"of_owner": claimed.owner, "user_keys": some, "until": until}
            held.update(connection.scalars(_EXTEND, asked))
    stream_metrics.record_claim("lost", len(claimed.numbers) - len(held))
    numbers = {key: number for key, number in claimed.numbers.items() if key in held}
    return replace(claimed, numbers=numbers, held_until=held_until)


def settle(
    connection: sa.Connection, claimed: Claim, *, is_due: Collection[int] = (), not_before: int = 0
) -> dict[str, int]:
    """End a claim, in the caller's transaction: who is readable online waits no more.

    Those in `is_due` are left to whoever comes at `not_before`, microseconds, or later; those who sealed a partition
    meanwhile wait on. Return how many users were `done`, `released` and `lost`, for `record_claims` after the commit.
    """
    counts = dict.fromkeys(("done", "released", "lost"), 0)
    for some in user_chunks(sorted(claimed.numbers)):
        theirs = {"of_owner": claimed.owner, "user_keys": some}
        held = connection.scalar(_HELD, theirs) or 0
        done = [
            {"of_user": key, "of_number": claimed.numbers[key], "of_owner": claimed.owner}
            for key in some
            if key not in is_due
        ]
        if done:
            connection.execute(_DELETE, done)
        due = {**theirs, "user_keys": [key for key in some if key in is_due], "later": not_before}
        released = connection.execute(_RELEASE, due).rowcount if due["user_keys"] else 0
        released += connection.execute(_LET_WAIT, theirs).rowcount
        counts["released"] += released
        counts["done"] += held - released
        counts["lost"] += len(some) - held
    return counts


def record_claims(counts: Mapping[str, int]) -> None:
    """Count how claims ended; see `settle`."""
    for outcome, count in counts.items():
        stream_metrics.record_claim(outcome, count)


@contextmanager
def kept(memory: Memory, claimed: Claim, *, seconds: float = LEASE_S) -> Iterator["Beat"]:
    """Hold a claim for the block, which settles it; a thread renews it.

    Where the block raises, the users are free again after RETRY_S seconds, or at once for who names them. An error
    that is none of ours counts as a claim that did not end.
    """
    beat = Beat(memory=memory, claim=claimed, seconds=seconds)
    thread = threading.Thread(target=beat.run, name="claim", daemon=True)
    thread.start()
    try:
        yield beat
    except BaseException as error:
        with suppress(LiberError):  # then the claim ends by itself
            _give_back(memory, beat.claim, is_counted=not isinstance(error, LiberError | KeyboardInterrupt))
        raise
    finally:
        beat.ended.set()
        thread.join()


class Beat:
    """Renews a claim three times within its seconds.

    Attributes:
        claim: what is still held of it.
    """

    def __init__(self, *, memory: Memory, claim: Claim, seconds: float) -> None:
        self.memory, self.claim, self.seconds = memory, claim, seconds
        self.ended = threading.Event()
        self._renewing = threading.Lock()

    def run(self) -> None:
        """Renew until the work has ended or everything is lost."""
        while self.claim.numbers and not self.ended.wait(self.seconds / 3):
            with suppress(RetryableError):  # busy or away: there is time for another try
                self._renew()

    def is_held(self, user_key: int) -> bool:
        """Return whether a user is still this claim's: what is paid for now is paid for by nobody else.

        A process that stood still for so long that the claim may have ended asks the memory; where that is away, the
        answer is no.
        """
        try:
            if time.monotonic() > self.claim.held_until:
                self._renew()
        except RetryableError:
            return False
        return user_key in self.claim.numbers

    def end(self) -> Claim:
        """Renew no more; return what is held. A claim that is settled must not be renewed: it would seem lost."""
        self.ended.set()
        with self._renewing:
            return self.claim

    def _renew(self) -> None:
        with self._renewing:
            if not self.ended.is_set():
                self.claim = renew(self.memory, self.claim, seconds=self.seconds)


@cache
def _free(*, is_of_all: bool) -> sa.Select[Any]:
    """Return a query of the users, of all or of `user_keys`, who wait and whom nobody works on."""
    is_free = waiting.c.lease_until.is_(None) | (waiting.c.lease_until < sa.bindparam("now"))
    query = sa.select(waiting.c.user_key).where(is_free)
    if is_of_all:
        return query.where(waiting.c.not_before <= sa.bindparam("now"))
    return query.where(among(waiting.c.user_key, "user_keys"))


@cache
def _one_free(*, is_of_all: bool) -> sa.Select[Any]:
    return _free(is_of_all=is_of_all).limit(1)


@cache
def _taken(*, is_of_all: bool) -> Any:
    """Return the update of the free rows; PostgreSQL passes over those that another transaction is about to take."""
    # A CTE is read once: as a plain subquery it might be run again, and take more than the limit.
    free = (
        _free(is_of_all=is_of_all)
        .order_by(waiting.c.since, waiting.c.user_key)
        .limit(sa.bindparam("most"))
        .with_for_update(skip_locked=True)
        .cte("free")
    )
    columns = (waiting.c.user_key, waiting.c.number, waiting.c.claim_count, waiting.c.since)
    values = {
        "lease_owner": sa.bindparam("owner"),
        "lease_until": sa.bindparam("until"),
        "claim_count": waiting.c.claim_count + 1,
    }
    taken = waiting.update().where(waiting.c.user_key.in_(sa.select(free.c.user_key))).values(values)
    return taken.returning(*columns)


def _together(rows: Sequence[Any], *, is_joining: bool) -> Sequence[Any]:
    """Return the first rows that are claimed together: one whose claims did not end is claimed alone."""
    if rows and rows[0].claim_count > 1:
        return () if is_joining else rows[:1]
    return list(takewhile(lambda row: row.claim_count == 1, rows))


def _let_go(connection: sa.Connection, owner: str, user_keys: Sequence[int]) -> None:
    for some in user_chunks(sorted(user_keys)):
        connection.execute(waiting.update().where(_IS_ITS).values(**_ENDED), {"of_owner": owner, "user_keys": some})


def _survive(connection: sa.Connection, user_key: int, *, now: int, max_claims: int) -> bool:
    """Mark the text failed that no worker survived, the user's first missing one; return whether the user goes on."""
    stream_metrics.record_claim("poison", 1)
    first = sorted(missing_summaries(connection, user_keys=[user_key], with_failed=False))
    if not first:
        shifts = missing_shifts(connection, user_keys=[user_key], with_failed=False)
        first = sorted((one.user_key, one.partition_index) for one in shifts)
    row = waiting.update().where(waiting.c.user_key == user_key)
    if not first:
        later = now + int(PUT_ASIDE_S * 1e6)
        connection.execute(row.values(lease_owner=None, lease_until=None, claim_count=0, not_before=later))
        return False
    is_first = (partitions.c.user_key == user_key) & (partitions.c.partition_index == first[0][1])
    failure = f"no worker survived it ({max_claims} claims)"
    connection.execute(partitions.update().where(is_first).values(failure=failure))
    connection.execute(row.values(claim_count=1))
    return True


def _give_back(memory: Memory, claimed: Claim, *, is_counted: bool) -> None:
    ended = {name: value for name, value in _ENDED.items() if name != "claim_count" or not is_counted}
    with memory.writing("claim") as connection:
        not_before = now_us(connection) + int(RETRY_S * 1e6)
        for some in user_chunks(sorted(claimed.numbers)):
            theirs = {"of_owner": claimed.owner, "user_keys": some}
            connection.execute(waiting.update().where(_IS_ITS).values(**ended, not_before=not_before), theirs)
    stream_metrics.record_claim("released", len(claimed.numbers))


_ENDED: Mapping[str, Any] = {
    "lease_owner": None,
    "lease_until": None,
    "claim_count": sa.case((waiting.c.claim_count > 0, waiting.c.claim_count - 1), else_=0),
}
_DELETE = waiting.delete().where(
    waiting.c.user_key == sa.bindparam("of_user"),
    waiting.c.number == sa.bindparam("of_number"),
    waiting.c.lease_owner == sa.bindparam("of_owner"),
)
_IS_ITS = sa.and_(waiting.c.lease_owner == sa.bindparam("of_owner"), among(waiting.c.user_key, "user_keys"))
"""Whether a row is one of `user_keys` that the claim of `of_owner` holds."""
_HELD = sa.select(sa.func.count()).select_from(waiting).where(_IS_ITS)
_EXTEND = waiting.update().where(_IS_ITS).values(lease_until=sa.bindparam("until")).returning(waiting.c.user_key)
_RELEASE = waiting.update().where(_IS_ITS).values(**_ENDED, not_before=sa.bindparam("later"))
_LET_WAIT = waiting.update().where(_IS_ITS).values(lease_owner=None, lease_until=None, claim_count=0)
