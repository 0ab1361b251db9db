"""What has been published where: the memory's side of idempotent publishing.

A publication is a fixed set of rows of one stage. It is written down before its rows are written out and
marked done after, so whoever comes after a crash finishes the same set under the same number. Who plans, marks or
keeps something here holds the lease `publish`: numbers are given, and finished, in their order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

import sqlalchemy as sa

from liber_feast.memory.bulk import QUERIES_KEPT, execute_many, insert_new, insert_or_update
from liber_feast.memory.clock import now_us
from liber_feast.memory.schema import partitions, publications, published, settings, texts, users, waiting
from liber_feast.memory.settings import keep_setting, setting
from liber_feast.memory.texts import Whose, of_users
from liber_feast.memory.vectors import VECTOR, ready_partitions

ROWS_PER_PUBLICATION = 20_000
STAGES_AT_ONCE = 8
"""The most publications that are written side by side, each to a table of its own."""
USERS_AT_WORK = 1_000
"""The most users who are published along with others, because somebody works on them."""
_ROW = ("user_key", "partition_index", "version", "text_id", "index_sum")
PCA_VERSION = "pca_version"
"""The setting that names the PCA that the memory's vectors are made by; empty: whatever comes next."""
ONLINE_RESTORED_TO = "online_restored_to"
"""The setting that is there while the online store is written anew: the last user key that it has again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """One row of a stage: a partition in one version of its text, vector or fused vector, and what it is made of."""

    user_key: int
    partition_index: int
    version: str
    text_id: int | None
    """The newest text that it is made of; None: not known."""
    index_sum: int | None = None
    """Of a fused vector: the sum over its partitions of index + 1, so that one that joins is seen; None: not known."""


Found: TypeAlias = tuple[str, Sequence[PublishedRow]]
"""A stage and rows of it that are to be published."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """A set of rows of one stage that are written out together."""

    publication_id: int
    stage: str
    created_time: int
    """Later than that of every publication that was planned before: it orders what is written online."""
    rows: tuple[PublishedRow, ...]

    @property
    def user_keys(self) -> list[int]:
        """Return the users whose rows these are."""
        return sorted({row.user_key for row in self.rows})

    @property
    def partition_keys(self) -> list[tuple[int, int]]:
        """Return (user_key, partition_index) of every row."""
        return [(row.user_key, row.partition_index) for row in self.rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The published rows of one stage in one version."""

    stage: str
    version: str

    def held(self, found: sa.FromClause, held: sa.FromClause) -> sa.ColumnElement[bool]:
        """Return whether a row of `published` (`held`) is that of a partition in `found`."""
        return sa.and_(
            held.c.stage == self.stage,
            held.c.version == self.version,
            held.c.user_key == found.c.user_key,
            held.c.partition_index == found.c.partition_index,
        )


def text_version(*, prompt_version: str, model: str, revision: int) -> str:
    """Return the version under which a text is published."""
    return f"{prompt_version}/{model}#{revision}" if revision else f"{prompt_version}/{model}"


def unpublished_texts(
    connection: sa.Connection, stage: str, *, user_keys: Sequence[int] | None = None
) -> list[PublishedRow]:
    """Return the texts of a stage (`summary`, `shift`) that no publication holds, of all users or of some."""
    rows = of_users(connection, lambda whose: _unpublished_texts(whose, stage), user_keys)
    return [PublishedRow(**row._mapping) for row in rows]


def users_to_check(
    connection: sa.Connection, *, vectors: Rows, windows: Rows, user_keys: Sequence[int] | None = None
) -> list[int]:
    """Return the users, of all or of some, of whom vectors or windows may have to be published.

    Those with a partition whose newest text no vector was published of, or that has no window; and those with a
    failed partition, which can become ready, or cease to be, without a new text. It costs less than to look closely.
    """
    rows = of_users(connection, lambda whose: _users_to_check(whose, vectors=vectors, windows=windows), user_keys)
    return [row.user_key for row in rows]


def unpublished_vectors(connection: sa.Connection, vectors: Rows, *, user_keys: Sequence[int]) -> list[PublishedRow]:
    """Return the partitions of the users whose vector, as it is now, no publication holds."""
    rows = of_users(connection, lambda whose: _unpublished_vectors(whose, vectors), user_keys)
    return [PublishedRow(**row._mapping, version=vectors.version) for row in rows]


