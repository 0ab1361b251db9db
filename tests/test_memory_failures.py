"""Failed texts, texts that are written anew and budgets that end: what is asked for, when, and what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.interest import SHIFT, SUMMARY, Failure, LearnedText, learn
from liber_feast.memory import Memory
from liber_feast.memory.schema import behaviors, partitions, recomputations, text_vectors, texts, users
from liber_feast.memory.status import failed_user_keys, failure_reasons, memory_status
from liber_feast.memory.vectors import add_vectors
from tests import services
from tests.failure_parts import FaultyLearner, Runs, mark
from tests.memory_parts import (
    SECOND_US,
    START_US,
    EchoLearner,
    append_all,
    behavior,
    learn_all,
    new_memory,
    no_progress,
    waves_of,
)

memory_url = services.memory_url
REASON = "answer cut off at 256 tokens"


def memory_of(**partition_counts: int) -> Memory:
    """Return a memory with so many partitions of two behaviors of each user."""
    memory = new_memory()
    for user, count in partition_counts.items():
        append_all(memory, [behavior(second, user=user, item=f"{user}{second}") for second in range(2 * count)])
    return memory


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What the memory says of a partition: why it failed, calls made, and its texts' revisions by stage."""

    failure: str | None
    attempts: int
    summaries: tuple[int, ...]
    shifts: tuple[int, ...]


def states(memory: Memory) -> dict[tuple[str, int], State]:
    with memory.reading() as connection:
        revisions: dict[tuple[int, int, str], list[int]] = {}
        for row in connection.execute(sa.select(texts).order_by(texts.c.text_id)):
            revisions.setdefault((row.user_key, row.partition_index, row.stage), []).append(row.revision)
        found = connection.execute(sa.select(partitions, users.c.user_id).join(users)).all()
    return {
        (row.user_id, row.partition_index): State(
            failure=row.failure,
            attempts=row.attempts,
            summaries=tuple(revisions.get((row.user_key, row.partition_index, SUMMARY), ())),
            shifts=tuple(revisions.get((row.user_key, row.partition_index, SHIFT), ())),
        )
        for row in found
    }


def newest(memory: Memory, stage: str) -> dict[int, str]:
    """Return the newest text of a stage of every partition of the only user."""
    with memory.reading() as connection:
        rows = connection.execute(sa.select(texts).where(texts.c.stage == stage).order_by(texts.c.text_id)).all()
    return {row.partition_index: row.text for row in rows}


def facts(memory: Memory) -> dict[str, object]:
    with memory.reading() as connection:
        return memory_status(connection)


def test_a_failed_summary_is_kept_with_its_reason_and_calls_and_holds_up_no_other_text() -> None:
    runs = Runs(memory=memory_of(ann=3, bob=1))
    runs.asked(broken=[(SUMMARY, "ann", 1)])
    assert (runs.counts.summary_count, runs.counts.shift_count, runs.counts.failed_count) == (3, 1, 1)
    assert states(runs.memory) == {
        ("ann", 0): State(failure=None, attempts=1, summaries=(0,), shifts=()),
        ("ann", 1): State(failure=REASON, attempts=2, summaries=(), shifts=()),
        ("ann", 2): State(failure=None, attempts=2, summaries=(0,), shifts=(0,)),
        ("bob", 0): State(failure=None, attempts=1, summaries=(0,), shifts=()),
    }


def test_the_shift_after_a_failed_summary_is_made_from_the_last_summary_that_exists() -> None:
    runs = Runs(memory=memory_of(ann=3))
    runs.asked(broken=[(SUMMARY, "ann", 1)])
    with runs.memory.reading() as connection:
        (shift,) = connection.execute(sa.select(texts).where(texts.c.stage == SHIFT)).all()
    assert (shift.partition_index, shift.previous_partition_index) == (2, 0)
    assert shift.text == "ann moved from (ann likes the ann0, the ann1) to (ann likes the ann4, the ann5)"


