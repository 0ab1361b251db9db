"""The samples: every behavior with the features that were known just before it, and its label."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureService, FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.feature_view_projection import FeatureViewProjection

from liber_feast.behavior import (
    BEHAVIOR_ID,
    EVENT_TIME,
    ITEM,
    RATING,
    TIMESTAMP,
    USER,
    RatingScale,
    check_behaviors,
)
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.evidence_rows import ITEM_VECTOR, UserEvidence
from liber_feast.offline_positions import MemoryPositions, SequencePositions, memory_positions, sequence_positions
from liber_feast.offline_read import STAGE, locate, open_snapshot
from liber_feast.offline_store import stage_limits
from liber_feast.partition_vectors import ONE_ENCODER
from liber_feast.ragged import Ragged
from liber_feast.recent_behaviors import RecentBehaviors
from liber_feast.repo import feast_errors, open_applied_store, service_schema
from liber_feast.service_schema import Schema
from training.evidence_samples import ItemTexts, evidence_of, item_texts, with_vectors
from training.fit_inputs import item_versions
from training.knowledge import Knowledge
from training.knowledge_texts import load_knowledge

Features = Literal["baseline", "liber", "evidence", "liber+evidence", "kar"]

TRAINING_SERVICE: dict[Features, str] = {
    "baseline": "ctr_baseline",
    "liber": "ctr_training",
    "evidence": "ctr_training",
    "liber+evidence": "ctr_training",
    "kar": "ctr_baseline",
}
SERVING_SERVICE: dict[Features, str] = {
    "baseline": "ctr_baseline",
    "liber": "ctr_serving",
    "evidence": "ctr_serving",
    "liber+evidence": "ctr_serving",
    "kar": "ctr_baseline",
}
STAGES: dict[Features, tuple[str, ...]] = {
    "baseline": ("sequence",),
    "kar": ("sequence",),
    "liber": ("sequence", "vector"),
    "evidence": ("sequence", "item_text", "evidence"),
    "liber+evidence": ("sequence", "vector", "item_text", "evidence"),
}
"""The stages that features need. The texts of items are read for all of them where the service has their view."""
COMPUTED_STAGES = frozenset({"sequence", "vector", "item_text", "evidence"})
BEHAVIORS = "behaviors"
BEHAVIOR_COUNT = "behavior_count"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """Samples in order of time: Q rows of `table`, and where each one's behaviors and partition vectors lie."""

    table: pa.Table
    """Keys, rating, `behavior_count` and the features that are one value a sample."""
    recent: RecentBehaviors
    like_above: float
    user_columns: tuple[str, ...]
    item_columns: tuple[str, ...]
    catalog: pa.Table | None
    """Every version of every item of the store (`item_versions`); None: those of the samples are all."""
    vectors: Ragged[np.float32] | None = None
    """With LIBER, the partition vectors of every sample over (P, D) vectors."""
    encoder_version: str | None = None
    item_encoder_version: str | None = None
    """With item texts, the version of the column `vector` of `catalog`, and of the evidence."""
    evidence: UserEvidence | None = None
    """With evidence, that of every sample's memory."""
    knowledge: Knowledge | None = None
    """With KAR, the texts over the users' histories."""
    service_schema: Schema | None = None
    """That of the service that serving reads; None where the store has no such service."""
    stored_length: int | None = None
    """The most behaviors that the store shows of a user, `sequence.length`; None where no store says so."""

    @property
    def features(self) -> Features:
        if self.knowledge is not None:
            return "kar"
        if self.vectors is None:
            return "baseline" if self.evidence is None else "evidence"
        return "liber" if self.evidence is None else "liber+evidence"

    @property
    def item_width(self) -> int:
        """The width of an item's vector, 0 without item texts."""
        if self.catalog is None or self.item_encoder_version is None:
            return 0
        return int(pc.max(pc.list_value_length(self.catalog[ITEM_VECTOR])).as_py())

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        liked: npt.NDArray[np.bool_] = self.table[RATING].to_numpy() > self.like_above
        return liked

    @property
    def times(self) -> npt.NDArray[np.int64]:
        """Event times, microseconds since 1970 UTC."""
        micros: npt.NDArray[np.int64] = self.table[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64()).to_numpy()
        return micros

    @property
    def fingerprint(self) -> str:
        """Hash of who rated what, how and when: the same behaviors give the same one."""
        digest = hashlib.sha256()
        for row in (self.table[name].cast(pa.string()).to_pylist() for name in (USER, ITEM)):
            digest.update("\x1f".join(row).encode() + b"\x1e")
        digest.update(np.ascontiguousarray(self.table[RATING].to_numpy(), np.float64).tobytes())
        digest.update(np.ascontiguousarray(self.times).tobytes())
        return digest.hexdigest()[:16]


