"""What every LLM backend is: chat calls go in, answers and errors come out, in any order."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

from liber_feast.prompt import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatCall:
    """One attempt; `call_id` is the caller's and comes back with the answer."""

    call_id: int
    messages: Sequence[Message]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatAnswer:
    """What the model wrote, and what it cost."""

    call_id: int
    text: str
    finish_reason: str
    """As OpenAI's API has it: `stop`, `length` (cut off by the token limit), `content_filter`, ..."""
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    """Input tokens that the server had in its prefix cache; 0 where it does not say."""
    seconds: float


class ErrorKind(StrEnum):
    """What can be done about a call that gave no answer."""

    BUSY = "busy"
    """409, 429, 5xx but 502 and 504: the server is alive and charged nothing; the same call may succeed later."""
    UNSENT = "unsent"
    """Nobody was reached and nothing was sent (connection refused, no such host, no TLS): nothing was charged, and the
    same call may succeed later."""
    LOST = "lost"
    """Sent, and timed out, dropped, half an answer, or given up on the way (408, 502, 504): the server may have charged
    for it; the same call may succeed later."""
    TOO_LONG = "too_long"
    """The prompt does not fit the model's context: a shorter one may."""
    BAD_CALL = "bad_call"
    """This call cannot succeed; others may."""
    FATAL = "fatal"
    """No call can succeed: wrong key (401, 403), unknown model or address (404)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatError:
    """Why a call gave no answer."""

    call_id: int
    kind: ErrorKind
    reason: str
    """One line that quotes neither the server's words (they may repeat the prompt or the key) nor the prompt."""
    retry_after_s: float | None = None
    """How long the server asks to wait."""
    seconds: float = 0.0


ChatResult: TypeAlias = ChatAnswer | ChatError


class ChatBackend(Protocol):
    """An open connection to a model, or a model in this process. Used from one thread."""

    max_in_flight: int
    """How many calls may be submitted and not yet collected."""
    max_output_tokens: int
    """The most that an answer can have."""
    context_tokens: int | None
    """The most that prompt and answer can have together; None: not known."""

    def check(self) -> bool:
        """Ask the server, without a chat call, whether it can be used; False: there is no way to ask.

        Raises:
            BackendRefused: it refuses the key, or does not know the model.
            BackendUnreachable: nobody answers.
        """
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the length of a prompt in tokens, with its chat template; a high estimate without a tokenizer."""
        ...

    def most_tokens(self, messages: Sequence[Message]) -> int:
        """Return a bound that no server's count of a prompt exceeds: what is reserved for it.

        With a tokenizer what `count_tokens` says, else `fit.most_tokens`. It is asked for right after `count_tokens`,
        with the same messages.
        """
        ...

    def submit(self, calls: Sequence[ChatCall]) -> None:
        """Start calls; does not wait."""
        ...

    def collect(self, *, timeout_s: float | None) -> Sequence[ChatResult]:
        """Return all results that are there, waiting for the first at most `timeout_s` (None: until there is one)."""
        ...

    def close(self) -> None:
        """Give up the calls in flight and every connection."""
        ...
