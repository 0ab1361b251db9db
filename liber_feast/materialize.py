"""The job: append behaviors, then drain what waits: texts, vectors, fused vectors, published.

Every step commits what it did before the next begins, and looks in the memory for what is missing. So a second
run does nothing, and a run after a crash does what was not yet committed.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import sqlalchemy as sa

from liber_feast import stream_metrics
from liber_feast.behavior import CheckedBehaviors, microseconds
from liber_feast.encoding import Encoding
from liber_feast.errors import BackendRefused, BackendUnreachable, LiberError
from liber_feast.evidence_stage import EvidenceStage
from liber_feast.fuser import Fuser
from liber_feast.interest import InterestLearner, Progress, learn
from liber_feast.llm_backend import OpenedLlm
from liber_feast.memory import Appended, Memory, claims
from liber_feast.memory.append import let_wait
from liber_feast.memory.claims import Claim
from liber_feast.memory.clock import now_us
from liber_feast.memory.missing import missing_shifts, missing_summaries
from liber_feast.memory.publications import encoder_in_use, is_restoring
from liber_feast.memory.spending import run_spent
from liber_feast.memory.store import FUSION_FOLDER
from liber_feast.origin import Origin
from liber_feast.pace import Exposed, Pace
from liber_feast.partition import Condition, DriftCondition
from liber_feast.pending import PendingGauge, show_memory
from liber_feast.publish import DeltaSink, OnlineSink, Publisher
from liber_feast.report import Report as Report  # noqa: PLC0414  (it is asked for here, too)
from liber_feast.title_vectors import TitleVectors
from liber_feast.waves import Catalog, MemoryWaves

logger = logging.getLogger(__name__)

PCA_IN_USE = "pca_in_use"
"""The setting that names the PCA by which everybody's earlier texts were encoded and published."""
ITEM_PCA_IN_USE = "item_pca_in_use"
"""The setting that names the PCA of items by which everybody's earlier evidence was made and published."""
PUT_OFF_S = 60
"""How long workers leave users alone whose texts could not be had: the budget is out, or the LLM away."""
WAIT_S = (0.01, 0.2)
"""The shortest and the longest pause between two looks at users whom other processes work on."""
SAID_AFTER_S = 2.0
"""After how long whoever waits is told what for."""


