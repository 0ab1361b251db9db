"""Fit prompts into a model's context: the first level of brevity that leaves room for the answer."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache

from liber_feast.interest import ShiftRequest, SummaryRequest
from liber_feast.prompt import BREVITY_LEVELS, Message, Prompt

MESSAGE_TOKENS = 20
"""Estimated tokens of a chat template around one message."""

# Up to three small letters, two capitals, a line break, a space before a digit, a digit or a mark.
_PIECES = re.compile(r"[A-Z]?[a-z]{1,3}|[A-Z]{1,2}|\n| (?=\d)|[!-@\[-`{-~]")


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedPrompt:
    """Messages that fit the context, as far as their tokens could be counted."""

    messages: Sequence[Message]
    input_tokens: int
    """Counted or estimated: what has to fit, and what limits per minute count."""
    most_tokens: int
    """A bound that a server's count does not exceed, `input_tokens` or more: what is reserved."""
    brevity: int
    """The index of BREVITY_LEVELS at which they were rendered; above 0 something was left out."""


@dataclass(frozen=True, slots=True)
class Fitter:
    """Renders requests so that prompt and answer fit `context_tokens` together; None: whatever their length."""

    prompt: Prompt
    _: KW_ONLY
    count_tokens: Callable[[Sequence[Message]], int]
    context_tokens: int | None
    max_output_tokens: int
    most_tokens: Callable[[Sequence[Message]], int] | None = None
    """The bound of a prompt's tokens; None: `count_tokens` is exact."""

    def summary(self, request: SummaryRequest, *, at_least: int = 0) -> FittedPrompt | None:
        """Return the prompt at the first level from `at_least` on that fits; None: none does.

        A level that leaves out no more than the one before it is skipped: its prompt was counted, or sent, already.
        """
        shown = self.prompt.render_summary(request, brevity=at_least - 1) if 0 < at_least < len(BREVITY_LEVELS) else []
        for brevity in range(at_least, len(BREVITY_LEVELS)):
            messages = self.prompt.render_summary(request, brevity=brevity)
            if messages != shown and (fitted := self._fitted(messages, brevity=brevity)):
                return fitted
            shown = messages
        return None

    def shift(self, request: ShiftRequest, *, at_least: int = 0) -> FittedPrompt | None:
        """Return the prompt if it fits; a shift's has one level, 0."""
        return self._fitted(self.prompt.render_shift(request), brevity=0) if at_least <= 0 else None

    def too_long_reason(self, request: SummaryRequest | ShiftRequest) -> str:
        """Return in one line why no level of `request` fits, without a word of the prompt."""
        if isinstance(request, SummaryRequest):
            messages = self.prompt.render_summary(request, brevity=len(BREVITY_LEVELS) - 1)
        else:
            messages = self.prompt.render_shift(request)
        tokens = self.count_tokens(messages)
        # Where the model itself found it too long, our count or our context may be too low.
        context = f"the context of {self.context_tokens:,}" if not self._fits(tokens) else "the model's context"
        return (
            f"prompt of {tokens:,} tokens at its shortest does not fit {context}"
            f" with {self.max_output_tokens:,} for the answer"
        )

    def _fits(self, input_tokens: int) -> bool:
        return self.context_tokens is None or input_tokens + self.max_output_tokens <= self.context_tokens

    def _fitted(self, messages: Sequence[Message], *, brevity: int) -> FittedPrompt | None:
        input_tokens = self.count_tokens(messages)
        if not self._fits(input_tokens):
            return None
        most = self.most_tokens(messages) if self.most_tokens else input_tokens
        return FittedPrompt(
            messages=messages, input_tokens=input_tokens, most_tokens=max(most, input_tokens), brevity=brevity
        )


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Return a high estimate of a prompt's tokens, for models whose tokenizer is not at hand.

    Three small letters of a word, two capitals, a digit, a mark or a line break count one token; every other character
    one per byte of its UTF-8 but the first (é 1, 猫 2, an emoji 3), and a message 20 more. English prompts take a fifth
    to two fifths less; codes and rare scripts may take more, up to a token per byte.
    """
    return sum(MESSAGE_TOKENS + sum(map(_estimate, _paragraphs(message["content"]))) for message in messages)


def most_tokens(messages: Sequence[Message]) -> int:
    """Return a bound of a prompt's tokens for any tokenizer: a token per byte of its UTF-8, and 20 a message."""
    return sum(MESSAGE_TOKENS + len(message["content"].encode(errors="surrogatepass")) for message in messages)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield what `text` is made of; most paragraphs of a prompt are the template's, and the same in all."""
    start = 0
    while end := text.find("\n\n", start) + 1:
        yield text[start:end]
        start = end
    yield text[start:]


@lru_cache(maxsize=256)
def _estimate(text: str) -> int:
    return len(_PIECES.findall(text)) + len(text.encode(errors="replace")) - len(text)
