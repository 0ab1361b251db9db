"""The interest stage on the memory: describe the partitions that wait, keep the texts that come."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from liber_feast.interest import (
    DescribedBehavior,
    InterestLearner,
    Item,
    LearnedText,
    ShiftRequest,
    SummaryRequest,
)
from liber_feast.memory import Memory
from liber_feast.memory.texts import (
    SHIFT,
    SUMMARY,
    NewText,
    PartitionKey,
    SealedBehavior,
    SealedPartition,
    add_text,
    missing_shifts,
    missing_summaries,
    sealed_behaviors,
)

PARTITIONS_PER_PIECE = 1_000

_T = TypeVar("_T")


class Catalog(Protocol):
    """What the feature repo says of items and users."""

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        """Return every item asked for; one without attributes has its id alone."""
        ...

    def profiles(self, user_ids: Iterable[str]) -> Mapping[str, str]:
        """Return every profile asked for; empty where nothing is known."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryWaves:
    """`TextMemory` over the memory database, for all users or for some (`user_keys`)."""

    memory: Memory
    catalog: Catalog
    learner: InterestLearner
    like_above: float
    clock: Callable[[], int]
    user_keys: Sequence[int] | None = None
    _waiting: dict[tuple[str | int, int], SealedPartition] = field(default_factory=dict)

    def summary_requests(self) -> Iterator[Sequence[SummaryRequest]]:
        """Yield the requests of all missing summaries, in pieces."""
        with self.memory.reading() as connection:
            waiting = missing_summaries(connection, user_keys=self.user_keys)
        for some in _pieces(waiting):
            profiles = self.catalog.profiles({one.user_id for one in some})
            described = self._described(_key(one) for one in some)
            yield [
                SummaryRequest(
                    user_id=self._remember(one),
                    partition_index=one.partition_index,
                    profile=profiles[one.user_id],
                    behaviors=described[_key(one)],
                )
                for one in some
            ]

    def shift_requests(self) -> Iterator[Sequence[ShiftRequest]]:
        """Yield the requests of all missing shifts whose summaries are there, in pieces."""
        with self.memory.reading() as connection:
            waiting = missing_shifts(connection, user_keys=self.user_keys)
        for some in _pieces(waiting):
            before = [(one.partition.user_key, one.previous_partition_index) for one in some]
            described = self._described([*before, *(_key(one.partition) for one in some)])
            yield [
                ShiftRequest(
                    user_id=self._remember(one.partition),
                    partition_index=one.partition.partition_index,
                    previous_partition_index=one.previous_partition_index,
                    previous_summary=one.previous_summary,
                    summary=one.summary,
                    previous_behaviors=described[previous],
                    behaviors=described[_key(one.partition)],
                )
                for one, previous in zip(some, before, strict=True)
            ]

    def keep_summary(self, request: SummaryRequest, learned: LearnedText) -> None:
        """Commit one summary."""
        self._keep(request, learned, stage=SUMMARY, previous_partition_index=None)

    def keep_shift(self, request: ShiftRequest, learned: LearnedText) -> None:
        """Commit one shift."""
        self._keep(request, learned, stage=SHIFT, previous_partition_index=request.previous_partition_index)

    def _keep(
        self,
        request: SummaryRequest | ShiftRequest,
        learned: LearnedText,
        *,
        stage: str,
        previous_partition_index: int | None,
    ) -> None:
        new = NewText(
            partition=self._waiting.pop((request.user_id, request.partition_index)),
            stage=stage,
            learned=learned,
            prompt_version=self.learner.prompt_version,
            model=self.learner.model,
            created_time=self.clock(),
            previous_partition_index=previous_partition_index,
        )
        with self.memory.writing() as connection:
            add_text(connection, new)

    def _remember(self, partition: SealedPartition) -> str:
        self._waiting[partition.user_id, partition.partition_index] = partition
        return partition.user_id

    def _described(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, tuple[DescribedBehavior, ...]]:
        with self.memory.reading() as connection:
            found = sealed_behaviors(connection, keys)
        items = self.catalog.items({one.item_id for sealed in found.values() for one in sealed})
        return {key: tuple(self._describe(one, items) for one in sealed) for key, sealed in found.items()}

    def _describe(self, behavior: SealedBehavior, items: Mapping[str, Item]) -> DescribedBehavior:
        return DescribedBehavior(
            item=items[behavior.item_id],
            rating=behavior.rating,
            liked=behavior.rating > self.like_above,
            event_time=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=behavior.event_time),
        )


def _key(partition: SealedPartition) -> PartitionKey:
    return partition.user_key, partition.partition_index


def _pieces(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), PARTITIONS_PER_PIECE):
        yield values[start : start + PARTITIONS_PER_PIECE]
