"""The rows of a publication, as they go into the Delta table of its stage.

What was planned and is superseded since is left out: something newer is published in another publication.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from liber_feast.evidence import EVIDENCE, ITEM_TEXT
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.item_vectors import item_encoder_in_use, published_item_texts
from liber_feast.memory.publications import Publication, PublishedRow, maker_of
from liber_feast.memory.texts import PartitionKey
from liber_feast.memory.vectors import VECTOR, PartitionVector
from liber_feast.projection import Projection


def planned_rows(projection: Projection, publication: Publication, *, fused_version: str | None) -> pa.Table:
    """Return the rows of a publication; of fused vectors `fused_version` is the version that is in use."""
    version, user_keys = publication.rows[0].version if publication.rows else "", publication.user_keys
    if publication.stage == ITEM_TEXT:
        number = publication.publication_id
        return projection.item_rows(published_item_texts(projection.connection, publication_id=number))
    if publication.stage in (SUMMARY, SHIFT):
        texts = {((row.user_key, row.partition_index), row.version) for row in publication.rows}
        return projection.text_rows(
            publication.stage, user_keys=user_keys, keep=lambda key, version: (key, version) in texts
        )
    planned = {(row.user_key, row.partition_index): row for row in publication.rows}
    if publication.stage == EVIDENCE:
        is_used = version == item_encoder_in_use(projection.connection)
        return projection.evidence_rows(
            user_keys if is_used else (),
            encoder_version=version,
            created_time=publication.created_time,
            keep=planned.__contains__,
        )
    if publication.stage == VECTOR:
        found = projection.vectors(user_keys, version=version)
        kept = (one for one in found if _is_current([one], planned))
        return projection.vector_rows(kept, encoder_version=maker_of(version), created_time=publication.created_time)
    # Rows of a fusion that is no longer in use: the one in use has publications of its own.
    windows = projection.windows(user_keys).values() if version == fused_version else ()
    current = [window for window in windows if _is_current(window, planned)]
    return projection.fused_rows(current, created_time=publication.created_time)


def _is_current(window: Sequence[PartitionVector], planned: Mapping[PartitionKey, PublishedRow]) -> bool:
    """Return whether the row of a window was planned, and is made of the same texts and partitions as it was then."""
    row = planned.get((window[-1].user_key, window[-1].partition_index))
    if row is None:
        return False
    is_newer = row.text_id is not None and max(one.text_id for one in window) > row.text_id
    return not is_newer and row.index_sum in (None, sum(one.partition_index + 1 for one in window))
