"""Score candidates for users: online features in, probabilities out. Knows no web framework.

Questions that are asked together cost one read of users, at most one of items, and one forward pass. A fused vector is
only ever scored with the fusion weights that made it, and evidence with item vectors of its own encoder: a row of
another version counts as none, and the ranking says so. A store that does not answer counts as one that has no row: the
scores are those of an unknown user, and the ranking says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from liber_feast.artifact import Artifact, load_artifact
from liber_feast.behavior import ITEM, USER
from liber_feast.errors import ArtifactError, OnlineStoreAway
from liber_feast.evidence_rows import ITEM_VECTOR, MEMORY_COUNT, MEMORY_EVIDENCE, MEMORY_LIKE_RATE
from liber_feast.fields import Floats
from serving.answers import Missing, Question, Ranking, ScoredItem, ServedModel
from serving.catalog import Attributes, ItemCatalog
from serving.known_items import KnownItems
from serving.online import (
    BEHAVIOR_SEQUENCE,
    FUSION_VERSION,
    USER_PROFILE,
    FeatureReader,
    OnlineRow,
    open_features,
)
from serving.versions import (
    BEHAVIOR_NAMES,
    ENCODER_VERSION,
    EVIDENCE_NAMES,
    check_features,
    check_schema,
    check_versions,
    reads_evidence,
    reads_interests,
)

TITLE = "title"
READ_TYPES = {
    "item_ids": pa.large_list(pa.string()),
    "ratings": pa.large_list(pa.float64()),
    "times": pa.large_list(pa.int64()),
    "behavior_count": pa.float64(),
    "fused": pa.large_list(pa.float32()),
    MEMORY_EVIDENCE: pa.large_list(pa.float32()),
    MEMORY_LIKE_RATE: pa.float64(),
    MEMORY_COUNT: pa.float64(),
}
"""The types in which `InputSpec` reads columns of users: what has them already is not converted."""
LEAST_SCORE = 2.0**-25
"""Scores stay this far from 0 and 1, which the sigmoid of a large logit reaches in 32 bits."""


class Ranker:
    """A trained run over the online features it was trained on; safe to use from several threads."""

    def __init__(self, artifact: Artifact, *, features: FeatureReader) -> None:
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
        self._reads_interests, self._reads_evidence = reads_interests(artifact), reads_evidence(artifact)
        self._known = KnownItems(self._spec, table_of=self._item_table)
        self._user_names = (*BEHAVIOR_NAMES, *(field.name for field in self._spec.user_fields))
        self._item_names = tuple(field.name for field in self._spec.item_fields)
        self._features, self._catalog = features, ItemCatalog(features)
        check_features(artifact, features=features)
        check_versions(artifact, features=features)
        self.score("", item_ids=[""])  # an id nobody has: weights that cannot score fail now, not in a request

    def score(self, user_id: str, *, item_ids: Sequence[str]) -> Ranking:
        """Score each of `item_ids` for one user; what is unknown is scored as unknown and named in the ranking."""
        return self.score_all([Question(user_id=user_id, item_ids=tuple(item_ids))])[0]

    def score_all(self, questions: Sequence[Question]) -> list[Ranking]:
        """Answer several questions, in their order, with one forward pass."""
        users, is_away = self._users([question.user_id for question in questions])
        asked = [name for question in questions for name in question.item_ids]
        attributes = self._catalog.attributes([*asked, *(name for user in users for name in self._new_items(user))])
        missing = [
            self._missing(user, item_ids=question.item_ids, attributes=attributes, is_away=is_away)
            for user, question in zip(users, questions, strict=True)
        ]
        counts = [len(question.item_ids) for question in questions]
        scores = self._probabilities(
            self._user_table(users, missing=missing),
            user_rows=np.repeat(np.arange(len(users)), counts),
            item_ids=asked,
            attributes=attributes,
        )
        ends = np.cumsum(counts)[:-1]
        return [
            Ranking(
                user_id=question.user_id,
                scores=tuple(
                    ScoredItem(item_id=name, score=score, title=_title(attributes[name]))
                    for name, score in zip(question.item_ids, found.tolist(), strict=True)
                ),
                missing=lacking,
                model=self.model,
            )
            for question, lacking, found in zip(questions, missing, np.split(scores, ends), strict=True)
        ]

    def check_store(self) -> None:
        """Check that the store still fits the run.

        Raises:
            ArtifactError: a feature of the run is gone or changed, or what is published is of other versions only.
            OnlineStoreAway: it does not answer.
        """
        self._features.users(["\0"])
        check_schema(self._artifact, features=self._features)
        check_versions(self._artifact, features=self._features)

    def _users(self, user_ids: Sequence[str]) -> tuple[list[OnlineRow], bool]:
        """Return the rows of users, and whether the store was away; then they are empty."""
        try:
            return self._features.users(user_ids), False
        except OnlineStoreAway:
            nothing = dict.fromkeys(self._features.user_features)
            return [OnlineRow(values={**nothing, USER: name}, views=frozenset()) for name in user_ids], True

    def _missing(
        self,
        user: OnlineRow,
        *,
        item_ids: Sequence[str],
        attributes: Mapping[str, Attributes | None],
        is_away: bool,
    ) -> Missing:
        version = user.values.get(FUSION_VERSION) if self._reads_interests else None
        fits = version == self.model.fusion_version
        encoder = user.values.get(ENCODER_VERSION) if self._reads_evidence else None
        fits_items = encoder == self._artifact.facts.item_encoder_version
        return Missing(
            store=is_away,
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

    def _user_table(self, users: Sequence[OnlineRow], *, missing: Sequence[Missing]) -> pa.Table:
        values = {name: [user.values[name] for user in users] for name in self._user_names}
        pairs = list(zip(users, missing, strict=True))
        if self._reads_interests:
            values["fused"] = [None if lacking.interests else user.values["fused"] for user, lacking in pairs]
        if self._reads_evidence:
            for name in EVIDENCE_NAMES:
                values[name] = [None if lacking.evidence else user.values[name] for user, lacking in pairs]
        return pa.table({name: pa.array(given, READ_TYPES.get(name)) for name, given in values.items()})

    def _new_items(self, user: OnlineRow) -> list[str]:
        """Return the items of the user's window that the run does not know, where it reads the vectors of items."""
        if self._spec.match is None:
            return []
        window = (user.values["item_ids"] or [])[-self._spec.sequence_length :]
        return [name for name in window if name not in self._known]

    def _vector(self, found: Attributes | None) -> Any:
        """Return the vector of an item's text, None where there is none of the run's encoder and width."""
        if found is None or self._spec.match is None:
            return None
        fits = found.get(ENCODER_VERSION) == self._artifact.facts.item_encoder_version
        vector = found[ITEM_VECTOR] if fits else None
        return vector if vector is not None and len(vector) == self._spec.match.width else None

    def _newer(self, attributes: Mapping[str, Attributes | None]) -> dict[str, Floats]:
        """Return the vectors of the items that the run does not know."""
        if self._spec.match is None:
            return {}
        vectors = {name: self._vector(found) for name, found in attributes.items() if name not in self._known}
        return {name: np.array(vector, np.float32) for name, vector in vectors.items() if vector is not None}

    def _item_table(self, item_ids: Sequence[str], rows: Sequence[Attributes | None]) -> pa.Table:
        """Return the columns that the run reads of items from what the store has of them."""
        columns = {name: [row and row[name] for row in rows] for name in self._item_names}
        if self._spec.match is not None:
            columns[ITEM_VECTOR] = [self._vector(row) for row in rows]
        return pa.table({**columns, ITEM: list(item_ids)})

    def _probabilities(
        self,
        users: pa.Table,
        *,
        user_rows: npt.NDArray[np.int64],
        item_ids: Sequence[str],
        attributes: Mapping[str, Attributes | None],
    ) -> npt.NDArray[np.float64]:
        as_read = np.array(self._known.is_as_read(item_ids, attributes=attributes))
        table = None
        if as_read.any():
            rows = [attributes[name] if read else None for name, read in zip(item_ids, as_read, strict=True)]
            table = self._item_table(item_ids, rows)
        batch = self._spec.encode_request(
            users,
            item_ids=item_ids,
            user_rows=user_rows,
            attributes=table,
            as_read=as_read,
            newer=self._newer(attributes),
        )
        scores = self._artifact.score(batch)
        if not np.isfinite(scores).all():
            raise ArtifactError(f"{self.model.run} gives a score that is not finite. Train it again.")
        return np.clip(scores.astype(np.float64), LEAST_SCORE, 1 - LEAST_SCORE)


def open_ranker(repo: Path, *, run: Path) -> Ranker:
    """Return a ranker of the run folder `run` over the feature repo `repo`, whose reads take as long as they take.

    Raises:
        ArtifactError: the run folder cannot be used, or does not fit the store.
        StoreNotReady: the feature repo was never applied or cannot be read.
    """
    artifact = load_artifact(run)
    return Ranker(artifact, features=open_features(repo, service=artifact.feature_service))


def _title(attributes: Attributes | None) -> str | None:
    title: Any = None if attributes is None else attributes.get(TITLE)
    return title if isinstance(title, str) else None
