"""Write summaries and shifts without an LLM, from item attributes and feedback alone.

The default learner: no weights, no network, deterministic. Texts in parts are written by `extractive_parts`; every
plain text is plain English on one line of at most
`WORD_LIMIT` words, whatever the items say of themselves; sentences that do not fit are left out, least important
first. Like an LLM's, the texts name no user. The profile is not used: it is the same for all partitions.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from itertools import islice

from liber_feast.interest import Answers, LearnedText, ShiftRequest, SummaryRequest
from liber_feast.llm.extractive_parts import shift_of, summary_of
from liber_feast.llm.tally import FactorTally, Tally, ValueTally, quoted_title, rank_titles, tally_partition
from liber_feast.llm.wording import (
    both_or_all,
    capitalized,
    counted,
    fit,
    joined,
    kept,
    length,
    listed,
    named,
    related,
    when,
)
from liber_feast.parts import PARTS
from liber_feast.prompt import Factor, Prompt, Words

WORD_LIMIT = 120
SHOWN = 3
"""Titles listed, and values of the first factor on either side; of other factors one less."""

GENEROUS, CRITICAL = 0.75, 0.35
"""Share of liked behaviors from which a user is called generous, and up to which critical."""

MOVED, OPINION_MOVED, APPEARED = 20, 40, 15
"""Percentage points by which a share rose or fell, by which a value is liked more or less, and from which it is new."""

OPINION_COUNT = 3
"""Behaviors with a value, in each of both partitions, from which its likes are compared."""

RATING_MOVED = 0.5
PACE_MOVED = 2.0
"""Change of the average rating, and of the behaviors per day, that is worth a sentence."""

BREAK = timedelta(days=30)
FEW = 10
"""Behaviors below which a single one can appear or vanish."""

TEXTS_PER_GROUP = 100
"""Texts that are kept in one transaction."""

_DAY = timedelta(days=1)


class ExtractiveLearner:
    """An interest learner that counts; the prompt gives it the domain's factors and nouns."""

    model = "extractive-1"
    counts_behaviors = True

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    @property
    def prompt_version(self) -> str:
        """The version of the template whose factors and nouns are used."""
        return self.prompt.version

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        """Write one summary per request, in order; a partition has at least one behavior."""
        waiting = iter(requests)
        while some := list(islice(waiting, TEXTS_PER_GROUP)):
            yield [(request, LearnedText(text=self._summary_of(request))) for request in some]

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        """Write one shift per request, in order, from the behaviors of both partitions."""
        waiting = iter(requests)
        while some := list(islice(waiting, TEXTS_PER_GROUP)):
            yield [(request, LearnedText(text=self._shift_of(request))) for request in some]

    def _summary_of(self, request: SummaryRequest) -> str:
        if self.prompt.form == PARTS:
            return summary_of(request, prompt=self.prompt).text()
        tally = tally_partition(request.behaviors, factors=self.prompt.factors)
        return _summary(tally, words=self.prompt.words)

    def _shift_of(self, request: ShiftRequest) -> str:
        if self.prompt.form == PARTS:
            return shift_of(request, prompt=self.prompt).text()
        before = tally_partition(request.previous_behaviors, factors=self.prompt.factors)
        after = tally_partition(request.behaviors, factors=self.prompt.factors)
        return _shift(before, after=after, words=self.prompt.words)


def _summary(tally: Tally, *, words: Words) -> str:
    if tally.count == 1:
        return _single(tally, words=words)
    tastes = [_taste(factor, tally=tally, words=words) for factor in tally.factors]
    return fit(
        [
            (0, _volume(tally, words=words)),
            *((4 if place else 1, sentence) for place, sentence in enumerate(tastes)),
            (2, _favorites(tally)),
            (3, _lowest(tally)),
            (5, _bare(tally, words=words)),
        ],
        limit=WORD_LIMIT,
    )


def _single(tally: Tally, *, words: Words) -> str:
    (behavior,) = tally.behaviors
    feedback = f"and {words.liked} it" if behavior.liked else f"without {words.liking} it"
    title = quoted_title(behavior, factors=tally.factors)
    facts = [
        (2, f"Its {of.factor.name} is {joined([named(name) for name in list(of.values)[:SHOWN]])}.")
        for of in tally.factors
        if of.values
    ]
    return fit(
        [
            (0, f"The user {words.acted} one {words.item} {when(tally)} {feedback}."),
            (1, f"It was {title}, rated {behavior.rating:g}." if title else f"The rating was {behavior.rating:g}."),
            *facts,
            (3, "It came without details." if tally.bare_count else ""),
        ],
        limit=WORD_LIMIT,
    )


