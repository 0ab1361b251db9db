"""Phrases of the counting learners: amounts, lists, times, and sentences that fit a limit of words."""

import re
from collections.abc import Sequence
from datetime import timedelta

from liber_feast.llm.tally import Tally, ValueTally
from liber_feast.prompt import Factor, Words

_DAY, _FORTNIGHT, _TWO_MONTHS, _TWO_YEARS = (timedelta(days=days) for days in (1, 14, 60, 730))
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_DECADE = re.compile(r"\d{3}0s")


def fit(sentences: Sequence[tuple[int, str]], *, limit: int) -> str:
    """Return the (priority, sentence) in the given order, without those that do not fit `limit` words.

    Lower numbers are taken first; empty sentences are skipped.
    """
    room, chosen = limit, set()
    for place, (_, sentence) in sorted(enumerate(sentences), key=lambda entry: (entry[1][0], entry[0])):
        word_count = len(sentence.split())
        if 0 < word_count <= room:
            room -= word_count
            chosen.add(place)
    return " ".join(sentence for place, (_, sentence) in enumerate(sentences) if place in chosen)


def joined(parts: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def capitalized(sentence: str) -> str:
    """Return the sentence with a capital where it starts with an article; names keep their own letters."""
    return f"T{sentence[1:]}" if sentence.startswith("the ") else sentence


def named(name: str) -> str:
    """Return the name as it stands in a sentence: a decade takes an article."""
    return f"the {name}" if _DECADE.fullmatch(name) else name


def counted(count: int, *, words: Words) -> str:
    """Return the count with its noun: `1 film`, `20 films`."""
    return f"{count} {words.item if count == 1 else words.items}"


def both_or_all(count: int) -> str:
    """Return the word for all of several."""
    return "both" if count == 2 else "all"  # noqa: PLR2004


def kept(*, count: int, liked_count: int) -> str:
    """Return how many of `count` were liked: `one`, `both`, `all 4`, `2 of 5`, `none of the 3`."""
    if liked_count == count:
        return {1: "one", 2: "both"}.get(count, f"all {count}")
    return f"{liked_count} of {count}" if liked_count else f"none of the {count}"


def listed(values: Sequence[ValueTally], *, factor: Factor, words: Words, counts_likes: bool = True) -> str:
    """Return for example `9 of 11 Drama and both Crime films`, or `2 of 3 films by A and one by B`.

    The noun stands once: after the last value, or where there is a relation after the first amount. Without
    `counts_likes` an amount is how many there were.
    """
    if counts_likes:
        amounts = [kept(count=value.count, liked_count=value.liked_count) for value in values]
    else:
        amounts = ["one" if value.count == 1 else str(value.count) for value in values]
    names = [named(value.name) for value in values]
    if not factor.relation:
        listing = joined([f"{amount} {name}" for amount, name in zip(amounts, names, strict=True)])
        return f"{listing} {words.item if amounts[-1] == 'one' else words.items}"
    nouns = [f" {words.item if amounts[0] == 'one' else words.items}", *[""] * (len(values) - 1)]
    rows = zip(amounts, nouns, names, strict=True)
    return joined([f"{amount}{noun} {factor.relation} {name}" for amount, noun, name in rows])


def related(noun: str, *, values: Sequence[ValueTally], factor: Factor) -> str:
    """Return for example `Drama and Crime films`, or `films from the 1990s`."""
    names = joined([named(value.name) for value in values])
    return f"{noun} {factor.relation} {names}" if factor.relation else f"{names} {noun}"


def when(tally: Tally) -> str:
    """Return for example `on April 4, 1998`, `in 5 days (April 1998)`, `in 3 months (April to June 1998)`."""
    first, last = tally.first_time.date(), tally.last_time.date()
    if first == last:
        return f"on {_MONTHS[first.month - 1]} {first.day}, {first.year}"
    month, end = _MONTHS[first.month - 1], f"{_MONTHS[last.month - 1]} {last.year}"
    if first.year != last.year:
        months = f"{month} {first.year} to {end}"
    else:
        months = end if first.month == last.month else f"{month} to {end}"
    return f"in {length(tally.span)} ({months})"


def length(span: timedelta) -> str:
    """Return the span in its natural unit: `a day`, `5 days`, `3 weeks`, `14 months`, `2 years`."""
    for limit, unit, days in ((_FORTNIGHT, "day", 1.0), (_TWO_MONTHS, "week", 7.0), (_TWO_YEARS, "month", 30.44)):
        if span < limit:
            number = max(1, round(span / (_DAY * days)))
            return f"a {unit}" if number == 1 else f"{number} {unit}s"
    return f"{round(span / (_DAY * 365.25))} years"
