"""What has been published where: the memory's side of idempotent publishing.

A publication is a fixed set of rows of one stage. It is written down before its rows are written out and
marked done after, so whoever comes after a crash finishes the same set under the same number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from liber_feast.memory.schema import publications, published, text_vectors, texts, users
from liber_feast.memory.settings import keep_setting, setting
from liber_feast.memory.texts import SUMMARY, PartitionKey, of_users

ROWS_PER_PUBLICATION = 20_000
ONLINE_RESTORED_TO = "online_restored_to"
"""The setting that is there while the online store is written anew: the last user key that it has again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """One row of a stage: a partition in one version of its text, vector or fused vector."""

    user_key: int
    partition_index: int
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Publication:
    """A set of rows of one stage that are written out together."""

    publication_id: int
    stage: str
    created_time: int
    rows: tuple[PublishedRow, ...]


def unpublished_texts(
    connection: sa.Connection, stage: str, *, user_keys: Sequence[int] | None = None
) -> list[PublishedRow]:
    """Return the texts of a stage (`summary`, `shift`) that no publication holds, of all users or of some."""
    version = texts.c.prompt_version + "/" + texts.c.model
    held = sa.exists().where(
        published.c.stage == stage,
        published.c.version == version,
        published.c.user_key == texts.c.user_key,
        published.c.partition_index == texts.c.partition_index,
    )
    query = (
        sa.select(texts.c.user_key, texts.c.partition_index, version.label("version"))
        .where(texts.c.stage == stage, ~held)
        .order_by(texts.c.user_key, texts.c.partition_index, texts.c.text_id)
    )
    return [
        PublishedRow(user_key=row.user_key, partition_index=row.partition_index, version=row.version)
        for row in of_users(connection, query, texts.c.user_key, user_keys)
    ]


def unpublished_vectors(
    connection: sa.Connection,
    stage: str,
    *,
    version: str,
    encoder_version: str,
    user_keys: Sequence[int] | None = None,
) -> set[PartitionKey]:
    """Return the partitions with an encoded summary that no publication of `stage` holds in `version`."""
    held = sa.exists().where(
        published.c.stage == stage,
        published.c.version == version,
        published.c.user_key == texts.c.user_key,
        published.c.partition_index == texts.c.partition_index,
    )
    query = (
        sa.select(texts.c.user_key, texts.c.partition_index)
        .join(text_vectors, text_vectors.c.text_id == texts.c.text_id)
        .where(texts.c.stage == SUMMARY, text_vectors.c.encoder_version == encoder_version, ~held)
    )
    return {(row.user_key, row.partition_index) for row in of_users(connection, query, texts.c.user_key, user_keys)}


def plan(connection: sa.Connection, stage: str, rows: Sequence[PublishedRow], *, created_time: int) -> None:
    """Write down that `rows` are to be published, in publications of a bounded size."""
    for start in range(0, len(rows), ROWS_PER_PUBLICATION):
        some = rows[start : start + ROWS_PER_PUBLICATION]
        result = connection.execute(publications.insert().values(stage=stage, created_time=created_time))
        (publication_id,) = result.inserted_primary_key or (None,)
        connection.execute(
            published.insert(),
            [
                {
                    "stage": stage,
                    "version": row.version,
                    "user_key": row.user_key,
                    "partition_index": row.partition_index,
                    "publication_id": publication_id,
                }
                for row in some
            ],
        )


def next_unfinished(connection: sa.Connection) -> Publication | None:
    """Return the oldest publication that is not done and hold it until the transaction ends, or None.

    Publications are finished in the order of their numbers: a Delta table skips what is not newer than the
    number of its last commit.
    """
    query = (
        sa.select(publications)
        .where(publications.c.done_time.is_(None))
        .order_by(publications.c.publication_id)
        .limit(1)
    )
    found = connection.execute(query.with_for_update()).one_or_none()
    if found is None:
        return None
    rows = connection.execute(
        sa.select(published.c.user_key, published.c.partition_index, published.c.version)
        .where(published.c.publication_id == found.publication_id)
        .order_by(published.c.user_key, published.c.partition_index, published.c.version)
    )
    return Publication(
        publication_id=found.publication_id,
        stage=found.stage,
        created_time=found.created_time,
        rows=tuple(PublishedRow(user_key=u, partition_index=i, version=v) for u, i, v in rows),
    )


def finish(connection: sa.Connection, publication: Publication, *, done_time: int) -> None:
    """Mark a publication done: its rows are in Delta and online."""
    mark = publications.update().where(publications.c.publication_id == publication.publication_id)
    connection.execute(mark.values(done_time=done_time))


def version_in_use(connection: sa.Connection, stage: str, *, made_by: str) -> str:
    """Return the version under which rows of `stage` are published that `made_by` makes, and keep it.

    What comes into use again, after something else was, gets another version: then its rows are published again.
    """
    name = f"{stage}_in_use"
    kept = setting(connection, name)
    number, _, before = (kept or f"0/{made_by}").partition("/")
    version = f"{number}/{made_by}" if before == made_by else f"{int(number) + 1}/{made_by}"
    if version != kept:
        keep_setting(connection, name, version)
    return version


def maker_of(version: str) -> str:
    """Return what made the rows of a version from `version_in_use`."""
    return version.partition("/")[2]


def forget_stage(connection: sa.Connection, stage: str, *, done_time: int) -> None:
    """Forget that rows of `stage` were published, so that they are planned again."""
    connection.execute(published.delete().where(published.c.stage == stage))
    begun = (publications.c.stage == stage) & publications.c.done_time.is_(None)
    connection.execute(publications.update().where(begun).values(done_time=done_time))


def forget_online(connection: sa.Connection) -> None:
    """Note that the online store is empty: the next publishing writes every newest row again."""
    connection.execute(users.update().values(is_sequence_stale=True))
    keep_setting(connection, ONLINE_RESTORED_TO, "0")


def next_to_restore(connection: sa.Connection, *, count: int) -> list[int]:
    """Return the keys of the next users whose online rows are to be written anew, and count them as written.

    The caller writes them in the same transaction.
    """
    restored_to = setting(connection, ONLINE_RESTORED_TO)
    if restored_to is None:
        return []
    query = sa.select(users.c.user_key).where(users.c.user_key > int(restored_to)).order_by(users.c.user_key)
    keys = list(connection.scalars(query.limit(count)))
    keep_setting(connection, ONLINE_RESTORED_TO, str(keys[-1]) if keys else None)
    return keys
