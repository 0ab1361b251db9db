"""The feature views. Those tagged `liber.stage` are filled by the plugin; the tag's value names the stage."""

from datetime import timedelta

from feast import BatchFeatureView, FeatureView, Field
from feast.types import Array, Float32, Float64, Int64, String

from entities import item, user
from sources import (
    behavior_log,
    behavior_push,
    evidence_table,
    fused_table,
    item_table,
    item_text_table,
    shift_table,
    summary_table,
    user_table,
    vector_table,
)

FOREVER = timedelta(0)

# The columns of these two differ by data set, so Feast reads their features from the tables.
user_profile = FeatureView(name="user_profile", entities=[user], ttl=FOREVER, source=user_table)
item_attributes = FeatureView(name="item_attributes", entities=[item], ttl=FOREVER, source=item_table)

behaviors = FeatureView(
    name="behaviors",
    entities=[user],
    ttl=FOREVER,
    schema=[Field(name="item_id", dtype=String), Field(name="rating", dtype=Float64)],
    source=behavior_push,
    tags={"liber.stage": "behaviors"},
    description="The raw stream; online, the latest behavior of a user",
)

behavior_sequence = BatchFeatureView(
    name="behavior_sequence",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="item_ids", dtype=Array(String), description="The last N items, oldest first"),
        Field(name="ratings", dtype=Array(Float64), description="Their ratings"),
        Field(name="times", dtype=Array(Int64), description="Their event times, microseconds since 1970 UTC"),
        Field(name="behavior_count", dtype=Int64, description="Behaviors so far, not only the last N"),
    ],
    source=[behaviors],
    sink_source=behavior_log,
    online=True,
    tags={"liber.stage": "sequence"},
)

partition_summary = BatchFeatureView(
    name="partition_summary",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="partition_index", dtype=Int64),
        Field(name="summary", dtype=String, description="The user's interest in this partition (equation 2)"),
        Field(name="behavior_count", dtype=Int64),
        Field(name="first_time", dtype=Int64, description="Microseconds since 1970 UTC"),
        Field(name="last_time", dtype=Int64, description="Microseconds since 1970 UTC"),
        Field(name="prompt_version", dtype=String),
        Field(name="model", dtype=String),
    ],
    source=[behaviors],
    sink_source=summary_table,
    online=True,
    tags={"liber.stage": "summary"},
)

partition_shift = BatchFeatureView(
    name="partition_shift",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="partition_index", dtype=Int64),
        Field(name="shift", dtype=String, description="How the interest moved since the partition before (equation 3)"),
        Field(name="previous_partition_index", dtype=Int64),
        Field(name="prompt_version", dtype=String),
        Field(name="model", dtype=String),
    ],
    source=[partition_summary],
    sink_source=shift_table,
    online=True,
    tags={"liber.stage": "shift"},
)

long_term_memory = BatchFeatureView(
    name="long_term_memory",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="vectors", dtype=Array(Float32), description="The last M partitions, row-major (equation 4)"),
        Field(name="partition_count", dtype=Int64, description="Partitions in `vectors`"),
        Field(name="encoder_version", dtype=String),
    ],
    source=[partition_summary, partition_shift],
    sink_source=vector_table,
    online=True,
    tags={"liber.stage": "vector"},
)

fused_vector = BatchFeatureView(
    name="fused_vector",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="fused", dtype=Array(Float32), description="All partitions in one vector (equations 5 and 6)"),
        Field(name="partition_count", dtype=Int64),
        Field(name="fusion_version", dtype=String),
    ],
    source=[long_term_memory],
    sink_source=fused_table,
    online=True,
    tags={"liber.stage": "fused"},
)

item_text = BatchFeatureView(
    name="item_text",
    entities=[item],
    ttl=FOREVER,
    schema=[
        Field(name="vector", dtype=Array(Float32), description="Of the item's title, categories and period"),
        Field(name="encoder_version", dtype=String),
    ],
    source=[item_attributes],
    sink_source=item_text_table,
    online=True,
    tags={"liber.stage": "item_text"},
)

partition_evidence = BatchFeatureView(
    name="partition_evidence",
    entities=[user],
    ttl=FOREVER,
    schema=[
        Field(name="partition_index", dtype=Int64),
        Field(name="evidence", dtype=Array(Float32), description="Mean of (like - like rate) x item vector"),
        Field(name="like_rate", dtype=Float64, description="Likes over behaviors of the partition"),
        Field(name="behavior_count", dtype=Int64),
        Field(name="memory_evidence", dtype=Array(Float32), description="Over all partitions so far"),
        Field(name="memory_like_rate", dtype=Float64),
        Field(name="memory_behavior_count", dtype=Int64),
        Field(name="encoder_version", dtype=String, description="That of the item vectors it is made of"),
    ],
    source=[behaviors, item_text],
    sink_source=evidence_table,
    online=True,
    tags={"liber.stage": "evidence"},
)
