"""The loop that keeps a backend busy: as many calls in flight as it takes, each reserved before and settled after.

One thread, one generator. A call is in flight from its reservation until its answer was kept, or its text given up:
submitted, waiting to be made again, or yielded to a consumer that has not asked for more. Whatever kills the process,
that is all it loses. What time there is until something arrives goes into reading and rendering ahead, so that a
freed place is filled at once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, islice
from typing import Generic, TypeVar

from liber_feast.budget import CallOutcome, Ledger, SettledCall
from liber_feast.errors import BackendRefused, BackendUnreachable, BudgetExhausted, LiberError
from liber_feast.interest import Failure, LearnedText, Outcome, Request
from liber_feast.llm.attempts import UNANSWERED, AskedText, Judge, Unanswered, Verdict, in_vain, settled_call
from liber_feast.llm.chat import ChatAnswer, ChatCall, ChatError, ChatResult, ErrorKind
from liber_feast.llm.contact import REFUSED_IN_ROW, Contact
from liber_feast.llm.spending import SpendingMeter

PIECES_PER_WINDOW = 4
"""The first calls are submitted once this part of the window is rendered; the rest is rendered while they run."""

RENDERED_PER_LOOK = 4
"""Prompts rendered between two looks at what has arrived."""

SMALLEST_GROUP, GROUPS_PER_WINDOW = 8, 8
"""Of answers that arrive all at once, so many or this part of the window are checked and kept together: the places of
the first are filled again while the rest is checked, and the next answers do not arrive all at once."""

SHORTEST_WAIT_S = 0.001
"""Rounding of times must not make a wait too short to end."""

LEFT_OVER_PER_WINDOW = 8
"""At the end of a wave this part of the window (1 at least) says of itself alone that it gets no answer: there is no
other text left by whose answers the backend could show that it is there."""

BACK = "Run again when it is back; what was learned is kept."

_R = TypeVar("_R", bound=Request)


class CallLoop(Generic[_R]):
    """One wave: every request gets one outcome, unless the backend or the budget gives out.

    At most two windows of requests are held: those in flight, and those rendered ahead.
    """

    def __init__(
        self,
        requests: Iterator[_R],
        *,
        judge: Judge[_R],
        contact: Contact,
        ledger: Ledger,
        meter: SpendingMeter,
        patience_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._requests, self._judge, self._contact = requests, judge, contact
        self._ledger, self._meter, self._clock, self._sleep = ledger, meter, clock, sleep
        self._most, self._patience_s = contact.backend.max_in_flight, patience_s
        self._is_drained = False
        self._ahead: deque[AskedText[_R]] = deque()
        self._in_flight: dict[int, AskedText[_R]] = {}
        self._waiting: list[tuple[float, int, AskedText[_R]]] = []  # a heap by the time of the next attempt
        self._again: deque[AskedText[_R]] = deque()
        self._arrived: deque[ChatResult] = deque()
        self._settled: list[SettledCall] = []
        self._outcomes: list[tuple[_R, Outcome]] = []
        self._refused: list[tuple[AskedText[_R], Failure]] = []  # until a call is answered, or the wave ends
        self._held_until: float | None = None
        self._is_probing = False
        self._limit: str | None = None
        self._stop: LiberError | None = None
        self._numbers = count()

    @property
    def has_calls_in_flight(self) -> bool:
        """Whether the backend works on calls whose answers nobody will collect, once the generator has ended."""
        return bool(self._in_flight)

    def groups(self) -> Iterator[Sequence[tuple[_R, Outcome]]]:
        """Yield outcomes as they arrive; a group counts as kept when the next is asked for.

        Raises:
            BudgetExhausted: the ledger grants no further call, and none is in flight; the rest stays pending.
            BackendRefused: no call can succeed.
            BackendUnreachable: the backend does not answer for as long as the patience is.
        """
        self._contact.begin_wave(now=self._clock())
        while not self._is_over():
            if not self._stop:
                self._send()
            self._take()
            if self._outcomes:
                group, self._outcomes = self._outcomes, []
                yield group
        self._settle_rest()
        if self._stop:
            raise self._stop
        if self._refused:
            self._release()
            yield self._outcomes
        if self._limit:
            raise BudgetExhausted(f"Out of budget: {self._limit} allow no further call.", limit=self._limit)

    def _is_over(self) -> bool:
        if self._stop:
            return not self._arrived
        if self._in_flight or self._waiting or self._settled:
            return False
        return self._limit is not None or (self._is_drained and not self._again and not self._ahead)

    def _room(self) -> int:
        """Return how many new texts may be asked for now."""
        if self._limit is not None or self._held_until is not None or self._is_probing:
            return 0
        return self._contact.window - len(self._in_flight) - len(self._waiting) - len(self._again)

    def _send(self) -> None:
        """Settle what has ended, reserve what can go, and submit it: texts asked for again first."""
        now = self._clock()
        while self._waiting and self._waiting[0][0] <= now:
            self._again.append(heappop(self._waiting)[2])
        wanted = self._sendable(now)
        if not wanted and not self._settled:
            return
        settled, self._settled = self._settled, []
        grant = self._ledger.exchange(settled=settled, wanted=[asked.planned for asked in wanted])
        granted = wanted[: len(grant.call_ids)]
        # Calls that end give back what they did not use: a limit stands until the next exchange, not for good.
        if len(granted) < len(wanted):
            self._limit, self._held_until = grant.limit or "its limits", None
        calls = []
        for call_id, asked in zip(grant.call_ids, granted, strict=True):
            (self._again or self._ahead).popleft()
            asked.call_count += 1
            if not asked.unanswered_count:
                asked.seen_reply_count = self._contact.reply_count
            self._in_flight[call_id] = asked
            calls.append(ChatCall(call_id=call_id, messages=asked.fitted.messages))
        if calls:
            self._contact.limiter.note([_size(asked) for asked in granted], now=self._clock())
            self._contact.backend.submit(calls)

    def _sendable(self, now: float) -> list[AskedText[_R]]:
        """Return the texts for which there is room and a rate, in order; they stay where they are."""
        self._held_until, self._limit, self._is_probing = None, None, False
        ready = [*self._again, *islice(self._ahead, max(self._room(), 0))]
        if self._contact.silent_since is not None and self._contact.is_probed(now=now):
            self._is_probing, ready = True, ready[: 0 if self._in_flight else 1]
        limiter = self._contact.limiter
        admitted = limiter.admitted([_size(asked) for asked in ready], now=now)
        if admitted < len(ready):
            # Those that go now count as well once they have gone; then it is asked again.
            self._held_until = limiter.free_time(_size(ready[admitted]), now=now)
        return ready[:admitted]

    def _arrivals(self) -> Sequence[ChatResult]:
        """Return what has arrived; () once there is something to send or to yield, or nothing to wait for."""
        backend, room = self._contact.backend, self._room()
        enough = min(room, max(self._most // PIECES_PER_WINDOW, 1)) if room > 0 else self._most
        while len(self._ahead) < enough and self._may_render():
            if self._in_flight and (results := backend.collect(timeout_s=0.0)):
                return results
            self._render(min(RENDERED_PER_LOOK, enough - len(self._ahead)))
        if self._outcomes or (room > 0 and self._ahead):
            return ()
        wait_s = self._wait_s()
        if self._in_flight:
            return backend.collect(timeout_s=wait_s)
        if wait_s is not None:
            self._sleep(wait_s)
        return ()

    def _wait_s(self) -> float | None:
        """Return how long to wait for calls in flight before something else can be sent; None: nothing else can."""
        due = [self._waiting[0][0]] if self._waiting else []
        if self._held_until is not None:
            due.append(self._held_until)
        return max(min(due) - self._clock(), SHORTEST_WAIT_S) if due else None

    def _may_render(self) -> bool:
        return not self._is_drained and self._limit is None and len(self._outcomes) < self._most

    def _render(self, most: int) -> None:
        """Read and render the next requests, at most so many."""
        for _ in range(most):
            request = next(self._requests, None)
            if request is None:
                self._is_drained = True
                return
            begun = self._judge.begin(request)
            if isinstance(begun, Failure):
                self._meter.failed(stage=self._judge.stage)
                self._outcomes.append((request, begun))
            else:
                self._ahead.append(begun)

    def _take(self) -> None:
        """Judge what has arrived, a group at a time."""
        if not self._arrived:
            self._arrived.extend(self._arrivals())
            self._note_replies(self._arrived)
        size = max(SMALLEST_GROUP, self._most // GROUPS_PER_WINDOW)
        results = [self._arrived.popleft() for _ in range(min(size, len(self._arrived)))]
        for result in results:
            self._end_call(self._in_flight.pop(result.call_id), result)

    def _end_call(self, asked: AskedText[_R], result: ChatResult) -> None:
        if isinstance(result, ChatError) and result.kind is ErrorKind.FATAL:
            self._stop = self._stop or BackendRefused(result.reason)
            self._end(asked, settled_call(result, outcome=CallOutcome.REFUSED))
            return
        outcome, verdict = self._judge.judge(asked, result)
        self._end(asked, settled_call(result, outcome=outcome))
        is_refused = isinstance(result, ChatError) and result.kind is ErrorKind.BAD_CALL
        if is_refused and isinstance(verdict, Failure) and not self._contact.is_answered:
            self._hold(asked, verdict)
        else:
            self._follow(asked, verdict)

    def _note_replies(self, results: Iterable[ChatResult]) -> None:
        """Note that the backend is there if one of the results that came together says so, wherever it stands."""
        is_answer = is_reply = False
        longest_s = -1.0
        for result in results:
            if isinstance(result, ChatAnswer):
                is_answer = True
                break
            if result.kind in UNANSWERED:
                longest_s = max(longest_s, result.seconds)
            elif result.kind is not ErrorKind.FATAL:
                is_reply = True
        if is_answer or is_reply:
            self._contact.note_reply(now=self._clock(), is_answer=is_answer)
        elif longest_s >= 0:
            self._contact.note_silence(since=self._clock() - longest_s)
        if is_answer and self._refused:
            self._release()

    def _hold(self, asked: AskedText[_R], failure: Failure) -> None:
        """Hold a refusal back until it is known whether the server refuses this call or every call."""
        self._refused.append((asked, failure))
        self._contact.refused_in_row += 1
        if self._contact.refused_in_row >= REFUSED_IN_ROW:
            self._stop = self._stop or BackendRefused(
                f"The LLM's server refuses every call ({failure.reason}). Check the model and the settings of the"
                " interest block; no text was counted as failed."
            )

    def _release(self) -> None:
        refused, self._refused = self._refused, []
        for asked, failure in refused:
            self._fail(asked, failure)

    def _end(self, asked: AskedText[_R], settled: SettledCall) -> None:
        self._settled.append(settled)
        self._meter.call_ended(settled, planned=asked.planned)

    def _follow(self, asked: AskedText[_R], verdict: Verdict) -> None:
        if isinstance(verdict, LearnedText):
            self._outcomes.append((asked.request, verdict))
        elif isinstance(verdict, Failure):
            self._fail(asked, verdict)
        elif isinstance(verdict, Unanswered):
            self._try_on(asked, verdict)
        else:
            self._meter.retried(stage=self._judge.stage, reason=verdict.reason)
            self._again.append(asked)

    def _fail(self, asked: AskedText[_R], failure: Failure) -> None:
        self._meter.failed(stage=self._judge.stage)
        self._outcomes.append((asked.request, failure))

    def _try_on(self, asked: AskedText[_R], verdict: Unanswered) -> None:
        """Make a call again after a while; give its text up if others are answered, and the backend if none is."""
        contact, now = self._contact, self._clock()
        deadline = (now if contact.silent_since is None else contact.silent_since) + self._patience_s
        self._hold_against(asked)
        if contact.is_on_trial and asked.unanswered_count >= self._judge.max_attempts:
            self._give_up(f"The LLM gave {in_vain(asked, error=verdict.error)}.")
        elif asked.held_against_count >= self._judge.max_attempts:
            self._fail(asked, Failure(reason=in_vain(asked, error=verdict.error), attempt_count=asked.call_count))
        elif now >= deadline:
            self._give_up(f"The LLM gives no answer for {self._patience_s:,.0f} s, the last: {verdict.error}.")
        elif now + verdict.least_s > deadline:
            self._give_up(f"The LLM asks to wait {verdict.least_s:,.0f} s ({verdict.error}).")
        else:
            self._meter.retried(stage=self._judge.stage, reason=verdict.reason)
            due = max(now + verdict.least_s, min(now + verdict.after_s, deadline))
            heappush(self._waiting, (due, next(self._numbers), asked))

    def _hold_against(self, asked: AskedText[_R]) -> None:
        """Count an attempt in vain against its text if the backend replied to others since the one before."""
        replies = self._contact.reply_count
        if replies > asked.seen_reply_count or (asked.held_against_count and self._is_left_over()):
            asked.held_against_count += 1
        asked.seen_reply_count = replies

    def _is_left_over(self) -> bool:
        others = len(self._in_flight) + len(self._waiting) + len(self._again)
        return self._is_drained and not self._ahead and others < max(self._most // LEFT_OVER_PER_WINDOW, 1)

    def _give_up(self, reason: str) -> None:
        """Stop; what was not answered stays pending."""
        self._stop = self._stop or BackendUnreachable(f"{reason} {BACK}")

    def _settle_rest(self) -> None:
        """Settle what has ended; calls that are left in flight by a stop count as lost."""
        for call_id, asked in self._in_flight.items():
            self._end(asked, SettledCall(call_id=call_id, outcome=CallOutcome.LOST))
        if self._settled:
            self._ledger.exchange(settled=self._settled, wanted=())
            self._settled = []


def _size(asked: AskedText[_R]) -> int:
    """Return the tokens of a call as a limit per minute counts them."""
    return asked.fitted.input_tokens + asked.planned.max_output_tokens