def _volume(tally: Tally, *, words: Words) -> str:
    extent = {0: "none", tally.count: both_or_all(tally.count)}.get(tally.liked_count, str(tally.liked_count))
    share = tally.liked_count / tally.count
    tendency = "generous" if share >= GENEROUS else "critical" if share <= CRITICAL else "balanced"
    return (
        f"The user {words.acted} {counted(tally.count, words=words)} {when(tally)} and {words.liked} {extent} of them:"
        f" a {tendency} rater, with an average rating of {tally.average:.1f}."
    )


def _taste(of: FactorTally, *, tally: Tally, words: Words) -> str:
    """Say which values of a factor were mostly liked and which mostly not, or else the best and the worst."""
    factor, values = of.factor, of.supported()
    room = SHOWN - bool(factor.relation)
    they = f"By {factor.name}, they" if factor.relation else "They"
    if not values:
        return ""
    if not tally.liked_count:
        seen = sorted(values, key=lambda value: (-value.count, value.name))[:room]
        return (
            f"{they} tried {listed(seen, counts_likes=False, factor=factor, words=words)} without {words.liking} any."
        )
    liked = sorted((v for v in values if v.surplus >= 0), key=lambda v: (-v.surplus, -v.liked_count, v.name))[:room]
    disliked = sorted((v for v in values if v.surplus < 0), key=lambda v: (v.surplus, v.liked_count, v.name))
    best = None if liked else _standout(values, tally=tally, sign=1)
    if not liked and not best:
        return _only_disliked(disliked[: room - 1], they=they, factor=factor, words=words)
    shown = [best] if best else liked
    opening = f"{they} {words.liked}{' at best' if best else ''} {listed(shown, factor=factor, words=words)}"
    others = [value for value in disliked if value not in shown][: room - 1]
    if others:
        return f"{opening} but {_but(others, factor=factor, words=words)}."
    worst = _standout([value for value in values if value not in shown], tally=tally, sign=-1)
    return f"{opening} and, at worst, {listed([worst], factor=factor, words=words)}." if worst else f"{opening}."


def _standout(values: Sequence[ValueTally], *, tally: Tally, sign: int) -> ValueTally | None:
    """Return the value liked most above (sign 1) or below (sign -1) the share of the whole partition, if any is."""

    def lift(value: ValueTally) -> int:
        return sign * (value.liked_count * tally.count - tally.liked_count * value.count)

    first = min((value for value in values if value.liked_count), key=lambda v: (-lift(v), v.name), default=None)
    return first if first and lift(first) > 0 else None


def _only_disliked(values: Sequence[ValueTally], *, they: str, factor: Factor, words: Words) -> str:
    if any(value.count > 1 for value in values):
        return f"{they} {words.liked} {_but(values, factor=factor, words=words)}."
    noun, verb = (words.item, "was") if len(values) == 1 else (words.items, "were")
    return f"The {related(noun, values=values, factor=factor)} {verb} {words.not_liked}."


def _but(values: Sequence[ValueTally], *, factor: Factor, words: Words) -> str:
    if any(value.count > 1 for value in values):
        return ("only " if values[0].liked_count else "") + listed(values, factor=factor, words=words)
    return f"not the {related('one' if len(values) == 1 else 'ones', values=values, factor=factor)}"


def _favorites(tally: Tally) -> str:
    liked = [behavior for behavior in tally.behaviors if behavior.liked]
    ranked = rank_titles(liked or tally.behaviors, factors=tally.factors, highest=True)[: SHOWN if liked else 1]
    lowest = min(behavior.rating for behavior in tally.behaviors)
    if not ranked or (not liked and ranked[0][1] == lowest):
        return ""
    titles, high, low = [title for title, _ in ranked], f"{ranked[0][1]:g}", f"{ranked[-1][1]:g}"
    if len(titles) == 1:
        return f"{'The favorite' if liked else 'Rated highest'} was {titles[0]}, with a {high}."
    rated = f"{both_or_all(len(titles))} rated {high}" if high == low else f"rated {low} to {high}"
    return f"Favorites were {joined(titles)}, {rated}."


