"""Replay behaviors through push while scoring, then rebuild the same rows offline: what was online has to equal them.

A request is asked a moment after the newest behavior that was pushed, and not after the next one: behaviors of one time
are pushed together, so that what is online then is what a point-in-time join sees at the time of the request.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore
from feast.data_source import PushMode

from liber_feast.artifact import Artifact
from liber_feast.behavior import EVENT_TIME, ITEM, TIMESTAMP, USER
from liber_feast.evidence_rows import ITEM_VECTOR
from serving.online import FUSED_VECTOR, FUSION_VERSION, OnlineFeatures
from serving.ranker import Ranker
from serving.versions import EVIDENCE_NAMES, MEMORY_VIEW, reads_evidence, reads_interests

PUSH_SOURCE = "behavior_push"
EVIDENCE_VIEW, SEQUENCE_VIEW = "partition_evidence", "behavior_sequence"
VECTORS = "vectors"
MOMENT = 1_000
"""Microseconds: the partitions that behaviors of one time fill are sealed one microsecond after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request as it was answered online."""

    user_id: str
    item_ids: tuple[str, ...]
    time: int
    """Microseconds since 1970 UTC."""
    features: Mapping[str, Any]
    """Every online feature of the user, by `view__feature`."""
    scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How online and offline compare."""

    requests: int
    features: int
    feature_differences: tuple[str, ...]
    """Which features of which requests are not equal bit for bit."""
    worst_score: float
    """The largest difference of a score to that of the rows rebuilt offline."""
    worst_raw_score: float
    """Likewise, with the fusion in the model over the partition vectors instead of the fused vector."""
    with_interests: int
    """Requests whose user had a fused vector."""


def replay(
    store: FeatureStore,
    behaviors: pa.Table,
    *,
    features: OnlineFeatures,
    ranker: Ranker,
    choose: Callable[[str, Sequence[str]], Sequence[str]],
) -> Iterator[Asked]:
    """Push `behaviors` in their order, and ask for each user that acts; `choose` names candidates beside the own items.

    The behaviors have the columns of the log; what they fill must be made inline.
    """
    times = behaviors[EVENT_TIME].cast(TIMESTAMP).cast(pa.int64())
    distinct = pc.unique(times).sort().to_pylist()
    for time, following in zip(distinct, [*distinct[1:], distinct[-1] + MOMENT], strict=True):
        rows = behaviors.filter(pc.equal(times, time))
        store.push(PUSH_SOURCE, rows.to_pandas(), to=PushMode.ONLINE_AND_OFFLINE)
        for user_id in dict.fromkeys(rows[USER].to_pylist()):
            own = rows.filter(pc.equal(rows[USER], user_id))[ITEM].to_pylist()
            item_ids = tuple(choose(user_id, own))
            read = features.user_values(user_id)
            ranking = ranker.score(user_id, item_ids=item_ids)
            yield Asked(
                user_id=user_id,
                item_ids=item_ids,
                time=min(time + MOMENT, following),
                features=read,
                scores=tuple(one.score for one in ranking.scores),
            )


def compare(store: FeatureStore, asked: Sequence[Asked], *, artifact: Artifact) -> Parity:
    """Rebuild what was asked by point-in-time joins, score it, and compare."""
    service = store.get_feature_service(artifact.feature_service)
    rows = _joined(store, asked, features=service)
    differences, count, row = [], 0, 0
    first_rows = []
    for one in asked:
        first_rows.append(row)
        row += len(one.item_ids)
    for one, place in zip(asked, first_rows, strict=True):
        offline = rows.slice(place, 1).to_pylist()[0]
        count += len(one.features)
        differences += [
            f"{name} of {one.user_id!r} at {one.time}: online {value!r}, offline {offline[name]!r}"
            for name, value in one.features.items()
            if value != offline[name]
        ]
    online = np.array([score for one in asked for score in one.scores])
    plain = _plain(rows, artifact=artifact)
    offline_scores = artifact.score(artifact.spec.encode(plain))
    raw_scores = offline_scores
    if reads_interests(artifact):
        vectors = _joined(store, asked, features=[f"{MEMORY_VIEW}:{VECTORS}"])[f"{MEMORY_VIEW}__{VECTORS}"]
        raw_scores = artifact.score(artifact.spec.encode(plain.drop_columns(["fused"]).append_column(VECTORS, vectors)))
    return Parity(
        requests=len(asked),
        features=count,
        feature_differences=tuple(differences),
        worst_score=_worst(online, offline_scores),
        worst_raw_score=_worst(online, raw_scores),
        with_interests=sum(one.features.get(f"{FUSED_VECTOR}__fused") is not None for one in asked),
    )


def _joined(store: FeatureStore, asked: Sequence[Asked], *, features: Any) -> pa.Table:
    """Return a row for each candidate of each request, as of its time, in their order."""
    keys = [
        {"row": 0, USER: one.user_id, ITEM: name, EVENT_TIME: pd.Timestamp(one.time, unit="us", tz="UTC")}
        for one in asked
        for name in one.item_ids
    ]
    entities = pd.DataFrame(keys).assign(row=range(len(keys)))
    found = store.get_historical_features(entity_df=entities, features=features, full_feature_names=True).to_arrow()
    ordered: pa.Table = found.sort_by("row")
    return ordered


def _plain(rows: pa.Table, *, artifact: Artifact) -> pa.Table:
    """Return the rows with the names that a run knows its features by, of its own versions alone."""
    spec, names = artifact.spec, {name.rpartition("__")[2]: name for name in rows.column_names}
    wanted = [*(field.name for field in (*spec.user_fields, *spec.item_fields)), USER, ITEM]
    plain = {name: rows[names[name]] for name in wanted}
    for name in ("item_ids", "ratings", "behavior_count"):
        plain[name] = rows[f"{SEQUENCE_VIEW}__{name}"]
    if reads_interests(artifact):
        fits = pc.equal(rows[f"{FUSED_VECTOR}__{FUSION_VERSION}"], artifact.fusion_version)
        fused = rows[f"{FUSED_VECTOR}__fused"]
        plain["fused"] = pc.if_else(fits, fused, pa.scalar(None, fused.type))
    if reads_evidence(artifact):
        plain |= {name: rows[f"{EVIDENCE_VIEW}__{name}"] for name in EVIDENCE_NAMES}
    if spec.match is not None:
        plain[ITEM_VECTOR] = rows[f"item_text__{ITEM_VECTOR}"]
    return pa.table(plain)


def _worst(online: npt.NDArray[np.float64], offline: npt.NDArray[np.float32]) -> float:
    return float(np.abs(online - offline).max(initial=0.0))
