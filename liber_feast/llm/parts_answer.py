"""Answers in parts: the schema that a model is held to, and the check of what it answered.

A server or a model may not hold to a schema, so that an answer is checked as plain ones are. What is rejected is asked
for once more, by the same rules. The counts are ours: the model gives likes, dislikes and a tendency alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from liber_feast.answer import AcceptedText, RejectedAnswer, cut_text, finished_answer, is_echo, says_something
from liber_feast.interest import Request, SummaryRequest
from liber_feast.parts import FULL, PARTS, Parts, parse_parts, shift_parts, summary_parts
from liber_feast.prompt import Message, one_line

LIKES, DISLIKES, TENDENCY = "likes", "dislikes", "tendency"

PART_LIMIT = 900
"""Characters kept of a part."""

SCHEMA_NAME = "interest"


def answer_schema(form: str) -> Mapping[str, Any] | None:
    """Return the JSON schema of answers in a form; None: plain text has none."""
    if form != PARTS:
        return None
    return {
        "type": "object",
        "properties": {
            LIKES: {"type": "string"},
            DISLIKES: {"type": "string"},
            TENDENCY: {"type": "integer", "minimum": -FULL, "maximum": FULL},
        },
        "required": [LIKES, DISLIKES, TENDENCY],
        "additionalProperties": False,
    }


def check_parts(
    request: Request, text: str, /, *, finish_reason: str, messages: Sequence[Message], max_output_tokens: int
) -> AcceptedText | RejectedAnswer:
    """Return the canonical text of an answer in parts, or why it is of no use.

    Rejected are, beside what `check_answer` rejects: answers without a JSON object, or with a field that is missing,
    of another type or out of range; an empty part, unless no behavior of the partition stands behind it, or the other
    part of a shift says something.
    """
    answer = finished_answer(text, finish_reason=finish_reason, max_output_tokens=max_output_tokens)
    if isinstance(answer, RejectedAnswer):
        return answer
    found = _object(answer)
    if found is None:
        return RejectedAnswer(reason="answer without a JSON object")
    likes, dislikes, tendency = _side(found, LIKES), _side(found, DISLIKES), _tendency(found)
    for one in (likes, dislikes, tendency):
        if isinstance(one, RejectedAnswer):
            return one
    assert isinstance(likes, str)
    assert isinstance(dislikes, str)
    assert isinstance(tendency, int)
    said = [part for part in (likes, dislikes) if part]
    if said and all(is_echo(part, messages=messages) for part in said):
        return RejectedAnswer(reason="answer only repeats the prompt")
    parts = _parts(request, likes=likes, dislikes=dislikes, tendency=tendency)
    empty = _empty_field(parts, is_summary=isinstance(request, SummaryRequest))
    return RejectedAnswer(reason=f"answer with an empty field {empty!r}") if empty else AcceptedText(text=parts.text())


def _object(answer: str) -> Mapping[str, Any] | None:
    """Return the object from the first brace to the last: some models put it into a fence or say something before."""
    try:
        found = json.loads(answer[answer.find("{") : answer.rfind("}") + 1])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _side(found: Mapping[str, Any], name: str) -> str | RejectedAnswer:
    value = found.get(name)
    if not isinstance(value, str):
        return RejectedAnswer(reason=f"answer without a text {name!r}")
    text = cut_text(one_line(value), limit=PART_LIMIT)
    return text if says_something(text) else ""


def _tendency(found: Mapping[str, Any]) -> int | RejectedAnswer:
    value = found.get(TENDENCY)
    if isinstance(value, int | float) and not isinstance(value, bool) and -FULL <= value <= FULL:
        return round(value)
    return RejectedAnswer(reason=f"answer without a {TENDENCY!r} from -{FULL} to {FULL}")


def _parts(request: Request, *, likes: str, dislikes: str, tendency: int) -> Parts:
    if isinstance(request, SummaryRequest):
        liked_count = sum(behavior.liked for behavior in request.behaviors)
        return summary_parts(
            likes=likes,
            dislikes=dislikes,
            tendency=tendency,
            liked_count=liked_count,
            disliked_count=len(request.behaviors) - liked_count,
        )
    before, after = parse_parts(request.previous_summary), parse_parts(request.summary)
    return shift_parts(likes=likes, dislikes=dislikes, before=before, after=after, tendency=tendency)


def _empty_field(parts: Parts, *, is_summary: bool) -> str | None:
    """Return the part that says nothing and should; None: there is none."""
    if is_summary:
        sides = ((LIKES, parts.likes, parts.liked_count), (DISLIKES, parts.dislikes, parts.disliked_count))
        return next((name for name, text, count in sides if count and not text), None)
    return None if parts.likes or parts.dislikes or not parts.tendency else LIKES