def unpublished_windows(
    connection: sa.Connection, windows: Rows, *, vectors: Rows, memory_window: int, user_keys: Sequence[int]
) -> list[PublishedRow]:
    """Return the partitions of the users whose window of `vectors`, as it is now, no publication holds.

    The window of a partition is it and the ready ones before it, `memory_window` in all.
    """
    rows = of_users(
        connection,
        lambda whose: _unpublished_windows(whose, windows, vectors=vectors, memory_window=memory_window),
        user_keys,
    )
    return [PublishedRow(**row._mapping, version=windows.version) for row in rows]


@lru_cache(maxsize=QUERIES_KEPT)
def _unpublished_vectors(whose: Whose, vectors: Rows) -> sa.Select[Any]:
    return _outdated(_ready(whose, vectors), vectors)


@lru_cache(maxsize=QUERIES_KEPT)
def _unpublished_windows(whose: Whose, windows: Rows, *, vectors: Rows, memory_window: int) -> sa.Select[Any]:
    ready = _ready(whose, vectors)

    def over_window(total: sa.Function[int]) -> sa.Over[int]:
        last = (1 - memory_window, 0)
        return total.over(partition_by=ready.c.user_key, order_by=ready.c.partition_index, rows=last)

    found = sa.select(
        ready.c.user_key,
        ready.c.partition_index,
        over_window(sa.func.max(ready.c.text_id)).label("text_id"),
        over_window(sa.func.sum(ready.c.partition_index + 1)).label("index_sum"),
    )
    return _outdated(found.cte("found"), windows)


def _ready(whose: Whose, vectors: Rows) -> sa.CTE:
    return ready_partitions(whose, encoder_version=maker_of(vectors.version), version=vectors.version)


@cache
def _unpublished_texts(whose: Whose, stage: str) -> sa.Select[Any]:
    first = texts.c.prompt_version + "/" + texts.c.model
    redone = first + "#" + sa.cast(texts.c.revision, sa.Text)
    version = sa.case((texts.c.revision > 0, redone), else_=first)  # text_version, in SQL
    held = sa.exists().where(
        published.c.stage == stage,
        published.c.version == version,
        published.c.user_key == texts.c.user_key,
        published.c.partition_index == texts.c.partition_index,
    )
    return (
        sa.select(texts.c.user_key, texts.c.partition_index, version.label("version"), texts.c.text_id)
        .where(texts.c.stage == stage, ~held, whose(texts.c.user_key))
        .order_by(texts.c.user_key, texts.c.partition_index, texts.c.text_id)
    )


@lru_cache(maxsize=QUERIES_KEPT)
def _users_to_check(whose: Whose, *, vectors: Rows, windows: Rows) -> sa.Select[Any]:
    newest = (
        sa.select(texts.c.user_key, texts.c.partition_index, sa.func.max(texts.c.text_id).label("text_id"))
        .where(whose(texts.c.user_key))
        .group_by(texts.c.user_key, texts.c.partition_index)
        .subquery("newest")
    )
    vector, window = published.alias("vector"), published.alias("window")
    joined = newest.outerjoin(vector, vectors.held(newest, vector)).outerjoin(window, windows.held(newest, window))
    is_outdated = vector.c.publication_id.is_(None) | (vector.c.text_id < newest.c.text_id)
    changed = sa.select(newest.c.user_key).select_from(joined)
    changed = changed.where(is_outdated | window.c.publication_id.is_(None))
    failed = sa.select(partitions.c.user_key).where(partitions.c.failure.is_not(None), whose(partitions.c.user_key))
    found = sa.union(changed, failed).subquery("found")
    return sa.select(found.c.user_key).order_by(found.c.user_key)


def _outdated(found: sa.CTE, rows: Rows) -> sa.Select[Any]:
    """Return the partitions in `found` that `published` lacks or has as made of something else."""
    columns = [found.c[name] for name in ("user_key", "partition_index", "text_id")]
    is_other = [published.c.publication_id.is_(None), published.c.text_id < found.c.text_id]
    if "index_sum" in found.c:
        columns.append(found.c.index_sum)
        is_other.append(published.c.index_sum != found.c.index_sum)
    joined = found.outerjoin(published, rows.held(found, published))
    return sa.select(*columns).select_from(joined).where(sa.or_(*is_other)).order_by(*columns[:2])


