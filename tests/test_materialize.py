"""The job: what a run does, what a second one leaves alone, and when everybody's vectors are due."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from threading import Thread
from time import sleep

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import REGISTRY

from liber_feast import metrics
from liber_feast.behavior import Behavior, RatingScale, check_behaviors
from liber_feast.condition import Condition, DriftCondition, TimeCondition
from liber_feast.errors import BackendUnreachable, BudgetExhausted, PartitionsFailed
from liber_feast.estimate import Estimator
from liber_feast.fuser import Fuser, mean_fuser
from liber_feast.interest import Answers, Failure, LearnedText, ShiftRequest, SummaryRequest
from liber_feast.interest_config import OpenAIConfig
from liber_feast.llm_backend import OpenedLlm, open_ledger
from liber_feast.materialize import Job, Report
from liber_feast.memory import claims
from liber_feast.memory.schema import text_vectors
from liber_feast.memory.spending import run_spent
from liber_feast.memory.status import memory_status
from liber_feast.pending import PendingGauge
from liber_feast.publish import VIEWS, DeltaSink, Publisher
from liber_feast.shortfall import shortfall
from liber_feast.title_vectors import TitleVectors
from tests.chat_parts import LOST, PROMPT, ScriptedBackend, SimulatedClock, always, answers, learner_of
from tests.memory_parts import (
    START,
    TWO,
    EchoLearner,
    OnlineRows,
    SmallCatalog,
    TickingClock,
    TinyBert,
    TinyEncoding,
    append_all,
    behavior,
    contents,
    learn_all,
    new_memory,
    no_progress,
    table_of,
)
from tests.worker_parts import let_claims_end

FOUR = [behavior(second, item=f"i{second}") for second in range(4)]


class LearnerAway(Exception):
    """The LLM cannot be reached."""


class AwayLearner(EchoLearner):
    """Never answers."""

    def _answer(self, text: str) -> LearnedText:
        raise LearnerAway


def job_in(folder: Path, *, width: int = 2, condition: Condition = TWO, learner: EchoLearner | None = None) -> Job:
    encoding = TinyEncoding(folder=folder / "encoder", width=width)
    catalog = SmallCatalog()
    return Job(
        memory=new_memory(folder),
        condition=condition,
        learner=learner or EchoLearner(),
        catalog=catalog,
        like_above=3.0,
        encoding=encoding,
        title_vectors=TitleVectors(encoding=encoding, catalog=catalog),
        fuser=lambda _encoder_version: mean_fuser(width=2 * width),
        tables={stage: DeltaSink(path=folder / view) for stage, view in VIEWS.items()},
        online=OnlineRows(),
        memory_window=50,
        sequence_length=50,
        pending=PendingGauge(clock=lambda: 0.0),  # however slow the machine is, it counts
        clock=TickingClock(),
    )


def push(job: Job, stream: Sequence[Behavior]) -> Report:
    report = Report()
    checked = check_behaviors(table_of(stream), scale=RatingScale(), now=datetime.now(UTC))
    appended = job.append(checked, report)
    job.drain(report, user_keys=appended.user_keys)
    return report


def test_a_run_reports_what_it_did_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    report = push(job, [*FOUR, FOUR[0]])
    facts = report.facts()
    assert set(facts.pop("seconds")) == {"append", "interest", "encode", "publish"}
    assert facts == {
        "behavior_count": 4,
        "duplicate_count": 1,
        "late_count": 0,
        "sealed_count": 2,
        "summary_count": 2,
        "shift_count": 1,
        "encoded_count": 3,
        "missing_text_count": 0,
        **dict.fromkeys(("evidence_count", "item_count", "missing_item_count"), 0),
        **dict.fromkeys(("failed_count", "shortened_count", "call_count"), 0),
        **dict.fromkeys(("input_tokens", "output_tokens", "cached_tokens", "dollars"), 0),
        "exhausted": None,
        "published": {"summary": 2, "shift": 1, "vector": 2, "fused": 2},
    }
    assert report.line().startswith(
        "4 behaviors (1 duplicates, 0 late), 2 partitions sealed, 2 summaries, 1 shifts, 3 texts encoded,"
        " 7 rows published, "
    )
    again = push(job, FOUR)
    assert (again.behavior_count, again.duplicate_count, again.encoded_count) == (0, 4, 0)
    assert set(again.published.values()) == {0}


def test_a_run_with_too_few_texts_says_how_many_are_missing(tmp_path: Path) -> None:
    report = push(job_in(tmp_path, width=5), FOUR)
    assert (report.missing_text_count, report.encoded_count) == (2, 0)
    assert report.published == {"summary": 2, "shift": 1, "vector": 0, "fused": 0}
    assert report.line().endswith("vectors wait: 2 more texts are needed to fit the PCA")


def test_a_push_that_lets_the_pca_be_fitted_publishes_the_waiting_vectors_of_everybody(tmp_path: Path) -> None:
    job = job_in(tmp_path, width=5)
    push(job, FOUR)
    report = push(job, [behavior(second, user="bob", item=f"b{second}") for second in range(4)])
    assert (report.missing_text_count, report.encoded_count) == (0, 6)
    assert report.published == {"summary": 2, "shift": 1, "vector": 4, "fused": 4}
    assert isinstance(job.online, OnlineRows)
    assert set(job.online.rows["fused_vector"]) == {"ann", "bob"}


def test_a_push_that_is_sent_again_after_its_texts_could_not_be_had_makes_them(tmp_path: Path) -> None:
    with pytest.raises(LearnerAway):
        push(job_in(tmp_path, learner=AwayLearner()), FOUR)
    report = push(job_in(tmp_path), FOUR)
    assert (report.duplicate_count, report.summary_count, report.shift_count) == (4, 2, 1)
    assert report.published == {"summary": 2, "shift": 1, "vector": 2, "fused": 2}


def test_the_drift_rule_compares_the_titles_of_items(tmp_path: Path) -> None:
    job = job_in(tmp_path, condition=DriftCondition(threshold=0.0, minimum=1, maximum=9))
    report = push(job, [behavior(1, item="a"), behavior(2, item="a"), behavior(3, item="b")])
    assert report.sealed_count == 1
    assert len(contents(job.memory).partitions["ann"][0].behavior_ids) == 2


def test_idle_caches_are_sealed_and_counted(tmp_path: Path) -> None:
    job, report = job_in(tmp_path, condition=TimeCondition(idle=timedelta(hours=1))), Report()
    push(job, FOUR)
    job.seal_idle(START + timedelta(hours=2), report)
    job.drain(report)
    assert (report.sealed_count, report.summary_count) == (1, 1)
    with job.memory.reading() as connection:
        assert memory_status(connection)["cached_behaviors"] == 0


def test_the_seconds_of_a_stage_are_kept_even_where_it_fails() -> None:
    report = Report()
    for _ in range(2):
        with pytest.raises(LearnerAway), report.timed("interest"):
            raise LearnerAway
    assert report.seconds["interest"] > 0


@dataclass(kw_only=True)
class ShortLearner(EchoLearner):
    """Has summaries for one user alone, and calls left for no shift."""

    user_id: str = "ann"

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        for number, request in enumerate(requests):
            if request.user_id == self.user_id:
                yield [(request, LearnedText(text=f"summary {number}", is_shortened=number == 0))]
            else:
                yield [(request, Failure(reason=f"answer cut off at {number} tokens", attempt_count=2))]

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        yield from ()
        raise BudgetExhausted("no more", limit="the 9 calls of this run")


def test_failures_and_a_budget_that_is_out_stop_nothing_else_and_end_in_one_line(tmp_path: Path) -> None:
    job = job_in(tmp_path, learner=ShortLearner())
    report = push(job, [*FOUR, *(behavior(second, user="bob", item=f"b{second}") for second in range(4))])
    assert (report.summary_count, report.failed_count, report.shortened_count) == (2, 2, 1)
    assert report.exhausted == "the 9 calls of this run"
    assert report.published["summary"] == 2
    assert report.line().endswith(" s; 1 prompts shortened; 2 texts failed; stopped at the 9 calls of this run")
    error = shortfall(job, report)
    assert isinstance(error, BudgetExhausted)
    assert error.message == (
        "The budget is out: the 9 calls of this run. Left are 2 summaries and 2 shifts; 2 texts could not be had"
        " (2 x answer cut off at 2 to 3 tokens). What was learned is published. Run `feast materialize` again, with a"
        " larger batch_engine.interest.budget or on another day if it is the day's."
    )
    report.exhausted = None
    failed = shortfall(job, report)
    assert isinstance(failed, PartitionsFailed)
    assert (failed.failed_count, failed.exit_code, error.exit_code) == (2, 3, 4)
    assert failed.message == (
        "2 texts could not be had: 2 x answer cut off at 2 to 3 tokens. Everything else is published; `liber retry`"
        " tries them again, and so does the next `feast materialize`."
    )
    assert shortfall(job, Report()) is None


class LeavingLearner(EchoLearner):
    """Writes two summaries and is gone."""

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        yield from islice(super().summarize(requests), 2)
        raise BackendUnreachable("nobody answers")


def test_what_was_learned_before_the_backend_was_gone_is_published(tmp_path: Path) -> None:
    job, report = job_in(tmp_path, learner=LeavingLearner()), Report()
    append_all(job.memory, [behavior(second, item=f"i{second}") for second in range(8)])
    with pytest.raises(BackendUnreachable):
        job.drain(report)
    assert (report.summary_count, report.published["summary"]) == (2, 2)
    rest = Report()
    replace(job, learner=EchoLearner()).drain(rest)  # nothing of it has failed
    assert (rest.summary_count, rest.shift_count) == (2, 3)


class GoneLearner(EchoLearner):
    """Cannot be reached at all."""

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        yield from islice(super().summarize(requests), 0)
        raise BackendUnreachable("nobody answers")


def test_a_backend_that_was_never_there_stops_no_publishing(tmp_path: Path) -> None:
    job, report = job_in(tmp_path), Report()
    append_all(job.memory, FOUR)
    learn_all(job.memory)  # by a run that was killed before it published
    append_all(job.memory, [behavior(second, item=f"i{second}") for second in range(4, 7)])
    with pytest.raises(BackendUnreachable):
        replace(job, learner=GoneLearner()).drain(report)
    assert report.published == {"summary": 2, "shift": 1, "vector": 2, "fused": 2}
    assert report.encoded_count == 3
    assert isinstance(job.online, OnlineRows)
    assert len(job.online.rows["behavior_sequence"]["ann"]["item_ids"]) == 7


def with_a_scripted_llm(job: Job) -> tuple[Job, ScriptedBackend]:
    backend = ScriptedBackend(clock=SimulatedClock(), script=answers)
    of = OpenAIConfig(model="scripted-1")
    ledger = open_ledger(of, job.memory, prompt=PROMPT, clock=lambda: 1)
    learner = learner_of(backend, ledger=ledger)
    opened = OpenedLlm(learner=learner, ledger=ledger, open_estimator=lambda: Estimator(config=of, prompt=PROMPT))
    return replace(job, learner=learner, llm=opened), backend


def test_an_llm_that_goes_away_is_waited_for_ten_minutes_or_as_long_as_is_said(tmp_path: Path) -> None:
    job, backend = with_a_scripted_llm(job_in(tmp_path))
    push(job, FOUR)
    backend.script = always(LOST)
    append_all(job.memory, [behavior(second, item=f"i{second}") for second in range(4, 6)])
    for patience_s, least, most in ((10.0, 10.0, 20.0), (None, 600.0, 700.0)):
        start = backend.clock()
        with pytest.raises(BackendUnreachable):
            job.drain(Report(), patience_s=patience_s)
        assert least <= backend.clock() - start <= most


def pending() -> float | None:
    return REGISTRY.get_sample_value("liber_pending_partitions")


def test_every_drain_says_how_many_partitions_wait_for_a_text(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    gone = replace(job, learner=GoneLearner())
    for stream, count in ((FOUR[:2], 1), (FOUR[2:], 2)):
        append_all(job.memory, stream)
        with pytest.raises(BackendUnreachable):
            gone.drain(Report(sealed_count=1))
        assert pending() == count
    push(job, FOUR)
    assert pending() == 0


def test_a_push_that_seals_nothing_counts_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    push(job, FOUR)
    metrics.set_pending_partitions(99)
    push(job, [behavior(9)])
    assert pending() == 99
    push(job, [behavior(10)])
    assert pending() == 0


def test_a_report_knows_whether_there_is_anything_to_report() -> None:
    assert not Report(missing_text_count=3, duplicate_count=2, published={"summary": 0}, seconds={"read": 1.0}).has_work
    assert Report(behavior_count=1).has_work
    assert Report(published={"summary": 1}).has_work


def test_a_run_that_tries_failed_texts_again_is_asked_to(tmp_path: Path) -> None:
    job = job_in(tmp_path, learner=ShortLearner())
    push(job, [behavior(second, user="bob", item=f"b{second}") for second in range(4)])
    whole = replace(job, learner=EchoLearner())
    for with_failed, count in ((False, 0), (True, 2)):
        report = Report()
        whole.drain(report, with_failed=with_failed)
        assert report.summary_count == count


def test_calls_and_money_are_in_the_line_of_a_run_that_made_some() -> None:
    report = Report(call_count=1_200, input_tokens=90_000, cached_tokens=40_000, output_tokens=8_000, dollars=0.5)
    assert report.line().endswith("; 1,200 calls, 90,000 tokens in (40,000 cached), 8,000 out, 0.5000 dollars")
    assert Report(call_count=1).line().endswith("; 1 calls, 0 tokens in, 0 out")


class ClosedBert(TinyBert):
    """Is never to be asked."""

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int], object] | None = None
    ) -> npt.NDArray[np.float32]:
        raise AssertionError(f"{len(texts)} texts, {progress}")


def with_fusion_in_use(job: Job) -> Job:
    """Return the job with the mean under the name of the folder in use, and neither LLM nor BERT to ask."""

    def fuser(_encoder_version: str | None) -> Fuser:
        return replace(mean_fuser(width=4), version=job.memory.setting("fusion_folder") or "mean")

    encoding = TinyEncoding(folder=job.encoding.folder, bert=ClosedBert())
    return replace(job, fuser=fuser, learner=AwayLearner(), encoding=encoding)


def test_other_weights_publish_every_fused_vector_anew_and_the_same_ones_none_without_llm_or_bert(
    tmp_path: Path,
) -> None:
    job = job_in(tmp_path)
    push(job, FOUR)
    job = with_fusion_in_use(job)
    job.use_fusion("data/fusion/1")
    assert job.publisher().publish() == {"summary": 0, "shift": 0, "vector": 0, "fused": 2}
    job.use_fusion("data/fusion/1")
    assert job.publisher().publish()["fused"] == 0
    for folder in ("data/fusion/2", "data/fusion/1"):
        job.use_fusion(folder)
        report = Report()
        job.drain(report)
        assert report.published == {"summary": 0, "shift": 0, "vector": 0, "fused": 2}
        assert isinstance(job.online, OnlineRows)
        assert job.online.rows["fused_vector"]["ann"]["fusion_version"] == folder


def test_a_push_that_seals_nothing_reads_the_texts_of_its_users_alone(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    push(job, FOUR)
    append_all(job.memory, [behavior(second, user="bob", item=f"b{second}") for second in range(2)])
    learn_all(job.memory)
    assert push(job, [behavior(9)]).encoded_count == 0
    report = Report()
    job.drain(report)
    assert (report.encoded_count, report.published["fused"]) == (1, 1)


class NoPublisherJob(Job):
    """A job that is never to publish."""

    def publisher(self) -> Publisher:
        raise AssertionError("nothing was to be published")


def test_a_push_of_users_of_whom_nothing_waits_publishes_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    push(job, FOUR)
    idle = NoPublisherJob(**{one.name: getattr(job, one.name) for one in fields(job)})
    report = Report()
    idle.drain(report, user_keys=[1])
    assert report.published == {"summary": 0, "shift": 0, "vector": 0, "fused": 0}
    assert not report.has_work


def waiting_users(job: Job) -> list[int]:
    with job.memory.reading() as connection:
        return claims.waiting_keys(connection)


def test_a_user_whom_another_process_works_on_is_waited_for_and_taken_over_where_that_one_dies(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    append_all(job.memory, [behavior(second, user=user) for user in ("ann", "bob") for second in range(2)])
    assert claims.claim(job.memory, limit=1).numbers.keys() == {1}
    report = Report()
    job.drain(report, user_keys=[1, 2], patience_s=0.01)
    assert (report.summary_count, waiting_users(job)) == (1, [1])
    let_claims_end(job.memory)
    job.drain(report, user_keys=[1, 2], patience_s=0.01)
    assert (report.summary_count, waiting_users(job)) == (2, [])


def test_a_user_whom_another_process_was_done_with_meanwhile_is_not_taken_up_again(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    append_all(job.memory, [behavior(second) for second in range(2)])
    claimed = claims.claim(job.memory)
    other = Thread(target=lambda: (sleep(0.2), job.work(Report(), claimed)))
    other.start()
    report = Report()
    job.drain(report)
    other.join()
    assert (report.summary_count, waiting_users(job)) == (0, [])
    assert isinstance(job.learner, EchoLearner)
    assert len(job.learner.summaries) == 1


def test_a_run_over_groups_of_users_is_one_run_of_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "USERS_PER_CLAIM", 2)
    job, _backend = with_a_scripted_llm(job_in(tmp_path))
    append_all(job.memory, [behavior(second, user=f"u{user}") for user in range(5) for second in range(2)])
    assert job.llm is not None
    before, report = job.llm.ledger.run_id, Report()
    job.drain(report)
    assert (report.summary_count, report.call_count) == (5, 5)
    with job.memory.reading() as connection:
        assert run_spent(connection, job.llm.ledger.run_id).calls == 5
    assert job.llm.ledger.run_id != before


def test_everybody_gets_vectors_though_the_process_died_that_fitted_the_pca(tmp_path: Path) -> None:
    job = job_in(tmp_path, width=5)
    push(job, FOUR)
    assert waiting_users(job) == []
    append_all(job.memory, [behavior(second, user="bob", item=f"b{second}") for second in range(4)])
    learn_all(job.memory)
    job.encoding.run(job.memory, progress=no_progress, user_keys=[2])
    with job.memory.writing() as connection:
        connection.execute(text_vectors.delete())  # it died before it kept them
    report = Report()
    job.drain(report, user_keys=[2])
    assert report.published == {"summary": 2, "shift": 1, "vector": 4, "fused": 4}
    assert push(job, [behavior(9), behavior(10)]).published["vector"] == 1