@pytest.mark.parametrize("stage", [SUMMARY, SHIFT])
def test_a_failed_text_is_asked_for_again_only_where_failed_ones_are_wanted(stage: str) -> None:
    runs = Runs(memory=memory_of(ann=2))
    runs.asked(broken=[(stage, "ann", 1)])
    assert runs.asked() == []
    assert runs.asked(broken=[(stage, "ann", 1)], with_failed=True) == [(stage, "ann", 1)]
    before = states(runs.memory)["ann", 1]
    assert (before.failure, before.attempts) == (REASON, 4 + (stage == SHIFT))
    asked = runs.asked(with_failed=True)
    assert asked == ([(SUMMARY, "ann", 1)] if stage == SUMMARY else []) + [(SHIFT, "ann", 1)]
    after = states(runs.memory)["ann", 1]
    assert (after.failure, after.summaries, after.shifts) == (None, (0,), (0,))
    assert after.attempts == before.attempts + len(asked)
    assert runs.asked(with_failed=True) == []


def test_a_failed_text_is_asked_for_again_for_the_users_in_question_alone() -> None:
    runs = Runs(memory=memory_of(ann=1, bob=1))
    runs.asked(broken=[(SUMMARY, "ann", 0), (SUMMARY, "bob", 0)])
    with runs.memory.reading() as connection:
        bob = failed_user_keys(connection, user_id="bob")
    learner = FaultyLearner()
    runs.learn(learner, with_failed=True, user_keys=bob)
    assert learner.asked == [(SUMMARY, "bob", 0)]


def test_a_shift_waits_for_the_summaries_of_all_earlier_partitions_unless_they_failed() -> None:
    runs = Runs(memory=memory_of(ann=4, bob=2))
    learn_all(runs.memory)
    with runs.memory.writing() as connection:
        connection.execute(texts.delete().where(texts.c.stage == SHIFT))
        connection.execute(texts.delete().where(texts.c.partition_index == 1, texts.c.user_key == 1))
    learner = FaultyLearner()
    assert waves_of(runs.memory, learner).pending_count(SHIFT) == 1  # bob's
    assert runs.asked(broken=[(SUMMARY, "ann", 1)]) == [
        (SUMMARY, "ann", 1),
        (SHIFT, "ann", 2),
        (SHIFT, "ann", 3),
        (SHIFT, "bob", 1),
    ]


def test_a_user_whose_first_summary_failed_has_no_shift_until_it_is_there() -> None:
    runs = Runs(memory=memory_of(ann=2))
    assert runs.asked(broken=[(SUMMARY, "ann", 0)]) == [(SUMMARY, "ann", 0), (SUMMARY, "ann", 1)]
    assert facts(runs.memory)["pending_partitions"] == 0
    assert runs.asked(with_failed=True) == [(SUMMARY, "ann", 0), (SHIFT, "ann", 1)]


def test_a_failure_is_not_kept_where_another_run_had_the_text_meanwhile() -> None:
    runs, learner = Runs(memory=memory_of(ann=1)), FaultyLearner(broken=[(SUMMARY, "ann", 0)])
    waves = waves_of(runs.memory, learner)
    answers = next(learner.summarize(waves.summary_requests()))
    runs.asked()
    waves.keep_summaries(answers)
    assert states(runs.memory)["ann", 0] == State(failure=None, attempts=3, summaries=(0,), shifts=())


def test_what_arrived_before_the_budget_was_out_is_kept_and_the_rest_is_asked_for_by_the_next_run() -> None:
    whole = Runs(memory=memory_of(ann=3, bob=2)).asked()
    for budget in range(len(whole) + 1):
        runs = Runs(memory=memory_of(ann=3, bob=2))
        first = runs.asked(budget=budget)
        assert (runs.counts.exhausted is None) == (budget == len(whole))
        assert first == whole[:budget]
        assert runs.counts.summary_count + runs.counts.shift_count == budget
        assert runs.asked() == whole[budget:]