def _lowest(tally: Tally) -> str:
    disliked = [behavior for behavior in tally.behaviors if not behavior.liked]
    ranked = rank_titles(disliked, factors=tally.factors, highest=False)
    highest = max(behavior.rating for behavior in tally.behaviors)
    return f"Rated lowest was {ranked[0][0]}, with a {ranked[0][1]:g}." if ranked and ranked[0][1] < highest else ""


def _bare(tally: Tally, *, words: Words) -> str:
    if tally.bare_count == tally.count:
        return f"None of the {words.items} came with details."
    return f"{counted(tally.bare_count, words=words)} came without details." if tally.bare_count else ""


def _shift(before: Tally, *, after: Tally, words: Words) -> str:
    tastes = _moved_tastes(before, after=after, words=words)
    tendency, pace = _tendency(before, after=after, words=words), _pace(before, after=after, words=words)
    if not tastes:
        tastes = [(0, _steady(before, after=after, words=words, is_all=not (tendency or pace)))]
    previous = counted(before.count, words=words) if before.count > 1 else words.item
    opening = (0, f"Compared with the {previous} before, {tastes[0][1]}")
    rest = [(priority, capitalized(sentence)) for priority, sentence in tastes[1:]]
    return fit([opening, *rest, (2, tendency), (4, pace)], limit=WORD_LIMIT)


def _moved_tastes(before: Tally, *, after: Tally, words: Words) -> list[tuple[int, str]]:
    """Return (priority, sentence) on what moved by factor, the first factor's opinions included."""
    tastes = []
    for place, (one, other) in enumerate(zip(before.factors, after.factors, strict=True)):
        tastes += [(5 if place else 0, _trends(one, after=other, words=words))]
        tastes += [(6 if place else 1, _news(one, after=other, words=words))]
        if place == 0:
            tastes += [(3, _opinions(one, after=other, words=words))]
    return [(priority, sentence) for priority, sentence in tastes if sentence]


def _trends(before: FactorTally, *, after: FactorTally, words: Words) -> str:
    """Say which values of both partitions take a larger or a smaller share than before."""
    old_known, new_known = before.known_count, after.known_count
    growth = {
        name: after.values[name].count * old_known - value.count * new_known
        for name, value in before.values.items()
        if name in after.values
    }
    room = SHOWN - bool(before.factor.relation)
    names = sorted(growth, key=lambda name: (-abs(growth[name]), name))
    moved = [name for name in names if _is_move(growth[name], old_count=old_known, new_count=new_known)]
    rose = [name for name in moved if growth[name] > 0][:room]
    fell = [name for name in moved if growth[name] < 0][:room]
    phrases = {}
    for name in rose + fell:
        old, new = before.values[name].count, after.values[name].count
        phrases[name] = f"from {old} to {new}"
        if len(phrases) == 1:
            of = f" of {old_known}" if old_known != new_known else ""
            phrases[name] = f"from {old}{of} to {new} of {counted(new_known, words=words)}"
    parts = [
        joined([f"{named(name)}{f' {verb}' if name == side[0] else ''} {phrases[name]}" for name in side])
        for verb, side in (("rose", rose), ("fell", fell))
        if side
    ]
    return f"{', while '.join(parts)}." if parts else ""


def _is_move(gain: int, *, old_count: int, new_count: int) -> bool:
    """Whether new * old_count - old * new_count is a move of the share, and of two behaviors or more."""
    return 100 * abs(gain) >= MOVED * old_count * new_count and abs(gain) >= 2 * max(old_count, new_count)


def _news(before: FactorTally, *, after: FactorTally, words: Words) -> str:
    """Say which values are new and which are gone; silent where one side knows nothing of the factor."""
    if not (before.known_count and after.known_count):
        return ""
    room = SHOWN - bool(before.factor.relation)
    appeared, vanished = _absent(after, other=before)[:room], _absent(before, other=after)[:room]
    shown = appeared + vanished
    amounts = [counted(shown[0].count, words=words), *(str(value.count) for value in shown[1:])] if shown else []
    phrases = [f"{named(value.name)} ({amount})" for value, amount in zip(shown, amounts, strict=True)]
    parts = [
        f"{joined(side)} {verb}"
        for verb, side in (("appeared", phrases[: len(appeared)]), ("vanished", phrases[len(appeared) :]))
        if side
    ]
    return f"{', while '.join(parts)}." if parts else ""


