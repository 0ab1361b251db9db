"""The two waves of learning over the memory: what is asked, what is kept, what is never asked twice."""

from dataclasses import dataclass
from datetime import timedelta

import pytest
import sqlalchemy as sa

import liber_feast.waves
from liber_feast.interest import Item, LearnedText, WaveCounts, learn
from liber_feast.memory import Memory
from liber_feast.memory.schema import partitions, texts
from liber_feast.memory.texts import text_hash
from tests.memory_parts import (
    START,
    START_US,
    EchoLearner,
    append_all,
    behavior,
    learn_all,
    new_memory,
    no_progress,
    waves_of,
)


class LearnerBroke(Exception):
    """The LLM behind `FailingLearner` went away."""


@dataclass(kw_only=True)
class FailingLearner(EchoLearner):
    """Breaks after `answers` answers, whichever wave they are of."""

    answers: int

    def _answer(self, text: str) -> LearnedText:
        if self.answers == 0:
            raise LearnerBroke
        self.answers -= 1
        return super()._answer(text)


def kept(memory: Memory) -> list[sa.Row[tuple[object, ...]]]:
    with memory.reading() as connection:
        ordered = sa.select(texts).order_by(texts.c.stage.desc(), texts.c.user_key, texts.c.partition_index)
        return list(connection.execute(ordered))


def two_users() -> Memory:
    """Return a memory with three partitions of ann and two of bob."""
    memory = new_memory()
    append_all(memory, [behavior(second, item=f"a{second}", rating=1 + second % 5) for second in range(7)])
    append_all(memory, [behavior(second, item=f"b{second}", user="bob") for second in range(4)])
    return memory


def test_learning_has_two_waves_whatever_the_number_of_users_and_a_second_run_makes_no_call() -> None:
    memory, learner = two_users(), EchoLearner()
    assert learn(learner, waves_of(memory, learner), progress=no_progress) == WaveCounts(summary_count=5, shift_count=3)
    assert learner.waves == ["summaries", "shifts"]
    again = EchoLearner()
    assert learn(again, waves_of(memory, again), progress=no_progress) == WaveCounts(summary_count=0, shift_count=0)
    assert (again.summaries, again.shifts) == ([], [])


def test_a_summary_sees_the_profile_and_the_behaviors_of_its_partition_in_order() -> None:
    learner = learn_all(two_users())
    asked = {(one.user_id, one.partition_index): one for one in learner.summaries}
    assert set(asked) == {("ann", 0), ("ann", 1), ("ann", 2), ("bob", 0), ("bob", 1)}
    request = asked["ann", 1]
    assert request.profile == "profile of ann"
    assert [one.item for one in request.behaviors] == [
        Item(item_id="a2", title="the a2"),
        Item(item_id="a3", title="the a3"),
    ]
    assert [(one.rating, one.liked) for one in request.behaviors] == [(3.0, False), (4.0, True)]
    assert [one.event_time for one in request.behaviors] == [START + timedelta(seconds=2), START + timedelta(seconds=3)]


def test_a_shift_sees_the_summary_of_the_partition_before_and_the_behaviors_of_both() -> None:
    learner = learn_all(two_users())
    asked = {(one.user_id, one.partition_index): one for one in learner.shifts}
    assert set(asked) == {("ann", 1), ("ann", 2), ("bob", 1)}
    request = asked["ann", 2]
    assert request.previous_partition_index == 1
    assert request.previous_summary == "ann likes the a2, the a3"
    assert request.summary == "ann likes the a4, the a5"
    assert [one.item.item_id for one in request.previous_behaviors] == ["a2", "a3"]
    assert [one.item.item_id for one in request.behaviors] == ["a4", "a5"]


def test_a_text_is_kept_with_everything_its_key_and_its_cost_need() -> None:
    memory = two_users()
    learn_all(memory)
    shift = kept(memory)[-1]
    assert shift.text == "bob moved from (bob likes the b0, the b1) to (bob likes the b2, the b3)"
    assert (shift.stage, shift.partition_index, shift.previous_partition_index) == ("shift", 1, 0)
    assert (shift.prompt_version, shift.model, shift.text_hash) == ("test-1", "echo-1", text_hash(shift.text))
    assert (shift.input_tokens, shift.output_tokens, shift.cached_tokens) == (3, 2, 0)
    assert shift.created_time > START_US
    assert {row.previous_partition_index for row in kept(memory) if row.stage == "summary"} == {None}


@pytest.mark.parametrize("answers", range(8))
def test_every_text_is_kept_as_it_arrives_and_after_a_crash_only_the_rest_is_asked(answers: int) -> None:
    memory, whole = two_users(), two_users()
    learn_all(whole)
    with pytest.raises(LearnerBroke):
        learn_all(memory, FailingLearner(answers=answers))
    assert len(kept(memory)) == answers
    before = kept(memory)
    rest = learn_all(memory)
    assert len(rest.summaries) + len(rest.shifts) == 8 - answers
    assert [row for row in kept(memory) if row.text_id <= answers] == before
    assert [(row.user_key, row.partition_index, row.stage, row.text) for row in kept(memory)] == [
        (row.user_key, row.partition_index, row.stage, row.text) for row in kept(whole)
    ]


def test_equal_texts_of_two_users_are_two_rows() -> None:
    memory = two_users()
    learn_all(memory, EchoLearner(says="the same"))
    assert {row.text for row in kept(memory)} == {"the same"}
    assert len({(row.user_key, row.partition_index, row.stage) for row in kept(memory)}) == 8


