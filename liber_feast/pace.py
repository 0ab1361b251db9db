"""How a worker takes up what waits; `batch_engine.worker` of feature_store.yaml has the same keys and explains them."""

from dataclasses import dataclass

from liber_feast.memory.claims import MAX_CLAIMS
from liber_feast.memory.leases import LEASE_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Sizes and times of claims."""

    batch: int = 64
    wait_ms: int = 200
    poll_ms: int = 200
    lease_s: float = LEASE_S
    max_claims: int = MAX_CLAIMS
