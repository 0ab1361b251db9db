"""The rows that are shown online: the newest one of each user, or of each item."""

from collections.abc import Sequence

import pyarrow as pa

from liber_feast.evidence import EVIDENCE, ITEM_TEXT
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.item_vectors import ItemTextRow, item_encoder_in_use, published_item_texts
from liber_feast.memory.vectors import VECTOR
from liber_feast.projection import Projection


def newest_item_rows(projection: Projection, *, publication_id: int | None = None) -> pa.Table:
    """Return the newest row of each item, of all that are published or of those in a publication."""
    connection, item_ids = projection.connection, None
    if publication_id is not None:
        some = published_item_texts(connection, publication_id=publication_id)
        item_ids = sorted({one.item_id for one in some})
    return projection.item_rows(newest_of_items(published_item_texts(connection, item_ids=item_ids)))


def newest_of_items(rows: Sequence[ItemTextRow]) -> list[ItemTextRow]:
    """Return the newest version of each item; `rows` are by item and time."""
    return list({one.item_id: one for one in rows}.values())


def no_rows(projection: Projection, stage: str) -> pa.Table:
    """Return the table of a stage without rows."""
    if stage in (SUMMARY, SHIFT):
        return projection.newest_text_rows(stage, user_keys=())
    if stage == ITEM_TEXT:
        return projection.item_rows(())
    if stage == EVIDENCE:
        return projection.newest_evidence_rows((), encoder_version="", created_time=0)
    if stage == VECTOR:
        return projection.vector_rows((), encoder_version="", created_time=0)
    return projection.fused_rows((), created_time=0)


def online_rows(projection: Projection, stage: str, user_keys: Sequence[int], *, created_time: int) -> pa.Table:
    """Return the newest row of each user in the view of a stage."""
    if stage in (SUMMARY, SHIFT):
        return projection.newest_text_rows(stage, user_keys=user_keys)
    if stage == EVIDENCE:
        version = item_encoder_in_use(projection.connection)
        whose = user_keys if version else ()
        return projection.newest_evidence_rows(whose, encoder_version=version or "", created_time=created_time)
    if stage == VECTOR:
        return projection.memory_rows(user_keys, created_time=created_time)
    return projection.newest_fused_rows(user_keys, created_time=created_time)
