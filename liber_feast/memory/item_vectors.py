"""The vectors of items in the memory: by the hash of the text, and which text each version of an item has."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from liber_feast.evidence import EVIDENCE, ITEM_TEXT
from liber_feast.memory.bulk import among, execute_many, insert_new, insert_or_update, plain_rows
from liber_feast.memory.evidence_tables import item_texts, item_vectors, partition_evidence
from liber_feast.memory.publications import ROWS_PER_PUBLICATION, forget_stage, newest_created_time
from liber_feast.memory.schema import publications
from liber_feast.memory.settings import keep_setting, setting
from liber_feast.memory.texts import user_chunks

ITEM_PCA_VERSION = "item_pca_version"
"""The setting that names the PCA that the vectors of items are made by; empty or none: whatever comes next."""
ItemKey = tuple[str, int]
"""(item id, event time of the version in microseconds since 1970 UTC)"""


def item_encoder_in_use(connection: sa.Connection) -> str | None:
    """Return the version of the PCA that the vectors of items are made by, or None where it may be any."""
    return setting(connection, ITEM_PCA_VERSION) or None


def use_item_encoder(connection: sa.Connection, version: str) -> None:
    """Let the vectors of items be made by a PCA."""
    keep_setting(connection, ITEM_PCA_VERSION, version)


def drop_item_encoder(connection: sa.Connection, *, done_time: int) -> None:
    """Forget the vectors of items and the evidence made of them: all is made anew by whatever PCA comes next."""
    keep_setting(connection, ITEM_PCA_VERSION, "")
    forget_stage(connection, EVIDENCE, done_time=done_time)
    forget_stage(connection, ITEM_TEXT, done_time=done_time)
    for table in (partition_evidence, item_texts, item_vectors):
        connection.execute(table.delete())


def known_item_vectors(connection: sa.Connection, hashes: Iterable[str], *, encoder_version: str) -> dict[str, bytes]:
    """Return the vectors that are kept, float32, by the hash of the text."""
    found: dict[str, bytes] = {}
    for some in user_chunks(sorted(hashes)):
        found.update(plain_rows(connection, _KNOWN, {"hashes": some, "of_version": encoder_version}))
    return found


def add_item_vectors(connection: sa.Connection, vectors: Mapping[str, bytes], *, encoder_version: str) -> None:
    """Keep vectors by the hash of the text; one that another run kept first stays."""
    if vectors:
        rows = [{"text_hash": key, "encoder_version": encoder_version, "vector": one} for key, one in vectors.items()]
        connection.execute(insert_new(connection, item_vectors), rows)


def known_item_texts(connection: sa.Connection, item_ids: Sequence[str] | None = None) -> dict[ItemKey, str]:
    """Return the hash of the text of each version of an item that is kept, of all items or of some."""
    if item_ids is None:
        rows = connection.execute(_TEXTS).all()
    else:
        rows = [row for some in user_chunks(item_ids) for row in connection.execute(_TEXTS_OF, {"item_ids": some})]
    return {(item_id, time): text_hash for item_id, time, text_hash in rows}


def put_item_texts(
    connection: sa.Connection, hashes: Mapping[ItemKey, str], *, encoder_version: str, created_time: int
) -> None:
    """Keep which text versions of items have; they are published, also where they were with another text."""
    if hashes:
        columns: dict[str, Sequence[Any]] = {
            "item_id": [item_id for item_id, _ in hashes],
            "event_time": [time for _, time in hashes],
            "text_hash": list(hashes.values()),
            "encoder_version": [encoder_version] * len(hashes),
            "created_time": [created_time] * len(hashes),
            "publication_id": [None] * len(hashes),
        }
        execute_many(connection, insert_or_update(connection, item_texts), columns)


def has_unpublished_items(connection: sa.Connection) -> bool:
    """Return whether there is a text of an item that no publication holds."""
    return connection.execute(_ONE_NEW).first() is not None


def plan_items(connection: sa.Connection, *, clock_time: int) -> None:
    """Write down that the texts of items are to be published that are not, in publications of a bounded size."""
    while keys := plain_rows(connection, _NEW, {"most": ROWS_PER_PUBLICATION}):
        created_time = max(clock_time, newest_created_time(connection) + 1)
        row = publications.insert().values(stage=ITEM_TEXT, created_time=created_time)
        (number,) = connection.execute(row).inserted_primary_key or (None,)
        item_ids, times = zip(*keys, strict=True)
        numbers = [number] * len(keys)
        execute_many(connection, _PLAN, {"number": numbers, "of_item": item_ids, "of_time": times})


def forget_published_items(connection: sa.Connection) -> None:
    """Forget that texts of items were published, so that they are planned again."""
    connection.execute(item_texts.update().values(publication_id=None))


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemTextRow:
    """One version of an item with its vector."""

    item_id: str
    event_time: int
    created_time: int
    encoder_version: str
    vector: bytes
    """float32, little endian."""
    number: int
    """When it was published, microseconds: what orders it online."""


def published_item_texts(
    connection: sa.Connection, *, publication_id: int | None = None, item_ids: Sequence[str] | None = None
) -> list[ItemTextRow]:
    """Return versions of items that are published, by item and time: of one publication, of some items, or all."""
    query = _published(of_one=publication_id is not None, of_some=item_ids is not None)
    asked: dict[str, Any] = {} if publication_id is None else {"of_publication": publication_id}
    if item_ids is None:
        rows = plain_rows(connection, query, asked)
    else:
        rows = []
        for some in user_chunks(sorted(item_ids)):
            rows += plain_rows(connection, query, {**asked, "item_ids": some})
    names = ("item_id", "event_time", "created_time", "encoder_version", "vector", "number")
    return [ItemTextRow(**dict(zip(names, row, strict=True))) for row in rows]


_KNOWN = sa.select(item_vectors.c.text_hash, item_vectors.c.vector).where(
    among(item_vectors.c.text_hash, "hashes"), item_vectors.c.encoder_version == sa.bindparam("of_version")
)
_TEXTS = sa.select(item_texts.c.item_id, item_texts.c.event_time, item_texts.c.text_hash)
_TEXTS_OF = _TEXTS.where(among(item_texts.c.item_id, "item_ids"))
_ONE_NEW = sa.select(item_texts.c.item_id).where(item_texts.c.publication_id.is_(None)).limit(1)
_NEW = (
    sa.select(item_texts.c.item_id, item_texts.c.event_time)
    .where(item_texts.c.publication_id.is_(None))
    .order_by(item_texts.c.item_id, item_texts.c.event_time)
    .limit(sa.bindparam("most"))
)
_PLAN = (
    item_texts.update()
    .where(item_texts.c.item_id == sa.bindparam("of_item"), item_texts.c.event_time == sa.bindparam("of_time"))
    .values(publication_id=sa.bindparam("number"))
)


@cache
def _published(*, of_one: bool, of_some: bool) -> sa.Select[Any]:
    columns = (item_texts.c[name] for name in ("item_id", "event_time", "created_time", "encoder_version"))
    is_its = sa.and_(
        item_vectors.c.text_hash == item_texts.c.text_hash,
        item_vectors.c.encoder_version == item_texts.c.encoder_version,
    )
    number = publications.c.publication_id == item_texts.c.publication_id
    joined = item_texts.join(item_vectors, is_its).join(publications, number)
    query = sa.select(*columns, item_vectors.c.vector, publications.c.created_time.label("number"))
    query = query.select_from(joined).order_by(item_texts.c.item_id, item_texts.c.event_time)
    if of_one:
        query = query.where(item_texts.c.publication_id == sa.bindparam("of_publication"))
    return query.where(among(item_texts.c.item_id, "item_ids")) if of_some else query
