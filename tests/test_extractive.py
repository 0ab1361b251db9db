"""The extractive learner: plain English that counts honestly, within 120 words, whatever the items say."""

import random
import unicodedata
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.interest import DescribedBehavior, InterestLearner, Item, LearnedText
from liber_feast.llm.extractive import WORD_LIMIT, ExtractiveLearner
from liber_feast.prompt import load_prompt
from tests.test_prompt import DOMAINS, assert_golden, sample, shift_request, summary_request

START = datetime(1998, 4, 4, 10, tzinfo=UTC)
LEARNERS = {domain: ExtractiveLearner(load_prompt(domain)) for domain in DOMAINS}


def behavior(
    rating: float,
    *,
    title: str | None = None,
    genres: tuple[str, ...] = (),
    period: str | None = None,
    director: str = "",
) -> DescribedBehavior:
    attributes = {"director": director} if director else {}
    item = Item(item_id="an-item", title=title, categories=genres, period=period, attributes=attributes)
    return DescribedBehavior(item=item, rating=rating, liked=rating > 3, event_time=START)  # noqa: PLR2004


def later(one: DescribedBehavior, **span: float) -> DescribedBehavior:
    return replace(one, event_time=START + timedelta(**span))


def genre(name: str, *, liked: int = 0, disliked: int = 0) -> tuple[DescribedBehavior, ...]:
    return (behavior(4, genres=(name,)),) * liked + (behavior(2, genres=(name,)),) * disliked


def summarize(*behaviors: DescribedBehavior, domain: str = "movielens") -> str:
    request = summary_request(behaviors)
    (((answered, outcome),),) = LEARNERS[domain].summarize([request])
    assert answered is request
    assert isinstance(outcome, LearnedText)
    return outcome.text


def shift(
    previous: tuple[DescribedBehavior, ...], current: tuple[DescribedBehavior, ...], *, domain: str = "movielens"
) -> str:
    request = shift_request(previous=previous, current=current, texts=("unused", "unused"))
    (((answered, outcome),),) = LEARNERS[domain].learn_shifts([request])
    assert answered is request
    assert isinstance(outcome, LearnedText)
    return outcome.text


names = st.one_of(st.sampled_from(["Drama", "Crime", "War", "1990s", "Joel Coen"]), st.text(max_size=80))
behaviors = st.builds(
    lambda rating, title, genres, period, director, minutes: later(
        behavior(rating / 2, title=title, genres=genres, period=period, director=director), minutes=minutes
    ),
    rating=st.integers(1, 10),
    title=st.one_of(st.none(), names),
    genres=st.lists(names, max_size=4).map(tuple),
    period=st.one_of(st.none(), names),
    director=names,
    minutes=st.integers(-(10**6), 10**7),
)
partitions = st.lists(behaviors, min_size=1, max_size=24).map(tuple)


def assert_readable(text: str) -> None:
    assert 0 < len(text.split()) <= WORD_LIMIT
    assert not {unicodedata.category(letter) for letter in text} & {"Cc", "Cs", "Zl", "Zp"}
    assert text == " ".join(text.split(" "))
    assert "  " not in text
    assert text.endswith(".")
    assert "u-4711" not in text
    assert "an-item" not in text


@given(domain=st.sampled_from(DOMAINS), partition=partitions)
def test_every_summary_is_one_line_of_at_most_120_words(domain: str, partition: tuple[DescribedBehavior, ...]) -> None:
    assert_readable(summarize(*partition, domain=domain))


@given(domain=st.sampled_from(DOMAINS), previous=partitions, current=partitions)
def test_every_shift_is_one_line_of_at_most_120_words(
    domain: str, previous: tuple[DescribedBehavior, ...], current: tuple[DescribedBehavior, ...]
) -> None:
    assert_readable(shift(previous, current, domain=domain))


@given(previous=partitions, current=partitions, seed=st.integers(0, 99))
def test_texts_do_not_depend_on_the_order_of_the_behaviors(
    previous: tuple[DescribedBehavior, ...], current: tuple[DescribedBehavior, ...], seed: int
) -> None:
    shuffle = random.Random(seed)
    shuffled = [tuple(shuffle.sample(partition, len(partition))) for partition in (previous, current)]
    assert summarize(*shuffled[1]) == summarize(*current)
    assert shift(shuffled[0], shuffled[1]) == shift(previous, current)


@given(others=st.lists(behaviors, max_size=5), count=st.integers(11, 20))
def test_a_liked_category_that_dominates_is_named_first(others: list[DescribedBehavior], count: int) -> None:
    text = summarize(*genre("Western", liked=count), *others)
    assert f"They liked all {count} Western" in text


