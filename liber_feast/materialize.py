"""The job: append behaviors, then drain what waits: texts, vectors, fused vectors, published.

Every step commits what it did before the next begins, and looks in the memory for what is missing. So a second
run does nothing, and a run after a crash does what was not yet committed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from liber_feast.behavior import CheckedBehaviors, microseconds
from liber_feast.encoding import Encoding
from liber_feast.errors import BackendRefused, BackendUnreachable
from liber_feast.fuser import Fuser
from liber_feast.interest import InterestLearner, Progress, learn
from liber_feast.llm_backend import OpenedLlm
from liber_feast.memory import Appended, Memory
from liber_feast.memory.spending import run_spent
from liber_feast.memory.store import FUSION_FOLDER
from liber_feast.partition import Condition, DriftCondition
from liber_feast.pending import PendingGauge
from liber_feast.publish import DeltaSink, OnlineSink, Publisher
from liber_feast.title_vectors import TitleVectors
from liber_feast.waves import Catalog, MemoryWaves


def utc_microseconds() -> int:
    """Return the time of the clock, microseconds since 1970 UTC."""
    return microseconds(datetime.now(UTC))


@dataclass(kw_only=True, slots=True)
class Report:
    """What a run did: counts, and seconds by stage."""

    behavior_count: int = 0
    duplicate_count: int = 0
    late_count: int = 0
    sealed_count: int = 0
    summary_count: int = 0
    shift_count: int = 0
    encoded_count: int = 0
    missing_text_count: int = 0
    """Texts that are still missing before the PCA can be fitted and vectors made; 0 once it is."""
    failed_count: int = 0
    """Texts that could not be had."""
    shortened_count: int = 0
    """Texts whose prompt left something out, because it was too long for the model."""
    exhausted: str | None = None
    """The limit of the budget at which the run stopped, for example `the 100 calls of this run`; None: it did not."""
    call_count: int = 0
    """Calls to an LLM, those without a useful answer included."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of the input tokens, those that the server had in its prefix cache."""
    dollars: float = 0.0
    published: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    @property
    def has_work(self) -> bool:
        """Whether the run kept, asked for or published anything."""
        kept = (self.behavior_count, self.sealed_count, self.summary_count, self.shift_count, self.encoded_count)
        return any((*kept, self.failed_count, self.call_count, *self.published.values()))

    def facts(self) -> dict[str, Any]:
        """Return the counts and seconds by name."""
        return asdict(self)

    def line(self) -> str:
        """Return the run in one line."""
        return (
            f"{self.behavior_count} behaviors ({self.duplicate_count} duplicates, {self.late_count} late),"
            f" {self.sealed_count} partitions sealed, {self.summary_count} summaries, {self.shift_count} shifts,"
            f" {self.encoded_count} texts encoded, {sum(self.published.values())} rows published,"
            f" {sum(self.seconds.values()):.1f} s{''.join(self._remarks())}"
        )

    def _remarks(self) -> Iterator[str]:
        """Yield what is worth a word only where it happened."""
        if self.call_count:
            cached = f" ({self.cached_tokens:,} cached)" if self.cached_tokens else ""
            yield f"; {self.call_count:,} calls, {self.input_tokens:,} tokens in{cached}, {self.output_tokens:,} out"
        if self.dollars:
            yield f", {self.dollars:.4f} dollars"
        if self.shortened_count:
            yield f"; {self.shortened_count} prompts shortened"
        if self.failed_count:
            yield f"; {self.failed_count} texts failed"
        if self.exhausted:
            yield f"; stopped at {self.exhausted}"
        if self.missing_text_count:
            yield f"; vectors wait: {self.missing_text_count} more texts are needed to fit the PCA"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything the stages need, made once from the configuration.

    `progress` is called with a stage's name and a number of texts or rows, as work is done.
    """

    memory: Memory
    condition: Condition
    learner: InterestLearner
    catalog: Catalog
    like_above: float
    encoding: Encoding
    title_vectors: TitleVectors
    fuser: Callable[[str | None], Fuser]
    """The fusion in use with vectors of an encoder version."""
    tables: dict[str, DeltaSink]
    online: OnlineSink
    memory_window: int
    sequence_length: int
    llm: OpenedLlm | None = None
    """What the learner's calls are accounted in; None: it makes none."""
    pending: PendingGauge = field(default_factory=PendingGauge)
    clock: Callable[[], int] = utc_microseconds

    def append(self, checked: CheckedBehaviors, report: Report) -> Appended:
        """Append behaviors and seal what they fill, in one transaction."""
        with report.timed("append"):
            appended = self.memory.append(
                checked.table,
                condition=self.condition,
                item_vectors=self.title_vectors if isinstance(self.condition, DriftCondition) else None,
            )
        report.behavior_count += appended.behavior_count
        report.duplicate_count += appended.duplicate_count + checked.duplicate_count
        report.late_count += appended.late_count
        report.sealed_count += appended.sealed_count
        return appended

    def seal_idle(self, now: datetime, report: Report) -> None:
        """Seal the caches that the condition calls idle at `now`."""
        with report.timed("append"):
            report.sealed_count += self.memory.seal_idle(now, condition=self.condition)

    def drain(
        self,
        report: Report,
        *,
        user_keys: Sequence[int] | None = None,
        with_failed: bool = False,
        patience_s: float | None = None,
        progress: Progress = lambda _stage, _count, _total: None,
    ) -> None:
        """Make and publish every text and vector that is missing, of all users or of some.

        Texts that failed before are tried once more `with_failed`. Where texts fail, or the budget is out, everything
        else is published and the report says so. An LLM that does not answer is waited for as long as the learner is
        patient, or `patience_s` seconds.

        Raises:
            BackendRefused, BackendUnreachable: the LLM cannot be used, or no longer; everything else is published,
                what was learned before included.
        """
        with report.timed("interest"), self._patient(patience_s):
            stopped = self._learn(report, user_keys=user_keys, with_failed=with_failed, progress=progress)
        is_changed = report.sealed_count or report.summary_count or report.shift_count or report.failed_count
        self.pending.count_after(self.memory, is_changed=bool(is_changed))
        with report.timed("encode"):
            was_fitted = self.encoding.pca() is not None
            due = user_keys if was_fitted else None
            report.encoded_count += self.encoding.run(self.memory, progress=progress, user_keys=due)
            report.missing_text_count = self.encoding.missing_count
        with report.timed("publish"):
            # Once the PCA is fitted, the vectors of everybody's earlier texts are due.
            published = self.publisher().publish(user_keys=due)
        for stage, count in published.items():
            report.published[stage] = report.published.get(stage, 0) + count
        if stopped:
            raise stopped

    def waves(self, *, user_keys: Sequence[int] | None = None, with_failed: bool = False) -> MemoryWaves:
        """Return what waits for a text in the memory, of all users or of some."""
        return MemoryWaves(
            memory=self.memory,
            catalog=self.catalog,
            learner=self.learner,
            like_above=self.like_above,
            clock=self.clock,
            user_keys=user_keys,
            with_failed=with_failed,
        )

    def count_pending(self) -> None:
        """Set the gauge of the partitions that wait for a text."""
        self.pending.count(self.memory)

    def close_llm(self) -> None:
        """Give back the connection to the LLM, or the model; the next text opens it again."""
        if self.llm is not None:
            self.llm.learner.close()

    @contextmanager
    def _patient(self, patience_s: float | None) -> Iterator[None]:
        """Let the LLM be waited for no longer than so many seconds; None: as long as its learner does."""
        if self.llm is None or patience_s is None:
            yield
            return
        learner, usual = self.llm.learner, self.llm.learner.patience_s
        learner.patience_s = patience_s
        try:
            yield
        finally:
            learner.patience_s = usual

    def _learn(
        self, report: Report, *, user_keys: Sequence[int] | None, with_failed: bool, progress: Progress
    ) -> BackendRefused | BackendUnreachable | None:
        """Run both waves; return why they stopped, if no further call could succeed."""
        run_id = self.llm.ledger.begin_run() if self.llm else None
        counts = learn(self.learner, self.waves(user_keys=user_keys, with_failed=with_failed), progress=progress)
        report.summary_count += counts.summary_count
        report.shift_count += counts.shift_count
        report.failed_count += counts.failed_count
        report.shortened_count += counts.shortened_count
        report.exhausted = counts.exhausted.limit if counts.exhausted else None
        if run_id is not None:
            with self.memory.reading() as connection:
                spent = run_spent(connection, run_id)
            report.call_count += spent.calls
            report.input_tokens += spent.input_tokens
            report.output_tokens += spent.output_tokens
            report.cached_tokens += spent.cached_tokens
            report.dollars += spent.dollars
        return counts.stopped

    def use_fusion(self, folder: str) -> None:
        """Bring weights into use, by their folder relative to the feature repo; the next publishing writes all anew."""
        self.memory.keep_setting(FUSION_FOLDER, folder)

    def publisher(self) -> Publisher:
        """Return the publisher of this job's memory."""
        pca = self.encoding.pca()
        encoder_version = pca.version if pca else None
        return Publisher(
            memory=self.memory,
            tables=self.tables,
            online=self.online,
            fuser=self.fuser,
            encoder_version=encoder_version,
            vector_width=self.encoding.width,
            memory_window=self.memory_window,
            sequence_length=self.sequence_length,
            clock=self.clock,
        )
