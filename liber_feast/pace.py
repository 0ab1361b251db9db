"""How a worker takes up what waits, and where it shows its metrics.

`batch_engine.worker` and `batch_engine.metrics` of feature_store.yaml have the same keys and explain them.
"""

from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Exposed:
    """Where Prometheus finds metrics."""

    textfile: Path | None = None
    port: int | None = None