def load_samples(repo: Path, *, features: Features, more: pa.Table | None = None, pay: bool = False) -> Samples:
    """Return every behavior of the feature repo as a sample, with the features of its service as of its time.

    The lists of the computed views are never made: of these views come the positions of each sample's values. `more`
    are behaviors that the repo does not have, and samples beside those it has: they are in nobody's history. `pay` is
    whether an LLM may be asked for texts of KAR.

    Raises:
        StoreNotReady: no feature repo, one that was never applied, loaded or, with LIBER, materialized.
        ConfigError: the store lacks a feature that training needs, or its service has a view that training cannot use;
            or an LLM would be asked for texts of KAR, and `pay` is False.
        InvalidBehaviors: behaviors without ratings, which are the labels, or with other faults.
        DataSetError: vectors that cannot be used, or, with KAR, a text that could not be had.
    """
    store = open_applied_store(repo)
    with feast_errors(repo):
        service = store.get_feature_service(TRAINING_SERVICE[features])
        views = _views(store, service, stages=STAGES[features])
        behaviors = read_view(store, BEHAVIORS)
        catalog = None if views.item_view is None else item_versions(read_view(store, views.item_view))
        texts = _item_texts(store, views, needed="evidence" in features)
    if not behaviors.num_rows:
        raise StoreNotReady(f"{repo} holds no behaviors. Run `liber load DATA --repo {repo}`.")
    if more is not None:
        behaviors = pa.concat_tables([behaviors, more.select(behaviors.column_names).cast(behaviors.schema)])
    scale = _rating_scale(store)
    asked = check_behaviors(behaviors, scale=scale, now=datetime.now(UTC), source=f"{repo}, view {BEHAVIORS!r}").table
    with feast_errors(repo):
        recent = sequence_positions(store, view_name=views.computed["sequence"], entity_frame=asked)
        memory = None
        if "liber" in features:
            memory = memory_positions(store, view_name=views.computed["vector"], entity_frame=asked)
        evidence = None
        if "evidence" in features and texts is not None:
            published = read_view(store, views.computed["evidence"])
            evidence = evidence_of(asked, published=published, texts=texts)
        rows = asked
        if views.references:
            rows = store.get_historical_features(entity_df=asked, features=views.references).to_arrow()
    samples = make_samples(
        rows,
        recent=recent,
        memory=memory,
        like_above=scale.like_above,
        user_columns=views.user_columns,
        item_columns=views.item_columns,
        catalog=catalog if catalog is None or texts is None else with_vectors(catalog, texts=texts),
        item_encoder_version=None if texts is None else texts.encoder_version,
        evidence=evidence,
    )
    samples = replace(
        samples,
        service_schema=_serving_schema(store, SERVING_SERVICE[features]),
        stored_length=stage_limits(store.config).sequence_length,
    )
    if features != "kar":
        return samples
    knowledge = load_knowledge(
        repo,
        table=samples.table,
        times=samples.times,
        like_above=scale.like_above,
        item_columns=views.item_columns,
        pay=pay,
    )
    return replace(samples, knowledge=knowledge, encoder_version=knowledge.encoder)


