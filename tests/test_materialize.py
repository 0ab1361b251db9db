"""The job: what a run does, what a second one leaves alone, and when everybody's vectors are due."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from liber_feast.behavior import Behavior, RatingScale, check_behaviors
from liber_feast.condition import Condition, DriftCondition, TimeCondition
from liber_feast.fuser import Fuser, mean_fuser
from liber_feast.interest import LearnedText
from liber_feast.materialize import Job, Report
from liber_feast.memory.status import memory_status
from liber_feast.publish import VIEWS, DeltaSink
from liber_feast.title_vectors import TitleVectors
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
    table_of,
)

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
