"""A text in parts: what is liked and what is disliked apart, tendency and counts as numbers.

The other form of summaries and shifts (equations 2 and 3), where `interest.form` is `parts`. The memory keeps one as a
single canonical text, and every column and every rule of texts holds for it. Its prompt version and its encoder
version end in `-parts`, so that neither texts nor vectors of the two forms are taken for one another.
"""

import json
from dataclasses import asdict, dataclass
from typing import Final

PLAIN: Final = "plain"
PARTS: Final = "parts"
"""The forms of a text: a paragraph, as in the paper, or parts."""

PARTS_SUFFIX = "-parts"
"""Ends the versions of prompts and encoders of parts; those of plain text end in hex digits."""

FULL = 100
"""A tendency's largest size, in a summary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A summary in parts, or a shift: then `likes` and `dislikes` are what gained, and the numbers are differences."""

    likes: str
    """Empty where nothing was liked."""
    dislikes: str
    tendency: int
    """From -100, the most critical, to 100, the most generous."""
    liked_count: int
    """Behaviors of the partition that are likes."""
    disliked_count: int

    def text(self) -> str:
        """Return the canonical text: one line of JSON, the keys in the order of the fields."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    def readable(self) -> str:
        """Return the parts of a summary as prose, as a prompt shows them."""
        count = self.liked_count + self.disliked_count
        return (
            f"Likes: {self.likes or 'nothing.'} Dislikes: {self.dislikes or 'nothing.'} Tendency: {self.tendency:+d}."
            f" Liked: {self.liked_count} of {count}."
        )


def form_of(version: str) -> str:
    """Return the form of the texts of a prompt version, or of the vectors of an encoder version."""
    return PARTS if version.endswith(PARTS_SUFFIX) else PLAIN


def parse_parts(text: str) -> Parts | None:
    """Return the parts that a canonical text holds; None: it is no such text, to the last character."""
    if not text.startswith('{"likes":'):
        return None
    try:
        found = json.loads(text)
        parts = Parts(**found)
    except (TypeError, ValueError, RecursionError):
        return None
    texts, numbers = (parts.likes, parts.dislikes), (parts.tendency, parts.liked_count, parts.disliked_count)
    is_typed = all(isinstance(one, str) for one in texts) and all(type(one) is int for one in numbers)
    return parts if is_typed and parts.text() == text else None


def readable(text: str, *, form: str) -> str:
    """Return a text that was asked for in a form as prose."""
    parts = parse_parts(text) if form == PARTS else None
    return parts.readable() if parts else text


def summary_parts(*, likes: str, dislikes: str, tendency: int | None, liked_count: int, disliked_count: int) -> Parts:
    """Return the parts of a summary; without a tendency, that of its counts beside one like and one dislike."""
    counted = round(FULL * (liked_count - disliked_count) / (liked_count + disliked_count + 2))
    return Parts(
        likes=likes,
        dislikes=dislikes,
        tendency=counted if tendency is None else tendency,
        liked_count=liked_count,
        disliked_count=disliked_count,
    )


def shift_parts(*, likes: str, dislikes: str, before: Parts | None, after: Parts | None, tendency: int | None) -> Parts:
    """Return the parts of a shift between two summaries, of which one may be plain: then the counts moved by 0.

    Without a tendency, it moved as those of the summaries.
    """
    if before is None or after is None:
        return Parts(likes=likes, dislikes=dislikes, tendency=tendency or 0, liked_count=0, disliked_count=0)
    return Parts(
        likes=likes,
        dislikes=dislikes,
        tendency=after.tendency - before.tendency if tendency is None else tendency,
        liked_count=after.liked_count - before.liked_count,
        disliked_count=after.disliked_count - before.disliked_count,
    )