def make_samples(
    rows: pa.Table,
    *,
    recent: SequencePositions,
    memory: MemoryPositions | None,
    like_above: float,
    user_columns: Sequence[str],
    item_columns: Sequence[str],
    catalog: pa.Table | None = None,
    item_encoder_version: str | None = None,
    evidence: UserEvidence | None = None,
) -> Samples:
    """Return samples from `rows` (keys, rating and plain features) and the positions of what the others see.

    With `item_encoder_version` the items of `catalog` have vectors of that version.

    Raises:
        StoreNotReady: `memory` has no vector for any sample.
        DataSetError: `memory` has vectors of several encoders.
    """
    seen = pa.array(recent.counts, mask=recent.lengths == 0)
    return Samples(
        table=rows.append_column(BEHAVIOR_COUNT, seen),
        recent=RecentBehaviors(
            starts=recent.starts,
            lengths=recent.lengths,
            item_ids=recent.item_ids.cast(pa.large_string()),
            ratings=recent.ratings.cast(pa.float64()),
            times=recent.times,
        ),
        like_above=like_above,
        user_columns=tuple(user_columns),
        item_columns=tuple(item_columns),
        catalog=catalog,
        vectors=None if memory is None else _vectors(memory),
        encoder_version=None if memory is None else _encoder_version(memory),
        item_encoder_version=item_encoder_version,
        evidence=evidence,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Views:
    """The views of a feature service."""

    references: list[str]
    """Features that are read row by row, as `view:feature`."""
    user_columns: tuple[str, ...]
    item_columns: tuple[str, ...]
    item_view: str | None
    computed: dict[str, str]
    """The view of each stage that comes as positions."""


def _views(store: FeatureStore, service: FeatureService, *, stages: Sequence[str]) -> _Views:
    known = {view.name: view for view in store.list_feature_views()}
    sides: dict[str, list[str]] = {USER: [], ITEM: []}
    references: list[str] = []
    item_views: list[str] = []
    computed: dict[str, str] = {}
    for projection in service.feature_view_projections:
        side, stage = _side(service, projection, known.get(projection.name))
        if stage in COMPUTED_STAGES:
            computed[stage] = projection.name
            continue
        item_views += [projection.name] * (side == ITEM)
        sides[side] += [feature.name for feature in projection.features]
        references += [f"{projection.name_to_use()}:{feature.name}" for feature in projection.features]
    _check_names([*sides[USER], *sides[ITEM]], service=service)
    if len(item_views) > 1:
        raise ConfigError(
            f"feature service {service.name!r}: it has the views {', '.join(item_views)} of items; training knows one."
        )
    missing = [stage for stage in stages if stage not in computed]
    if missing:
        raise ConfigError(
            f"feature service {service.name!r}: none of its views is tagged {STAGE}: {missing[0]}. Add the view, and"
            " run `feast apply` in the feature repo."
        )
    return _Views(
        references=references,
        user_columns=tuple(sides[USER]),
        item_columns=tuple(sides[ITEM]),
        item_view=item_views[0] if item_views else None,
        computed=computed,
    )


def _side(
    service: FeatureService, projection: FeatureViewProjection, view: FeatureView | None
) -> tuple[str, str | None]:
    """Return whose features a view has, by its one key, and its stage."""
    owner = f"feature service {service.name!r}: view {projection.name!r}"
    if projection.name_alias or projection.join_key_map:
        raise ConfigError(
            f"{owner} has another name or key there. Training reads views as they are defined: remove `with_name` and"
            " `with_join_key_map`."
        )
    keys = [] if view is None else [column.name for column in view.entity_columns]
    if view is None or keys not in ([USER], [ITEM]):
        raise ConfigError(
            f"{owner} is joined on {', '.join(keys) or 'no key of its own'}; training knows features of a user"
            f" ({USER}) or of an item ({ITEM}). Leave it out of the service."
        )
    return keys[0], view.tags.get(STAGE)


def _check_names(names: Sequence[str], *, service: FeatureService) -> None:
    taken = {USER, ITEM, RATING, EVENT_TIME, BEHAVIOR_ID, BEHAVIOR_COUNT}
    for place, name in enumerate(names):
        if name in taken or name in names[:place]:
            raise ConfigError(
                f"feature service {service.name!r}: feature {name!r} has the name of another column of a sample. Leave"
                " it out of the service, or rename it in its view."
            )


def read_view(store: FeatureStore, name: str) -> pa.Table:
    """Return the batch source of a feature view, its columns by the names that Feast and we give them."""
    view: FeatureView = store.get_feature_view(name)
    source = view.batch_source
    snapshot = open_snapshot(locate(source, config=store.config, view=view))
    table = snapshot.renamed(snapshot.read(snapshot.dataset.schema.names))
    time = (source.field_mapping or {}).get(source.timestamp_field, source.timestamp_field)
    return table.rename_columns([EVENT_TIME if name == time else name for name in table.column_names])


def _item_texts(store: FeatureStore, views: _Views, *, needed: bool) -> ItemTexts | None:
    """Return the vectors of items, None where the service or the store has none and they are not `needed`."""
    if "item_text" not in views.computed or views.item_view is None:
        return None
    try:
        return item_texts(read_view(store, views.computed["item_text"]))
    except StoreNotReady:
        if needed:
            raise
        return None


def _serving_schema(store: FeatureStore, service: str) -> Schema | None:
    try:
        return service_schema(store, service)
    except FeastObjectNotFoundException:
        return None


def _rating_scale(store: FeatureStore) -> RatingScale:
    """Return the scale of the engine block, checked as the engine has it."""
    block = store.config.batch_engine
    if not isinstance(block, LiberComputeEngineConfig):
        raise ConfigError("feature_store.yaml: set `batch_engine.type: liber_feast.engine.LiberComputeEngine`.")
    return block.behavior.rating_scale()


def _vectors(memory: MemoryPositions) -> Ragged[np.float32]:
    if not len(memory.vectors):
        raise StoreNotReady(
            "long_term_memory holds no vector for any sample. Run `feast materialize START END` in the feature repo;"
            " if it says that vectors wait for the encoder, load more behaviors."
        )
    return Ragged(starts=memory.starts, lengths=memory.lengths, values=memory.vectors)


def _encoder_version(memory: MemoryPositions) -> str:
    versions = sorted(pc.drop_null(pc.unique(memory.encoder_versions)).to_pylist())
    if len(versions) != 1:
        raise DataSetError(
            f"long_term_memory holds vectors of {len(versions)} encoder versions ({', '.join(versions)}), which"
            f" cannot be compared. {ONE_ENCODER}"
        )
    return str(versions[0])
