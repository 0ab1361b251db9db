"""Tables of the memory, as the newest release has them; `migrations` brings older ones there.

Times are integers, microseconds since 1970 UTC. Ids of users and items are kept as text; the setting
`user_id_type` / `item_id_type` says what they were.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

# SQLite numbers rows by itself only for a column of exactly the type INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# Ids are ordered as Python orders them; a database's own collation may differ.
_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _count(name: str, *, comment: str | None = None) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, nullable=False, default=0, server_default="0", comment=comment)


settings = sa.Table(
    "settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("user_key", _KEY, primary_key=True, autoincrement=True),
    sa.Column("user_id", _ID, nullable=False, unique=True),
    sa.Column("partition_count", sa.Integer, nullable=False, default=0),
    sa.Column("sealed_time", sa.BigInteger, comment="event time of the last sealed behavior in order"),
    sa.Column("sealed_behavior_id", _ID, comment="and its id"),
    sa.Column("seal_time", sa.BigInteger, comment="of the newest partition"),
    sa.Column("late_count", sa.Integer, nullable=False, default=0),
    sa.Column("duplicate_count", sa.Integer, nullable=False, default=0),
    _count("behavior_count"),
    _count("ahead_count", comment="behaviors later than the clock when they came"),
    _count("tied_count", comment="behaviors at the time of another one of the user"),
    sa.Column(
        "sequence_number",
        sa.BigInteger,
        nullable=False,
        default=0,
        server_default="0",
        comment="grows with every append that changed the user: the time of it, or one more than before",
    ),
    sa.Column(
        "sequence_published",
        sa.BigInteger,
        nullable=False,
        default=0,
        server_default="0",
        comment="the number that is online",
    ),
    sa.Column("forgotten_time", sa.BigInteger, comment="of a stub without an id, so that its key is never used again"),
)

behaviors = sa.Table(
    "behaviors",
    metadata,
    sa.Column("user_key", sa.BigInteger, sa.ForeignKey("users.user_key"), primary_key=True),
    sa.Column("behavior_id", _ID, primary_key=True),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("rating", sa.Double, nullable=False),
    sa.Column("event_time", sa.BigInteger, nullable=False),
    sa.Column(
        "order_time", sa.BigInteger, nullable=False, comment="event time; for a late behavior its place in the cache"
    ),
    sa.Column("partition_index", sa.Integer, comment="null: in the short-term cache"),
    sqlite_with_rowid=False,
)
_IS_CACHED = behaviors.c.partition_index.is_(None)
sa.Index("behaviors_cached", behaviors.c.user_key, sqlite_where=_IS_CACHED, postgresql_where=_IS_CACHED)
sa.Index("behaviors_by_time", behaviors.c.user_key, behaviors.c.event_time, behaviors.c.behavior_id)

partitions = sa.Table(
    "partitions",
    metadata,
    sa.Column("user_key", sa.BigInteger, sa.ForeignKey("users.user_key"), primary_key=True),
    sa.Column("partition_index", sa.Integer, primary_key=True),
    sa.Column("partition_hash", sa.Text, nullable=False),
    sa.Column("behavior_count", sa.Integer, nullable=False),
    sa.Column("first_time", sa.BigInteger, nullable=False),
    sa.Column("last_time", sa.BigInteger, nullable=False),
    sa.Column("seal_time", sa.BigInteger, nullable=False),
    sa.Column("condition", sa.Text, nullable=False, comment="the rule that sealed it"),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("failure", sa.Text, comment="why its text could not be had; null: none"),
    sa.Column("pushed_time", sa.BigInteger, comment="when the push that filled it came; null: it was materialized"),
    sa.Column("online_time", sa.BigInteger, comment="when its vector was readable online"),
)
_IS_ONLINE = partitions.c.online_time.isnot(None)
sa.Index("partitions_online", partitions.c.online_time, sqlite_where=_IS_ONLINE, postgresql_where=_IS_ONLINE)

waiting = sa.Table(
    "waiting",
    metadata,
    sa.Column("user_key", sa.BigInteger, sa.ForeignKey("users.user_key"), primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False, comment="grows with every append that sealed a partition"),
    sa.Column("since", sa.BigInteger, nullable=False, comment="when the oldest of what waits was sealed"),
    sa.Column("not_before", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until", sa.BigInteger),
    _count("claim_count", comment="claims that did not end"),
)
"""Users of whom something is not yet readable online, what was sealed in the first place; a row goes when it is."""
sa.Index("waiting_by_time", waiting.c.since)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, comment="null: nobody"),
    sa.Column("until", sa.BigInteger, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False, comment="how often it was taken"),
)
"""What one process at a time may do, for example publish."""

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("user_hash", sa.Text, primary_key=True, comment="keyed hash of the id"),
    sa.Column("forgotten_time", sa.BigInteger, nullable=False),
    sa.Column("until_time", sa.BigInteger, nullable=False, comment="behaviors up to this event time are refused"),
    _count("refused_count"),
)
"""Users that were forgotten: their old behaviors do not come back with a replayed log."""

texts = sa.Table(
    "texts",
    metadata,
    sa.Column("text_id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("user_key", sa.BigInteger, nullable=False),
    sa.Column("partition_index", sa.Integer, nullable=False),
    sa.Column("stage", sa.Text, nullable=False, comment="summary or shift"),
    sa.Column("partition_hash", sa.Text, nullable=False),
    sa.Column("prompt_version", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("previous_partition_index", sa.Integer, comment="of a shift"),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("text_hash", sa.Text, nullable=False, index=True),
    sa.Column("input_tokens", sa.Integer, nullable=False),
    sa.Column("output_tokens", sa.Integer, nullable=False),
    sa.Column("cached_tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("created_time", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False, default=0, comment="how often it was redone on purpose"),
    sa.ForeignKeyConstraint(["user_key", "partition_index"], ["partitions.user_key", "partitions.partition_index"]),
    sa.UniqueConstraint(
        "user_key", "partition_index", "stage", "partition_hash", "prompt_version", "model", "revision"
    ),
)

recomputations = sa.Table(
    "recomputations",
    metadata,
    sa.Column("user_key", sa.BigInteger, primary_key=True),
    sa.Column("partition_index", sa.Integer, primary_key=True),
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("asked_time", sa.BigInteger, nullable=False, comment="of the oldest that still waited when it was added"),
    sa.ForeignKeyConstraint(["user_key", "partition_index"], ["partitions.user_key", "partitions.partition_index"]),
)
"""Texts that are there and are to be written anew; a row goes when the new text is kept."""

text_vectors = sa.Table(
    "text_vectors",
    metadata,
    sa.Column("text_id", sa.BigInteger, sa.ForeignKey("texts.text_id"), primary_key=True),
    sa.Column("encoder_version", sa.Text, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False, comment="float32, little endian"),
)

publications = sa.Table(
    "publications",
    metadata,
    sa.Column("publication_id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("created_time", sa.BigInteger, nullable=False),
    sa.Column("done_time", sa.BigInteger, comment="null: begun, to be finished by whoever comes next"),
)
_IS_BEGUN = publications.c.done_time.is_(None)
sa.Index("publications_begun", publications.c.publication_id, sqlite_where=_IS_BEGUN, postgresql_where=_IS_BEGUN)

published = sa.Table(
    "published",
    metadata,
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("user_key", sa.BigInteger, primary_key=True),
    sa.Column("partition_index", sa.Integer, primary_key=True),
    sa.Column(
        "publication_id", sa.BigInteger, sa.ForeignKey("publications.publication_id"), nullable=False, index=True
    ),
    sa.Column("text_id", sa.BigInteger, comment="the newest text that the row is made of; a newer one outdates it"),
    sa.Column("index_sum", sa.BigInteger, comment="of a fused vector's partitions, index + 1 each; null: not known"),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("finished_time", sa.BigInteger, nullable=False),
    sa.Column("report", sa.Text, nullable=False, comment="JSON: counts and seconds by stage"),
)