@given(partitions)
def test_the_same_behaviors_again_are_no_shift(partition: tuple[DescribedBehavior, ...]) -> None:
    text = shift(partition, partition)
    assert "nothing moved noticeably" in text or "tastes cannot be compared" in text
    assert "the pace is the same" in text


ABSURD = " ".join(["Interminable"] * 400)


def test_absurd_titles_and_names_are_shortened() -> None:
    absurd = [behavior(5 - n % 2, title=f"{n} {ABSURD}", genres=(f"{n} {ABSURD}",), director=ABSURD) for n in range(20)]
    assert_readable(summarize(*absurd))
    assert '"0 Interminable Interminable Interminable Interminable Inter…"' in summarize(*absurd)
    assert_readable(shift(tuple(absurd[:10]), tuple(absurd[10:])))
    assert len(summarize(behavior(5, title="x" * 10_000))) < 200  # noqa: PLR2004


@pytest.mark.parametrize("domain", DOMAINS)
def test_summaries_of_real_looking_partitions_equal_their_golden_files(domain: str) -> None:
    texts = [summarize(*sample(domain, which=which), domain=domain) for which in (0, 1)]
    assert_golden(f"{domain}-extractive-summary", text="".join(f"{text}\n" for text in texts))


@pytest.mark.parametrize("domain", DOMAINS)
def test_shifts_of_real_looking_partitions_equal_their_golden_files(domain: str) -> None:
    earlier, later = sample(domain, which=0), sample(domain, which=1)
    texts = [shift(earlier, later, domain=domain), shift(later, later, domain=domain)]
    assert_golden(f"{domain}-extractive-shift", text="".join(f"{text}\n" for text in texts))


def test_a_mixed_partition_tells_what_was_liked_and_what_was_not() -> None:
    text = summarize(*genre("Drama", liked=9, disliked=2), *genre("Crime", liked=2), *genre("Horror", disliked=3))
    assert text == (
        "The user rated 16 films on April 4, 1998 and liked 11 of them: a balanced rater,"
        " with an average rating of 3.4. They liked 9 of 11 Drama and both Crime films but none of the 3 Horror films."
    )


def test_a_partition_liked_as_a_whole_is_generous() -> None:
    text = summarize(*genre("Drama", liked=4), *genre("Crime", liked=2))
    assert "and liked all of them: a generous rater, with an average rating of 4.0." in text
    assert text.endswith("They liked all 4 Drama and both Crime films.")


def test_a_partition_without_likes_tells_what_was_tried() -> None:
    text = summarize(
        *genre("Drama", disliked=4), behavior(1, title="Jaws 3-D (1983)", period="1980s"), behavior(3, title="M")
    )
    assert "and liked none of them: a critical rater" in text
    assert "They tried 4 Drama films without liking any. By period, they tried one film from the 1980s" in text
    assert text.endswith('Rated highest was "M", with a 3. Rated lowest was "Jaws 3-D (1983)", with a 1.')
    assert "Rated" not in summarize(behavior(2, title="M"), behavior(2, title="Jaws 3-D (1983)"))


def test_where_no_category_is_mostly_liked_the_best_is_named() -> None:
    text = summarize(
        *genre("Drama", liked=3, disliked=5), *genre("Horror", disliked=6), *genre("War", liked=1, disliked=5)
    )
    assert "They liked at best 3 of 8 Drama films but none of the 6 Horror and 1 of 6 War films." in text


def test_where_no_category_is_mostly_disliked_the_worst_is_named() -> None:
    text = summarize(
        *genre("Drama", liked=8),
        *genre("War", liked=5),
        *genre("Crime", liked=5),
        *genre("Sci-Fi", liked=3, disliked=2),
    )
    assert "They liked all 8 Drama, all 5 Crime and all 5 War films and, at worst, 3 of 5 Sci-Fi films." in text


def test_where_likes_and_dislikes_have_nothing_in_common_only_the_dislikes_are_listed() -> None:
    liked = behavior(5, title="M")
    assert "They liked only 1 of 3 Drama films." in summarize(
        liked, *genre("Drama", liked=1, disliked=2), behavior(1), behavior(1)
    )
    assert "They liked none of the 2 War films." in summarize(liked, *genre("War", disliked=2))
    assert "The War film was not liked." in summarize(liked, *genre("War", disliked=1))
    assert "The Drama and War films were not liked." in summarize(liked, behavior(1, genres=("Drama", "War")))
    assert "The film from the 1930s was not liked." in summarize(liked, behavior(1, period="1930s"))


