"""Texts that were written elsewhere: kept as those of their partitions, all checked before anything is written."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from liber_feast.behavior import EVENT_TIME, ITEM, USER
from liber_feast.cli import app
from liber_feast.errors import DataSetError
from liber_feast.import_texts import import_texts
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory.schema import partitions, texts
from liber_feast.parts import PARTS, PARTS_SUFFIX, Parts
from liber_feast.repo import open_engine
from tests import feature_repo_kit as kit
from tests import llm_repo

Line = dict[str, Any]
CHUNK = 5


def log_items(repo: Path) -> dict[str, list[str]]:
    """Return the items of each user that the log has once, the newest first."""
    rows = sorted(kit.log_of(repo).to_pylist(), key=lambda row: row[EVENT_TIME], reverse=True)
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row[USER]].append(row[ITEM])
    return {user: [item for item in items if items.count(item) == 1] for user, items in sorted(found.items())}


def lines_of(repo: Path) -> list[Line]:
    """Return lines that cut what each user did into chunks, the newest first; the last one is shorter."""
    lines = []
    for user, items in log_items(repo).items():
        for index, left in enumerate(range(0, len(items), CHUNK)):
            some = items[left : left + CHUNK]
            shift = f"From {left} films of {user} on, they moved." if index else None
            lines.append(
                {
                    "user_id": user,
                    "partition_index": index,
                    "summary": f"They ({user}) like the films {', '.join(some)}.",
                    "shift": shift,
                    "item_ids": some,
                }
            )
    return lines


def write(path: Path, lines: Sequence[Line | str]) -> Path:
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join([*rows, ""]), encoding="utf-8")
    return path


def take(repo: Path, lines: Sequence[Line | str], *, is_partial: bool = False) -> dict[str, Any]:
    path = write(repo.parent / f"{repo.name}.jsonl", lines)
    said: list[str] = []
    facts = import_texts(repo, path, model="gpt-4o-mini", is_partial=is_partial, say=said.append)
    assert said == ([] if facts["summaries"] + facts["shifts"] else ["Every text is there already."])
    return facts


def seal_all(repo: Path) -> None:
    """Append the log to the memory, and write no text."""
    store, engine = open_engine(repo)
    job = engine.job(store.registry)
    job.memory.append(engine.window(store.registry, start=kit.START, end=kit.END).table, condition=job.condition)
    kit.close(store)


def sealed_lines(repo: Path) -> list[Line]:
    """Return a line for each partition that the memory has sealed, without items."""
    query = sa.select(partitions.c.user_key, partitions.c.partition_index).order_by(*partitions.primary_key.columns)
    users = dict(llm_repo.rows(repo, sa.text("SELECT user_key, user_id FROM users")))  # type: ignore[arg-type]
    return [
        {
            "user_id": users[key],
            "partition_index": index,
            "summary": f"Summary {index} of {users[key]}.",
            "shift": f"Shift {index} of {users[key]}." if index else None,
        }
        for key, index in llm_repo.rows(repo, query)
    ]


def test_chunks_become_partitions_with_their_texts_and_no_learner_writes_any(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    lines = lines_of(repo)
    facts = take(repo, lines)
    shift_count = sum(line["shift"] is not None for line in lines)
    assert (facts["sealed_partitions"], facts["summaries"], facts["shifts"]) == (len(lines), len(lines), shift_count)
    summaries = {(row[USER], row["partition_index"]): row for row in kit.published(repo, "partition_summary")}
    shifts = {(row[USER], row["partition_index"]): row for row in kit.published(repo, "partition_shift")}
    assert len(summaries) == len(lines)
    for line in lines:
        key = line["user_id"], line["partition_index"]
        assert summaries[key]["summary"] == line["summary"]
        assert summaries[key]["behavior_count"] == len(line["item_ids"])
        assert (summaries[key]["model"], summaries[key]["prompt_version"]) == ("gpt-4o-mini", facts["prompt_version"])
        if line["shift"]:
            assert (shifts[key]["shift"], shifts[key]["previous_partition_index"]) == (line["shift"], key[1] - 1)
    assert len(kit.published(repo, "partition_vector")) == len(kit.published(repo, "fused_vector")) == len(lines)
    llm_repo.materialize(repo)  # the log has nothing that is new, and no text is missing
    assert len(llm_repo.text_keys(repo)) == len(lines) + shift_count


def test_no_text_is_visible_before_the_last_behavior_that_its_writer_had_read(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    take(repo, lines_of(repo))
    last: dict[str, Any] = {}
    for row in kit.log_of(repo).to_pylist():
        if row[ITEM] in log_items(repo)[row[USER]]:
            last[row[USER]] = max(last.get(row[USER], row[EVENT_TIME]), row[EVENT_TIME])
    rows = kit.published(repo, "partition_summary")
    assert rows
    assert all(row["event_timestamp"] >= last[row[USER]] + timedelta(microseconds=1) for row in rows)


def test_texts_of_partitions_that_are_sealed_need_no_items_and_a_second_import_writes_nothing(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    seal_all(repo)
    lines = sealed_lines(repo)
    facts = take(repo, lines)
    assert (facts["sealed_partitions"], facts["summaries"], facts["shifts"]) == (0, kit.SEALED_COUNT, kit.SHIFT_COUNT)
    llm_repo.assert_whole(repo)
    before = kit.memory_rows(repo)
    again = take(repo, lines)
    assert (again["summaries"], again["shifts"], again["encoded_texts"]) == (0, 0, 0)
    assert kit.memory_rows(repo) == before


def test_an_import_that_was_cut_off_is_finished_by_the_same_import(tmp_path: Path) -> None:
    repo, whole = kit.loaded_repo(tmp_path / "repo"), kit.loaded_repo(tmp_path / "whole")
    lines = lines_of(repo)
    first_user = [line for line in lines if line["user_id"] == lines[0]["user_id"]]
    take(repo, first_user)
    take(repo, lines)
    take(whole, lines)
    for table in ("partition_summary", "partition_shift"):
        names = ("created_timestamp", "prompt_version")
        assert kit.published(repo, table, without=names) == kit.published(whole, table, without=names)


def test_a_partial_import_leaves_the_rest_to_the_backend(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    seal_all(repo)
    lines = [{**line, "shift": None} for line in sealed_lines(repo)[1:]]
    facts = take(repo, lines, is_partial=True)
    assert (facts["summaries"], facts["shifts"]) == (kit.SEALED_COUNT - 1, 0)
    assert {row["model"] for row in kit.published(repo, "partition_summary")} == {"gpt-4o-mini"}
    llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)
    models = [row["model"] for row in kit.published(repo, "partition_summary")]
    assert (models.count("extractive-1"), models.count("gpt-4o-mini")) == (1, kit.SEALED_COUNT - 1)


def test_a_long_text_is_cut_at_a_sentence_and_stands_on_one_line(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    lines = lines_of(repo)
    lines[0]["summary"] = "They like\ndrama. " * 200
    assert take(repo, lines)["shortened_lines"] == 1
    ((text,),) = llm_repo.rows(
        repo,
        sa.select(texts.c.text).where(
            texts.c.stage == SUMMARY, texts.c.partition_index == 0, texts.c.text.like("They like drama.%")
        ),
    )
    assert 1000 < len(text) <= 2000
    assert text.endswith("drama.")


def parts(text: str) -> str:
    return Parts(likes=text, dislikes="", tendency=10, liked_count=2, disliked_count=0).text()


def test_a_repo_of_parts_takes_texts_in_parts_alone(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    llm_repo.set_interest(repo, {"backend": "extractive", "form": PARTS})
    lines = lines_of(repo)
    with pytest.raises(DataSetError, match=r"line 1: 'summary' is not in parts, and batch_engine\.interest\.form is"):
        take(repo, lines)
    for line in lines:
        line |= {name: parts(line[name]) for name in (SUMMARY, SHIFT) if line[name]}
    assert take(repo, lines)["prompt_version"].endswith(PARTS_SUFFIX)
    assert len(kit.published(repo, "partition_vector")) == len(lines)


Change = Callable[[list[Any]], None]


def change(number: int, **keys: Any) -> Change:
    return lambda lines: lines[number].update(keys)


REFUSED: dict[str, tuple[Change, str]] = {
    "no JSON": (lambda lines: lines.insert(1, "{"), r"line 2: no JSON object\. Write one a line\.$"),
    "a list": (lambda lines: lines.insert(0, "[]"), "line 1: found list, expected an object with user_id"),
    "an unknown key": (change(0, text="a"), "line 1: unknown key 'text'; known are user_id, partition_index"),
    "a user id that is a number": (change(0, user_id=1), "line 1: 'user_id' must be a text, found 1"),
    "no index": (change(0, partition_index=None), "line 1: 'partition_index' must be a whole number from 0 on"),
    "an empty summary": (change(1, summary=" - "), "line 2: 'summary' must be a text that says something"),
    "an empty shift": (change(1, shift=""), "line 2: 'shift' must be a text that says something"),
    "a shift of the first partition": (change(0, shift="More."), "line 1: partition 0 has a 'shift'"),
    "no items": (change(0, item_ids=[]), "line 1: 'item_ids' must be a list of item ids as texts"),
    "a partition twice": (
        lambda lines: lines.append(dict(lines[0])),
        "partition 0 of user 'u0001' is there twice, before in .*line 1",
    ),
    "a foreign user": (
        lambda lines: lines.insert(0, {**lines[0], "user_id": "nobody"}),
        "line 1: user 'nobody' has no behavior with item",
    ),
    "a foreign item": (change(0, item_ids=["nothing"]), "line 1: user 'u0001' has no behavior with item 'nothing'"),
    "an item twice": (
        lambda lines: lines[1]["item_ids"].append(lines[0]["item_ids"][0]),
        "line 2: item '.*' is also one of partition 0 of user 'u0001' in .*line 1",
    ),
    "a partition that is not there": (
        lambda lines: lines[0].pop("item_ids"),
        "line 1: the memory has no partition 0 of user 'u0001'. Name its behaviors by 'item_ids'",
    ),
    "a gap": (
        lambda lines: lines.pop(1),
        "partition 2 of user 'u0001' is not the next one, which is partition 1",
    ),
    "a missing shift": (change(1, shift=None), "line 2: no shift for partition 1 of user 'u0001'. Add it, or import"),
}


@pytest.mark.parametrize(("spoil", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_cannot_be_used_is_one_line_and_nothing_is_written(
    tmp_path: Path, spoil: Change, reason: str
) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    lines: list[Any] = lines_of(repo)
    spoil(lines)
    with pytest.raises(DataSetError, match=reason) as caught:
        take(repo, lines)
    assert "\n" not in caught.value.message
    assert llm_repo.rows(repo, sa.select(partitions)) == []
    assert llm_repo.rows(repo, sa.select(texts)) == []


SEALED_REFUSED: dict[str, tuple[Change, str]] = {
    "a missing summary": (
        lambda lines: lines.pop(3),
        "no line has a summary for partition 3 of user 'u0001'. Add it, or import with --partial",
    ),
    "other items": (change(0, item_ids=["i1"]), "line 1: partition 0 of user 'u0001' is sealed and holds other items"),
    "a cache": (
        change(-1, partition_index=99, item_ids=["i1"]),
        "partition 99 of user '.*' is not sealed, and the user has behaviors in the short-term cache",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), SEALED_REFUSED.values(), ids=SEALED_REFUSED)
def test_lines_that_do_not_fit_the_memory_are_one_line_and_nothing_is_written(
    tmp_path: Path, spoil: Change, reason: str
) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    seal_all(repo)
    lines: list[Any] = sealed_lines(repo)
    spoil(lines)
    with pytest.raises(DataSetError, match=reason):
        take(repo, lines)
    assert llm_repo.rows(repo, sa.select(texts)) == []


def test_a_partition_that_has_another_text_keeps_it(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    with pytest.raises(DataSetError, match="line 1: partition 0 of user 'u0001' has another summary already"):
        take(repo, sealed_lines(repo))
    llm_repo.assert_whole(repo)


def test_the_command_shows_what_it_took_and_ends_in_one_line_where_it_cannot(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    path = write(tmp_path / "texts.jsonl", lines_of(repo))
    done = CliRunner().invoke(app, ["import-texts", str(path), "--model", "m", "--repo", str(repo), "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["summaries"] == len(lines_of(repo))
    gone = llm_repo.program("liber", tmp_path, "import-texts", "gone.jsonl", "--model", "m", "--repo", str(repo))
    assert (gone.returncode, llm_repo.errors_of(gone)) == (
        1,
        ["Error: gone.jsonl cannot be read: No such file or directory. Check the path."],
    )
