"""The commands of `liber` for a store that runs for years, and import-texts for texts that were written elsewhere."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from liber_feast.errors import ConfigError

Repo = Annotated[Path, typer.Option(help="The feature repo: the folder of feature_store.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]


class PublishedStage(StrEnum):
    """What is published."""

    SUMMARY = "summary"
    SHIFT = "shift"
    VECTOR = "vector"
    FUSED = "fused"
    EVIDENCE = "evidence"
    ITEM_TEXT = "item_text"


def register(app: typer.Typer) -> None:
    """Add the commands to `liber`."""
    for command in (forget, republish, encode, compact, backup, restore):
        app.command()(command)
    app.command("import-texts")(import_texts)


def forget(
    user: Annotated[str, typer.Argument(help="The id of the user.")],
    repo: Repo = Path("feature_repo"),
    keep_log: Annotated[bool, typer.Option("--keep-log", help="Leave the behavior log as it is.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a user from the memory, the Delta tables, the behavior log and the online store, for good."""
    from liber_feast.forget import forget as forget_one  # noqa: PLC0415 (commands import what they need, when they run)

    _show(forget_one(repo, user, keep_log=keep_log, say=_say), title=f"forgotten in {repo}", as_json=as_json)


def republish(
    stage: Annotated[PublishedStage | None, typer.Option(help="Only the table and view of one stage.")] = None,
    user: Annotated[str | None, typer.Option(help="Only the rows of this user.")] = None,
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Write Delta tables and the online store anew from the memory, with no call to an LLM or BERT."""
    from liber_feast.republish import republish as write_anew  # noqa: PLC0415

    facts = write_anew(repo, stage=stage.value if stage else None, user_id=user, say=_say)
    _show(facts, title=f"written anew -> {repo / 'data'}", as_json=as_json)


def encode(repo: Repo = Path("feature_repo"), as_json: Json = False) -> None:
    """Make every vector anew by the PCA in data/encoder, or by a new one where there is none, and publish; no LLM."""
    from liber_feast.reencode import encode_anew  # noqa: PLC0415

    _show(encode_anew(repo, say=_say), title=f"encoded {repo / 'data'}", as_json=as_json)


def import_texts(
    texts: Annotated[Path, typer.Argument(help="JSONL: one object a partition (docs/interest_backends.md).")],
    model: Annotated[str, typer.Option(help="Who wrote the texts; recorded with every one.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave texts that are missing to the configured backend.")
    ] = False,
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Take texts that were written elsewhere as summaries and shifts of their partitions, and publish; no LLM."""
    from liber_feast.import_texts import import_texts as take  # noqa: PLC0415

    facts = take(repo, texts, model=model, is_partial=partial, say=_say)
    _show(facts, title=f"imported {texts} -> {repo / 'data'}", as_json=as_json)


def compact(
    retention: Annotated[
        str | None, typer.Option(help="Keep what versions of so long ago need: hours or days.", show_default="7d")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Keep the newest version alone; nobody may be reading.")] = False,
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Join small Delta files, remove old files and logs, and tidy up the memory."""
    from liber_feast.compact import compact as compact_all  # noqa: PLC0415

    if now and retention is not None:
        raise ConfigError("--now keeps the newest version alone, and --retention older ones: give one of them.")
    facts = compact_all(repo, retention=retention or "7d", is_now=now, say=_say)
    _show(facts, title=f"compacted {repo / 'data'}", as_json=as_json)


def backup(
    target: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Copy the memory, the PCA and the fusion weights to a folder, while others write."""
    from liber_feast.backup import backup as copy_all  # noqa: PLC0415

    _show(copy_all(repo, target, say=_say), title=f"backup of {repo}", as_json=as_json)


def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `liber backup` made.")],
    repo: Repo = Path("feature_repo"),
    as_json: Json = False,
) -> None:
    """Put a backup in the place of the memory, and write Delta tables and the online store anew from it."""
    from liber_feast.backup import restore as bring_back  # noqa: PLC0415

    _show(bring_back(repo, source, say=_say), title=f"restored {repo}", as_json=as_json)


def _show(facts: dict[str, Any], *, title: str, as_json: bool) -> None:
    from liber_feast.cli import show  # noqa: PLC0415 (which imports this module)

    show(facts, title=title, as_json=as_json)


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