def test_a_group_of_answers_is_kept_in_one_transaction_with_its_failures() -> None:
    memory, commits = memory_of(ann=4), []
    sa.event.listen(memory.engine, "commit", lambda _connection: commits.append(1))
    learner = FaultyLearner(group_size=4, broken=[(SUMMARY, "ann", 2)])
    waves = waves_of(memory, learner)
    (answers,) = [some for some in learner.summarize(waves.summary_requests()) if some]
    before = len(commits)
    waves.keep_summaries(answers)
    assert len(commits) == before + 1
    found = states(memory)
    assert [found["ann", index].summaries for index in range(4)] == [(0,), (0,), (), (0,)]
    assert [found["ann", index].failure for index in range(4)] == [None, None, REASON, None]


@pytest.mark.parametrize(
    ("stages", "asked"),
    [
        ((SUMMARY,), [(SUMMARY, "ann", 1), (SUMMARY, "ann", 2)]),
        ((SHIFT,), [(SHIFT, "ann", 1), (SHIFT, "ann", 2)]),
        ((SUMMARY, SHIFT), [(SUMMARY, "ann", 1), (SUMMARY, "ann", 2), (SHIFT, "ann", 1), (SHIFT, "ann", 2)]),
    ],
    ids=["summaries", "shifts", "both"],
)
def test_marked_texts_are_written_anew_as_new_rows_beside_the_old_ones(
    stages: Sequence[str], asked: list[tuple[str, str, int]]
) -> None:
    runs = Runs(memory=memory_of(ann=3))
    runs.asked()
    old = everything_in(runs.memory)
    assert mark(runs.memory, since=START_US + 2 * SECOND_US, stages=stages) == len(asked)
    assert mark(runs.memory, since=0, stages=stages) == (SUMMARY in stages)  # the first partition; the rest is marked
    with runs.memory.writing() as connection:
        connection.execute(recomputations.delete().where(recomputations.c.partition_index == 0))
    assert facts(runs.memory)["recomputations"] == len(asked)
    assert facts(runs.memory)["pending_partitions"] == 0
    assert runs.asked(says=" anew") == asked
    assert facts(runs.memory)["recomputations"] == 0
    assert runs.asked() == []
    new = everything_in(runs.memory)
    assert new[: len(old)] == old
    assert [(row.stage, row.partition_index, row.revision) for row in new[len(old) :]] == [
        (stage, index, 1) for stage, _, index in asked
    ]
    assert all(row.created_time > old[-1].created_time for row in new[len(old) :])


def everything_in(memory: Memory) -> list[sa.Row[tuple[object, ...]]]:
    with memory.reading() as connection:
        return list(connection.execute(sa.select(texts).order_by(texts.c.text_id)))


def test_an_interrupted_writing_anew_that_is_asked_for_again_goes_on_and_ends() -> None:
    runs = Runs(memory=memory_of(ann=3, bob=2))
    whole = runs.asked()
    assert mark(runs.memory) == len(whole) == 8
    asked = runs.asked(budget=3)
    append_all(runs.memory, [behavior(second, user="cid") for second in range(2)])
    for budget in (3, 3):
        assert mark(runs.memory) == 0
        asked += runs.asked(budget=budget)
    assert asked == [*whole[:5], (SUMMARY, "cid", 0), *whole[5:]]
    assert facts(runs.memory)["recomputations"] == 0
    assert mark(runs.memory) == 9  # that was it: this is a new wish


def test_while_texts_wait_those_are_marked_too_that_were_not_written_since() -> None:
    runs = Runs(memory=memory_of(ann=4))
    runs.asked()
    assert mark(runs.memory, since=START_US + 4 * SECOND_US, stages=[SUMMARY]) == 2
    assert runs.asked(budget=1) == [(SUMMARY, "ann", 2)]
    assert mark(runs.memory) == 5  # the first two summaries, three shifts
    assert runs.asked(budget=3) == [(SUMMARY, "ann", index) for index in (0, 1, 3)]
    assert mark(runs.memory) == 0  # not even the one that was written between the two wishes
    assert runs.asked() == [(SHIFT, "ann", index) for index in (1, 2, 3)]
    assert facts(runs.memory)["recomputations"] == 0


