"""The interest stage on the memory: describe the partitions that wait, keep the texts that come."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import sqlalchemy as sa

from liber_feast.behavior import microseconds, moment_at
from liber_feast.interest import (
    SHIFT,
    SUMMARY,
    Answers,
    DescribedBehavior,
    Failure,
    InterestLearner,
    Item,
    ShiftRequest,
    SummaryRequest,
)
from liber_feast.memory import Memory
from liber_feast.memory.missing import MissingShift, missing_shifts, missing_summaries
from liber_feast.memory.texts import (
    FailedText,
    NewText,
    PartitionKey,
    SealedBehavior,
    SealedPartition,
    add_texts,
    keep_failures,
    newest_texts,
    sealed_behaviors,
    sealed_partitions,
)

PARTITIONS_PER_PIECE = 32
"""Partitions that are read at once: few, so that a learner that keeps calls in flight waits for no long read."""

_T = TypeVar("_T")
_R = TypeVar("_R", SummaryRequest, ShiftRequest)


class Catalog(Protocol):
    """What the feature repo says of items and users."""

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        """Return every item asked for, as it is now; one without attributes has its id alone."""
        ...

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        """Return items by (id, microseconds since 1970 UTC), as they were then."""
        ...

    def profiles_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """Return profiles by (user id, microseconds since 1970 UTC), as they were then; empty if nothing is known."""
        ...


@dataclass(kw_only=True, slots=True)
class MemoryWaves:
    """`TextMemory` over the memory database, for all users or for some (`user_keys`).

    What is missing is looked up once a wave: `pending_count` finds what the requests after it are made of.
    """

    memory: Memory
    catalog: Catalog
    learner: InterestLearner
    like_above: float
    clock: Callable[[], int]
    user_keys: Sequence[int] | None = None
    with_failed: bool = False
    """Whether partitions that failed are asked for once more."""
    is_held: Callable[[int], bool] = lambda _user_key: True
    """Whether nobody else works on a user; asked before each request, and one whose answer is no is passed over."""
    _summaries: list[PartitionKey] | None = None
    """Found by `pending_count` for the requests that follow."""
    _shifts: list[MissingShift] | None = None
    _asked: dict[tuple[str | int, int], SealedPartition] = field(default_factory=dict)

    def pending_count(self, stage: str) -> int:
        """Return how many texts of a stage can be asked for now."""
        if stage == SUMMARY:
            self._summaries = self._missing_summaries()
            return len(self._summaries)
        self._shifts = self._missing_shifts()
        return len(self._shifts)

    def summary_requests(self) -> Iterator[SummaryRequest]:
        """Yield the requests of all missing summaries, by user and index."""
        missing, self._summaries = self._summaries, None
        for some in _pieces(self._missing_summaries() if missing is None else missing):
            found = self._sealed(some, stage=SUMMARY)
            keys = [key for key in some if key in found]
            described = self._described(keys)
            sealed_at = {key: (found[key].user_id, microseconds(described[key][-1].event_time)) for key in keys}
            profiles = self.catalog.profiles_at(sealed_at.values())
            for key in keys:
                if not self.is_held(key[0]):
                    continue
                one = found[key]
                yield SummaryRequest(
                    user_id=self._remember(one),
                    partition_index=one.partition_index,
                    profile=profiles[sealed_at[key]],
                    behaviors=described[key],
                )

    def shift_requests(self) -> Iterator[ShiftRequest]:
        """Yield the requests of all missing shifts that can be made now, by user and index."""
        missing, self._shifts = self._shifts, None
        for piece in _pieces(self._missing_shifts() if missing is None else missing):
            found = self._sealed([(one.user_key, one.partition_index) for one in piece], stage=SHIFT)
            some = [one for one in piece if (one.user_key, one.partition_index) in found]
            keys = [(one.user_key, one.partition_index) for one in some]
            before = [(one.user_key, one.previous_partition_index) for one in some]
            both = list(dict.fromkeys([*before, *keys]))
            described = self._described(both) if self.learner.counts_behaviors else dict.fromkeys(both, ())
            with self.memory.reading() as connection:
                summaries = newest_texts(connection, both, stage=SUMMARY)
            for key, previous in zip(keys, before, strict=True):
                if not self.is_held(key[0]):
                    continue
                yield ShiftRequest(
                    user_id=self._remember(found[key]),
                    partition_index=key[1],
                    previous_partition_index=previous[1],
                    previous_summary=summaries[previous],
                    summary=summaries[key],
                    previous_behaviors=described[previous],
                    behaviors=described[key],
                )

    def keep_summaries(self, answers: Answers[SummaryRequest]) -> None:
        """Commit summaries and failures, in one transaction."""
        self._keep(answers, stage=SUMMARY)

    def keep_shifts(self, answers: Answers[ShiftRequest]) -> None:
        """Commit shifts and failures, in one transaction."""
        self._keep(answers, stage=SHIFT)

    def _keep(self, answers: Answers[_R], *, stage: str) -> None:
        created_time, new, failed = self.clock(), [], []
        for request, outcome in answers:
            partition = self._asked.pop((request.user_id, request.partition_index))
            if isinstance(outcome, Failure):
                failed.append(FailedText(partition=partition, stage=stage, failure=outcome))
                continue
            previous = request.previous_partition_index if isinstance(request, ShiftRequest) else None
            new.append(
                NewText(
                    partition=partition,
                    stage=stage,
                    learned=outcome,
                    prompt_version=self.learner.prompt_version,
                    model=self.learner.model,
                    created_time=created_time,
                    previous_partition_index=previous,
                )
            )

        def keep(connection: sa.Connection) -> None:
            add_texts(connection, new)
            keep_failures(connection, failed)

        self.memory.retrying(keep, what="texts")

    def _missing_summaries(self) -> list[PartitionKey]:
        with self.memory.reading() as connection:
            return missing_summaries(connection, user_keys=self.user_keys, with_failed=self.with_failed)

    def _missing_shifts(self) -> list[MissingShift]:
        with self.memory.reading() as connection:
            return missing_shifts(connection, user_keys=self.user_keys, with_failed=self.with_failed)

    def _sealed(self, keys: Sequence[PartitionKey], *, stage: str) -> dict[PartitionKey, SealedPartition]:
        with self.memory.reading() as connection:
            return sealed_partitions(connection, keys, stage=stage)

    def _remember(self, partition: SealedPartition) -> str:
        self._asked[partition.user_id, partition.partition_index] = partition
        return partition.user_id

    def _described(self, keys: Iterable[PartitionKey]) -> dict[PartitionKey, tuple[DescribedBehavior, ...]]:
        with self.memory.reading() as connection:
            found = sealed_behaviors(connection, keys)
        items = self.catalog.items_at({(one.item_id, one.event_time) for sealed in found.values() for one in sealed})
        return {key: tuple(self._describe(one, items) for one in sealed) for key, sealed in found.items()}

    def _describe(self, behavior: SealedBehavior, items: Mapping[tuple[str, int], Item]) -> DescribedBehavior:
        return DescribedBehavior(
            item=items[behavior.item_id, behavior.event_time],
            rating=behavior.rating,
            liked=behavior.rating > self.like_above,
            event_time=moment_at(behavior.event_time),
        )


def _pieces(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(values), PARTITIONS_PER_PIECE):
        yield values[start : start + PARTITIONS_PER_PIECE]