def _absent(tally: FactorTally, *, other: FactorTally) -> list[ValueTally]:
    """Return the values that the other partition lacks and that weigh here, the most frequent first."""
    enough = 1 if tally.known_count < FEW else 2
    values = [
        value
        for value in tally.values.values()
        if value.name not in other.values
        and value.count >= enough
        and 100 * value.count >= APPEARED * tally.known_count
    ]
    return sorted(values, key=lambda value: (-value.count, value.name))


def _opinions(before: FactorTally, *, after: FactorTally, words: Words) -> str:
    """Say which value is liked far more often than before, and which far less, where both show it often enough."""
    gains = []
    for name, old in before.values.items():
        new = after.values.get(name)
        if new and min(old.count, new.count) >= OPINION_COUNT:
            gains.append((100 * (new.liked_count / new.count - old.liked_count / old.count), old, new))
    gains.sort(key=lambda gain: (-abs(gain[0]), gain[1].name))
    parts: list[str] = []
    for adverb, sign in (("more", 1), ("less", -1)):
        side = [(old, new) for gain, old, new in gains if round(sign * gain) >= OPINION_MOVED][:1]
        for old, new in side:
            verb, noun = ("", "") if parts else (f" is now {words.liked}", f" {words.items}")
            ratio = f"{new.liked_count} of {new.count}{noun} after {old.liked_count} of {old.count}"
            parts.append(f"{old.name}{verb} {adverb} often ({ratio})")
    return f"{joined(parts)}." if parts else ""


def _tendency(before: Tally, *, after: Tally, words: Words) -> str:
    """Say whether more or fewer are liked, or at least rated higher or lower."""
    gain = after.liked_count * before.count - before.liked_count * after.count
    old_average, new_average = f"{before.average:.1f}", f"{after.average:.1f}"
    if _is_move(gain, old_count=before.count, new_count=after.count):
        liked = f"{after.liked_count} of {counted(after.count, words=words)} {words.liked}"
        old = f"after {before.liked_count} of {before.count}"
        who = f"The user became more {'generous' if gain > 0 else 'critical'}"
        going = (
            f"staying at {new_average}" if old_average == new_average else f"going from {old_average} to {new_average}"
        )
        return f"{who}: {liked} {old}, the average rating {going}."
    if abs(after.average - before.average) >= RATING_MOVED:
        verb = "rose" if after.average > before.average else "fell"
        return f"Ratings {verb} from {old_average} to {new_average} on average."
    return ""


def _pace(before: Tally, *, after: Tally, words: Words) -> str:
    """Say whether the behaviors came faster or slower, and whether a break lies between."""
    speed, old_speed = (tally.count / max(tally.span / _DAY, 1.0) for tally in (after, before))
    ratio = max(speed, old_speed) / min(speed, old_speed)
    pace = ""
    if ratio >= PACE_MOVED and max(after.span, before.span) >= _DAY:  # two sessions within a day read the same in words
        now = f"{counted(after.count, words=words)} in {length(after.span)}"
        verb = "quickened" if speed > old_speed else "slowed"
        pace = f"The pace {verb}: {now} after {before.count} in {length(before.span)}."
    pause = after.first_time - before.last_time
    return " ".join(filter(None, (pace, f"A break of {length(pause)} lies between." if pause >= BREAK else "")))


def _steady(before: Tally, *, after: Tally, words: Words, is_all: bool) -> str:
    """Say that nothing moved, and what leads; or that too little is known to tell."""
    known = [
        (one, other) for one, other in zip(before.factors, after.factors, strict=True) if one.values and other.values
    ]
    if known:
        old, new = (min(of.values.values(), key=lambda value: (-value.count, value.name)) for of in known[0])
        leads = f"{'still leads' if old.name == new.name else 'leads'} with {new.count} of {known[0][1].known_count}"
        leader = f"{named(new.name)} {leads} {words.items}"
        moved = "nothing moved noticeably" if is_all else "tastes held steady"
    else:
        moved, leader = f"tastes cannot be compared, as too little is known of the {words.items}", ""
    if not is_all:
        return f"{moved}{': ' if leader else ''}{leader}."
    verb = "was" if after.liked_count < 2 else "were"  # noqa: PLR2004
    extent = kept(count=after.count, liked_count=after.liked_count)
    liked = f"{extent} {words.item if after.count == 1 else words.items} {verb} {words.liked}"
    return f"{moved}: {joined([part for part in (leader, liked, 'the pace is the same') if part])}."
