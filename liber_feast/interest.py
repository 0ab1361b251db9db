"""Learn the interest of sealed partitions: the summary wave, then the shift wave (LIBER, equations 2 and 3).

A summary needs one partition; a shift needs two summaries of the same user. So a run has exactly two waves
over all users, whatever their number: every missing summary, then every missing shift.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeAlias, TypeVar

from liber_feast.errors import BackendRefused, BackendUnreachable, BudgetExhausted

SUMMARY, SHIFT = "summary", "shift"
"""The two stages."""

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

    An LLM sees the summaries alone; `behaviors` of both partitions are there for learners that count them, else empty.
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
    attempt_count: int = 1
    """Calls it took, this one included."""
    is_shortened: bool = False
    """Whether the prompt was too long as it was, and left something out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A text that could not be had."""

    reason: str
    """One line that quotes neither a user, a behavior nor a prompt, for example `answer cut off at 256 tokens`."""
    attempt_count: int
    """Calls made for it; 0 where no call was worth making."""


Request: TypeAlias = SummaryRequest | ShiftRequest
Outcome: TypeAlias = LearnedText | Failure

_R = TypeVar("_R", SummaryRequest, ShiftRequest)

Answers: TypeAlias = Sequence[tuple[_R, Outcome]]
"""Answers that arrived together, each beside its request."""


class InterestLearner(Protocol):
    """A backend that writes summaries and shifts.

    Both methods take requests as they need them and yield answers in groups as they arrive, in any order, every
    request once. The caller keeps a group before it asks for the next: until then its calls count as in flight.
    Both raise BudgetExhausted, after the answers of the calls in flight, where the budget allows no further call, and
    BackendRefused or BackendUnreachable where no further call can succeed.
    """

    @property
    def model(self) -> str:
        """The name under which texts are recorded, for example `extractive-1` or an LLM's name."""
        ...

    @property
    def prompt_version(self) -> str:
        """The version of the prompt template: its name and content hash."""
        ...

    @property
    def counts_behaviors(self) -> bool:
        """Whether a shift is made of the behaviors, and not of the two summaries alone."""
        ...

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        """Write one summary per request (equation 2)."""
        ...

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        """Write one shift per request (equation 3)."""
        ...


class TextMemory(Protocol):
    """Where partitions wait for their texts and where the texts are kept."""

    def pending_count(self, stage: str) -> int:
        """Return how many texts of a stage can be asked for now."""
        ...

    def summary_requests(self) -> Iterator[SummaryRequest]:
        """Yield the requests of all missing summaries."""
        ...

    def shift_requests(self) -> Iterator[ShiftRequest]:
        """Yield the requests of all missing shifts whose summaries are kept."""
        ...

    def keep_summaries(self, answers: Answers[SummaryRequest]) -> None:
        """Commit summaries and failures, in one transaction."""
        ...

    def keep_shifts(self, answers: Answers[ShiftRequest]) -> None:
        """Commit shifts and failures, in one transaction."""
        ...


@dataclass(kw_only=True, slots=True)
class WaveCounts:
    """What both waves of a run came to."""

    summary_count: int = 0
    shift_count: int = 0
    failed_count: int = 0
    """Texts that could not be had, of both stages."""
    shortened_count: int = 0
    """Texts whose prompt left something out."""
    exhausted: BudgetExhausted | None = None
    """The limit at which the run stopped before all was asked for; None: it did not."""
    stopped: BackendRefused | BackendUnreachable | None = None
    """Why no further call could succeed; None: they could."""


def learn(learner: InterestLearner, memory: TextMemory, *, progress: Progress) -> WaveCounts:
    """Run both waves: every missing summary, then every missing shift; texts are kept as they arrive.

    A second run makes no call. Where the budget is out, or no further call can succeed, what has arrived is kept and
    the rest is left.
    """
    counts = WaveCounts()
    try:
        total = memory.pending_count(SUMMARY)
        for summaries in learner.summarize(memory.summary_requests()):
            memory.keep_summaries(summaries)
            counts.summary_count += _tally(summaries, counts)
            progress("summaries", len(summaries), total)
        total = memory.pending_count(SHIFT)
        for shifts in learner.learn_shifts(memory.shift_requests()):
            memory.keep_shifts(shifts)
            counts.shift_count += _tally(shifts, counts)
            progress("shifts", len(shifts), total)
    except BudgetExhausted as error:
        counts.exhausted = error
    except (BackendRefused, BackendUnreachable) as error:
        counts.stopped = error
    return counts


def _tally(answers: Answers[_R], counts: WaveCounts) -> int:
    """Count failures and shortened prompts; return the number of texts."""
    texts = [outcome for _, outcome in answers if isinstance(outcome, LearnedText)]
    counts.failed_count += len(answers) - len(texts)
    counts.shortened_count += sum(one.is_shortened for one in texts)
    return len(texts)
