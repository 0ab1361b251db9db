"""Count what a partition says of its user's interest, by factor, for learners that count instead of asking an LLM.

Counts are of behaviors; an item with several values of a factor counts for each. Names are shortened here, so
everything written from a tally is short. Nothing depends on the order in which the behaviors are given.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from liber_feast.interest import DescribedBehavior
from liber_feast.prompt import Factor, factor_values, one_line

TITLE_WORDS, TITLE_CHARACTERS = 9, 60
VALUE_WORDS, VALUE_CHARACTERS = 5, 40
_ARTICLE_LAST = re.compile(r"([^()]+), (The|A|An|Le|La|Les|El|Los|Las|Der|Die|Das|Il|Lo)((?: \(.*)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueTally:
    """How many behaviors have one value of a factor, and how many of them are liked."""

    name: str
    count: int
    liked_count: int

    @property
    def surplus(self) -> int:
        """How many more were liked than not."""
        return 2 * self.liked_count - self.count


@dataclass(frozen=True, kw_only=True, slots=True)
class FactorTally:
    """The values of one factor by name, and how many behaviors have any."""

    factor: Factor
    known_count: int
    values: dict[str, ValueTally]

    def supported(self) -> list[ValueTally]:
        """Return the values seen at least twice; if none is, all, but no list of one item by each maker."""
        values = list(self.values.values())
        return [value for value in values if value.count > 1] or ([] if self.factor.relation == "by" else values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """What is counted of one partition; `bare_count` behaviors have an item that is nothing but its id."""

    behaviors: tuple[DescribedBehavior, ...]
    liked_count: int
    average: float
    first_time: datetime
    last_time: datetime
    bare_count: int
    factors: tuple[FactorTally, ...]

    @property
    def count(self) -> int:
        """Behaviors, at least one."""
        return len(self.behaviors)

    @property
    def span(self) -> timedelta:
        """From the first behavior to the last."""
        return self.last_time - self.first_time


def tally_partition(behaviors: tuple[DescribedBehavior, ...], *, factors: Iterable[Factor]) -> Tally:
    """Return the tally of at least one behavior, over the factors that have sources."""
    times = [behavior.event_time for behavior in behaviors]
    return Tally(
        behaviors=behaviors,
        liked_count=sum(behavior.liked for behavior in behaviors),
        average=math.fsum(behavior.rating for behavior in behaviors) / len(behaviors),
        first_time=min(times),
        last_time=max(times),
        bare_count=sum(_is_bare(behavior) for behavior in behaviors),
        factors=tuple(_tally_factor(behaviors, factor=factor) for factor in factors if factor.sources),
    )


def rank_titles(
    behaviors: Sequence[DescribedBehavior], *, factors: Sequence[FactorTally], highest: bool
) -> list[tuple[str, float]]:
    """Return (title, rating) by rating, then most recent first, then by name; each title once, untitled items never."""
    named = sorted(
        ((title, behavior) for behavior in behaviors if (title := quoted_title(behavior, factors=factors))),
        key=lambda pair: pair[0],
    )
    named.sort(key=lambda pair: pair[1].event_time, reverse=True)
    named.sort(key=lambda pair: pair[1].rating, reverse=highest)
    ranked: dict[str, float] = {}
    for title, behavior in named:
        ranked.setdefault(title, behavior.rating)
    return list(ranked.items())


def quoted_title(behavior: DescribedBehavior, *, factors: Sequence[FactorTally]) -> str:
    """Return the title in quotes, with its maker where the domain has one; nothing for an untitled item."""
    title = _short_title(behavior.item.title or "")
    makers = [
        makers[0]
        for tally in factors
        if tally.factor.relation == "by" and (makers := factor_values(behavior.item, factor=tally.factor))
    ]
    if not title:
        return ""
    return f'"{title}" by {_short_value(makers[0])}' if makers else f'"{title}"'


def _tally_factor(behaviors: tuple[DescribedBehavior, ...], *, factor: Factor) -> FactorTally:
    counts: dict[str, int] = {}
    liked_counts: dict[str, int] = {}
    known_count = 0
    for behavior in behaviors:
        names = {_short_value(name) for name in factor_values(behavior.item, factor=factor)}
        known_count += bool(names)
        for name in names:
            counts[name] = counts.get(name, 0) + 1
            liked_counts[name] = liked_counts.get(name, 0) + behavior.liked
    values = {
        name: ValueTally(name=name, count=counts[name], liked_count=liked_counts[name]) for name in sorted(counts)
    }
    return FactorTally(factor=factor, known_count=known_count, values=values)


def _is_bare(behavior: DescribedBehavior) -> bool:
    item = behavior.item
    return not (item.title or item.categories or item.period or item.attributes)


@lru_cache(maxsize=1 << 14)
def _short_title(title: str) -> str:
    """Return the title on one line, its article in front: `The Matrix (1999)` for `Matrix, The (1999)`."""
    line = one_line(title).replace('"', "'")
    moved = _ARTICLE_LAST.fullmatch(line)
    return _shortened(
        f"{moved[2]} {moved[1]}{moved[3]}" if moved else line, words=TITLE_WORDS, characters=TITLE_CHARACTERS
    )


@lru_cache(maxsize=1 << 14)
def _short_value(value: str) -> str:
    return _shortened(one_line(value), words=VALUE_WORDS, characters=VALUE_CHARACTERS)


def _shortened(text: str, *, words: int, characters: int) -> str:
    kept = " ".join(text.split()[:words])
    if len(kept) > characters:
        kept = kept[: characters - 1].rstrip()
    return text if kept == text else kept.rstrip(" ,;:-–(") + "…"
