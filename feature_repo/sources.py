"""Delta tables: three that `liber load` writes, six that the plugin publishes."""

from feast import FileSource, PushSource
from feast.data_format import DeltaFormat


def delta(name: str, *, created: bool = False, description: str = "") -> FileSource:
    """Return the Delta table `data/<name>` as a source."""
    return FileSource(
        name=name,
        path=f"data/{name}",
        file_format=DeltaFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp" if created else "",
        description=description,
    )


behavior_log = delta("behaviors", description="The raw behaviors, one row each")
behavior_push = PushSource(name="behavior_push", batch_source=behavior_log)
user_table = delta("users", description="User attributes of the data set")
item_table = delta("items", description="Item attributes of the data set")

summary_table = delta("partition_summary", created=True, description="One row per partition and text version")
shift_table = delta("partition_shift", created=True, description="One row per partition and text version")
vector_table = delta("partition_vector", created=True, description="One row per partition and encoder version")
fused_table = delta("fused_vector", created=True, description="One row per partition and fusion version")
item_text_table = delta("item_text", created=True, description="One row per version of an item")
evidence_table = delta("partition_evidence", created=True, description="One row per partition")
