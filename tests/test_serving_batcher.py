"""Questions of concurrent requests are answered together, each with its own answer, and what waits is bounded."""

import asyncio
import threading
from collections.abc import Iterator, Sequence

import pytest

from serving.answers import Missing, Question, Ranking, ServedModel
from serving.batcher import Batcher, QueueFull

MODEL = ServedModel(run="r", backbone="b", feature_service="s", fusion_version=None)
NOTHING = Missing(
    store=False,
    user=False,
    behaviors=False,
    interests=False,
    fusion_version_mismatch=None,
    evidence=False,
    evidence_version_mismatch=None,
    items=(),
)


class SlowScorer:
    """Answers when it is let; remembers the passes. A user named `bad` cannot be answered."""

    def __init__(self) -> None:
        self.passes: list[list[str]] = []
        self.is_let, self.has_begun = threading.Event(), threading.Event()

    def __call__(self, questions: Sequence[Question]) -> list[Ranking]:
        self.passes.append([question.user_id for question in questions])
        self.has_begun.set()
        assert self.is_let.wait(30)
        if "bad" in self.passes[-1]:
            raise ValueError("bad")
        return [Ranking(user_id=one.user_id, scores=(), missing=NOTHING, model=MODEL) for one in questions]


@pytest.fixture
def scorer() -> Iterator[SlowScorer]:
    made = SlowScorer()
    yield made
    made.is_let.set()


def question(user_id: str, *, count: int = 1) -> Question:
    return Question(user_id=user_id, item_ids=("i",) * count)


async def begun(batcher: Batcher, scorer: SlowScorer, *users: str) -> "list[asyncio.Task[list[Ranking]]]":
    """Ask for the first user, and for the others while it is scored."""
    tasks = [asyncio.create_task(batcher.ask([question(users[0])]))]
    await asyncio.to_thread(scorer.has_begun.wait, 30)
    tasks += [asyncio.create_task(batcher.ask([question(name)])) for name in users[1:]]
    await asyncio.sleep(0)
    return tasks


async def answers(tasks: "Sequence[asyncio.Task[list[Ranking]]]") -> list[str]:
    return [ranking.user_id for rankings in await asyncio.gather(*tasks) for ranking in rankings]


def test_what_gathers_while_one_is_scored_is_one_pass(scorer: SlowScorer) -> None:
    async def act() -> list[str]:
        tasks = await begun(Batcher(scorer), scorer, "a", "b", "c", "d")
        scorer.is_let.set()
        return await answers(tasks)

    assert asyncio.run(act()) == ["a", "b", "c", "d"]
    assert scorer.passes == [["a"], ["b", "c", "d"]]


def test_a_pass_holds_the_limit_of_candidates_but_for_one_question_that_has_more(scorer: SlowScorer) -> None:
    async def act() -> list[Ranking]:
        scorer.is_let.set()
        asked = [question(name, count=count) for name, count in (("a", 2), ("b", 3), ("c", 9), ("d", 1))]
        return await Batcher(scorer, candidate_limit=5).ask(asked)

    assert [ranking.user_id for ranking in asyncio.run(act())] == ["a", "b", "c", "d"]
    assert scorer.passes == [["a", "b"], ["c"], ["d"]]


def test_a_full_queue_takes_no_question_of_a_request(scorer: SlowScorer) -> None:
    async def act() -> list[str]:
        batcher = Batcher(scorer, question_limit=3)
        tasks = await begun(batcher, scorer, "a", "b", "c")
        with pytest.raises(QueueFull):
            await batcher.ask([question("d"), question("e")])
        assert batcher.waiting_count == 2
        scorer.is_let.set()
        return await answers(tasks)

    assert asyncio.run(act()) == ["a", "b", "c"]


def test_a_question_that_cannot_be_answered_takes_no_other_with_it(scorer: SlowScorer) -> None:
    async def act() -> None:
        tasks = await begun(Batcher(scorer), scorer, "a", "b", "bad", "c")
        scorer.is_let.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one).__name__ for one in found] == ["list", "list", "ValueError", "list"]

    asyncio.run(act())


def test_a_question_that_nobody_waits_for_any_more_is_not_scored(scorer: SlowScorer) -> None:
    async def act() -> None:
        tasks = await begun(Batcher(scorer), scorer, "a", "b", "c")
        tasks[1].cancel()
        await asyncio.sleep(0)
        scorer.is_let.set()
        assert await answers([tasks[0], tasks[2]]) == ["a", "c"]

    asyncio.run(act())
    assert scorer.passes == [["a"], ["c"]]


def test_closing_cancels_what_waits(scorer: SlowScorer) -> None:
    async def act() -> None:
        batcher = Batcher(scorer)
        tasks = await begun(batcher, scorer, "a", "b")
        batcher.close()
        scorer.is_let.set()
        assert await answers(tasks[:1]) == ["a"]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    asyncio.run(act())