def test_values_seen_once_are_told_as_such() -> None:
    text = summarize(
        behavior(5, genres=("War",), period="1990s"),
        behavior(4, genres=("Drama",), period="1980s"),
        behavior(2, genres=("Horror",), period="1970s"),
        behavior(1, genres=("Crime",), period="1960s"),
    )
    assert "They liked one Drama and one War film but not the Crime and Horror ones." in text
    assert (
        "By period, they liked one film from the 1980s and one from the 1990s but not the one from the 1960s." in text
    )


def test_makers_are_told_when_they_repeat_and_beside_favorites() -> None:
    text = summarize(
        behavior(5, title="Fargo (1996)", director="Joel Coen"),
        behavior(4, title="Blood Simple (1984)", director="Joel Coen"),
        behavior(2, title="Jaws (1975)", director="Steven Spielberg"),
    )
    assert "By director, they liked both films by Joel Coen." in text
    assert 'Favorites were "Fargo (1996)" by Joel Coen and "Blood Simple (1984)" by Joel Coen, rated 4 to 5.' in text
    assert text.endswith('Rated lowest was "Jaws (1975)" by Steven Spielberg, with a 2.')


def test_favorites_are_the_highest_rated_then_the_latest_then_by_name() -> None:
    text = summarize(
        later(behavior(4, title="Low but late"), days=9),
        behavior(5, title="B"),
        behavior(5, title="A"),
        later(behavior(5, title="Late"), days=1),
        later(behavior(5, title="Late"), days=1),
        later(behavior(5), days=8),
    )
    assert 'Favorites were "Late", "A" and "B", all rated 5.' in text


def test_articles_stand_in_front_and_quotes_cannot_close_a_title() -> None:
    text = summarize(
        behavior(5, title='"Matrix", The (1999)'),
        later(behavior(5, title="City of Lost Children, The (Cité des enfants perdus, La) (1995)"), days=-1),
    )
    assert "\"The 'Matrix' (1999)\"" in text
    assert '"The City of Lost Children (Cité des enfants perdus…"' in text


def test_one_behavior_is_told_as_one() -> None:
    assert summarize(
        behavior(5, title="Fargo (1996)", genres=("Crime", "Drama"), period="1990s", director="Joel Coen")
    ) == (
        'The user rated one film on April 4, 1998 and liked it. It was "Fargo (1996)" by Joel Coen, rated 5.'
        " Its genre is Crime and Drama. Its period is the 1990s. Its director is Joel Coen."
    )
    assert summarize(behavior(2)) == (
        "The user rated one film on April 4, 1998 without liking it. The rating was 2. It came without details."
    )
    assert "without enjoying it" in summarize(behavior(2), domain="music")


def test_items_without_attributes_are_kept_and_counted() -> None:
    assert summarize(*genre("Drama", liked=2), behavior(1), behavior(1), behavior(5)).endswith(
        "They liked both Drama films. 3 films came without details."
    )
    assert summarize(behavior(5), behavior(4)).endswith("rating of 4.5. None of the films came with details.")


@pytest.mark.parametrize(
    ("span", "told"),
    [
        (timedelta(hours=1), "on April 4, 1998 "),
        (timedelta(days=1), "in a day (April 1998) "),
        (timedelta(days=12), "in 12 days (April 1998) "),
        (timedelta(days=40), "in 6 weeks (April to May 1998) "),
        (timedelta(days=420), "in 14 months (April 1998 to May 1999) "),
        (timedelta(days=365), "in 12 months (April 1998 to April 1999) "),
        (timedelta(days=1200), "in 3 years (April 1998 to July 2001) "),
    ],
)
def test_the_time_span_is_told_in_its_natural_unit(span: timedelta, told: str) -> None:
    assert told in summarize(behavior(4), replace(behavior(4), event_time=START + span))


def test_what_rose_fell_appeared_and_vanished_is_told_with_counts() -> None:
    previous = (*genre("Drama", liked=2), *genre("Comedy", liked=6), *genre("War", liked=4), *genre("Crime", liked=1))
    current = (*genre("Drama", liked=7), *genre("Comedy", liked=1), *genre("Horror", liked=4), *genre("Crime", liked=1))
    assert shift(previous, current) == (
        "Compared with the 13 films before, Drama rose from 2 to 7 of 13 films, while Comedy fell from 6 to 1."
        " Horror (4 films) appeared, while War (4) vanished."
    )