def in_pieces(found: Sequence[Found]) -> Iterator[Sequence[Found]]:
    """Yield what is to be planned in transactions of a bounded size: all of it in one where it is little."""
    if sum(len(rows) for _, rows in found) <= ROWS_PER_PUBLICATION:
        yield found
        return
    for stage, rows in found:
        for start in range(0, len(rows), ROWS_PER_PUBLICATION):
            yield [(stage, rows[start : start + ROWS_PER_PUBLICATION])]


def plan(connection: sa.Connection, found: Sequence[Found], *, clock_time: int) -> None:
    """Write down that the rows are to be published, in publications of a bounded size.

    A row that is published again moves to its new publication; where the old one is not done, it is superseded there.
    """
    created_time = max(clock_time, newest_created_time(connection) + 1)
    for stage, rows in found:
        for start in range(0, len(rows), ROWS_PER_PUBLICATION):
            some = rows[start : start + ROWS_PER_PUBLICATION]
            result = connection.execute(_INSERT, {"stage": stage, "created_time": created_time})
            (publication_id,) = result.inserted_primary_key or (None,)
            columns: dict[str, Sequence[Any]] = {name: [getattr(row, name) for row in some] for name in _ROW}
            columns |= {"stage": [stage] * len(some), "publication_id": [publication_id] * len(some)}
            execute_many(connection, insert_or_update(connection, published), columns)


def newest_number(connection: sa.Connection) -> int:
    """Return the number of the publication that was planned last; 0: there is none."""
    return connection.scalar(_NEWEST_NUMBER) or 0


def newest_created_time(connection: sa.Connection) -> int:
    """Return the time of the publication that was planned last; 0: there is none."""
    return connection.scalar(_NEWEST_TIME) or 0


def users_at_work(connection: sa.Connection) -> list[int]:
    """Return users whom somebody works on now and will want to have published, by their claims."""
    return list(connection.scalars(_AT_WORK, {"now": now_us(connection)}))


_INSERT = publications.insert()
_NEWEST_NUMBER = sa.select(sa.func.max(publications.c.publication_id))
_NEWEST_TIME = sa.select(publications.c.created_time).order_by(publications.c.publication_id.desc()).limit(1)
_AT_WORK = (
    sa.select(waiting.c.user_key)
    .where(waiting.c.lease_until >= sa.bindparam("now"))
    .order_by(waiting.c.since, waiting.c.user_key)
    .limit(USERS_AT_WORK)
)
_IS_BEGUN = publications.c.done_time.is_(None)
_OLDEST_BEGUN = sa.select(publications).where(_IS_BEGUN).order_by(publications.c.publication_id).limit(STAGES_AT_ONCE)
_ROWS = (
    sa.select(*(published.c[name] for name in _ROW))
    .where(published.c.publication_id == sa.bindparam("of_publication"))
    .order_by(published.c.user_key, published.c.partition_index, published.c.version)
)
_FINISH = (
    publications.update()
    .where(publications.c.publication_id == sa.bindparam("of_publication"), _IS_BEGUN)
    .values(done_time=sa.bindparam("at"))
)


def has_unfinished(connection: sa.Connection) -> bool:
    """Return whether a publication is not done."""
    return connection.execute(_OLDEST_BEGUN).first() is not None


def next_unfinished(connection: sa.Connection) -> list[Publication]:
    """Return the oldest publications that are not done, by number; of every stage at most one, of bounded size.

    Those of a stage are finished in this order: a Delta table skips what is not newer than its last commit's number.
    """
    found: dict[str, Publication] = {}
    for one in connection.execute(_OLDEST_BEGUN).all():
        if one.stage in found or sum(len(other.rows) for other in found.values()) >= ROWS_PER_PUBLICATION:
            break
        rows = connection.execute(_ROWS, {"of_publication": one.publication_id})
        found[one.stage] = Publication(
            publication_id=one.publication_id,
            stage=one.stage,
            created_time=one.created_time,
            rows=tuple(PublishedRow(**row._mapping) for row in rows),
        )
    return list(found.values())