def test_another_prompt_or_model_writes_everything_anew_though_an_older_wish_still_waits() -> None:
    runs = Runs(memory=memory_of(ann=3))
    runs.asked()
    assert mark(runs.memory, stages=[SUMMARY]) == 3
    runs.asked(broken=[(SUMMARY, "ann", 2)])  # and it can never be had
    assert mark(runs.memory, stages=[SUMMARY]) == 0
    assert mark(runs.memory, stages=[SUMMARY], prompt_version="test-2") == 2
    runs.learn(FaultyLearner(prompt_version="test-2", broken=[(SUMMARY, "ann", 2)]), with_failed=True)
    assert mark(runs.memory, stages=[SUMMARY], prompt_version="test-2") == 0
    assert mark(runs.memory, stages=[SUMMARY], prompt_version="test-2", model="echo-2") == 2


def test_only_texts_that_are_there_can_be_written_anew() -> None:
    runs = Runs(memory=memory_of(ann=3))
    runs.asked(broken=[(SUMMARY, "ann", 1)])
    append_all(runs.memory, [behavior(second) for second in (10, 11)])
    assert mark(runs.memory) == 3  # two summaries, one shift


def test_a_shift_that_is_written_anew_waits_for_the_new_summaries_it_is_made_from() -> None:
    runs = Runs(memory=memory_of(ann=2))
    runs.asked()
    mark(runs.memory)
    assert runs.asked(budget=1, says=" anew") == [(SUMMARY, "ann", 0)]
    assert waves_of(runs.memory, EchoLearner()).pending_count(SHIFT) == 0
    assert runs.asked(says=" again") == [(SUMMARY, "ann", 1), (SHIFT, "ann", 1)]
    first, second = newest(runs.memory, SUMMARY).values()
    assert (first.endswith(" anew"), second.endswith(" again")) == (True, True)
    assert newest(runs.memory, SHIFT)[1] == f"ann moved from ({first}) to ({second}) again"


def test_a_text_that_could_not_be_written_anew_stays_as_it_was_and_is_tried_where_failed_ones_are_wanted() -> None:
    runs = Runs(memory=memory_of(ann=2))
    runs.asked()
    mark(runs.memory)
    runs.asked(broken=[(SUMMARY, "ann", 1)], says=" anew")
    assert states(runs.memory)["ann", 1] == State(failure=REASON, attempts=4, summaries=(0,), shifts=(0,))
    assert facts(runs.memory)["recomputations"] == 2
    assert runs.asked() == []
    assert runs.asked(with_failed=True) == [(SUMMARY, "ann", 1), (SHIFT, "ann", 1)]
    assert states(runs.memory)["ann", 1] == State(failure=None, attempts=6, summaries=(0, 1), shifts=(0, 1))


def test_a_text_that_is_written_anew_again_and_again_counts_its_revisions_whatever_the_prompt_and_model() -> None:
    runs = Runs(memory=memory_of(ann=1))
    runs.asked()
    for prompt_version, model in (("test-1", "echo-1"), ("test-2", "echo-1"), ("test-1", "echo-1")):
        mark(runs.memory)
        runs.learn(FaultyLearner(prompt_version=prompt_version, model=model))
    assert states(runs.memory)["ann", 0].summaries == (0, 1, 2, 3)


def test_of_two_runs_that_write_a_text_anew_at_once_the_first_answer_stays() -> None:
    memory = memory_of(ann=1)
    learn_all(memory)
    mark(memory)
    pairs = []
    for says in (" first", " second"):
        learner = FaultyLearner(says=says)
        waves = waves_of(memory, learner)
        pairs.append((waves, next(learner.summarize(waves.summary_requests()))))
    for waves, answers in pairs:
        waves.keep_summaries(answers)
    assert states(memory)["ann", 0].summaries == (0, 1)
    assert newest(memory, SUMMARY)[0].endswith(" first")


