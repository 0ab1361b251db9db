"""The engine block of feature_store.yaml, `batch_engine`, checked key by key.

Every error is one line that names the key. Values only: live things are made from them in `job.py`.
"""

import difflib
from typing import Any, Literal, get_args

from feast.repo_config import FeastConfigBaseModel
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from liber_feast.behavior import RatingScale
from liber_feast.condition import Condition, condition_from
from liber_feast.errors import ConfigError
from liber_feast.evidence import ItemTextForm
from liber_feast.interest_config import ExtractiveConfig, InterestConfig, MetricsConfig, interest_problem


class _Block(FeastConfigBaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class BehaviorConfig(_Block):
    """What a valid behavior is."""

    scale: tuple[float, float] = (0.5, 5.0)
    """Lowest and highest valid rating; a behavior outside refuses its whole table."""
    like_above: float = 3.0
    """A rating above this is a like, in texts and as the training label."""

    @model_validator(mode="after")
    def _in_order(self) -> "BehaviorConfig":
        low, high = self.scale
        if not low < high:
            raise ValueError(f"scale is from the lowest to the highest rating, and {low:g} is not below {high:g}")
        if not low <= self.like_above < high:
            raise ValueError(f"like_above must be from {low:g} to below {high:g}, or every or no rating is a like")
        return self

    def rating_scale(self) -> RatingScale:
        """Return the two keys as one value."""
        low, high = self.scale
        return RatingScale(low=low, high=high, like_above=self.like_above)


class EncoderConfig(_Block):
    """BERT and the width of its frozen PCA (equation 4)."""

    model: str = "bundled"
    """`bundled`, a hub id or a local path. Fixed once the PCA is fitted, as `liber encode` explains."""
    width: PositiveInt = 32
    """Floats per text; a partition's vector has twice as many (in parts 2 x (2 x width + 3)). Fixed once the PCA is
    fitted."""


class EvidenceConfig(_Block):
    """What likes and dislikes say in the space of item texts; for repos with the views of evidence."""

    width: PositiveInt = 32
    """Floats of an item's vector: the width of the PCA over item texts. Fixed once that is fitted."""
    text: ItemTextForm = "full"
    """What an item's text has: title, categories and period, or the last two, where there are categories. Likewise."""


class FusionConfig(_Block):
    """How partition vectors become one vector (equations 5 and 6)."""

    weights: str | None = None
    """A folder of trained weights. Null: those last published by `liber fuse`, else the masked mean."""


class SequenceConfig(_Block):
    """The recent behaviors that `behavior_sequence` shows."""

    length: PositiveInt = 50


class WorkerConfig(_Block):
    """How `liber worker` and the background thread take up what waits."""

    batch: PositiveInt = 64
    """Users claimed at once: more give the LLM and BERT larger batches."""
    wait_ms: NonNegativeInt = 200
    """How long a batch that is not full waits for more users."""
    poll_ms: PositiveInt = 200
    """How often an idle worker looks."""
    lease_s: PositiveFloat = 30.0
    """How long a claim holds without a sign of life; what a dead worker had claimed is taken up after it."""
    max_claims: PositiveInt = 5
    """A user whose claim ended without a result this often, because the worker died, fails."""


class MemoryPoolConfig(_Block):
    """Connections to a PostgreSQL memory; SQLite needs no key."""

    size: PositiveInt = 5
    overflow: NonNegativeInt = 10
    timeout_s: PositiveFloat = 30.0
    """How long a transaction waits for a free connection."""


class PublishConfig(_Block):
    """How features are written out."""

    patience_s: NonNegativeFloat = 60.0
    """How long a run or worker waits for an online store that is away, before it leaves the rest to the next."""


class LiberComputeEngineConfig(_Block):
    """The engine block of feature_store.yaml."""

    type: str = "liber_feast.engine.LiberComputeEngine"
    memory: str = "sqlite:///data/memory.db"
    """An SQLAlchemy URL; a relative SQLite path is relative to the feature repo."""
    behavior: BehaviorConfig = Field(default_factory=BehaviorConfig)
    partition: dict[str, Any] = Field(default_factory=lambda: {"condition": "count", "size": 20})
    """When a cache becomes a partition; a new rule applies to what is not yet sealed."""
    on_the_fly: Literal["inline", "background", "worker"] = "inline"
    """When a push fills a cache: the job runs before the push returns, in a thread, or in `liber worker` processes."""
    worker: WorkerConfig = Field(default_factory=WorkerConfig)
    memory_pool: MemoryPoolConfig = Field(default_factory=MemoryPoolConfig)
    publish: PublishConfig = Field(default_factory=PublishConfig)
    interest: InterestConfig = Field(default_factory=ExtractiveConfig)
    """Who writes summaries and shifts; see `interest_config`."""
    metrics: MetricsConfig = Field(default_factory=MetricsConfig)
    encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    evidence: EvidenceConfig | None = Field(default_factory=EvidenceConfig)
    """Null: no more of it is made; what was made stays published."""
    fusion: FusionConfig = Field(default_factory=FusionConfig)
    sequence: SequenceConfig = Field(default_factory=SequenceConfig)
    memory_window: PositiveInt = 50
    """M: how many of a user's newest partitions `long_term_memory` shows and the fusion sees."""

    @model_validator(mode="wrap")
    @classmethod
    def _one_line(cls, values: Any, handler: Any) -> "LiberComputeEngineConfig":
        try:
            config: LiberComputeEngineConfig = handler(values)
        except ValidationError as error:
            raise ConfigError(_first_line(cls, error.errors()[0])) from None  # the cause repeats the values
        config.condition()
        return config

    def condition(self) -> Condition:
        """Return the partition condition (equation 1)."""
        return condition_from(self.partition)


def _first_line(block: type[BaseModel], error: ErrorDetails) -> str:
    """Return the first error as one line that names the key."""
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["interest"]:
        return f"feature_store.yaml: {interest_problem({**error, 'loc': error['loc'][1:]})}"
    key = ".".join(["batch_engine", *path])
    if error["type"] != "extra_forbidden":
        return f"feature_store.yaml: {key}: {error['msg']}, found {error['input']!r}."
    for part in path[:-1]:
        block = _inner(block.model_fields[part].annotation) or block
    close = difflib.get_close_matches(path[-1], block.model_fields, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"feature_store.yaml: unknown key {key!r}; allowed: {', '.join(block.model_fields)}.{hint}"


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Return the block that a key has, also one that may be null."""
    kinds = (annotation, *get_args(annotation))
    return next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)
