"""The extractive learner in parts: likes and dislikes counted apart, within 60 words each, whatever the items say."""

import unicodedata

import pytest
from hypothesis import given

from liber_feast.interest import DescribedBehavior, InterestLearner, LearnedText
from liber_feast.llm.extractive import ExtractiveLearner
from liber_feast.llm.extractive_parts import SIDE_WORDS
from liber_feast.parts import PARTS, Parts, parse_parts
from liber_feast.prompt import load_prompt
from tests.test_extractive import behavior, behaviors, genre, partitions
from tests.test_prompt import DOMAINS, assert_golden, sample, shift_request, summary_request

LEARNERS = {domain: ExtractiveLearner(load_prompt(domain).in_form(PARTS)) for domain in DOMAINS}
Behaviors = tuple[DescribedBehavior, ...]


def parts_of(outcome: object) -> Parts:
    assert isinstance(outcome, LearnedText)
    parts = parse_parts(outcome.text)
    assert parts is not None
    return parts


def summarize(*some: DescribedBehavior, domain: str = "movielens") -> Parts:
    (((_, outcome),),) = LEARNERS[domain].summarize([summary_request(some)])
    return parts_of(outcome)


def shift(previous: Behaviors, current: Behaviors, *, domain: str = "movielens") -> Parts:
    request = shift_request(previous=previous, current=current, texts=("unused", "unused"))
    (((_, outcome),),) = LEARNERS[domain].learn_shifts([request])
    return parts_of(outcome)


def assert_readable(part: str) -> None:
    assert len(part.split()) <= SIDE_WORDS
    assert not {unicodedata.category(letter) for letter in part} & {"Cc", "Cs", "Zl", "Zp"}
    assert part == " ".join(part.split(" "))


@pytest.mark.parametrize("domain", DOMAINS)
def test_texts_in_parts_equal_their_golden_files(domain: str) -> None:
    before, after = sample(domain, which=0), sample(domain, which=1)
    assert_golden(f"{domain}-extractive-parts-summary", text=summarize(*before, domain=domain).text() + "\n")
    assert_golden(f"{domain}-extractive-parts-shift", text=shift(before, after, domain=domain).text() + "\n")


@given(partitions)
def test_every_side_with_behaviors_says_something_readable_and_counts_them(some: Behaviors) -> None:
    parts = summarize(*some)
    liked_count = sum(one.liked for one in some)
    assert (parts.liked_count, parts.disliked_count) == (liked_count, len(some) - liked_count)
    assert (bool(parts.likes), bool(parts.dislikes)) == (liked_count > 0, liked_count < len(some))
    assert -100 <= parts.tendency <= 100
    assert_readable(parts.likes)
    assert_readable(parts.dislikes)


@given(partitions, behaviors)
def test_what_was_disliked_does_not_change_what_is_said_of_the_liked(some: Behaviors, other: DescribedBehavior) -> None:
    added = summarize(*some, other)
    side = "dislikes" if other.liked else "likes"
    assert getattr(added, side) == getattr(summarize(*some), side)


@given(partitions, partitions)
def test_the_numbers_of_a_shift_are_the_differences_of_the_summaries(before: Behaviors, after: Behaviors) -> None:
    moved, old, new = shift(before, after), summarize(*before), summarize(*after)
    assert moved.tendency == new.tendency - old.tendency
    assert moved.liked_count == new.liked_count - old.liked_count
    assert moved.disliked_count == new.disliked_count - old.disliked_count
    assert_readable(moved.likes)
    assert_readable(moved.dislikes)


@given(partitions)
def test_nothing_gained_between_a_partition_and_itself(some: Behaviors) -> None:
    assert shift(some, some) == Parts(likes="", dislikes="", tendency=0, liked_count=0, disliked_count=0)


def test_a_side_names_its_factors_and_its_titles() -> None:
    parts = summarize(
        behavior(5, title="Fargo (1996)", genres=("Crime", "Drama"), period="1990s"),
        behavior(4, title="Casino (1995)", genres=("Crime", "Drama"), period="1990s"),
        behavior(1, title="Jaws (1975)", genres=("Horror",), period="1970s"),
    )
    assert parts.likes == '"Fargo (1996)" and "Casino (1995)". 2 Crime and 2 Drama films. 2 films from the 1990s.'
    assert parts.dislikes == '"Jaws (1975)". One Horror film. One film from the 1970s.'


def test_items_without_attributes_are_counted() -> None:
    assert summarize(behavior(5), behavior(4), behavior(1)).likes == "2 films without details."


def test_what_is_liked_more_often_than_before_is_told_and_what_is_liked_less_is_not() -> None:
    moved = shift(
        (*genre("Drama", liked=8, disliked=2), *genre("War", liked=1)),
        (*genre("Drama", liked=1, disliked=7), *genre("War", liked=3)),
    )
    assert moved.likes == "War (3 films after 1)."
    assert moved.dislikes == "Drama (7 films after 2)."


def test_an_extractive_learner_of_parts_has_a_version_of_its_own() -> None:
    learner: InterestLearner = LEARNERS["movielens"]
    assert learner.prompt_version == load_prompt("movielens").in_form(PARTS).version
    assert learner.prompt_version != ExtractiveLearner(load_prompt("movielens")).prompt_version
