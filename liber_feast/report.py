"""What a run did, in numbers and in one line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from liber_feast.interest import WaveCounts
from liber_feast.memory import Appended


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
    evidence_count: int = 0
    """Partitions whose evidence was made."""
    item_count: int = 0
    """Texts of items that were encoded."""
    missing_item_count: int = 0
    """Texts of items that are still missing before their PCA can be fitted and evidence made; 0 once it is."""
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

    def count_append(self, appended: Appended) -> None:
        """Add what an append changed."""
        self.behavior_count += appended.behavior_count
        self.duplicate_count += appended.duplicate_count
        self.late_count += appended.late_count
        self.sealed_count += appended.sealed_count

    def count(self, counts: WaveCounts) -> None:
        """Add what both waves came to."""
        self.summary_count += counts.summary_count
        self.shift_count += counts.shift_count
        self.failed_count += counts.failed_count
        self.shortened_count += counts.shortened_count
        self.exhausted = counts.exhausted.limit if counts.exhausted else None

    @property
    def has_work(self) -> bool:
        """Whether the run kept, asked for or published anything."""
        kept = (self.behavior_count, self.sealed_count, self.summary_count, self.shift_count, self.encoded_count)
        made = (self.evidence_count, self.item_count, *self.published.values())
        return any((*kept, *made, self.failed_count, self.call_count))

    def add(self, more: "Report") -> None:
        """Add what another run did; what is missing is what that one said."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(more, one.name)
            if isinstance(mine, dict):
                setattr(self, one.name, {key: mine.get(key, 0) + theirs.get(key, 0) for key in {**mine, **theirs}})
            else:
                is_state = one.name in ("exhausted", "missing_text_count", "missing_item_count")
                setattr(self, one.name, theirs if is_state else mine + theirs)

    def facts(self) -> dict[str, Any]:
        """Return the counts and seconds by name."""
        return asdict(self)

    def line(self) -> str:
        """Return the run in one line."""
        return (
            f"{self.behavior_count} behaviors ({self.duplicate_count} duplicates, {self.late_count} late),"
            f" {self.sealed_count} partitions sealed, {self.summary_count} summaries, {self.shift_count} shifts,"
            f" {self.encoded_count} texts encoded, {sum(self.published.values())} rows published,"
            f" {sum(self.seconds.values()):.1f} s{''.join(self.remarks())}"
        )

    def remarks(self) -> Iterator[str]:
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
        if self.item_count:
            yield f"; {self.item_count} item texts encoded"
        if self.missing_item_count:
            yield f"; evidence waits: {self.missing_item_count} more texts of items are needed to fit their PCA"
        if self.missing_text_count:
            yield f"; vectors wait: {self.missing_text_count} more texts are needed to fit the PCA"
