"""What training and serving read."""

from feast import FeatureService

from views import behavior_sequence, fused_vector, item_attributes, long_term_memory, user_profile

ctr_baseline = FeatureService(
    name="ctr_baseline",
    features=[user_profile, item_attributes, behavior_sequence],
    description="No LIBER features",
)
ctr_training = FeatureService(
    name="ctr_training",
    features=[user_profile, item_attributes, behavior_sequence, long_term_memory],
    description="The partition vectors, so that the fusion is trained with the backbone",
)
ctr_serving = FeatureService(
    name="ctr_serving",
    features=[user_profile, item_attributes, behavior_sequence, fused_vector],
    description="The fused vector, computed when a partition is sealed",
)