def finish(connection: sa.Connection, publication: Publication, *, done_time: int) -> None:
    """Mark a publication done: its rows are in Delta and online."""
    connection.execute(_FINISH, {"of_publication": publication.publication_id, "at": done_time})


def version_in_use(connection: sa.Connection, stage: str, *, made_by: str) -> str:
    """Return the version under which rows of `stage` are published that `made_by` makes.

    What comes into use again, after something else was (`use_version`), gets another version: then its rows are
    published again.
    """
    kept = setting(connection, _in_use(stage))
    number, _, before = (kept or f"0/{made_by}").partition("/")
    return f"{number}/{made_by}" if before == made_by else f"{int(number) + 1}/{made_by}"


def use_version(connection: sa.Connection, stage: str, version: str) -> None:
    """Keep the version (`version_in_use`) under which rows of `stage` are published from now on."""
    if setting(connection, _in_use(stage)) != version:
        keep_setting(connection, _in_use(stage), version)


def encoder_in_use(connection: sa.Connection) -> str | None:
    """Return the version of the PCA that the memory's vectors are made by, or None where it may be any.

    A memory from before this was kept has it from what was published.
    """
    kept = setting(connection, PCA_VERSION)
    return (maker_of(setting(connection, _in_use(VECTOR)) or "") if kept is None else kept) or None


def use_encoder(connection: sa.Connection, version: str) -> None:
    """Let the memory's vectors be made by a PCA, where they are made by none; of two at once the first one stays."""
    if encoder_in_use(connection) is not None:
        return
    row = {"name": PCA_VERSION, "value": version}
    is_open = (settings.c.name == PCA_VERSION) & (settings.c.value == "")
    if not connection.execute(settings.update().where(is_open).values(value=version)).rowcount:
        connection.execute(insert_new(connection, settings), [row])


def drop_encoder(connection: sa.Connection) -> None:
    """Let the memory's vectors be made by whatever PCA comes next."""
    keep_setting(connection, PCA_VERSION, "")


def _in_use(stage: str) -> str:
    return f"{stage}_in_use"


def maker_of(version: str) -> str:
    """Return what made the rows of a version from `version_in_use`."""
    return version.partition("/")[2]


def forget_stage(connection: sa.Connection, stage: str, *, done_time: int) -> None:
    """Forget that rows of `stage` were published, so that they are planned again."""
    connection.execute(published.delete().where(published.c.stage == stage))
    begun = publications.update().where(publications.c.stage == stage, _IS_BEGUN)
    connection.execute(begun.values(done_time=done_time))


def forget_online(connection: sa.Connection) -> None:
    """Note that the online store is empty: the next publishing writes every newest row again."""
    connection.execute(users.update().values(sequence_published=0))
    keep_setting(connection, ONLINE_RESTORED_TO, "0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Restoring:
    """The next users whose online rows are to be written anew; none: those of all users are."""

    user_keys: tuple[int, ...]
    restored_to: str
    """How far the ones before had brought it."""

    @property
    def is_first(self) -> bool:
        """Whether nothing was written anew before."""
        return self.restored_to == "0"


def is_restoring(connection: sa.Connection) -> bool:
    """Return whether the online store is being written anew."""
    return setting(connection, ONLINE_RESTORED_TO) is not None


def next_to_restore(connection: sa.Connection, *, count: int) -> Restoring | None:
    """Return the next users whose online rows are to be written anew, or None where none are."""
    restored_to = setting(connection, ONLINE_RESTORED_TO)
    if restored_to is None:
        return None
    query = sa.select(users.c.user_key).where(users.c.user_key > int(restored_to)).order_by(users.c.user_key)
    return Restoring(user_keys=tuple(connection.scalars(query.limit(count))), restored_to=restored_to)


def mark_restored(connection: sa.Connection, restoring: Restoring) -> None:
    """Note that the online rows of these users are written, unless the store was emptied again meanwhile."""
    is_next = (settings.c.name == ONLINE_RESTORED_TO) & (settings.c.value == restoring.restored_to)
    if restoring.user_keys:
        connection.execute(settings.update().where(is_next).values(value=str(restoring.user_keys[-1])))
    else:
        connection.execute(settings.delete().where(is_next))
