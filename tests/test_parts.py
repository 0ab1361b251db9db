"""Texts in parts: the canonical text holds them exactly, and their vector is laid out as documented."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.errors import EncoderError
from liber_feast.form_vectors import NUMBER_COUNT, Floats, lay_out, pieces, text_width, version_of
from liber_feast.parts import PARTS, PLAIN, Parts, form_of, parse_parts, readable, shift_parts, summary_parts

COUNTS = st.integers(-(10**12), 10**12)
every_parts = st.builds(
    Parts, likes=st.text(), dislikes=st.text(), tendency=COUNTS, liked_count=COUNTS, disliked_count=COUNTS
)
SUMMARY = summary_parts(likes="Drama films.", dislikes="", tendency=None, liked_count=3, disliked_count=0)


def lengths(texts: Sequence[str]) -> Floats:
    """Encode a text as its length and its negative."""
    return np.array([(len(text), -len(text)) for text in texts], np.float32).reshape(len(texts), 2)


@given(every_parts)
def test_a_canonical_text_is_parsed_back_exactly_whatever_stands_in_it(parts: Parts) -> None:
    assert parse_parts(parts.text()) == parts
    assert "\n" not in parts.text()


@given(st.text() | every_parts.map(lambda parts: parts.text().replace(",", ", ", 1)))
def test_what_is_not_canonical_to_the_last_character_holds_no_parts(text: str) -> None:
    parts = parse_parts(text)
    assert parts is None or parts.text() == text


@pytest.mark.parametrize(
    "text",
    [
        "The user likes drama.",
        "{}",
        '{"likes":"a","dislikes":"b","tendency":1,"liked_count":1}',
        '{"likes":"a","dislikes":"b","tendency":1.0,"liked_count":1,"disliked_count":1}',
        '{"likes":"a","dislikes":"b","tendency":true,"liked_count":1,"disliked_count":1}',
        '{"likes":null,"dislikes":"b","tendency":1,"liked_count":1,"disliked_count":1}',
        '{"likes":"a","dislikes":"b","tendency":1,"liked_count":1,"disliked_count":1} ',
        '{"likes":"a","likes":"a","dislikes":"b","tendency":1,"liked_count":1,"disliked_count":1}',
        '{"likes":' * 5000,
    ],
    ids=["prose", "empty", "one short", "a float", "a truth", "null", "a space behind", "a key twice", "deep"],
)
def test_a_text_that_only_looks_like_parts_is_none(text: str) -> None:
    assert parse_parts(text) is None


def test_a_tendency_that_nobody_judged_is_that_of_the_counts() -> None:
    assert SUMMARY.tendency == 60
    assert replace(SUMMARY, liked_count=0).tendency == 60
    assert summary_parts(likes="", dislikes="a", tendency=None, liked_count=0, disliked_count=18).tendency == -90
    assert summary_parts(likes="", dislikes="a", tendency=7, liked_count=0, disliked_count=18).tendency == 7


def test_the_numbers_of_a_shift_are_differences_and_0_beside_a_plain_summary() -> None:
    after = summary_parts(likes="a", dislikes="b", tendency=10, liked_count=1, disliked_count=4)
    moved = shift_parts(likes="", dislikes="b", before=SUMMARY, after=after, tendency=None)
    assert (moved.tendency, moved.liked_count, moved.disliked_count) == (-50, -2, 4)
    beside_plain = shift_parts(likes="", dislikes="b", before=None, after=after, tendency=-20)
    assert (beside_plain.tendency, beside_plain.liked_count, beside_plain.disliked_count) == (-20, 0, 0)


def test_parts_are_shown_as_prose_where_they_were_asked_for_and_plain_text_stays_as_it_is() -> None:
    prose = "Likes: Drama films. Dislikes: nothing. Tendency: +60. Liked: 3 of 3."
    assert readable(SUMMARY.text(), form=PARTS) == prose
    assert readable("They like drama.", form=PARTS) == "They like drama."
    assert readable(SUMMARY.text(), form=PLAIN) == SUMMARY.text()


def test_parts_are_encoded_apart_and_numbers_stand_behind_them() -> None:
    shift = Parts(likes="War", dislikes="Crime", tendency=-50, liked_count=-20, disliked_count=1)
    found = lay_out([SUMMARY.text(), shift.text()], encode=lengths, form=PARTS)
    assert found.shape == (2, text_width(2, form=PARTS)) == (2, 2 * 2 + NUMBER_COUNT)
    one = math.log(2) / math.log(21)
    assert found[0].tolist() == pytest.approx([12, -12, 0, 0, 0.6, 2 * one, 0])
    assert found[1].tolist() == pytest.approx([3, -3, 5, -5, -0.5, -1, one])
    assert pieces([SUMMARY.text(), shift.text(), SUMMARY.text()], form=PARTS) == ["Drama films.", "War", "Crime"]


def test_a_plain_text_is_its_own_vector() -> None:
    texts = ["one", SUMMARY.text()]
    assert lay_out(texts, encode=lengths, form=PLAIN).tolist() == lengths(texts).tolist()
    assert pieces(texts, form=PLAIN) == texts
    assert text_width(32, form=PLAIN) == 32


def test_parts_without_any_words_ask_the_encoder_for_nothing() -> None:
    silent = replace(SUMMARY, likes="").text()
    assert lay_out([silent], encode=lengths, form=PARTS)[0, :4].tolist() == [0, 0, 0, 0]


def test_a_text_that_should_be_in_parts_and_is_not_is_one_line() -> None:
    with pytest.raises(
        EncoderError, match=r"under a prompt version of parts and does not hold them.*`liber recompute`"
    ):
        lay_out(["prose"], encode=lengths, form=PARTS)


def test_versions_say_the_form() -> None:
    assert version_of("53aa5117-01234567", form=PLAIN) == "53aa5117-01234567"
    assert form_of(version_of("53aa5117-01234567", form=PARTS)) == PARTS
    assert form_of("movielens-29e9e8f399") == form_of("parts-29e9e8f399") == PLAIN
