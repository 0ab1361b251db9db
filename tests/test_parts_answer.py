"""Answers in parts: what is kept of them, what is asked for again, and what a model is asked."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.answer import AcceptedText, RejectedAnswer
from liber_feast.errors import PromptError
from liber_feast.interest import Failure, LearnedText, Request, ShiftRequest
from liber_feast.interest_config import OpenAIConfig
from liber_feast.llm.parts_answer import PART_LIMIT, answer_schema, check_parts
from liber_feast.llm_backend import configure_llm, open_prompt
from liber_feast.parts import PARTS, PLAIN, Parts, parse_parts, summary_parts
from liber_feast.prompt import Message, load_prompt
from tests.chat_parts import Reply, ScriptedBackend, SimulatedClock, always, learner_of
from tests.test_prompt import DOMAINS, as_text, assert_golden, sample, shift_request, summary_request

BEHAVIORS = sample("movielens", which=0)
LIKED_COUNT = sum(one.liked for one in BEHAVIORS)
SUMMARY = summary_request(BEHAVIORS)
ALL_LIKED = summary_request([one for one in BEHAVIORS if one.liked])
PROMPT = load_prompt("movielens").in_form(PARTS)
BEFORE = summary_parts(likes="Drama.", dislikes="War.", tendency=10, liked_count=6, disliked_count=2)
AFTER = summary_parts(likes="Crime.", dislikes="", tendency=80, liked_count=8, disliked_count=0)
SHIFT = shift_request(texts=(BEFORE.text(), AFTER.text()))
GOOD = {"likes": "Suspense and space.", "dislikes": "Broad comedy.", "tendency": -10}


def messages_of(request: Request) -> Sequence[Message]:
    return PROMPT.render_shift(request) if isinstance(request, ShiftRequest) else PROMPT.render_summary(request)


def checked(answer: Any, *, request: Request = SUMMARY, finish_reason: str = "stop") -> Parts | str:
    """Return the parts that are kept, or why the answer is rejected."""
    text = answer if isinstance(answer, str) else json.dumps(answer)
    found = check_parts(request, text, finish_reason=finish_reason, messages=messages_of(request), max_output_tokens=64)
    if isinstance(found, RejectedAnswer):
        assert "\n" not in found.reason
        return found.reason
    assert isinstance(found, AcceptedText)
    parts = parse_parts(found.text)
    assert parts is not None
    return parts


def kept(answer: Any, *, request: Request = SUMMARY) -> Parts:
    found = checked(answer, request=request)
    assert isinstance(found, Parts), found
    return found


def test_an_answer_is_kept_beside_the_counts_of_its_partition() -> None:
    assert kept(GOOD) == Parts(
        likes="Suspense and space.",
        dislikes="Broad comedy.",
        tendency=-10,
        liked_count=LIKED_COUNT,
        disliked_count=len(BEHAVIORS) - LIKED_COUNT,
    )


@pytest.mark.parametrize(
    "wrapped",
    [
        "```json\n{}\n```",
        "Sure! Here it is: {}",
        "<think>What do they like? {{maybe}}</think>{}",
        "\n {} \n",
    ],
    ids=["a fence", "a lead-in", "reasoning", "spaces"],
)
def test_an_object_is_found_in_what_stands_around_it(wrapped: str) -> None:
    assert kept(wrapped.format(json.dumps(GOOD, indent=1)).replace("{{", "{").replace("}}", "}")) == kept(GOOD)


REJECTED: dict[str, tuple[Any, str]] = {
    "prose": ("They like drama.", "answer without a JSON object"),
    "a list": ("[1]", "answer without a JSON object"),
    "half an object": ('{"likes": "a", "dislikes', "answer without a JSON object"),
    "no likes": ({"dislikes": "b", "tendency": 0}, "answer without a text 'likes'"),
    "no dislikes": ({"likes": "b", "tendency": 0}, "answer without a text 'dislikes'"),
    "likes in a list": ({**GOOD, "likes": ["a"]}, "answer without a text 'likes'"),
    "no tendency": ({"likes": "a", "dislikes": "b"}, "answer without a 'tendency' from -100 to 100"),
    "a tendency in words": ({**GOOD, "tendency": "generous"}, "answer without a 'tendency' from -100 to 100"),
    "a tendency out of range": ({**GOOD, "tendency": 101}, "answer without a 'tendency' from -100 to 100"),
    "a tendency that is no number": (
        '{"likes": "a", "dislikes": "b", "tendency": NaN}',
        "answer without a 'tendency' from -100 to 100",
    ),
    "a tendency that is true": ({**GOOD, "tendency": True}, "answer without a 'tendency' from -100 to 100"),
    "empty likes": ({**GOOD, "likes": " - "}, "answer with an empty field 'likes'"),
    "empty dislikes": ({**GOOD, "dislikes": ""}, "answer with an empty field 'dislikes'"),
    "an echo": (
        {**GOOD, "likes": "what the user liked, in at most 60 words of plain English", "dislikes": "See above."},
        "",
    ),
    "nothing but echoes": (
        dict.fromkeys(("likes", "dislikes"), "what is known of the film, the rating, and whether the user liked it")
        | {"tendency": 0},
        "answer only repeats the prompt",
    ),
}


@pytest.mark.parametrize(("answer", "reason"), REJECTED.values(), ids=REJECTED)
def test_an_answer_of_no_use_is_rejected_with_its_reason(answer: Any, reason: str) -> None:
    found = checked(answer)
    assert found == reason if reason else isinstance(found, Parts)


def test_an_answer_that_was_cut_off_is_rejected_as_a_plain_one_is() -> None:
    assert checked(GOOD, finish_reason="length") == "answer cut off at 64 tokens"
    assert checked(GOOD, finish_reason="content_filter") == "answer withheld by the content filter"


def test_a_part_is_empty_where_no_behavior_stands_behind_it() -> None:
    parts = kept({**GOOD, "dislikes": ""}, request=ALL_LIKED)
    assert (parts.dislikes, parts.disliked_count) == ("", 0)


def test_a_long_part_is_cut_at_the_end_of_a_sentence() -> None:
    parts = kept({**GOOD, "likes": "They like drama. " * 100})
    assert PART_LIMIT / 2 < len(parts.likes) <= PART_LIMIT
    assert parts.likes.endswith("drama.")


def test_a_shift_has_the_differences_of_its_summaries_and_one_side_may_be_empty() -> None:
    parts = kept({"likes": "Crime is new.", "dislikes": "", "tendency": 40}, request=SHIFT)
    assert (parts.tendency, parts.liked_count, parts.disliked_count) == (40, 2, -2)
    still = kept({"likes": "", "dislikes": "", "tendency": 0}, request=SHIFT)
    assert (still.likes, still.dislikes, still.tendency) == ("", "", 0)
    assert checked({"likes": "", "dislikes": "", "tendency": 40}, request=SHIFT) == "answer with an empty field 'likes'"


@given(likes=st.text(), dislikes=st.text(), tendency=st.integers(-120, 120))
def test_whatever_a_model_writes_is_kept_on_one_line_or_rejected(likes: str, dislikes: str, tendency: int) -> None:
    found = checked({"likes": likes, "dislikes": dislikes, "tendency": tendency})
    if isinstance(found, Parts):
        assert found.text().isprintable() or not found.text().isascii()
        found.text().encode()


@given(st.text())
def test_whatever_else_comes_is_rejected_in_one_line(text: str) -> None:
    checked(text)


def test_a_rejected_answer_is_asked_for_once_more_and_then_fails() -> None:
    outcomes = []
    for replies in (["They like drama.", json.dumps(GOOD)], ["They like drama."]):
        clock = SimulatedClock()
        backend = ScriptedBackend(clock=clock, script=always(*(Reply(text=text) for text in replies)))
        (((_, outcome),),) = learner_of(backend, prompt=PROMPT).summarize([SUMMARY])
        outcomes.append(outcome)
    learned, failed = outcomes
    assert isinstance(learned, LearnedText)
    assert (parse_parts(learned.text), learned.attempt_count) == (kept(GOOD), 2)
    assert failed == Failure(reason="answer without a JSON object", attempt_count=2)


def test_the_schema_asks_for_the_three_fields_and_plain_text_has_none() -> None:
    schema = answer_schema(PARTS)
    assert schema is not None
    assert schema["required"] == list(schema["properties"]) == list(GOOD)
    assert answer_schema(PLAIN) is None


@pytest.mark.parametrize("domain", DOMAINS)
def test_rendered_prompts_of_parts_equal_their_golden_files(domain: str) -> None:
    prompt = load_prompt(domain).in_form(PARTS)
    request = summary_request(sample(domain, which=1), profile="Female, 25 to 34")
    assert_golden(f"{domain}-parts-summary", text=as_text(prompt.render_summary(request)))
    assert_golden(f"{domain}-parts-shift", text=as_text(prompt.render_shift(SHIFT)))


def test_a_shift_shows_parts_as_prose_and_a_plain_summary_as_it_is() -> None:
    mixed = PROMPT.render_shift(shift_request(texts=("They liked drama.", AFTER.text())))[1]["content"]
    assert "Previous summary: They liked drama.\n" in mixed
    assert "Current summary: Likes: Crime. Dislikes: nothing. Tendency: +80. Liked: 8 of 8." in mixed


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_two_forms_of_a_template_have_versions_of_their_own(domain: str) -> None:
    plain = open_prompt(domain, base=Path())
    assert plain == open_prompt(domain, base=Path(), form=PLAIN)
    parts = open_prompt(domain, base=Path(), form=PARTS)
    assert parts.version.startswith(f"{domain}-")
    assert parts.version.endswith("-parts")
    assert parts.version.removesuffix("-parts") != plain.version


def test_a_template_without_parts_is_refused_where_an_llm_is_asked_and_counts_where_none_is(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "liber_feast" / "prompts" / "music.toml").read_text(encoding="utf-8")
    (tmp_path / "own.toml").write_text(text[: text.index("[parts]")], encoding="utf-8")
    assert load_prompt(str(tmp_path / "own.toml")).version.removeprefix("own") == load_prompt("music").version[5:]
    assert open_prompt("own.toml", base=tmp_path, form=PARTS).factors == load_prompt("music").factors
    config = OpenAIConfig(model="m", base_url="http://localhost:8000/v1", prompt="own.toml", form="parts")
    with pytest.raises(PromptError, match=r"prompt own\.toml has no table \[parts\], and batch_engine\.interest\.form"):
        configure_llm(config, base=tmp_path)
