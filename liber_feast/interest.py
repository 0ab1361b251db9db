"""Learn the interest of sealed partitions: the summary wave, then the shift wave (LIBER, equations 2 and 3).

A summary needs one partition; a shift needs two summaries of the same user. So a run has exactly two waves
over all users, whatever their number: every missing summary, then every missing shift.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias

Progress: TypeAlias = Callable[[str, int, int | None], object]
"""Called as work is done: the stage, how much of it is done now, how much there is in all (None: not known)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What the item source says of an item; an item without attributes has its id alone."""

    item_id: str | int
    title: str | None = None
    categories: tuple[str, ...] = ()
    period: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Further text columns of the item source by name, for example `creator` or `brand`; no nulls, no empties."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedBehavior:
    """One behavior beside its item, as an interest learner sees it."""

    item: Item
    rating: float
    liked: bool
    event_time: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryRequest:
    """Equation 2: one sealed partition and its user's profile (empty where there is none)."""

    user_id: str | int
    partition_index: int
    profile: str
    behaviors: tuple[DescribedBehavior, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftRequest:
    """Equation 3: the summaries of a partition and of the one before it.

    An LLM sees the summaries alone; `behaviors` of both partitions are there for learners that count.
    """

    user_id: str | int
    partition_index: int
    previous_partition_index: int
    previous_summary: str
    summary: str
    previous_behaviors: tuple[DescribedBehavior, ...]
    behaviors: tuple[DescribedBehavior, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedText:
    """A learner's answer and what it cost."""

    text: str
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


class InterestLearner(Protocol):
    """A backend that writes summaries and shifts.

    Both methods yield (position in `requests`, answer) as answers arrive, in any order, each position once.
    """

    @property
    def model(self) -> str:
        """The name under which texts are recorded, for example `extractive-1` or an LLM's name."""
        ...

    @property
    def prompt_version(self) -> str:
        """The version of the prompt template: its name and content hash."""
        ...

    def summarize(self, requests: Sequence[SummaryRequest]) -> Iterator[tuple[int, LearnedText]]:
        """Write one summary per request (equation 2)."""
        ...

    def learn_shifts(self, requests: Sequence[ShiftRequest]) -> Iterator[tuple[int, LearnedText]]:
        """Write one shift per request (equation 3)."""
        ...


class TextMemory(Protocol):
    """Where partitions wait for their texts and where the texts are kept."""

    def summary_requests(self) -> Iterator[Sequence[SummaryRequest]]:
        """Yield the requests of all missing summaries, in pieces of a bounded size."""
        ...

    def shift_requests(self) -> Iterator[Sequence[ShiftRequest]]:
        """Yield the requests of all missing shifts whose summaries are kept, in pieces of a bounded size."""
        ...

    def keep_summary(self, request: SummaryRequest, learned: LearnedText) -> None:
        """Commit one summary."""
        ...

    def keep_shift(self, request: ShiftRequest, learned: LearnedText) -> None:
        """Commit one shift."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveCounts:
    """How many calls each wave made; one call is one text."""

    summary_count: int
    shift_count: int


def learn(learner: InterestLearner, memory: TextMemory, *, progress: Progress) -> WaveCounts:
    """Run both waves: every missing summary, then every missing shift; each text is kept as it arrives.

    A second run makes no call.
    """
    summary_count = shift_count = 0
    for summaries in memory.summary_requests():
        for position, learned in learner.summarize(summaries):
            memory.keep_summary(summaries[position], learned)
            summary_count += 1
            progress("summaries", 1, None)
    for shifts in memory.shift_requests():
        for position, learned in learner.learn_shifts(shifts):
            memory.keep_shift(shifts[position], learned)
            shift_count += 1
            progress("shifts", 1, None)
    return WaveCounts(summary_count=summary_count, shift_count=shift_count)
