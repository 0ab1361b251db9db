"""Tables of the memory for the vectors of items and the evidence of partitions."""

import sqlalchemy as sa

from liber_feast.memory.schema import metadata

item_vectors = sa.Table(
    "item_vectors",
    metadata,
    sa.Column("text_hash", sa.Text, primary_key=True, comment="of the text that describes an item"),
    sa.Column("encoder_version", sa.Text, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False, comment="float32, little endian"),
)

item_texts = sa.Table(
    "item_texts",
    metadata,
    sa.Column("item_id", sa.Text, primary_key=True),
    sa.Column("event_time", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("encoder_version", sa.Text, nullable=False),
    sa.Column("text_hash", sa.Text, nullable=False),
    sa.Column("created_time", sa.BigInteger, nullable=False, comment="when it was encoded"),
    sa.Column("publication_id", sa.BigInteger, sa.ForeignKey("publications.publication_id"), comment="null: none yet"),
)
"""Which vector each version of an item has, and the publication that wrote it out last."""
_IS_NEW = item_texts.c.publication_id.is_(None)
sa.Index("item_texts_new", item_texts.c.item_id, sqlite_where=_IS_NEW, postgresql_where=_IS_NEW)
sa.Index("item_texts_published", item_texts.c.publication_id)

partition_evidence = sa.Table(
    "partition_evidence",
    metadata,
    sa.Column("user_key", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("partition_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("encoder_version", sa.Text, primary_key=True),
    sa.Column("like_count", sa.Integer, nullable=False),
    sa.Column("behavior_count", sa.Integer, nullable=False),
    sa.Column("signed_sum", sa.LargeBinary, nullable=False, comment="float64, little endian"),
    sa.ForeignKeyConstraint(["user_key", "partition_index"], ["partitions.user_key", "partitions.partition_index"]),
)
