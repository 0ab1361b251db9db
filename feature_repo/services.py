"""What training and serving read."""

from feast import FeatureService

from views import (
    behavior_sequence,
    fused_vector,
    item_attributes,
    item_text,
    long_term_memory,
    partition_evidence,
    user_profile,
)

EVIDENCE = ["memory_evidence", "memory_like_rate", "memory_behavior_count"]

ctr_baseline = FeatureService(
    name="ctr_baseline",
    features=[user_profile, item_attributes, behavior_sequence, item_text],
    description="No LIBER features",
)
ctr_training = FeatureService(
    name="ctr_training",
    features=[
        user_profile,
        item_attributes,
        behavior_sequence,
        item_text[["vector"]],
        partition_evidence[EVIDENCE],
        long_term_memory,
    ],
    description="The partition vectors, so that the fusion is trained with the backbone",
)
ctr_serving = FeatureService(
    name="ctr_serving",
    features=[
        user_profile,
        item_attributes,
        behavior_sequence,
        item_text,
        partition_evidence[[*EVIDENCE, "encoder_version"]],
        fused_vector,
    ],
    description="The fused vector, computed when a partition is sealed",
)
