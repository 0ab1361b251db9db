"""Prompt templates: one TOML file per domain, and the messages rendered from it.

A template is text the project wrote; titles, profiles and summaries are data. They are substituted in one pass, so
nothing in them is expanded again, and made one line of neutral characters, so nothing in them can change the
prompt's structure. A template's version is its name and a hash of its content: an edit starts new texts.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Literal, TypedDict

from liber_feast.errors import PromptError
from liber_feast.interest import DescribedBehavior, Item, ShiftRequest, SummaryRequest
from liber_feast.parts import PARTS, PARTS_SUFFIX, PLAIN, readable
from liber_feast.prompt_checks import check_keys, table_at, template_at, text_at, texts_at

TITLE_LIMIT, VALUE_LIMIT, PROFILE_LIMIT, SUMMARY_LIMIT = 200, 60, 1000, 2000
"""Characters kept of a title, of one value of a factor, of a profile and of a summary."""

VALUES_PER_FACTOR = 6
"""Values of one factor shown beside a title, for example genres of a film."""

HASH_DIGITS = 10
SUMMARY_PLACES = ("factors", "profile", "behaviors")
SHIFT_PLACES = ("factors", "previous_summary", "summary")
"""What the two templates must have a place for."""
_BUNDLED = files("liber_feast").joinpath("prompts")

# Line breaks and other spaces, controls, direction marks, tags, fillers that look like a space, lone surrogates.
_BREAKING = (
    r"\s\x00-\x1f\x7f-\x9f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2065-\u206f\u2800\u3164\ud800-\udfff"
    r"\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff"
)
# What stands inside a word without being seen: soft hyphens, variation selectors, word joiners.
_UNSEEN = r"\xad\u034f\u17b4\u17b5\u180b-\u180d\u180f\u2060-\u2064\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Words of Persian, Hindi and others need a joiner between two letters; elsewhere it only hides something.
_JOINERS = r"\u200c\u200d"
_BREAKS = re.compile(f"[{_BREAKING}]+")
_HIDDEN = re.compile(
    f"[{_UNSEEN}]+|[{_JOINERS}](?![^{_BREAKING}{_UNSEEN}{_JOINERS}])|(?<![^{_BREAKING}{_UNSEEN}{_JOINERS}])[{_JOINERS}]"
)
# Chat formats mark turns by <|...|>, <...>, </s> or [INST], and tokenizers read such marks in data as well; some
# normalize wide and small forms first. Titles stand in double quotes, so they hold none that could close them.
_NEUTRAL = str.maketrans(
    {"[": "(", "]": ")"}
    | dict.fromkeys("<＜﹤≮", "‹")
    | dict.fromkeys(">＞﹥≯", "›")
    | dict.fromkeys("［﹇", "(")
    | dict.fromkeys("］﹈", ")")
    | dict.fromkeys('"＂“”„‟', "'")
)
_NO_PARENTHESES = str.maketrans("", "", "()")
_DATE = r"(?:\(\$date\)|\(\$\{date\}\)|\[\$date\]|\[\$\{date\}\]|\$date|\$\{date\})"
_SEPARATORS = r"[\s:;,.|/–—-]*"
_DATE_PLACE = re.compile(rf"\$\$|{_SEPARATORS}{_DATE}{_SEPARATORS}\Z|{_DATE}{_SEPARATORS}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Brevity:
    """What the lines of a summary's behaviors hold beside title, rating and feedback."""

    has_details: bool = True
    has_date: bool = True
    title_limit: int = TITLE_LIMIT


BREVITY_LEVELS = (
    Brevity(),
    Brevity(has_details=False),
    Brevity(has_details=False, has_date=False),
    *(Brevity(has_details=False, has_date=False, title_limit=limit) for limit in (100, 50, 25)),
)
"""How a prompt that is too long is shortened, step by step: whole; without details; without dates as well; then with
titles cut to 100, 50 and 25 characters. No level drops a behavior, and none touches the static text or the profile."""


