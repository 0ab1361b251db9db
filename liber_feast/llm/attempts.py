"""What follows from one attempt at a text: it is had, it is asked for again, or it is given up.

Pure: the loop in `call_loop` makes the calls, waits and keeps the books.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from liber_feast.answer import AcceptedText, RejectedAnswer, check_answer
from liber_feast.budget import CallOutcome, PlannedCall, SettledCall
from liber_feast.interest import Failure, LearnedText, Request
from liber_feast.llm import backoff
from liber_feast.llm.chat import ChatAnswer, ChatError, ChatResult, ErrorKind
from liber_feast.llm.fit import FittedPrompt
from liber_feast.prompt import Message

ANSWERS_ASKED = 2
"""Answers of no use after which a text is given up: a rejected one is asked for once more."""

REJECTED = "rejected"
"""Why a text is asked for again that was answered; else the kind of its error is why."""

UNANSWERED = (ErrorKind.BUSY, ErrorKind.UNSENT, ErrorKind.LOST)
"""Errors after which the same call is made again, as often as the configuration says while others are answered."""

_R = TypeVar("_R", bound=Request)
_R_contra = TypeVar("_R_contra", bound=Request, contravariant=True)


class Fit(Protocol[_R_contra]):
    """`Fitter.summary` or `Fitter.shift`."""

    def __call__(self, request: _R_contra, /, *, at_least: int) -> FittedPrompt | None:
        """Return the prompt at the first level of brevity from `at_least` on that fits; None: none does."""
        ...


class Check(Protocol):
    """`check_plain` or `check_parts`."""

    def __call__(
        self, request: Request, text: str, /, *, finish_reason: str, messages: Sequence[Message], max_output_tokens: int
    ) -> AcceptedText | RejectedAnswer:
        """Return the text to keep of an answer, or why it is of no use."""
        ...


def check_plain(
    _request: Request, text: str, /, *, finish_reason: str, messages: Sequence[Message], max_output_tokens: int
) -> AcceptedText | RejectedAnswer:
    """Do as `check_answer`: a paragraph needs nothing of its request."""
    return check_answer(text, finish_reason=finish_reason, messages=messages, max_output_tokens=max_output_tokens)


@dataclass(kw_only=True, slots=True, eq=False)
class AskedText(Generic[_R]):
    """A text that is being asked for: its prompt as it stands, and what its calls came to."""

    request: _R
    fitted: FittedPrompt
    planned: PlannedCall
    """The next call for it, or the one in flight."""
    call_count: int = 0
    unanswered_count: int = 0
    held_against_count: int = 0
    """Of the unanswered, those in whose time the backend did reply to others."""
    seen_reply_count: int = 0
    """`Contact.reply_count` when its last unanswered attempt ended; before that, when it was sent."""
    rejected_count: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0

    def learned(self, text: str) -> LearnedText:
        """Return the text beside what all of its answered calls cost: a rejected answer is paid for as well."""
        return LearnedText(
            text=text,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            seconds=self.seconds,
            attempt_count=self.call_count,
            is_shortened=self.fitted.brevity > 0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Again:
    """Ask once more, by a call of its own."""

    reason: str
    """`rejected` or `too_long`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unanswered:
    """A call was in vain: it is made again after a while, or its text is given up, or the backend."""

    reason: str
    """`busy`, `unsent` or `lost`."""
    error: str
    """What happened, in words."""
    after_s: float
    """How long to wait."""
    least_s: float
    """The part of it that the server asks for."""