def test_a_mark_that_was_made_after_a_text_was_kept_outlives_the_second_answer_to_the_same_question() -> None:
    memory = memory_of(ann=1)
    learner = FaultyLearner()
    late = waves_of(memory, learner)
    answers = next(learner.summarize(late.summary_requests()))
    learn_all(memory)
    assert mark(memory) == 1
    late.keep_summaries(answers)
    assert facts(memory)["recomputations"] == 1
    assert Runs(memory=memory).asked() == [(SUMMARY, "ann", 0)]


def test_what_is_pending_is_looked_up_once_a_wave() -> None:
    memory, learner = memory_of(ann=2), FaultyLearner()
    waves = waves_of(memory, learner)
    assert waves.pending_count(SUMMARY) == 2
    append_all(memory, [behavior(second, user="bob") for second in range(2)])
    assert [one.user_id for one in waves.summary_requests()] == ["ann", "ann"]
    assert [one.user_id for one in waves.summary_requests()] == ["ann", "ann", "bob"]
    assert (waves.pending_count(SUMMARY), waves.pending_count(SHIFT)) == (3, 0)


def test_the_status_tells_failed_partitions_from_pending_ones_and_names_the_versions_in_use() -> None:
    runs = Runs(memory=memory_of(ann=3, bob=2, cid=1))
    runs.asked(broken=[(SUMMARY, "bob", 0), (SHIFT, "ann", 2)])
    with runs.memory.reading() as connection:
        assert failure_reasons(connection) == {REASON: 2}
        assert failed_user_keys(connection) == [1, 2]
        assert failed_user_keys(connection, user_id="bob") == [2]
        assert failed_user_keys(connection, user_id="cid") == failed_user_keys(connection, user_id="nobody") == []
    append_all(runs.memory, [behavior(second, user="dora") for second in range(2)])
    mark(runs.memory, since=START_US + 5 * SECOND_US)
    found = facts(runs.memory)
    assert {name: found[name] for name in ("pending_partitions", "failed_partitions", "recomputations")} == {
        "pending_partitions": 1,
        "failed_partitions": 2,
        "recomputations": 1,
    }
    runs.learn(FaultyLearner(prompt_version="test-2", model="echo-2"), with_failed=True)
    found = facts(runs.memory)
    assert found["text_versions"] == {
        "shift test-1/echo-1": 1,
        "shift test-2/echo-2": 2,
        "summary test-1/echo-1": 4,
        "summary test-2/echo-2": 3,
    }
    assert (found["summaries"], found["shifts"]) == (7, 3)  # as many as are in use
    assert (found["pending_partitions"], found["failed_partitions"], found["recomputations"]) == (0, 0, 0)


@pytest.mark.parametrize("attempt_count", [0, 3])
def test_a_failure_counts_the_calls_that_were_made_for_it(attempt_count: int) -> None:
    memory, learner = memory_of(ann=1), FaultyLearner()
    waves = waves_of(memory, learner)
    (request,) = waves.summary_requests()
    waves.keep_summaries([(request, Failure(reason="prompt too long", attempt_count=attempt_count))])
    assert states(memory)["ann", 0] == State(failure="prompt too long", attempts=attempt_count, summaries=(), shifts=())


