"""The stage `evidence` on the memory: vectors of items, and the evidence of every sealed partition that has none.

No text of a summary or shift is needed, so none is waited for. The attributes of an item are those as of the behavior.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import sqlalchemy as sa

from liber_feast.evidence import PartitionEvidence, partition_evidence
from liber_feast.interest import Item, Progress
from liber_feast.item_encoding import ItemEncoding, check_in_use
from liber_feast.memory import Memory
from liber_feast.memory.clock import now_us
from liber_feast.memory.evidence import add_evidence, partitions_without_evidence
from liber_feast.memory.item_vectors import ItemKey, known_item_texts, put_item_texts
from liber_feast.memory.settings import setting
from liber_feast.memory.texts import PartitionKey, SealedBehavior, sealed_behaviors, text_hash
from liber_feast.pca import FrozenPca

PARTITIONS_PER_COMMIT = 512


class ItemCatalog(Protocol):
    """What the feature repo says of items."""

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        """Return items by (id, microseconds since 1970 UTC), as they were then."""
        ...

    def item_versions(self, item_ids: Iterable[str] | None = None) -> Iterator[tuple[str, int, Item]]:
        """Yield every version of the items that are described, of all or of some: id, time in microseconds, item."""
        ...


@dataclass(kw_only=True, slots=True)
class EvidenceCounts:
    """What a run of the stage made."""

    item_count: int = 0
    """Texts of items that went through BERT."""
    partition_count: int = 0
    encoder_version: str | None = None
    """Of the PCA that made them; None: there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceStage:
    """Everything the stage needs."""

    memory: Memory
    catalog: ItemCatalog
    encoding: ItemEncoding
    like_above: float
    """A rating above this is a like."""

    def run(self, *, user_keys: Sequence[int] | None, progress: Progress) -> EvidenceCounts:
        """Make the evidence that is missing, of all users or of some, and the vectors of items.

        Of all users: of every item that is described; of some: of those in their partitions. While there are fewer
        distinct texts of items than the PCA is wide nothing is made, and `encoding.missing_count` is set. The first
        evidence is that of all users.

        Raises:
            ConfigError, EncoderError: the model or the PCA cannot be used.
            RetryableError: the memory is locked or away, or another process brought in another PCA.
        """
        counts, pca = EvidenceCounts(), self.encoding.pca_of(self.memory)
        with self.memory.reading() as connection:
            has_behaviors = setting(connection, "item_id_type") is not None
        if not has_behaviors:
            return counts
        if pca is None:
            texts = self._every_text()
            pca, user_keys = self.encoding.fit(self.memory, texts, progress=progress), None
            if pca is None:
                return counts
            counts.item_count += pca.fitted_text_count
        counts.encoder_version = pca.version
        self.encoding.missing_count = 0  # another process may have fitted it
        if user_keys is None:
            counts.item_count += self._show_items(None, pca=pca, progress=progress)
        with self.memory.reading() as connection:
            missing = partitions_without_evidence(connection, pca.version, user_keys=user_keys)
        for start in range(0, len(missing), PARTITIONS_PER_COMMIT):
            some = missing[start : start + PARTITIONS_PER_COMMIT]
            counts.item_count += self._fill(some, pca=pca, with_items=user_keys is not None, progress=progress)
            progress("partitions with evidence", len(some), len(missing))
        counts.partition_count = len(missing)
        return counts

    def _fill(self, keys: Sequence[PartitionKey], *, pca: FrozenPca, with_items: bool, progress: Progress) -> int:
        """Make the evidence of partitions; return how many texts of items went through BERT."""
        with self.memory.reading() as connection:
            behaviors = sealed_behaviors(connection, keys)
        wanted = {(one.item_id, one.event_time) for some in behaviors.values() for one in some}
        texts = {key: self.encoding.text_of(item) for key, item in self.catalog.items_at(wanted).items()}
        hashes = {key: text_hash(text) for key, text in texts.items()}
        by_hash = {hashes[key]: text for key, text in texts.items()}
        vectors, count = self.encoding.encode(self.memory, by_hash, pca=pca, progress=progress)
        read = {key: np.frombuffer(vectors[hashes[key]], "<f4") for key in wanted}
        # A forgotten user has no behaviors any more.
        found = {key: self._evidence(some, vectors=read) for key, some in behaviors.items() if some}

        def keep(connection: sa.Connection) -> None:
            check_in_use(connection, pca.version)
            add_evidence(connection, found, encoder_version=pca.version)

        self.memory.retrying(keep, what="evidence")
        if with_items:
            count += self._show_items(sorted({item_id for item_id, _ in wanted}), pca=pca, progress=progress)
        return count

    def _evidence(
        self, behaviors: Sequence[SealedBehavior], *, vectors: Mapping[ItemKey, "np.typing.NDArray[np.float32]"]
    ) -> PartitionEvidence:
        stacked = np.stack([vectors[one.item_id, one.event_time] for one in behaviors])
        return partition_evidence(stacked, liked=np.array([one.rating > self.like_above for one in behaviors]))

    def _show_items(self, item_ids: Sequence[str] | None, *, pca: FrozenPca, progress: Progress) -> int:
        """Let the versions of items be published that are not, or have another text by now; return as `_fill`.

        An item whose id no behavior can have, because those are whole numbers, is passed over.
        """
        with self.memory.reading() as connection:
            known, kind = known_item_texts(connection, item_ids), setting(connection, "item_id_type")
        versions = self.catalog.item_versions(item_ids)
        is_id = _is_whole if kind == "int64" else bool
        texts = {(item_id, time): self.encoding.text_of(item) for item_id, time, item in versions if is_id(item_id)}
        hashes = {key: text_hash(text) for key, text in texts.items()}
        changed = {key: one for key, one in sorted(hashes.items()) if known.get(key) != one}
        if not changed:
            return 0
        by_hash = {hashes[key]: texts[key] for key in changed}
        _, count = self.encoding.encode(self.memory, by_hash, pca=pca, progress=progress)

        def put(connection: sa.Connection) -> None:
            check_in_use(connection, pca.version)
            put_item_texts(connection, changed, encoder_version=pca.version, created_time=now_us(connection))

        self.memory.retrying(put, what="item_texts")
        return count

    def _every_text(self) -> dict[str, str]:
        """Return the texts of all items by their hashes."""
        texts = {self.encoding.text_of(item) for _, _, item in self.catalog.item_versions()}
        return {text_hash(text): text for text in texts}


def _is_whole(item_id: str) -> bool:
    """Return whether an id is that of a whole number as the memory writes it."""
    try:
        number = int(item_id)
    except ValueError:
        return False
    return str(number) == item_id and -(2**63) <= number < 2**63