class Message(TypedDict):
    """One chat message, as every chat API takes it."""

    role: Literal["system", "user"]
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Factor:
    """One aspect of interest; without sources only an LLM can judge it.

    `sources` names where an item's values come from, the first that has any: `categories`, `period` or an attribute.
    `relation` stands between the items and a value ("films from the 1990s"); if empty the value precedes the noun.
    """

    name: str
    sources: tuple[str, ...]
    relation: str
    ignored: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The domain's nouns and verbs."""

    item: str
    items: str
    acted: str
    liked: str
    not_liked: str
    liking: str
    no_title: str
    no_profile: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsTemplates:
    """The questions for a text in parts; empty where a template has none."""

    summary: str = ""
    shift: str = ""
    version: str = ""
    """That of the prompt: its name, the first digits of the SHA-256 of its content with these, and `-parts`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A checked template; `version` is its name and the first digits of its content's SHA-256."""

    name: str
    version: str
    words: Words
    factors: tuple[Factor, ...]
    system: str
    summary: str
    behavior: str
    shift: str
    parts: PartsTemplates = PartsTemplates()
    form: str = PLAIN
    """The form of the texts that are asked for."""

    @property
    def asks(self) -> bool:
        """Whether there is a question for an LLM; an extractive learner needs none."""
        return bool(self.summary and self.shift)

    def in_form(self, form: str) -> "Prompt":
        """Return this template for texts of a form; its own is the plain one."""
        if form == self.form:
            return self
        parts = self.parts
        return replace(self, summary=parts.summary, shift=parts.shift, version=parts.version, form=form)

    def render_summary(self, request: SummaryRequest, *, brevity: int = 0) -> list[Message]:
        """Return the messages of equation 2: profile, behaviors oldest first, factors.

        `brevity` is an index of BREVITY_LEVELS; every level has one line per behavior.
        """
        level = BREVITY_LEVELS[brevity]
        line = _as_format(self.behavior if level.has_date else _without_date(self.behavior))
        behaviors = sorted(request.behaviors, key=lambda behavior: behavior.event_time)
        return self._messages(
            self.summary,
            {
                "profile": _data(request.profile, limit=PROFILE_LIMIT) or self.words.no_profile,
                "behaviors": "\n".join(self._line(behavior, line=line, level=level) for behavior in behaviors),
            },
        )

    def render_shift(self, request: ShiftRequest) -> list[Message]:
        """Return the messages of equation 3: previous summary, current summary, factors."""
        return self._messages(
            self.shift,
            {
                "previous_summary": _data(readable(request.previous_summary, form=self.form), limit=SUMMARY_LIMIT),
                "summary": _data(readable(request.summary, form=self.form), limit=SUMMARY_LIMIT),
            },
        )

    def _messages(self, template: str, values: Mapping[str, str]) -> list[Message]:
        factors = ", ".join(factor.name for factor in self.factors)
        content = _as_format(template) % {**values, "factors": factors}
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def _line(self, behavior: DescribedBehavior, *, line: str, level: Brevity) -> str:
        title = _title(behavior.item.title or "", limit=level.title_limit)
        return line % {
            "date": behavior.event_time.date().isoformat(),
            "title": f'"{title}"' if title else self.words.no_title,
            "details": self._details(behavior.item) if level.has_details else "",
            "rating": f"{behavior.rating:g}",
            "feedback": self.words.liked if behavior.liked else self.words.not_liked,
        }

    def _details(self, item: Item) -> str:
        known = [
            f"{factor.name}: {', '.join(shown)}"
            for factor in self.factors
            if factor.sources
            and (shown := list(filter(None, map(_detail, factor_values(item, factor=factor)[:VALUES_PER_FACTOR]))))
        ]
        return f" ({'; '.join(known)})" if known else ""


def factor_values(item: Item, *, factor: Factor) -> list[str]:
    """Return the item's values of `factor`, each one line and once, without those the template ignores."""
    for source in factor.sources:
        if source == "categories":
            given = item.categories
        else:
            value = item.period if source == "period" else item.attributes.get(source)
            given = (value,) if value else ()
        values = [name for name in map(_value, given) if name and name not in factor.ignored]
        if values:
            return values if len(values) == 1 else list(dict.fromkeys(values))
    return []


def one_line(text: str) -> str:
    """Return `text` as one line of what can be seen.

    Every run of spaces, line breaks, controls, direction marks, tags and lone surrogates becomes one space; what is
    invisible inside a word is dropped. One line stays as it is.
    """
    return _BREAKS.sub(" ", text if text.isascii() else _HIDDEN.sub("", text)).strip()


@lru_cache(maxsize=1 << 14)
def _value(name: str) -> str:
    """Return `one_line(name)`; items share their categories, periods and makers, so most are known already."""
    return one_line(name)


