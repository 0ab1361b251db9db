"""Score candidates for a user: online features in, probabilities out. Knows no web framework.

A fused vector is only ever scored with the fusion weights that made it, and evidence with item vectors of its own
encoder: a row of another version counts as none, and the ranking says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from liber_feast.artifact import Artifact, load_artifact
from liber_feast.behavior import ITEM, USER
from liber_feast.errors import ArtifactError
from liber_feast.evidence_rows import ITEM_VECTOR, MEMORY_COUNT, MEMORY_EVIDENCE, MEMORY_LIKE_RATE
from liber_feast.fields import Floats
from serving.catalog import Attributes, ItemCatalog
from serving.online import (
    BEHAVIOR_SEQUENCE,
    FUSION_VERSION,
    USER_PROFILE,
    OnlineFeatures,
    OnlineRow,
    open_features,
)

TITLE, ENCODER_VERSION = "title", "encoder_version"
EVIDENCE_NAMES = (MEMORY_EVIDENCE, MEMORY_LIKE_RATE, MEMORY_COUNT)
LEAST_SCORE = 2.0**-25
"""Scores stay this far from 0 and 1, which the sigmoid of a large logit reaches in 32 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """Which weights answered."""

    run: str
    backbone: str
    feature_service: str
    fusion_version: str | None
    """None where the run reads no LIBER features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredItem:
    """One candidate with the probability that the user likes it."""

    item_id: str
    score: float
    title: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """What the model reads and the store did not have; the scores were made without it."""

    user: bool
    """No attributes of the user."""
    behaviors: bool
    """No behavior of the user."""
    interests: bool
    """No fused vector that fits the run; False for a run that reads none."""
    fusion_version_mismatch: str | None
    """The version of the user's fused vector where it is not the run's."""
    evidence: bool
    """No evidence that fits the run; False for a run that reads none."""
    evidence_version_mismatch: str | None
    """The encoder version of the user's evidence where it is not the run's."""
    items: tuple[str, ...]
    """Candidates that nobody has seen, each once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The answer to one request; `scores` are in the order of its items."""

    user_id: str
    scores: tuple[ScoredItem, ...]
    missing: Missing
    model: ServedModel


class Ranker:
    """A trained run over the online features it was trained on; safe to use from several threads."""

    def __init__(self, artifact: Artifact, *, features: OnlineFeatures) -> None:
        """Join a run and a store.

        Raises:
            ArtifactError: the store lacks a feature of the run, publishes fused vectors of other weights only, or
                the weights give no finite score.
        """
        self.model = ServedModel(
            run=artifact.name,
            backbone=artifact.backbone,
            feature_service=features.service,
            fusion_version=artifact.fusion_version,
        )
        self._artifact, self._spec = artifact, artifact.spec
        self._known = frozenset(self._spec.items.ids)
        self._user_names = ("item_ids", "ratings", "behavior_count", *(field.name for field in self._spec.user_fields))
        self._item_names = tuple(field.name for field in self._spec.item_fields)
        self._features, self._catalog = features, ItemCatalog(features)
        self._check_features()
        self._check_fusion_version()
        self.score("", item_ids=[""])  # an id nobody has: weights that cannot score fail now, not in a request

    def score(self, user_id: str, *, item_ids: Sequence[str]) -> Ranking:
        """Score each of `item_ids` for one user; what is unknown is scored as unknown and named in the ranking."""
        user = self._features.users([user_id])[0]
        attributes = self._catalog.attributes([*item_ids, *self._new_window_items(user)])
        missing = self._missing(user, item_ids=item_ids, attributes=attributes)
        scores = self._probabilities(self._user_table(user, missing=missing), item_ids=item_ids, attributes=attributes)
        scored = zip(item_ids, scores.tolist(), strict=True)
        return Ranking(
            user_id=user_id,
            scores=tuple(
                ScoredItem(item_id=name, score=score, title=_title(attributes[name])) for name, score in scored
            ),
            missing=missing,
            model=self.model,
        )

    @property
    def _reads_interests(self) -> bool:
        return self._spec.memory_width > 0

    @property
    def _reads_evidence(self) -> bool:
        return self._spec.match is not None and self._spec.match.memory

    def _missing(
        self, user: OnlineRow, *, item_ids: Sequence[str], attributes: Mapping[str, Attributes | None]
    ) -> Missing:
        version = user.values.get(FUSION_VERSION) if self._reads_interests else None
        fits = version == self.model.fusion_version
        encoder = user.values.get(ENCODER_VERSION) if self._reads_evidence else None
        fits_items = encoder == self._artifact.facts.item_encoder_version
        return Missing(
            user=USER_PROFILE not in user.views,
            behaviors=BEHAVIOR_SEQUENCE not in user.views or not user.values["item_ids"],
            interests=self._reads_interests and not (fits and user.values["fused"]),
            fusion_version_mismatch=None if fits else version,
            evidence=self._reads_evidence and not (fits_items and user.values[MEMORY_EVIDENCE]),
            evidence_version_mismatch=None if fits_items else encoder,
            items=tuple(
                name for name in dict.fromkeys(item_ids) if attributes[name] is None and name not in self._known
            ),
        )

    def _user_table(self, user: OnlineRow, *, missing: Missing) -> pa.Table:
        values = {name: [user.values[name]] for name in self._user_names}
        if self._reads_interests:
            values["fused"] = [None if missing.interests else user.values["fused"]]
        if self._reads_evidence:
            values |= {name: [None if missing.evidence else user.values[name]] for name in EVIDENCE_NAMES}
        return pa.table(values)

    def _new_window_items(self, user: OnlineRow) -> list[str]:
        """Return the items of the user's window that the run does not know, where it reads the vectors of items."""
        if self._spec.match is None:
            return []
        window = (user.values["item_ids"] or [])[-self._spec.sequence_length :]
        return [name for name in window if name not in self._known]

    def _vector(self, found: Attributes | None) -> Any:
        """Return the vector of an item's text, None where there is none of the run's encoder."""
        fits = found is not None and found.get(ENCODER_VERSION) == self._artifact.facts.item_encoder_version
        return found[ITEM_VECTOR] if found is not None and fits else None

    def _newer(self, attributes: Mapping[str, Attributes | None]) -> dict[str, Floats]:
        """Return the vectors of the items that the run does not know."""
        if self._spec.match is None:
            return {}
        vectors = {name: self._vector(found) for name, found in attributes.items() if name not in self._known}
        width = self._spec.match.width
        return {
            name: np.array(vector, np.float32)
            for name, vector in vectors.items()
            if vector is not None and len(vector) == width
        }

    def _item_table(self, item_ids: Sequence[str], *, attributes: Mapping[str, Attributes | None]) -> pa.Table | None:
        """Return the attributes of the candidates that the run does not know, nulls elsewhere; None if it knows all."""
        if self._known.issuperset(item_ids):
            return None
        rows = [None if name in self._known else attributes[name] for name in item_ids]
        columns = {name: [row and row[name] for row in rows] for name in self._item_names}
        if self._spec.match is not None:
            columns[ITEM_VECTOR] = [self._vector(row) for row in rows]
        return pa.table({**columns, ITEM: list(item_ids)})

    def _probabilities(
        self, user: pa.Table, *, item_ids: Sequence[str], attributes: Mapping[str, Attributes | None]
    ) -> npt.NDArray[np.float64]:
        table = self._item_table(item_ids, attributes=attributes)
        batch = self._spec.encode_request(user, item_ids=item_ids, attributes=table, newer=self._newer(attributes))
        scores = self._artifact.score(batch)
        if not np.isfinite(scores).all():
            raise ArtifactError(f"{self.model.run} gives a score that is not finite. Train it again.")
        return np.clip(scores.astype(np.float64), LEAST_SCORE, 1 - LEAST_SCORE)

    def _check_features(self) -> None:
        if self._spec.memory_kind == "knowledge":
            raise ArtifactError(
                f"{self.model.run} reads the texts of KAR, which are no features of the store: such runs are there to"
                " be compared. Serve a run of other features."
            )
        wanted = {*self._user_names, *(("fused", FUSION_VERSION) if self._reads_interests else ())}
        wanted |= {*EVIDENCE_NAMES, ENCODER_VERSION} if self._reads_evidence else set()
        of_items = {*self._item_names, *(() if self._spec.match is None else (ITEM_VECTOR, ENCODER_VERSION))}
        absent = sorted(wanted - self._features.user_features - {USER})
        absent += sorted(of_items - self._features.item_features - {ITEM})
        if absent:
            raise ArtifactError(
                f"feature service {self.model.feature_service!r} lacks the feature {absent[0]!r}, on which"
                f" {self.model.run} was trained. Train it again, or define the feature again and run `feast apply`."
            )

    def _check_fusion_version(self) -> None:
        published = self._features.published_fusion_versions() if self._reads_interests else frozenset()
        if published and self.model.fusion_version not in published:
            raise ArtifactError(
                f"{self.model.run} needs fused vectors of {self.model.fusion_version}, the store has those of"
                f" {', '.join(sorted(published))}. Run `liber fuse` with this run, or serve the run they belong to."
            )


def open_ranker(repo: Path, *, run: Path) -> Ranker:
    """Return a ranker of the run folder `run` over the feature repo `repo`.

    Raises:
        ArtifactError: the run folder cannot be used, or does not fit the store.
        StoreNotReady: the feature repo was never applied or cannot be read.
    """
    artifact = load_artifact(run)
    return Ranker(artifact, features=open_features(repo, service=artifact.feature_service))


def use_one_thread_per_forward() -> None:
    """Let a process compute each forward pass on one core; requests share the cores between them.

    A pass over a request is too small to be worth splitting: with two threads on two busy cores it took ten times
    as long as with one.
    """
    torch.set_num_threads(1)


def _title(attributes: Attributes | None) -> str | None:
    title: Any = None if attributes is None else attributes.get(TITLE)
    return title if isinstance(title, str) else None
