"""Check what a model answered: a text that can be kept, or why there is none.

A kept text is plain text on one line, without the model's reasoning. Checked once more it stays as it is.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from liber_feast.prompt import Message, one_line

TEXT_LIMIT = 2000
"""Characters kept of an answer."""

ECHO_LENGTH = 40
"""Characters from which on an answer that stands in the prompt, wherever it does, is an echo."""

LEAD_IN_LIMIT = 60
"""The most characters before the first colon that are taken for a lead-in, such as `Sure! Here is the summary:`."""

BROKEN_OFF = "answer broken off by the server"
UNFINISHED = {
    **dict.fromkeys(("length", "max_tokens", "model_length"), "answer cut off at {limit:,} tokens"),
    **dict.fromkeys(
        ("content_filter", "safety", "recitation", "prohibited_content", "blocklist", "spii", "sensitive", "refusal"),
        "answer withheld by the content filter",
    ),
    **dict.fromkeys(
        ("abort", "aborted", "error", "cancelled", "canceled", "timeout", "network_error", "pause_turn"), BROKEN_OFF
    ),
    "insufficient_system_resource": BROKEN_OFF,
    **dict.fromkeys(
        ("tool_calls", "tool_use", "function_call", "malformed_function_call"), "a tool call instead of an answer"
    ),
}
"""Why an answer is of no use that ended for a reason other than its end; servers differ in the words."""

_TAG = re.compile(r"<(/?)think(?:ing)?\s*>", re.IGNORECASE)
_FENCE = re.compile(r"```(?:(?:text|txt|plaintext|markdown|md)\b)?([^`].*)```")
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "„": "“", "‘": "’", "«": "»"}
_SENTENCE_END = re.compile(r"[.!?…]['\")”’»]*(?=\s)|[。！？]")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptedText:
    """An answer to keep: one line without control characters, of 1 to TEXT_LIMIT characters."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedAnswer:
    """An answer of no use."""

    reason: str
    """One line that quotes neither the answer nor the prompt."""


def check_answer(
    text: str, *, finish_reason: str, messages: Sequence[Message], max_output_tokens: int
) -> AcceptedText | RejectedAnswer:
    """Return what is to be kept of a model's answer to `messages`, or why nothing is.

    Rejected are answers cut off, broken off or withheld (UNFINISHED), answers without a letter or digit,
    reasoning that leads to no answer, and echoes of the prompt. `finish_reason` is as OpenAI's API has it.
    """
    answer = finished_answer(text, finish_reason=finish_reason, max_output_tokens=max_output_tokens)
    if isinstance(answer, RejectedAnswer):
        return answer
    kept = _bare(cut_text(_bare(answer)))
    if not says_something(kept):
        return RejectedAnswer(reason="empty answer")
    if is_echo(kept, messages=messages):
        return RejectedAnswer(reason="answer only repeats the prompt")
    return AcceptedText(text=kept)


def finished_answer(text: str, *, finish_reason: str, max_output_tokens: int) -> str | RejectedAnswer:
    """Return an answer that came to its end as one line, without its reasoning; or why there is none."""
    unfinished = UNFINISHED.get(finish_reason.lower())
    if unfinished:
        return RejectedAnswer(reason=unfinished.format(limit=max_output_tokens))
    line = one_line(text)
    answer = _after_reasoning(line)
    if answer is None or (answer != line and not says_something(answer)):
        return RejectedAnswer(reason="reasoning without an answer")
    return answer


def _after_reasoning(line: str) -> str | None:
    """Return `line` without its <think> blocks; None: the last one is never closed.

    Chat templates may open the block themselves, so a text may begin inside one: all before its end goes.
    """
    kept: list[str] = []
    start, is_reasoning = 0, False
    for tag in _TAG.finditer(line):
        if not tag[1]:
            if not is_reasoning:
                kept.append(line[start : tag.start()])
            is_reasoning = True
            continue
        if not is_reasoning:
            kept.clear()
        start, is_reasoning = tag.end(), False
    return None if is_reasoning else one_line(" ".join([*kept, line[start:]]))


def says_something(text: str) -> bool:
    """Return whether there is a letter or a digit."""
    return any(letter.isalnum() for letter in text)


def _bare(text: str) -> str:
    """Return `text` without the code fence and the quotes that enclose all of it."""
    while (inner := _inside(text)) is not None:
        text = one_line(inner)
    return text


def _inside(text: str) -> str | None:
    if (fenced := _FENCE.fullmatch(text)) and "```" not in fenced[1]:
        return fenced[1]
    closing = _QUOTES.get(text[:1])
    inner = text[1:-1]
    if len(text) > 1 and closing == text[-1] and text[0] not in inner and closing not in inner:
        return inner
    return None


def cut_text(text: str, *, limit: int = TEXT_LIMIT) -> str:
    """Return at most `limit` characters, up to the end of a sentence, else of a word, in the second half of them."""
    if len(text) <= limit:
        return text
    sentences = [end.end() for end in _SENTENCE_END.finditer(text, limit // 2, limit + 1)]
    fitting = [end for end in sentences if end <= limit]
    word = text.rfind(" ", limit // 2, limit + 1)
    return one_line(text[: fitting[-1] if fitting else word if word > 0 else limit])


def is_echo(text: str, *, messages: Sequence[Message]) -> bool:
    """Return whether `text`, with or without a short lead-in, says nothing that the prompt does not.

    Compared are words alone. From ECHO_LENGTH characters on, an answer is an echo if its words stand in the prompt in
    a row. A shorter one may do so by chance ("nothing moved" of "if nothing moved, say so"): it is an echo only of a
    whole line, or of all that follows a line's label, such as one of the two summaries that a shift is asked of.
    """
    prompt = "\n".join(message["content"] for message in messages).casefold()
    label, _, rest = text.partition(":")
    said = {_words(text), _words(rest if len(label) <= LEAD_IN_LIMIT else "")} - {""}
    said = {some for some in said if all(word in prompt for word in some.split())}
    if not said:  # which is nearly always so; the rest costs more
        return False
    words = _words(prompt)
    if any(len(some) >= ECHO_LENGTH and f" {some} " in f" {words} " for some in said):
        return True
    return any(len(some) < ECHO_LENGTH for some in said) and not said.isdisjoint(_fields(prompt))


def _fields(prompt: str) -> Iterator[str]:
    """Yield the words of every line, and of what follows its label."""
    for line in prompt.splitlines():
        yield _words(line)
        yield _words(line.partition(":")[2])


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
