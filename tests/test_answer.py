"""Answers: what is kept of them, what is rejected and why."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.answer import ECHO_LENGTH, TEXT_LIMIT, AcceptedText, RejectedAnswer, check_answer
from liber_feast.prompt import Message, load_prompt
from tests.test_prompt import DOMAINS, sample, shift_request, summary_request

SUMMARIES = ("They liked drama.", 'The user liked "Alien (1979)" and every Thriller, and rated generously.')
SUMMARY_PROMPT = load_prompt("movielens").render_summary(
    summary_request(sample("movielens", which=1), profile="Female, 25 to 34")
)
SHIFT_PROMPT = load_prompt("movielens").render_shift(shift_request(texts=SUMMARIES))
GOOD = "The user liked Thriller films from the 1990s and was rather generous."


def check(text: str, *, finish_reason: str = "stop", messages: list[Message] = SUMMARY_PROMPT) -> str:
    """Return the text that is kept, or the reason behind `rejected: `."""
    checked = check_answer(text, finish_reason=finish_reason, messages=messages, max_output_tokens=1256)
    return checked.text if isinstance(checked, AcceptedText) else f"rejected: {checked.reason}"


KEPT = {
    "plain": (GOOD, GOOD),
    "several lines": ("They liked\n\n- drama\r\n-\tcrime\u2028now", "They liked - drama - crime now"),
    "controls, marks and lone surrogates": (
        "\x00They\x1b liked\u202e\ud800 drama\U000e0041\x9b.",
        "They liked drama .",
    ),
    "no-break spaces": (" They\u00a0liked\u200bdrama\ufeff ", "They liked drama"),
    "reasoning": (f"<think>\nHm, <b>.\n</think>\n\n{GOOD}", GOOD),
    "empty reasoning": (f"<think>\n\n</think>\n\n{GOOD}", GOOD),
    "reasoning in capitals": (f"<THINK>hm</Think >{GOOD}", GOOD),
    "thinking": (f"<thinking>hm</thinking>{GOOD}", GOOD),
    "several blocks": ("<think>a</think>They liked <think>b</think>drama.<think>c</think>", "They liked drama."),
    "nested blocks": (f"<think>a <think>b</think> c</think> {GOOD}", GOOD),
    "begun inside a block": (f"The rating says ...\n</think>\n{GOOD}", GOOD),
    "begun inside one, then another": (f"hm</think> no: <think>hm</think>{GOOD}", f"no: {GOOD}"),
    "double quotes": (f'"{GOOD}"', GOOD),
    "curly quotes": (f"“{GOOD}”", GOOD),
    "guillemets": (f"« {GOOD} »", GOOD),
    "a fence": (f"```\n{GOOD}\n```", GOOD),
    "a fence with a language": (f"```markdown\n{GOOD}\n```\n", GOOD),
    "quotes in a fence": (f'```text\n"{GOOD}"\n```', GOOD),
    "backquotes": (f"`{GOOD}`", GOOD),
    "quotes that enclose two titles": ('"Alien" over "Aliens"', '"Alien" over "Aliens"'),
    "an opening quote alone": ('"Alien" was liked.', '"Alien" was liked.'),
    "two fences": ("```a b``` or ```c d```", "```a b``` or ```c d```"),
    "an apostrophe inside": ("'It's the user's'", "'It's the user's'"),
    "markup": ("They <b>liked</b> [drama] & $profile {{ x }}.", "They <b>liked</b> [drama] & $profile {{ x }}."),
    "another script": ("用户喜欢科幻电影。", "用户喜欢科幻电影。"),
    "a letter": ("a", "a"),
}


@pytest.mark.parametrize(("text", "kept"), KEPT.values(), ids=KEPT.keys())
def test_an_answer_is_kept_as_one_line_of_plain_text(text: str, kept: str) -> None:
    assert check(text) == kept


REJECTED = {
    "cut off": (GOOD, "length", "answer cut off at 1,256 tokens"),
    "cut off in its reasoning": ("<think>hm", "length", "answer cut off at 1,256 tokens"),
    "cut off and empty": ("", "length", "answer cut off at 1,256 tokens"),
    "withheld": (GOOD, "content_filter", "answer withheld by the content filter"),
    **{
        reason: (GOOD, reason, "answer broken off by the server")
        for reason in ("abort", "error", "cancelled", "ERROR", "insufficient_system_resource")
    },
    **{reason: (GOOD, reason, "a tool call instead of an answer") for reason in ("tool_calls", "function_call")},
    "cut off in other words": (GOOD, "MAX_TOKENS", "answer cut off at 1,256 tokens"),
    "empty": ("", "stop", "empty answer"),
    "blank": (" \n\u200b\x00\ud800\ufeff", "stop", "empty answer"),
    "marks alone": ("...", "stop", "empty answer"),
    "an empty fence": ("```\n\n```", "stop", "empty answer"),
    "empty quotes": ('""', "stop", "empty answer"),
    "reasoning that is not closed": ("<think>The user liked drama", "stop", "reasoning without an answer"),
    "an answer before reasoning that is not closed": (f"{GOOD}<Think>hm", "stop", "reasoning without an answer"),
    "reasoning alone": ("<think>The user liked drama</think>\n", "stop", "reasoning without an answer"),
    "the end of reasoning alone": ("The user liked drama</think>.", "stop", "reasoning without an answer"),
}


@pytest.mark.parametrize(("text", "finish_reason", "reason"), REJECTED.values(), ids=REJECTED.keys())
def test_an_answer_of_no_use_is_rejected_with_its_reason(text: str, finish_reason: str, reason: str) -> None:
    assert check(text, finish_reason=finish_reason) == f"rejected: {reason}"


ECHO = "rejected: answer only repeats the prompt"
SUMMARY_ECHOES = {
    "the whole prompt": "\n".join(message["content"] for message in SUMMARY_PROMPT),
    "the user's message": SUMMARY_PROMPT[1]["content"],
    "the system's message": SUMMARY_PROMPT[0]["content"].upper(),
    "an instruction": "Say what the user liked and what the user did not like.",
    "behaviors": SUMMARY_PROMPT[1]["content"].partition("Films:\n")[2],
    "one behavior": SUMMARY_PROMPT[1]["content"].rpartition("\n")[2],
    "other spaces, case, quotes and marks": "“2000-06-03  BLADE RUNNER”, 1982; genre - Action, *Sci-Fi*, Thriller",
    "the profile": "Female, 25 to 34.",
    "a label": "**Films:**",
    "a lead-in before it": f"Sure! Here is the summary:\n\n{SUMMARY_PROMPT[1]['content']}",
    "a lead-in before a short one": "Here is the profile: Female, 25 to 34",
    "a fence around it": f"```\n{SUMMARY_PROMPT[1]['content']}\n```",
    "reasoning before it": f"<think>hm</think>{SUMMARY_PROMPT[1]['content']}",
}


@pytest.mark.parametrize("text", SUMMARY_ECHOES.values(), ids=SUMMARY_ECHOES.keys())
def test_an_answer_that_only_repeats_the_prompt_is_rejected(text: str) -> None:
    assert check(text) == ECHO


SHIFT_ECHOES = {
    "the short summary": SUMMARIES[0],
    "the long summary": SUMMARIES[1],
    "without marks": "they liked drama",
    "with its label": f"Previous summary: {SUMMARIES[0]}",
    "with a lead-in": f"Here is how the interest moved: {SUMMARIES[1]}",
    "both": f"{SUMMARIES[0]}\n\nCurrent summary: {SUMMARIES[1]}",
}


@pytest.mark.parametrize("text", SHIFT_ECHOES.values(), ids=SHIFT_ECHOES.keys())
def test_a_shift_that_is_one_of_its_summaries_is_rejected(text: str) -> None:
    assert check(text, messages=SHIFT_PROMPT) == ECHO


NO_ECHOES = {
    "a phrase of an instruction": "Nothing moved.",
    "a longer one": "The user became more generous",
    "a part of a summary": "every Thriller",
    "a summary and more": f"{SUMMARIES[1]} Nothing moved.",
    "a long way to a summary": f"What changed is little, in that the user of before is the user of now: {SUMMARIES[1]}",
    "part of a word": "hey liked drama",
}


@pytest.mark.parametrize("text", NO_ECHOES.values(), ids=NO_ECHOES.keys())
def test_an_answer_that_says_a_little_of_the_prompts_words_is_kept(text: str) -> None:
    assert check(text, messages=SHIFT_PROMPT) == text


@pytest.mark.parametrize("length", [ECHO_LENGTH - 1, ECHO_LENGTH])
def test_the_words_of_a_prompt_are_an_echo_from_a_stated_length_on(length: int) -> None:
    prompt: list[Message] = [{"role": "user", "content": f"Read this: before {'x' * length} after"}]
    assert (check("x" * length, messages=prompt) == ECHO) == (length >= ECHO_LENGTH)


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_reason_quotes_the_answer_or_the_prompt(domain: str) -> None:
    messages = load_prompt(domain).render_summary(summary_request(sample(domain, which=1), profile="Zyxw"))
    texts = ("<think>Zyxw", messages[1]["content"], "", "Zyxw")
    for finish_reason in ("stop", "length", "content_filter"):
        for text in texts:
            checked = check_answer(text, finish_reason=finish_reason, messages=messages, max_output_tokens=64)
            assert isinstance(checked, RejectedAnswer)
            assert "Zyxw" not in checked.reason
            assert len(checked.reason.splitlines()) == 1


def test_a_long_answer_is_cut_at_the_end_of_a_sentence() -> None:
    sentence = "They liked this one a lot. "
    kept = check(sentence * 200)
    assert kept == (sentence * (TEXT_LIMIT // len(sentence))).rstrip()
    assert check('He said "they did." ' * 200).endswith('they did."')


@pytest.mark.parametrize("text", [("word " * 399 + "word."), ("word " * 399 + "words")], ids=["sentence", "word"])
def test_an_answer_of_just_the_limit_is_whole(text: str) -> None:
    assert len(text) == TEXT_LIMIT
    assert check(text) == text
    assert check(f"{text} and more") == text


def test_a_long_answer_without_sentences_is_cut_at_the_end_of_a_word() -> None:
    assert check("Ends. " + "sevenly " * 500) == "Ends. " + "sevenly " * 248 + "sevenly"


def test_a_long_answer_without_spaces_is_cut_at_the_limit_or_at_a_full_stop_of_its_script() -> None:
    assert check("很" * 3000) == "很" * TEXT_LIMIT
    assert check(("很" * 299 + "。") * 8) == ("很" * 299 + "。") * 6


def test_an_echo_in_front_of_what_is_cut_away_is_an_echo() -> None:
    prompt: list[Message] = [{"role": "user", "content": "word " * 400}]
    assert check("word " * 400 + "and at last an answer", messages=prompt) == ECHO


PIECES = [
    "<think>",
    "</think>",
    "<Thinking >",
    "```",
    "```text\n",
    '"',
    "'",
    "“",
    "”",
    "`",
    ". ",
    "\n",
    "\x00",
    "\u200d",
    "\u200c",
    "\xad",
]
ANSWERS = st.lists(
    st.sampled_from(PIECES)
    | st.sampled_from(["They liked drama", "Films:", "x" * 700, "long " * 300, "A sentence. " * 90])
    | st.text(st.characters(exclude_categories=()), max_size=20),
    max_size=9,
).map("".join)


@given(text=ANSWERS, finish_reason=st.sampled_from(["stop", "end_turn", ""]))
def test_a_kept_text_is_plain_short_and_stays_as_it_is(text: str, finish_reason: str) -> None:
    checked = check_answer(text, finish_reason=finish_reason, messages=SHIFT_PROMPT, max_output_tokens=64)
    if isinstance(checked, RejectedAnswer):
        return
    assert 0 < len(checked.text) <= TEXT_LIMIT
    assert checked.text.encode().decode() == checked.text
    assert {unicodedata.category(letter) for letter in checked.text}.isdisjoint({"Cc", "Cs", "Zl", "Zp"})
    assert len(checked.text.splitlines()) == 1
    assert not re.search(r"</?think(ing)?\s*>", checked.text, re.IGNORECASE)
    again = check_answer(checked.text, finish_reason="stop", messages=SHIFT_PROMPT, max_output_tokens=64)
    assert again == checked


@given(text=st.text(st.characters(exclude_categories=()), max_size=60))
def test_what_a_prompt_says_is_never_kept_as_its_answer(text: str) -> None:
    messages = load_prompt("movielens").render_shift(shift_request(texts=(text, GOOD)))
    assert check(messages[1]["content"], messages=messages) == ECHO
    assert check(GOOD, messages=messages) == ECHO
