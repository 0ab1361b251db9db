"""Checks of a prompt template's tables: each returns a key's value, or says in one line what is wrong with it.

All raise PromptError; `where` names the template and the table in it.
"""

from collections.abc import Mapping
from string import Template
from typing import Any

from liber_feast.errors import PromptError


def template_at(
    table: Mapping[str, Any], key: str, *, required: tuple[str, ...], where: str, optional: tuple[str, ...] = ()
) -> str:
    """Return a template that has a place for each of `required`, and for none but these and `optional` ones.

    Where nothing is required, as it reads once filled in.
    """
    text = text_at(table, key, where=where)
    template = Template(text)
    if not template.is_valid():
        raise PromptError(f"prompt {where}: {key!r} has a $ that marks no placeholder. Write $$ for a dollar sign.")
    found = template.get_identifiers()
    missing = [name for name in required if name not in found]
    if missing:
        raise PromptError(f"prompt {where}: {key!r} lacks the placeholder ${missing[0]}.")
    allowed = (*required, *optional)
    unknown = [name for name in found if name not in allowed]
    if unknown:
        fillable = ", ".join(f"${placeholder}" for placeholder in allowed) or "none"
        raise PromptError(f"prompt {where}: {key!r} has the unknown placeholder ${unknown[0]}. Known here: {fillable}.")
    return text if required else template.substitute()


def check_keys(table: Mapping[str, Any], keys: tuple[str, ...], *, where: str, optional: tuple[str, ...] = ()) -> None:
    """Check that a table has `keys`, and nothing else but `optional` ones."""
    missing = [key for key in keys if key not in table]
    if missing:
        raise PromptError(f"prompt {where}: key {missing[0]!r} is missing.")
    known = (*keys, *optional)
    unknown = [key for key in table if key not in known]
    if unknown:
        raise PromptError(f"prompt {where}: key {unknown[0]!r} is not known. Known here: {', '.join(known)}.")


def table_at(table: Mapping[str, Any], key: str, *, where: str) -> Mapping[str, Any]:
    """Return a table in the table."""
    value = table[key]
    if not isinstance(value, dict):
        raise PromptError(f"prompt {where}: {key!r} must be a table. Write [{key}].")
    return value


def text_at(table: Mapping[str, Any], key: str, *, where: str, may_be_empty: bool = False) -> str:
    """Return a text that says something, without the spaces around it."""
    value = table[key]
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise PromptError(f"prompt {where}: {key!r} must be a text, found {value!r}.")
    return value.strip()


def texts_at(table: Mapping[str, Any], key: str, *, where: str) -> tuple[str, ...]:
    """Return a list of texts, which may be empty."""
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
        raise PromptError(f"prompt {where}: {key!r} must be a list of texts, found {value!r}.")
    return tuple(value)