def prompt_names() -> list[str]:
    """Return the names of the bundled templates, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _BUNDLED.iterdir() if entry.name.endswith(".toml"))


def load_prompt(name: str) -> Prompt:
    """Return the bundled template `name`, or the one in the file if `name` is a path that ends in .toml.

    Raises:
        PromptError: no such template or file, text that is not TOML, a missing, unknown or mistyped key, or a
            template that lacks a placeholder or has one that nothing fills.
    """
    source = Path(name) if name.endswith(".toml") else _BUNDLED.joinpath(f"{name}.toml")
    if not name.endswith(".toml") and name not in prompt_names():
        raise PromptError(
            f"prompt {name!r} is not known. Bundled are {', '.join(prompt_names())};"
            " the path of a template of your own ends in .toml."
        )
    try:
        content = tomllib.loads(source.read_bytes().decode())
    except OSError as error:
        raise PromptError(f"prompt {name}: the file cannot be read ({error.strerror}). Check the path.") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PromptError(f"prompt {name}: not a TOML file in UTF-8: {error}.") from error
    return _prompt(content, name=Path(name).stem if name.endswith(".toml") else name)


def _prompt(content: Mapping[str, Any], *, name: str) -> Prompt:
    plain = {key: value for key, value in content.items() if key != PARTS}
    check_keys(content, ("system", "words", "factors", "summary", "shift"), where=name, optional=(PARTS,))
    words = table_at(content, "words", where=name)
    check_keys(words, tuple(Words.__slots__), where=f"{name}: words")
    summary, shift = table_at(content, "summary", where=name), table_at(content, "shift", where=name)
    check_keys(summary, ("user", "behavior"), where=f"{name}: summary")
    check_keys(shift, ("user",), where=f"{name}: shift")
    tables = content.get("factors")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise PromptError(f"prompt {name}: 'factors' must be one or more tables. Write [[factors]].")
    return Prompt(
        name=name,
        version=_version(name, plain),
        words=Words(**{key: text_at(words, key, where=f"{name}: words") for key in Words.__slots__}),
        factors=tuple(_factor(table, where=f"{name}: factor {number}") for number, table in enumerate(tables, 1)),
        system=template_at(content, "system", required=(), where=name),
        summary=template_at(summary, "user", required=SUMMARY_PLACES, where=f"{name}: summary"),
        behavior=template_at(
            summary,
            "behavior",
            required=("date", "title", "rating", "feedback"),
            optional=("details",),
            where=f"{name}: summary",
        ),
        shift=template_at(shift, "user", required=SHIFT_PLACES, where=f"{name}: shift"),
        parts=_parts(content, name=name),
    )


def _version(name: str, content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, default=str).encode()
    return f"{name}-{hashlib.sha256(canonical).hexdigest()[:HASH_DIGITS]}"


def _parts(content: Mapping[str, Any], *, name: str) -> PartsTemplates:
    version = _version(name, content) + PARTS_SUFFIX
    if PARTS not in content:
        return PartsTemplates(version=version)
    where, table = f"{name}: {PARTS}", table_at(content, PARTS, where=name)
    check_keys(table, ("summary", "shift"), where=where)
    return PartsTemplates(
        summary=template_at(table, "summary", required=SUMMARY_PLACES, where=where),
        shift=template_at(table, "shift", required=SHIFT_PLACES, where=where),
        version=version,
    )


def _factor(table: Mapping[str, Any], *, where: str) -> Factor:
    check_keys(table, tuple(Factor.__slots__), where=where)
    return Factor(
        name=text_at(table, "name", where=where),
        sources=texts_at(table, "sources", where=where),
        relation=text_at(table, "relation", where=where, may_be_empty=True),
        ignored=frozenset(texts_at(table, "ignored", where=where)),
    )


def _data(text: str, *, limit: int) -> str:
    line = one_line(text).translate(_NEUTRAL)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


@lru_cache(maxsize=1 << 14)
def _title(title: str, *, limit: int) -> str:
    """Return `_data(title)`; a data set has far fewer items than behaviors."""
    return _data(title, limit=limit)


@lru_cache(maxsize=64)
def _as_format(template: str) -> str:
    """Return a checked template as a format for `%`, which fills it in several times as fast as `string.Template`."""

    def place(found: re.Match[str]) -> str:
        name = found["named"] or found["braced"]
        return f"%({name})s" if name else "$"

    return Template.pattern.sub(place, template.replace("%", "%%"))


@lru_cache(maxsize=1 << 14)
def _detail(value: str) -> str:
    """Return a value that ends neither itself nor the parentheses that the details stand in."""
    shown = _data(value, limit=VALUE_LIMIT).replace(";", ",")
    return shown if _is_balanced(shown) else one_line(shown.translate(_NO_PARENTHESES))


def _is_balanced(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return False
    return depth == 0


@lru_cache(maxsize=16)
def _without_date(behavior: str) -> str:
    """Return a behavior's template without its date and the separators that follow it.

    Brackets around the date go as well, and the separators before a date that stands last.
    """

    def cut(place: re.Match[str]) -> str:
        if place[0] == "$$":
            return place[0]
        # `$title$date on` must not become `$titleon`.
        is_glue = re.search(r"\w\Z", behavior[: place.start()]) and re.match(r"\w", behavior[place.end() :])
        return " " if is_glue else ""

    return _DATE_PLACE.sub(cut, behavior)