Verdict: TypeAlias = LearnedText | Failure | Again | Unanswered


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge(Generic[_R]):
    """The rules of one stage."""

    stage: str
    fit: Fit[_R]
    too_long_reason: Callable[[_R], str]
    max_attempts: int
    """Calls for one text that may be in vain while others are answered, the last of them included."""
    max_output_tokens: int
    chance: Callable[[], float]
    """A random number from [0, 1)."""
    check: Check = check_plain
    """By the form of the texts."""

    def begin(self, request: _R) -> AskedText[_R] | Failure:
        """Return a request with its prompt, or why no prompt of it fits."""
        fitted = self.fit(request, at_least=0)
        if fitted is None:
            return Failure(reason=self.too_long_reason(request), attempt_count=0)
        return AskedText(request=request, fitted=fitted, planned=self._planned(request, fitted))

    def judge(self, asked: AskedText[_R], result: ChatResult) -> tuple[CallOutcome, Verdict]:
        """Return how a call for `asked` ended, whatever its error but FATAL, and what follows; `asked` takes it in."""
        if isinstance(result, ChatAnswer):
            return self._answered(asked, result)
        if result.kind in UNANSWERED:
            outcome = CallOutcome.LOST if result.kind is ErrorKind.LOST else CallOutcome.REFUSED
            return outcome, self._unanswered(asked, result)
        if result.kind is ErrorKind.TOO_LONG:
            return CallOutcome.REFUSED, self._shortened(asked)
        return CallOutcome.REFUSED, Failure(reason=result.reason, attempt_count=asked.call_count)

    def _answered(self, asked: AskedText[_R], answer: ChatAnswer) -> tuple[CallOutcome, Verdict]:
        asked.input_tokens += answer.input_tokens
        asked.output_tokens += answer.output_tokens
        asked.cached_tokens += answer.cached_tokens
        asked.seconds += answer.seconds
        checked = self.check(
            asked.request,
            answer.text,
            finish_reason=answer.finish_reason,
            messages=asked.fitted.messages,
            max_output_tokens=self.max_output_tokens,
        )
        if not isinstance(checked, RejectedAnswer):
            return CallOutcome.ANSWERED, asked.learned(checked.text)
        asked.rejected_count += 1
        if asked.rejected_count < ANSWERS_ASKED:
            return CallOutcome.REJECTED, Again(reason=REJECTED)
        return CallOutcome.REJECTED, Failure(reason=checked.reason, attempt_count=asked.call_count)

    def _unanswered(self, asked: AskedText[_R], error: ChatError) -> Unanswered:
        asked.unanswered_count += 1
        return Unanswered(
            reason=error.kind.value,
            error=error.reason,
            after_s=backoff.wait_s(asked.unanswered_count, chance=self.chance(), retry_after_s=error.retry_after_s),
            least_s=max(error.retry_after_s or 0.0, 0.0),
        )

    def _shortened(self, asked: AskedText[_R]) -> Again | Failure:
        shorter = self.fit(asked.request, at_least=asked.fitted.brevity + 1)
        if shorter is None:
            return Failure(reason=self.too_long_reason(asked.request), attempt_count=asked.call_count)
        asked.fitted, asked.planned = shorter, self._planned(asked.request, shorter)
        return Again(reason=ErrorKind.TOO_LONG.value)

    def _planned(self, request: _R, fitted: FittedPrompt) -> PlannedCall:
        return PlannedCall(
            stage=self.stage,
            user_id=request.user_id,
            partition_index=request.partition_index,
            input_tokens=fitted.most_tokens,
            max_output_tokens=self.max_output_tokens,
        )


def in_vain(asked: AskedText[_R], *, error: str) -> str:
    """Return why a text that got no answer is given up, by the last error."""
    times = "1 attempt" if asked.unanswered_count == 1 else f"{asked.unanswered_count:,} attempts"
    return f"no answer in {times}, the last: {error}"


def settled_call(result: ChatResult, *, outcome: CallOutcome) -> SettledCall:
    """Return a call as the ledger settles it."""
    if isinstance(result, ChatError):
        return SettledCall(call_id=result.call_id, outcome=outcome, seconds=result.seconds)
    return SettledCall(
        call_id=result.call_id,
        outcome=outcome,
        input_tokens=result.input_tokens,
        output_tokens=result.output_tokens,
        cached_tokens=result.cached_tokens,
        seconds=result.seconds,
    )