def test_partitions_of_different_size_are_compared_by_share() -> None:
    previous = (*genre("Drama", liked=2), *genre("War", liked=2))
    doubled = previous * 2
    assert "nothing moved noticeably: Drama still leads with 4 of 8 films, all 8 films were liked" in shift(
        previous, doubled
    )
    text = shift((*genre("Drama", liked=3), *genre("War", liked=3)), (*genre("Drama", liked=9), *genre("War", liked=1)))
    assert "Drama rose from 3 of 6 to 9 of 10 films, while War fell from 3 to 1." in text


def test_one_behavior_more_or_less_of_a_few_is_no_move() -> None:
    text = shift((*genre("Drama", liked=3), *genre("War", liked=2)), (*genre("Drama", liked=2), *genre("War", liked=3)))
    assert "nothing moved noticeably: War leads with 3 of 5 films, all 5 films were liked" in text
    assert "nothing moved noticeably" in shift(
        genre("War", liked=4), (*genre("War", liked=3), behavior(3, genres=("War",)))
    )
    average_kept = (*genre("War", disliked=2), *(behavior(5, genres=("War",)),) * 2)
    assert "4 of 4 films liked after 2 of 4, the average rating going from 3.5 to 4.0" in shift(
        average_kept, genre("War", liked=4)
    )
    assert "the average rating staying at 3.5" in shift(average_kept, (behavior(3.5, genres=("War",)),) * 4)


def test_decades_and_makers_move_as_well() -> None:
    old = tuple(
        behavior(4, genres=("Drama",), period=p, director=d) for p, d in [("1980s", "A B")] * 4 + [("1990s", "C D")]
    )
    new = tuple(
        behavior(4, genres=("Drama",), period=p, director=d) for p, d in [("1990s", "C D")] * 4 + [("2000s", "E F")]
    )
    assert shift(old, new) == (
        "Compared with the 5 films before, the 1990s rose from 1 to 4 of 5 films."
        " The 2000s (1 film) appeared, while the 1980s (4) vanished."
        " C D rose from 1 to 4 of 5 films. E F (1 film) appeared, while A B (4) vanished."
    )


def test_a_change_of_opinion_on_a_category_is_told() -> None:
    previous = (*genre("Drama", liked=4, disliked=1), *genre("War", liked=1, disliked=4))
    current = (*genre("Drama", liked=1, disliked=4), *genre("War", liked=4, disliked=1))
    assert shift(previous, current) == (
        "Compared with the 10 films before, War is now liked more often (4 of 5 films after 1 of 5)"
        " and Drama less often (1 of 5 after 4 of 5)."
    )


def test_tendency_and_pace_are_told_when_they_change() -> None:
    previous = tuple(later(one, days=40 * n) for n, one in enumerate(genre("Drama", liked=6)))
    current = tuple(later(one, days=500) for one in genre("Drama", liked=2, disliked=4))
    text = shift(previous, current)
    assert (
        "The user became more critical: 2 of 6 films liked after 6 of 6, the average rating going from 4.0 to 2.7."
        in text
    )
    assert "The pace quickened: 6 films in a day after 6 in 7 months. A break of 10 months lies between." in text
    assert "became more generous" in shift(current, previous)
    assert "The pace slowed: 6 films in 7 months after 6 in a day." in shift(current, previous)
    assert "break" not in shift(current, previous)


def test_ratings_that_move_without_more_likes_are_told() -> None:
    text = shift((behavior(4, genres=("War",)),) * 5, (behavior(5, genres=("War",)),) * 5)
    assert text == (
        "Compared with the 5 films before, tastes held steady: War still leads with 5 of 5 films."
        " Ratings rose from 4.0 to 5.0 on average."
    )


def test_items_without_details_are_said_not_to_be_comparable() -> None:
    bare = (behavior(4), behavior(4))
    assert shift(bare, bare) == (
        "Compared with the 2 films before, tastes cannot be compared, as too little is known of the films:"
        " both films were liked and the pace is the same."
    )
    assert "tastes cannot be compared" in shift(genre("Drama", liked=2), bare)
    assert "vanished" not in shift(genre("Drama", liked=2), bare)


def test_answers_come_in_order_and_name_the_model_and_the_prompt() -> None:
    prompt = load_prompt("movielens")
    learner: InterestLearner = ExtractiveLearner(prompt)
    requests = [summary_request(sample("movielens", which=which)) for which in (0, 1, 0)]
    (answers,) = learner.summarize(requests)
    assert [request for request, _ in answers] == requests
    assert answers[0][1] == answers[2][1] != answers[1][1]
    assert list(learner.summarize([])) == list(learner.learn_shifts([])) == []
    assert (learner.model, learner.prompt_version) == ("extractive-1", prompt.version)
