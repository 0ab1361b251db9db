"""Texts that somebody else wrote, as lines of a JSONL file: read and checked before anything is written.

One line is one partition:

    {"user_id": "1", "partition_index": 0, "summary": "...", "shift": null, "item_ids": ["258", "151"]}

`shift` is that from the partition before, and missing or null where there is none before. `item_ids` says which
behaviors are the partition where it is not sealed yet; without it the partition is one that the memory has sealed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liber_feast.answer import cut_text, says_something
from liber_feast.errors import DataSetError
from liber_feast.parts import PARTS, PARTS_SUFFIX, parse_parts
from liber_feast.prompt import one_line

KEYS = ("user_id", "partition_index", "summary", "shift", "item_ids")
HASH_DIGITS = 10
TextKey = tuple[str, int]
"""(user id, partition index)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyText:
    """One line of the file, as it is kept: texts on one line of at most 2,000 characters."""

    where: str
    """The file and the number of the line, for messages."""
    user_id: str
    partition_index: int
    summary: str
    shift: str | None
    item_ids: tuple[str, ...] | None
    is_shortened: bool
    """Whether a text was longer."""

    @property
    def key(self) -> TextKey:
        """The partition."""
        return self.user_id, self.partition_index

    @property
    def whose(self) -> str:
        """The partition in words."""
        return f"partition {self.partition_index} of user {self.user_id!r}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyTexts:
    """A file of texts; `version` is the prompt version that they are kept under: `imported` and the file's hash."""

    version: str
    by_partition: Mapping[TextKey, ReadyText]
    """By user and index, in this order."""


def read_ready_texts(path: Path, *, form: str) -> ReadyTexts:
    """Return the texts of a file, each in the form of the feature repo.

    Raises:
        DataSetError: it cannot be read, has no texts, a line that is no such object, or a partition twice.
    """
    try:
        content = path.read_bytes()
        lines = content.decode().split("\n")
    except OSError as error:
        raise DataSetError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataSetError(f"{path} is no text in UTF-8 (byte {error.start}). Write it as JSONL.") from error
    found: dict[TextKey, ReadyText] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            one = _ready_text(line, where=f"{path}, line {number}", form=form)
            if one.key in found:
                raise DataSetError(f"{one.where}: {one.whose} is there twice, before in {found[one.key].where}.")
            found[one.key] = one
    if not found:
        raise DataSetError(f"{path} holds no texts. Write one JSON object a line, one line a partition.")
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    suffix = PARTS_SUFFIX if form == PARTS else ""
    return ReadyTexts(version=f"imported-{digest}{suffix}", by_partition=dict(sorted(found.items())))


def _ready_text(line: str, *, where: str, form: str) -> ReadyText:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataSetError(f"{where}: no JSON object. Write one a line.") from error
    if not isinstance(found, dict):
        raise DataSetError(f"{where}: found {type(found).__name__}, expected an object with {', '.join(KEYS[:3])}.")
    unknown = [key for key in found if key not in KEYS]
    if unknown:
        raise DataSetError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}.")
    user_id, index, items = found.get("user_id"), found.get("partition_index"), found.get("item_ids")
    if not isinstance(user_id, str) or not user_id:
        raise DataSetError(f"{where}: 'user_id' must be a text, found {user_id!r}.")
    if type(index) is not int or index < 0:
        raise DataSetError(f"{where}: 'partition_index' must be a whole number from 0 on, found {index!r}.")
    summary, shift = _text(found, "summary", where=where, form=form), None
    if found.get("shift") is not None:
        if index == 0:
            raise DataSetError(f"{where}: partition 0 has a 'shift' and no partition before it. Leave it out.")
        shift = _text(found, "shift", where=where, form=form)
    return ReadyText(
        where=where,
        user_id=user_id,
        partition_index=index,
        summary=summary,
        shift=shift,
        item_ids=_item_ids(items, where=where),
        is_shortened=any(len(kept) < len(one_line(found[name])) for name, kept in _kept(summary, shift)),
    )


def _kept(summary: str, shift: str | None) -> list[tuple[str, str]]:
    return [(name, text) for name, text in (("summary", summary), ("shift", shift)) if text is not None]


def _text(found: Mapping[str, Any], name: str, *, where: str, form: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or not says_something(value):
        raise DataSetError(f"{where}: {name!r} must be a text that says something, found {value!r}.")
    if form == PARTS:
        if parse_parts(value) is None:
            raise DataSetError(
                f"{where}: {name!r} is not in parts, and batch_engine.interest.form is 'parts'. Write it as"
                " docs/interest_backends.md has it, or set the form to 'plain'."
            )
        return value
    return cut_text(one_line(value))


def _item_ids(items: object, *, where: str) -> tuple[str, ...] | None:
    if items is None:
        return None
    if not isinstance(items, list) or not items or not all(isinstance(item, str) and item for item in items):
        raise DataSetError(f"{where}: 'item_ids' must be a list of item ids as texts, found {items!r}.")
    return tuple(items)