def utc_microseconds() -> int:
    """Return the time of the clock, microseconds since 1970 UTC."""
    return microseconds(datetime.now(UTC))


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
    tables: Mapping[str, DeltaSink]
    online: OnlineSink
    memory_window: int
    sequence_length: int
    evidence: EvidenceStage | None = None
    """None: the feature repo has no view of evidence."""
    llm: OpenedLlm | None = None
    """What the learner's calls are accounted in; None: it makes none."""
    pace: Pace = field(default_factory=Pace)
    pending: PendingGauge = field(default_factory=PendingGauge)
    exposed: Exposed = field(default_factory=Exposed)
    origin: Origin = field(default_factory=Origin)
    """What this was made from; where that changes, a process that goes on makes another one."""
    clock: Callable[[], int] = utc_microseconds

    def append(self, checked: CheckedBehaviors, report: Report, *, pushed_time: int | None = None) -> Appended:
        """Append behaviors and seal what they fill, in one transaction.

        `pushed_time` is when the push came that brought them, microseconds; None: they are materialized.
        """
        with report.timed("append"):
            appended = self.memory.append(
                checked.table,
                condition=self.condition,
                repeated=checked.repeated,
                item_vectors=self.title_vectors if isinstance(self.condition, DriftCondition) else None,
                pushed_time=pushed_time,
            )
        report.count_append(appended)
        stream_metrics.record_append(appended)
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

        Users whom other processes work on are waited for, and taken over where those die. Texts that failed before are
        tried once more `with_failed`. Where texts fail, or the budget is out, everything else is published and the
        report says so. An LLM that does not answer is waited for as long as the learner is patient, or `patience_s`
        seconds; so are other processes, without `patience_s` until they are done.

        Raises:
            BackendRefused, BackendUnreachable: the LLM cannot be used, or no longer; everything else is published,
                what was learned before included.
        """
        keys, is_restored = self._due(user_keys, with_failed=with_failed)
        report.published = {**dict.fromkeys(self.tables, 0), **report.published}
        is_only_theirs = user_keys is not None and not is_restored
        if is_only_theirs and not keys:
            return
        stopped: BackendRefused | BackendUnreachable | None = None
        with self._accounted(report), self._patient(patience_s):
            for claimed in self._claims(keys, patience_s=patience_s):
                stopped = self._work(report, claimed, with_failed=with_failed, progress=progress)
                if stopped or report.exhausted:
                    break
        self._count_pending_after(report)
        if not is_only_theirs or stopped or report.exhausted:
            self.write_out(report, user_keys=user_keys, progress=progress)
        if stopped:
            raise stopped

    def work(
        self,
        report: Report,
        claimed: Claim,
        *,
        with_failed: bool = False,
        patience_s: float | None = None,
        progress: Progress = lambda _stage, _count, _total: None,
    ) -> None:
        """Make and publish what the users of a claim lack, and end the claim; a thread renews it meanwhile.

        An LLM that does not answer is waited for as `drain` does.

        Raises:
            BackendRefused, BackendUnreachable: as `drain`; the users who still lack a text are left for PUT_OFF_S.
            LiberError: a store cannot be written; the users are free again soon.
        """
        with self._accounted(report), self._patient(patience_s):
            stopped = self._work(report, claimed, with_failed=with_failed, progress=progress)
        self._count_pending_after(report)
        if stopped:
            raise stopped

    def leave(self, user_keys: Collection[int]) -> None:
        """Let users wait for whoever works next, a worker or a run, although nothing may be sealed of them."""
        keys = sorted(user_keys)
        self.memory.retrying(lambda connection: let_wait(connection, keys, now=now_us(connection)), what="wait")

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
        """Set the gauges that say what the memory holds, and of how many partitions and users something waits."""
        self.pending.count(self.memory)
        show_memory(self.memory)

    def close(self) -> None:
        """Give back the connections to the LLM and to the memory."""
        self.close_llm()
        self.memory.close()

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

    def _due(self, user_keys: Sequence[int] | None, *, with_failed: bool) -> tuple[list[int], bool]:
        """Return the users, of all or of some, who wait, and whether the online store is to be written anew.

        Users whom only a look at the texts finds wait from now on.
        """
        missing: set[int] = set()
        with self.memory.reading() as connection:
            keys, is_restored = set(claims.waiting_keys(connection, user_keys)), is_restoring(connection)
            if with_failed or user_keys is None:
                missing = _missing_users(connection, user_keys, with_failed=with_failed) - keys
        if missing:
            self.memory.retrying(lambda connection: claims.enqueue(connection, missing), what="wait")
        return sorted(keys | missing), is_restored

    def _claims(self, keys: Sequence[int], *, patience_s: float | None) -> Iterator[Claim]:
        """Yield claims until every user was claimed once, or another process was done with them."""
        left, started, pause = set(keys), time.monotonic(), WAIT_S[0]
        is_said = False
        while left:
            some = sorted(left)
            for start in range(0, len(some), claims.USERS_PER_CLAIM):
                group = some[start : start + claims.USERS_PER_CLAIM]
                while (claimed := self._claim(left.intersection(group))).numbers:
                    left -= claimed.numbers.keys()
                    yield claimed
                    started, pause = time.monotonic(), WAIT_S[0]
            with self.memory.reading() as connection:
                left.intersection_update(claims.waiting_keys(connection, sorted(left)))
            waited_s = time.monotonic() - started
            if not left or (patience_s is not None and waited_s > patience_s):
                return
            if waited_s > SAID_AFTER_S and not is_said:
                is_said = True
                logger.warning(
                    "waiting for %d users that another process works on; where it died, they are taken over %g s after"
                    " its last sign of life",
                    len(left),
                    self.pace.lease_s,
                )
            time.sleep(pause)
            pause = min(2 * pause, WAIT_S[1])

    def _claim(self, user_keys: set[int]) -> Claim:
        seconds, most = self.pace.lease_s, self.pace.max_claims
        return claims.claim(self.memory, seconds=seconds, user_keys=sorted(user_keys), max_claims=most)

    def _work(
        self, report: Report, claimed: Claim, *, with_failed: bool, progress: Progress
    ) -> BackendRefused | BackendUnreachable | None:
        """Do as `work`, without the accounts; return why no further call could succeed."""
        with claims.kept(self.memory, claimed, seconds=self.pace.lease_s) as beat:
            if self.llm is not None:  # which may be away for long
                self._publish_evidence(report, user_keys=sorted(claimed.numbers), progress=progress)
            with report.timed("interest"):
                waves = self.waves(user_keys=sorted(claimed.numbers), with_failed=with_failed)
                waves.is_held = beat.is_held
                counts = learn(self.learner, waves, progress=progress)
            report.count(counts)
            if beat.claim.numbers:  # who was lost is published by whoever has them now
                self.write_out(report, user_keys=sorted(beat.claim.numbers), progress=progress)
            self._settle(beat.end(), is_over=counts.stopped is None and counts.exhausted is None)
        return counts.stopped

    def _settle(self, claimed: Claim, *, is_over: bool) -> None:
        due: set[int] = set()
        if not is_over:
            with self.memory.reading() as connection:
                due = _missing_users(connection, sorted(claimed.numbers), with_failed=False)

        def settle(connection: sa.Connection) -> dict[str, int]:
            not_before = now_us(connection) + int(PUT_OFF_S * 1e6) if due else 0
            return claims.settle(connection, claimed, is_due=due, not_before=not_before)

        claims.record_claims(self.memory.retrying(settle, what="settle"))

    def write_out(
        self,
        report: Report,
        *,
        user_keys: Sequence[int] | None = None,
        progress: Progress = lambda _stage, _count, _total: None,
    ) -> None:
        """Encode and publish what users lack; of everybody, as long as earlier texts may have no vector of the PCA."""
        with report.timed("encode"):
            pca = self.encoding.pca_of(self.memory)
            is_used = pca is not None and self.memory.setting(PCA_IN_USE) == self.encoding.version_of(pca)
            due = user_keys if is_used else None
            report.encoded_count += self.encoding.run(self.memory, progress=progress, user_keys=due)
            report.missing_text_count = self.encoding.missing_count
        self._publish(report, user_keys=due, first=self._make_evidence(report, user_keys=user_keys, progress=progress))
        pca = self.encoding.pca_of(self.memory)
        if pca is not None and not is_used:
            self.memory.keep_setting(PCA_IN_USE, self.encoding.version_of(pca))

    def _publish_evidence(self, report: Report, *, user_keys: Sequence[int], progress: Progress) -> None:
        """Make and publish the evidence of users, and what else of theirs is there to be published.

        What cannot be done now is tried again, and raised, when the texts are published.
        """
        if self.evidence is not None:
            with suppress(LiberError):
                first = self._make_evidence(report, user_keys=user_keys, progress=progress)
                self._publish(report, user_keys=user_keys, first=first)

    def _publish(self, report: Report, *, user_keys: Sequence[int] | None, first: str | None) -> None:
        """Publish what is there, of all users or of some.

        Of all where a PCA, `first`, made everybody's evidence for the first time; that is noted then.
        """
        with report.timed("publish"):
            published = self.publisher().publish(user_keys=None if first else user_keys)
        for stage, count in published.items():
            report.published[stage] = report.published.get(stage, 0) + count
        if first:
            self.memory.keep_setting(ITEM_PCA_IN_USE, first)

    def _make_evidence(self, report: Report, *, user_keys: Sequence[int] | None, progress: Progress) -> str | None:
        """Make the evidence that is missing, of all users or of some.

        The first that a PCA makes is everybody's, and the version of that PCA is returned.
        """
        if self.evidence is None:
            return None
        encoding = self.evidence.encoding
        with report.timed("evidence"):
            pca = encoding.pca_of(self.memory)
            is_used = pca is not None and self.memory.setting(ITEM_PCA_IN_USE) == pca.version
            counts = self.evidence.run(user_keys=user_keys if is_used else None, progress=progress)
        report.evidence_count += counts.partition_count
        report.item_count += counts.item_count
        report.missing_item_count = encoding.missing_count
        return None if is_used else counts.encoder_version

    @contextmanager
    def _accounted(self, report: Report) -> Iterator[None]:
        """Let the calls of the block be one run of the budget, and add them to the report."""
        run_id = self.llm.ledger.begin_run() if self.llm else None
        yield
        if run_id is not None:
            with self.memory.reading() as connection:
                spent = run_spent(connection, run_id)
            report.call_count += spent.calls
            report.input_tokens += spent.input_tokens
            report.output_tokens += spent.output_tokens
            report.cached_tokens += spent.cached_tokens
            report.dollars += spent.dollars

    def _count_pending_after(self, report: Report) -> None:
        is_changed = report.sealed_count or report.summary_count or report.shift_count or report.failed_count
        self.pending.count_after(self.memory, is_changed=bool(is_changed))

    def use_fusion(self, folder: str) -> None:
        """Bring weights into use, by their folder relative to the feature repo; the next publishing writes all anew."""
        self.memory.keep_setting(FUSION_FOLDER, folder)

    def publisher(self) -> Publisher:
        """Return the publisher of this job's memory; it needs no PCA, for it publishes what that has made."""
        with self.memory.reading() as connection:
            encoder_version = encoder_in_use(connection)
        return Publisher(
            memory=self.memory,
            tables=self.tables,
            online=self.online,
            fuser=self.fuser,
            encoder_version=encoder_version,
            vector_width=self.encoding.text_width,
            memory_window=self.memory_window,
            sequence_length=self.sequence_length,
            clock=self.clock,
            lease_s=self.pace.lease_s,
        )


def _missing_users(connection: sa.Connection, user_keys: Sequence[int] | None, *, with_failed: bool) -> set[int]:
    """Return who lacks a text, of all users or of some."""
    summaries = missing_summaries(connection, user_keys=user_keys, with_failed=with_failed)
    shifts = missing_shifts(connection, user_keys=user_keys, with_failed=with_failed)
    return {*(user_key for user_key, _index in summaries), *(one.user_key for one in shifts)}
