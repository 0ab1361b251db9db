"""Learn interest from an LLM: any chat backend, a budget, and everything that can go wrong between them."""

import gc
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

from liber_feast.budget import Ledger, Prices
from liber_feast.errors import LiberError
from liber_feast.interest import SHIFT, SUMMARY, Answers, Outcome, Request, ShiftRequest, SummaryRequest
from liber_feast.llm.attempts import Fit, Judge, check_plain
from liber_feast.llm.call_loop import CallLoop
from liber_feast.llm.chat import ChatBackend
from liber_feast.llm.contact import Contact
from liber_feast.llm.fit import Fitter
from liber_feast.llm.parts_answer import check_parts
from liber_feast.llm.rate_limit import RateLimiter, RateLimits
from liber_feast.llm.spending import Spending, SpendingMeter
from liber_feast.parts import PARTS
from liber_feast.prompt import Prompt

PATIENCE_S = 600.0
"""Ten minutes: a server that is started again, or a network that is down for a while, does not end a long run."""

_R = TypeVar("_R", bound=Request)


class ChatLearner:
    """An interest learner that asks an LLM. Nothing is opened until there is a request, and then for both waves.

    An answer cut short, empty or otherwise of no use is asked for once more. A call without an answer is made again
    after a while, `max_attempts` times in all while others are answered; while none is, no text fails, and calls are
    tried on for `patience_s`. `call_loop` says what is in flight, and what stops a run.
    """

    counts_behaviors = False

    patience_s: float
    """Seconds that a backend may be silent before BackendUnreachable. A new value holds from the next wave."""

    def __init__(
        self,
        *,
        prompt: Prompt,
        model: str,
        open_backend: Callable[[], ChatBackend],
        ledger: Ledger,
        rates: RateLimits,
        prices: Prices,
        max_attempts: int,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.prompt, self._model, self._open_backend, self._ledger = prompt, model, open_backend, ledger
        self._limiter, self._max_attempts = RateLimiter(rates), max_attempts
        self.patience_s = patience_s
        self._clock, self._sleep, self._chance = clock, sleep, chance
        self._meter = SpendingMeter(model=model, prices=prices, clock=clock)
        self._contact: Contact | None = None

    @property
    def model(self) -> str:
        """The name of the LLM."""
        return self._model

    @property
    def prompt_version(self) -> str:
        """The version of the template."""
        return self.prompt.version

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        """Write one summary per request, in any order.

        A generator that is closed early gives up the calls in flight and closes the backend.

        Raises:
            BudgetExhausted: the ledger grants no further call, and none is in flight; the rest stays pending.
            BackendRefused: no call can succeed; nothing more was sent.
            BackendUnreachable: the backend does not answer, or asks to wait, for longer than `patience_s`; what was
                not answered stays pending.
            LiberError: the backend cannot be opened.
        """
        return self._wave(requests, stage=SUMMARY, fit=lambda fitter: fitter.summary)

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        """Write one shift per request, as `summarize` does."""
        return self._wave(requests, stage=SHIFT, fit=lambda fitter: fitter.shift)

    def spent(self) -> Spending:
        """Return what the calls of this learner came to so far."""
        return self._meter.spent()

    def close(self) -> None:
        """Close the backend, if one is open; the next request opens it again."""
        contact, self._contact = self._contact, None
        if contact:
            contact.backend.close()

    def _wave(
        self, requests: Iterable[_R], *, stage: str, fit: Callable[[Fitter], Fit[_R]]
    ) -> Iterator[Sequence[tuple[_R, Outcome]]]:
        waiting = iter(requests)
        first = next(waiting, None)
        if first is None:
            return
        contact = self._opened()
        judge = Judge(
            stage=stage,
            fit=fit(contact.fitter),
            too_long_reason=contact.fitter.too_long_reason,
            max_attempts=self._max_attempts,
            max_output_tokens=contact.backend.max_output_tokens,
            chance=self._chance,
            check=check_parts if self.prompt.form == PARTS else check_plain,
        )
        loop = CallLoop(
            chain((first,), waiting),
            judge=judge,
            contact=contact,
            ledger=self._ledger,
            meter=self._meter,
            patience_s=self.patience_s,
            clock=self._clock,
            sleep=self._sleep,
        )
        try:
            with _heap_at_rest():
                yield from loop.groups()
        finally:
            if loop.has_calls_in_flight:
                self.close()

    def _opened(self) -> Contact:
        """Return the open backend. It is asked once whether it can be used, and may learn its context by that."""
        if self._contact is None:
            self._meter.start()
            backend = self._open_backend()
            try:
                is_checked = backend.check()
            except LiberError:
                backend.close()
                raise
            fitter = Fitter(
                self.prompt,
                count_tokens=backend.count_tokens,
                most_tokens=backend.most_tokens,
                context_tokens=backend.context_tokens,
                max_output_tokens=backend.max_output_tokens,
            )
            self._contact = Contact(backend=backend, fitter=fitter, limiter=self._limiter, is_checked=is_checked)
        return self._contact


@contextmanager
def _heap_at_rest() -> Iterator[None]:
    """Keep the garbage collector off the objects that are there already, unless somebody else does.

    A full collection of a process with Feast, pandas and a data set in it stops every call in flight for a tenth of a
    second, and comes every few seconds.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
