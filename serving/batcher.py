"""Answer the questions of concurrent requests together, with one forward pass, outside of the event loop.

Nothing waits for a batch to fill: while one is scored the next ones gather. What waits is bounded.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from liber_feast.errors import RetryableError
from serving.answers import Question, Ranking

CANDIDATE_LIMIT = 4_096
"""Candidates in one forward pass; a question that has more makes a pass of its own."""
QUESTION_LIMIT = 512
Score = Callable[[Sequence[Question]], list[Ranking]]


class QueueFull(RetryableError):
    """More questions wait than the server takes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Waiting:
    question: Question
    answer: Future[Ranking] = field(default_factory=Future)


class Batcher:
    """Hands what waits to `score` from one thread of its own; `observe` is told the candidates of each pass."""

    def __init__(
        self,
        score: Score,
        *,
        question_limit: int = QUESTION_LIMIT,
        candidate_limit: int = CANDIDATE_LIMIT,
        observe: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._score, self._observe = score, observe
        self._question_limit, self._candidate_limit = question_limit, candidate_limit
        self._waiting: deque[_Waiting] = deque()
        self._changed, self._is_closed = threading.Condition(), False
        threading.Thread(target=self._work, name="scorer", daemon=True).start()

    @property
    def waiting_count(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    async def ask(self, questions: Sequence[Question]) -> list[Ranking]:
        """Return the rankings of questions, in their order; what is cancelled meanwhile is not scored.

        Raises:
            QueueFull: too many questions wait; none of these was taken.
        """
        asked = [_Waiting(question=question) for question in questions]
        with self._changed:
            if len(self._waiting) + len(asked) > self._question_limit:
                raise QueueFull(f"{len(self._waiting)} questions wait already. Ask again later.")
            self._waiting.extend(asked)
            self._changed.notify()
        return list(await asyncio.gather(*(asyncio.wrap_future(one.answer) for one in asked)))

    def close(self) -> None:
        """End the thread once the batch it is at is answered; what still waits is cancelled."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _work(self) -> None:
        while batch := self._next():
            self._observe(sum(len(one.question.item_ids) for one in batch))
            self._answer(batch)

    def _next(self) -> list[_Waiting]:
        """Wait for questions and return those of the next pass; none where the batcher is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            if self._is_closed:
                for one in self._waiting:
                    one.answer.cancel()
                return []
            batch: list[_Waiting] = []
            count = 0
            while self._waiting:
                count += len(self._waiting[0].question.item_ids)
                if batch and count > self._candidate_limit:
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        live = [one for one in batch if one.answer.set_running_or_notify_cancel()]
        if not self._is_answered(live):
            for one in live:  # one question that cannot be answered takes no other with it
                self._is_answered([one], is_last=True)

    def _is_answered(self, some: Sequence[_Waiting], *, is_last: bool = False) -> bool:
        try:
            rankings = self._score([one.question for one in some]) if some else []
        except Exception as error:  # noqa: BLE001 (it is raised where the question was asked)
            if is_last:
                some[0].answer.set_exception(error)
            return False
        for one, ranking in zip(some, rankings, strict=True):
            one.answer.set_result(ranking)
        return True
