"""Learners that fail, run out of budget or change their mind, and a store of rows, for the tests of what comes late."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlalchemy as sa

from liber_feast.delta import DeltaSink
from liber_feast.errors import BudgetExhausted
from liber_feast.fuser import mean_fuser
from liber_feast.interest import (
    SHIFT,
    SUMMARY,
    Answers,
    Failure,
    LearnedText,
    Outcome,
    Request,
    ShiftRequest,
    SummaryRequest,
    WaveCounts,
    learn,
)
from liber_feast.memory import Memory
from liber_feast.memory.missing import mark_recomputations
from liber_feast.memory.schema import texts
from liber_feast.memory.vectors import add_vectors, texts_without_vector
from liber_feast.publish import VIEWS, Publisher
from tests.memory_parts import EchoLearner, OnlineRows, TickingClock, no_progress, waves_of

VERSION = "hashed"
"""The encoder version of `encode`."""


@dataclass(kw_only=True)
class FaultyLearner(EchoLearner):
    """Fails at the texts in `broken`, and has budget for `budget` answers; `says` is added to what it echoes."""

    broken: Collection[tuple[str, str | int, int]] = ()
    """(stage, user, partition index)"""
    budget: int | None = None
    group_size: int = 1
    asked: list[tuple[str, str | int, int]] = field(default_factory=list)

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        def text(one: SummaryRequest) -> str:
            return f"{one.user_id} likes {', '.join(str(behavior.item.title) for behavior in one.behaviors)}"

        return self._answers(requests, stage=SUMMARY, text=text)

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        def text(one: ShiftRequest) -> str:
            return f"{one.user_id} moved from ({one.previous_summary}) to ({one.summary})"

        return self._answers(requests, stage=SHIFT, text=text)

    def _answers(
        self, requests: Iterable[Request], *, stage: str, text: Callable[[Request], str]
    ) -> Iterator[Sequence[tuple[Request, Outcome]]]:
        group: list[tuple[Request, Outcome]] = []
        for one in requests:
            if self.budget == 0:
                yield group
                raise BudgetExhausted("The budget is out.", limit="the calls of this run")
            self.budget = None if self.budget is None else self.budget - 1
            place = (stage, one.user_id, one.partition_index)
            self.asked.append(place)
            group.append((one, self._outcome(text(one), is_broken=place in self.broken)))
            if len(group) == self.group_size:
                yield group
                group = []
        yield group

    def _outcome(self, text: str, *, is_broken: bool) -> Outcome:
        if is_broken:
            return Failure(reason="answer cut off at 256 tokens", attempt_count=2)
        return LearnedText(text=text + (self.says or ""), input_tokens=3, output_tokens=2)


@dataclass(kw_only=True)
class Runs:
    """Runs of learners on one memory, by one clock; what each asked for."""

    memory: Memory
    clock: TickingClock = field(default_factory=TickingClock)
    counts: WaveCounts = field(default_factory=WaveCounts)
    """Of the last run."""

    def learn(
        self, learner: EchoLearner, *, with_failed: bool = False, user_keys: Sequence[int] | None = None
    ) -> EchoLearner:
        waves = waves_of(self.memory, learner, user_keys=user_keys)
        waves = replace(waves, clock=self.clock, with_failed=with_failed)
        self.counts = learn(learner, waves, progress=no_progress)
        return learner

    def asked(
        self,
        *,
        broken: Collection[tuple[str, str | int, int]] = (),
        budget: int | None = None,
        says: str | None = None,
        with_failed: bool = False,
    ) -> list[tuple[str, str | int, int]]:
        """Learn and return the texts that were asked for."""
        learner = FaultyLearner(broken=broken, budget=budget, says=says)
        self.learn(learner, with_failed=with_failed)
        return learner.asked


def mark(
    memory: Memory,
    *,
    since: int = 0,
    stages: Sequence[str] = (SUMMARY, SHIFT),
    prompt_version: str = EchoLearner.prompt_version,
    model: str = EchoLearner.model,
) -> int:
    """Let texts be written anew, right after the newest one was written; return how many."""
    with memory.writing() as connection:
        newest = connection.scalar(sa.select(sa.func.max(texts.c.created_time))) or 0
        return mark_recomputations(
            connection,
            since=since,
            stages=stages,
            asked_time=newest + 1,
            prompt_version=prompt_version,
            model=model,
        )


def encode(memory: Memory, *, version: str = VERSION) -> None:
    """Give every text without a vector one of two numbers that depend on it alone."""
    with memory.writing() as connection:
        waiting = texts_without_vector(connection, version)
        vectors = {text_id: vector_of(text) for text, ids in waiting.values() for text_id in ids}
        add_vectors(connection, {key: one.tobytes() for key, one in vectors.items()}, encoder_version=version)


def vector_of(text: str) -> npt.NDArray[np.float32]:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=2).digest(), np.uint8).astype("<f4")


@dataclass(frozen=True, kw_only=True)
class RowSink(DeltaSink):
    """A table in main memory that takes each numbered commit once, as a Delta table does."""

    rows: list[dict[str, object]] = field(default_factory=list)
    made: list[int] = field(default_factory=list)

    def is_made(self) -> bool:
        return bool(self.made)

    def make(self, rows: pa.Table) -> None:
        self.made.append(0)

    def last_number(self, app_id: str) -> int | None:
        return max(self.made, default=None)

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        if version <= max(self.made, default=0):
            return False
        self.made.append(version)
        self.rows.extend(rows.to_pylist())
        return True


def publisher_into(
    sinks: Mapping[str, DeltaSink],
    memory: Memory,
    *,
    online: OnlineRows,
    clock: Callable[[], int],
    version: str = VERSION,
    executor: Callable[[int], Executor] = ThreadPoolExecutor,
) -> Publisher:
    """Return a publisher of the mean over two partitions."""
    return Publisher(
        memory=memory,
        tables=sinks,
        online=online,
        fuser=lambda _encoder_version: mean_fuser(width=4),
        encoder_version=version,
        vector_width=2,
        memory_window=2,
        sequence_length=3,
        clock=clock,
        executor=executor,
    )


def row_sinks(*, made: bool = False) -> dict[str, RowSink]:
    """Return a sink of each stage, empty, and with or without its table."""
    return {stage: RowSink(path=Path(view), made=[0] if made else []) for stage, view in VIEWS.items()}
