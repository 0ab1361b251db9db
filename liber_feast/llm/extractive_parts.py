"""Write summaries and shifts in parts without an LLM: the liked and the disliked behaviors counted apart.

A part names what there was and not how it was judged, so that the words of likes, of dislikes and of an item are the
same ones, and their vectors can be compared.
"""

from liber_feast.interest import DescribedBehavior, ShiftRequest, SummaryRequest
from liber_feast.llm.tally import FactorTally, rank_titles, tally_partition
from liber_feast.llm.wording import capitalized, counted, fit, joined, listed, named
from liber_feast.parts import Parts, shift_parts, summary_parts
from liber_feast.prompt import Prompt, Words

SIDE_WORDS = 60
"""The most words of a part."""

SHOWN = 3
"""Titles listed, and values of the first factor; of other factors one less."""

GAINED, GAINED_COUNT = 15, 2
"""Percentage points and behaviors by which a value's likes (or dislikes) grew that is worth a word."""

Behaviors = tuple[DescribedBehavior, ...]


def summary_of(request: SummaryRequest, *, prompt: Prompt) -> Parts:
    """Return the summary of a partition (equation 2) in parts."""
    return _summary(request.behaviors, prompt=prompt)


def shift_of(request: ShiftRequest, *, prompt: Prompt) -> Parts:
    """Return the shift between two partitions (equation 3) in parts: what is liked, and disliked, more than before."""
    before, after = request.previous_behaviors, request.behaviors
    gained = [
        _gained(
            _side(before, liked=liked), after=_side(after, liked=liked), of=(len(before), len(after)), prompt=prompt
        )
        for liked in (True, False)
    ]
    return shift_parts(
        likes=gained[0],
        dislikes=gained[1],
        before=_summary(before, prompt=prompt),
        after=_summary(after, prompt=prompt),
        tendency=None,
    )


def _summary(behaviors: Behaviors, *, prompt: Prompt) -> Parts:
    liked, disliked = (_side(behaviors, liked=one) for one in (True, False))
    return summary_parts(
        likes=_described(liked, prompt=prompt, highest=True),
        dislikes=_described(disliked, prompt=prompt, highest=False),
        tendency=None,
        liked_count=len(liked),
        disliked_count=len(disliked),
    )


def _side(behaviors: Behaviors, *, liked: bool) -> Behaviors:
    return tuple(behavior for behavior in behaviors if behavior.liked == liked)


def _described(behaviors: Behaviors, *, prompt: Prompt, highest: bool) -> str:
    """Return the titles at one end of the ratings and what the items are by factor, in the order of an item's text."""
    if not behaviors:
        return ""
    tally = tally_partition(behaviors, factors=prompt.factors)
    titles = [title for title, _ in rank_titles(behaviors, factors=tally.factors, highest=highest)[:SHOWN]]
    sentences = [
        (1, f"{joined(titles)}." if titles else ""),
        *((2 if place else 0, _values(of, words=prompt.words)) for place, of in enumerate(tally.factors)),
    ]
    return fit(sentences, limit=SIDE_WORDS) or f"{counted(len(behaviors), words=prompt.words)} without details."


def _values(of: FactorTally, *, words: Words) -> str:
    room = SHOWN - bool(of.factor.relation)
    values = sorted(of.supported(), key=lambda value: (-value.count, value.name))[:room]
    return _sentence(listed(values, factor=of.factor, words=words, counts_likes=False)) if values else ""


def _gained(before: Behaviors, *, after: Behaviors, of: tuple[int, int], prompt: Prompt) -> str:
    """Return the values of which one side holds a larger share of its partition than before; `of` is their sizes."""
    if not after:
        return ""
    tally = tally_partition(after, factors=prompt.factors)
    earlier = tally_partition(before, factors=prompt.factors).factors if before else (None,) * len(tally.factors)
    sentences = [
        (place, _more(was, after=now, of=of, words=prompt.words))
        for place, (was, now) in enumerate(zip(earlier, tally.factors, strict=True))
    ]
    return fit(sentences, limit=SIDE_WORDS)


def _more(before: FactorTally | None, *, after: FactorTally, of: tuple[int, int], words: Words) -> str:
    gains: list[tuple[float, str, int, int]] = []
    for name, value in after.values.items():
        old = before.values[name].count if before and name in before.values else 0
        gain = 100 * (value.count / of[1] - old / max(of[0], 1))
        if gain >= GAINED and value.count - old >= GAINED_COUNT:
            gains.append((-gain, name, value.count, old))
    shown = sorted(gains)[: SHOWN - bool(after.factor.relation)]
    phrases = [
        f"{named(name)} ({counted(new, words=words) if not place else new} after {old})"
        for place, (_, name, new, old) in enumerate(shown)
    ]
    return f"{capitalized(joined(phrases))}." if phrases else ""


def _sentence(amounts: str) -> str:
    return f"{amounts[:1].upper()}{amounts[1:]}."