@pytest.mark.parametrize("outcome", [LearnedText(text="ann likes it"), Failure(reason="no answer", attempt_count=1)])
def test_an_answer_about_a_user_who_was_forgotten_meanwhile_vanishes(
    memory_url: str, tmp_path: Path, outcome: LearnedText | Failure
) -> None:
    memory = Memory.open(memory_url, base=tmp_path)
    append_all(memory, [behavior(second, user=user) for user in ("ann", "bob") for second in range(2)])
    waves = waves_of(memory, EchoLearner())
    ann, bob = waves.summary_requests()
    with memory.writing() as connection:
        connection.execute(behaviors.delete().where(behaviors.c.user_key == 1))
        connection.execute(partitions.delete().where(partitions.c.user_key == 1))
    waves.keep_summaries([(ann, outcome), (bob, LearnedText(text="bob likes it"))])
    assert set(states(memory)) == {("bob", 0)}
    assert newest(memory, SUMMARY) == {0: "bob likes it"}
    memory.close()


def test_the_vector_of_a_text_that_is_gone_vanishes(memory_url: str, tmp_path: Path) -> None:
    memory = Memory.open(memory_url, base=tmp_path)
    append_all(memory, [behavior(second) for second in range(4)])
    learn_all(memory)
    with memory.writing() as connection:
        connection.execute(texts.delete().where(texts.c.text_id == 2))
        add_vectors(connection, {1: b"1", 2: b"2", 3: b"3"}, encoder_version="v")
        add_vectors(connection, {1: b"other"}, encoder_version="v")
    with memory.reading() as connection:
        kept = {row.text_id: bytes(row.vector) for row in connection.execute(sa.select(text_vectors))}
    assert kept == {1: b"1", 3: b"3"}
    memory.close()


PLACES = st.sets(st.tuples(st.sampled_from([SUMMARY, SHIFT]), st.sampled_from(["ann", "bob"]), st.integers(0, 5)))
STEPS = st.one_of(
    st.tuples(st.just("seal"), st.sampled_from(["ann", "bob"]), st.integers(1, 3)),
    st.tuples(st.just("learn"), PLACES, st.none() | st.integers(0, 6)),
    st.tuples(st.just("retry"), PLACES, st.none() | st.integers(0, 6)),
    st.tuples(st.just("mark"), st.sets(st.sampled_from([SUMMARY, SHIFT]), min_size=1), st.integers(0, 12)),
)
"""What may happen to a memory, in the words of `take`."""


def take(step: tuple[str, object, object], runs: Runs) -> None:
    """Seal partitions, learn with failures and a budget, or mark texts that are to be written anew."""
    match step:
        case ("seal", str() as user, int() as count):
            with runs.memory.reading() as connection:
                start = connection.scalar(sa.select(sa.func.count()).select_from(partitions)) or 0
            seconds = range(2 * start, 2 * start + 2 * count)
            append_all(runs.memory, [behavior(second, user=user, item=f"{user}{second}") for second in seconds])
        case ("mark", set() as stages, int() as second):
            mark(runs.memory, since=START_US + second * SECOND_US, stages=sorted(stages))
        case (str() as kind, set() as broken, budget):
            says = f" at {runs.clock.time}"
            runs.asked(broken=broken, budget=budget, says=says, with_failed=kind == "retry")


@settings(max_examples=25)
@given(st.lists(STEPS, max_size=8))
def test_whatever_fails_and_is_redone_a_run_without_faults_leaves_every_partition_with_all_its_texts(
    steps: list[tuple[str, object, object]],
) -> None:
    runs = Runs(memory=new_memory())
    for step in [("seal", "ann", 2), *steps]:
        take(step, runs)
    runs.asked(with_failed=True)
    found = facts(runs.memory)
    assert (found["pending_partitions"], found["failed_partitions"], found["recomputations"]) == (0, 0, 0)
    for (_, index), state in states(runs.memory).items():
        assert state.failure is None
        assert state.summaries == tuple(range(len(state.summaries)))
        assert state.shifts == tuple(range(len(state.shifts)))
        assert state.summaries
        assert bool(state.shifts) == (index > 0)
    again = EchoLearner()
    waves = replace(waves_of(runs.memory, again), with_failed=True)
    assert learn(again, waves, progress=no_progress).summary_count == 0
    assert (again.summaries, again.shifts) == ([], [])
    runs.memory.close()