def test_new_partitions_are_learned_beside_the_old_ones() -> None:
    memory = two_users()
    learn_all(memory)
    append_all(memory, [behavior(second, user="bob", item=f"b{second}") for second in (4, 5)])
    more = learn_all(memory)
    assert [(one.user_id, one.partition_index) for one in more.summaries] == [("bob", 2)]
    assert [one.previous_summary for one in more.shifts] == ["bob likes the b2, the b3"]


def test_learning_for_some_users_leaves_the_others_waiting() -> None:
    memory, learner = two_users(), EchoLearner()
    with memory.reading() as connection:
        bob = connection.scalar(sa.text("SELECT user_key FROM users WHERE user_id = 'bob'"))
    learn(learner, waves_of(memory, learner, user_keys=[bob]), progress=no_progress)
    assert {one.user_id for one in (*learner.summaries, *learner.shifts)} == {"bob"}
    assert {one.user_id for one in learn_all(memory).summaries} == {"ann"}


def test_another_prompt_does_not_ask_for_texts_that_are_there() -> None:
    memory = two_users()
    learn_all(memory)
    other = learn_all(memory, EchoLearner(prompt_version="test-2", model="echo-2"))
    assert (other.summaries, other.shifts) == ([], [])


def without(memory: Memory, *, index: int, is_failed: bool) -> None:
    """Take all shifts and the summary of every partition of an index from the memory."""
    with memory.writing() as connection:
        connection.execute(texts.delete().where(texts.c.stage == "shift"))
        connection.execute(texts.delete().where(texts.c.partition_index == index))
        if is_failed:
            failed = partitions.update().where(partitions.c.partition_index == index)
            connection.execute(failed.values(failure="no answer"))


@pytest.mark.parametrize(
    ("index", "is_failed", "asked"),
    [
        (0, True, [("ann", 2, 1)]),
        (0, False, []),
        (1, True, [("ann", 2, 0)]),
        (1, False, []),
        (2, True, [("ann", 1, 0), ("bob", 1, 0)]),
        (2, False, [("ann", 1, 0), ("bob", 1, 0)]),
    ],
    ids=[
        "the first failed: none before it",
        "the first is pending: later ones wait",
        "one failed: it is passed over",
        "one is pending: later ones wait",
        "the last failed",
        "the last is pending",
    ],
)
def test_a_shift_is_made_from_the_last_summary_before_it_and_waits_for_those_that_are_pending(
    index: int, is_failed: bool, asked: list[tuple[str, int, int]]
) -> None:
    memory = two_users()
    learn_all(memory)
    without(memory, index=index, is_failed=is_failed)
    found = waves_of(memory, EchoLearner()).shift_requests()
    assert [(one.user_id, one.partition_index, one.previous_partition_index) for one in found] == asked


def test_requests_are_read_in_small_pieces_as_they_are_taken_and_no_partition_comes_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liber_feast.waves, "PARTITIONS_PER_PIECE", 2)
    memory, reads = two_users(), []
    sa.event.listen(memory.engine, "begin", lambda _connection: reads.append(1))
    requests = waves_of(memory, EchoLearner()).summary_requests()
    assert reads == []
    counts = [len(reads) for _ in requests]
    assert counts == [3, 3, 5, 5, 7]  # what is missing, then partitions and behaviors of each piece
    learner = learn_all(memory)
    asked = [(one.user_id, one.partition_index) for one in (*learner.summaries, *learner.shifts)]
    assert sorted(asked) == sorted([("ann", 0), ("ann", 1), ("ann", 2), ("bob", 0), ("bob", 1)] + asked[5:])
    assert asked[5:] == [("ann", 1), ("ann", 2), ("bob", 1)]


def test_an_answer_that_another_run_kept_first_stays() -> None:
    memory, first, second = two_users(), EchoLearner(says="first"), EchoLearner(says="second")
    waves = waves_of(memory, second)
    requests = list(waves.summary_requests())
    learn_all(memory, first)
    for answers in second.summarize(requests):
        waves.keep_summaries(answers)
    assert {row.text for row in kept(memory)} == {"first"}
    assert len(kept(memory)) == 8


def test_late_behaviors_are_described_at_the_time_they_happened() -> None:
    memory = new_memory()
    append_all(memory, [behavior(second) for second in (10, 11, 12)])
    append_all(memory, [behavior(1, name="late")])
    learner = learn_all(memory)
    late = learner.shifts[0].behaviors
    assert [one.event_time for one in late] == [START + timedelta(seconds=1), START + timedelta(seconds=12)]
    assert [one.user_id for one in learner.shifts] == ["ann"]


def test_progress_counts_every_text_of_each_wave() -> None:
    memory, learner, seen = two_users(), EchoLearner(), []
    learn(learner, waves_of(memory, learner), progress=lambda stage, count, _total: seen.append((stage, count)))
    assert seen == [("summaries", 1)] * 5 + [("shifts", 1)] * 3


@pytest.mark.parametrize("per_piece", [1, 32])
def test_what_another_run_kept_since_this_one_began_is_not_asked_for_again(
    per_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liber_feast.waves, "PARTITIONS_PER_PIECE", per_piece)
    memory, learner = two_users(), EchoLearner()
    waves = waves_of(memory, learner)
    assert waves.pending_count("summary") == 5
    learn_all(memory)
    before = kept(memory)
    assert list(waves.summary_requests()) == []
    with memory.writing() as connection:
        connection.execute(sa.delete(texts).where(texts.c.stage == "shift"))
    assert waves.pending_count("shift") == 3
    learn_all(memory)
    assert list(waves.shift_requests()) == []
    assert [row.revision for row in kept(memory)] == [0] * len(before)
