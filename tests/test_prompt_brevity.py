"""The levels of brevity: what a summary prompt that is too long leaves out, step by step, and what it never does."""

from pathlib import Path

import pytest

from liber_feast.interest import DescribedBehavior, Item
from liber_feast.prompt import BREVITY_LEVELS, load_prompt
from tests.test_prompt import DOMAINS, STARTS, bundled, sample, summary_request, swap, write

BRIEF_LINES = {
    0: f'2000-06-03: "{"ab " * 66}a…" (genre: Drama; period: 1990s; director: Ridley Scott), rated 4.5 (liked)',
    1: f'2000-06-03: "{"ab " * 66}a…", rated 4.5 (liked)',
    2: f'"{"ab " * 66}a…", rated 4.5 (liked)',
    3: f'"{"ab " * 33}…", rated 4.5 (liked)'.replace(" …", "…"),
    4: f'"{"ab " * 16}a…", rated 4.5 (liked)',
    5: f'"{"ab " * 8}…", rated 4.5 (liked)'.replace(" …", "…"),
}


@pytest.mark.parametrize("brevity", BRIEF_LINES)
def test_details_go_first_then_dates_then_the_ends_of_titles(brevity: int) -> None:
    item = Item(
        item_id="i",
        title="ab " * 300,
        categories=("Drama",),
        period="1990s",
        attributes={"director": "Ridley Scott"},
    )
    behavior = DescribedBehavior(item=item, rating=4.5, liked=True, event_time=STARTS[1])
    request = summary_request([behavior, behavior], profile="Aged 20")
    content = load_prompt("movielens").render_summary(request, brevity=brevity)[1]["content"]
    assert content.endswith(f"User profile: Aged 20\n\nFilms:\n{BRIEF_LINES[brevity]}\n{BRIEF_LINES[brevity]}")


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_level_drops_a_behavior_or_changes_what_is_static(domain: str) -> None:
    prompt, request = load_prompt(domain), summary_request(sample(domain, which=1), profile="Aged 20")
    whole = prompt.render_summary(request)
    assert prompt.render_summary(request, brevity=0) == whole
    lengths = [len(whole[1]["content"])]
    for brevity in range(1, len(BREVITY_LEVELS)):
        system, user = prompt.render_summary(request, brevity=brevity)
        assert system == whole[0]
        assert user["content"].count("\n") == whole[1]["content"].count("\n")
        before, _, lines = user["content"].partition("Aged 20\n")
        assert whole[1]["content"].startswith(before)
        assert lines.count(", rated ") == len(request.behaviors)
        lengths.append(len(user["content"]))
    assert lengths == sorted(lengths, reverse=True)


DATELESS = {
    "bundled": ("$date: $title, $rating ($feedback)", '"T", 3 (liked)'),
    "braced": ("${date}, $title, $rating ($feedback)", '"T", 3 (liked)'),
    "in parentheses": ("- ($date) $title, $rating ($feedback)", '- "T", 3 (liked)'),
    "in brackets": ("[$date] $title, $rating ($feedback)", '"T", 3 (liked)'),
    "last": ("$title, $rating ($feedback) - $date", '"T", 3 (liked)'),
    "between": ("$title ($feedback) | $date | $rating", '"T" (liked) | 3'),
    "beside a word": ("$title, $rating$date by heart, $feedback", '"T", 3 by heart, liked'),
    "glued": ("$title, $rating${date}th, $feedback", '"T", 3 th, liked'),
    "after a dollar": ("$$$date: $title, $$date $rating ($feedback)", '$"T", $date 3 (liked)'),
    "twice": ("$date: $title of $date, $rating ($feedback)", '"T" of 3 (liked)'),
}


@pytest.mark.parametrize(("behavior", "line"), DATELESS.values(), ids=DATELESS.keys())
def test_a_date_goes_with_the_marks_that_follow_it(behavior: str, line: str, tmp_path: Path) -> None:
    edit = swap('behavior = "$date: $title$details, rated $rating ($feedback)"', f'behavior = "{behavior}"')
    prompt = load_prompt(write(tmp_path, text=edit(bundled())))
    one = DescribedBehavior(item=Item(item_id="i", title="T"), rating=3, liked=True, event_time=STARTS[0])
    content = prompt.render_summary(summary_request([one]), brevity=2)[1]["content"]
    assert content.rpartition("\n")[2] == line
