"""Republishing: Delta and online are what they were, whatever became of them, and no text or vector is made anew."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable, write_deltalake

from liber_feast import job
from liber_feast.cli import app
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.encoding import Encoding
from liber_feast.errors import ConfigError
from liber_feast.interest import Answers, InterestLearner, ShiftRequest, SummaryRequest
from liber_feast.memory.publications import forget_stage
from liber_feast.memory.schema import publications
from liber_feast.publish import VIEWS, Publisher
from liber_feast.republish import republish, republish_all
from tests.feature_repo_kit import (
    ITEM_VIEW,
    PUBLISHED_TABLES,
    SEALED_COUNT,
    close,
    materialized_repo,
    online,
    open_store,
    published,
    users_of,
)
from tests.memory_parts import behavior
from tests.operations_parts import ANN, OnlineUsers, published_folder, send, tables_of

ALL = {"summary": 6, "shift": 4, "vector": 6, "fused": 6}


def quietly(_line: str) -> None:
    pass


def without_log(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: rows for name, rows in tables_of(folder).items() if name != "log"}


def seen(users: OnlineUsers) -> dict[str, dict[str, dict[str, Any]]]:
    return {view: dict(rows) for view, rows in users.rows.items()}


def versions(folder: Path) -> dict[str, int]:
    return {view: DeltaTable(str(folder / view)).version() for view in VIEWS.values()}


def spoil(folder: Path, users: OnlineUsers) -> None:
    """Lose a table, double the rows of another, and leave online what is newer than everything."""
    shutil.rmtree(folder / "fused_vector")
    rows = DeltaTable(str(folder / "partition_summary")).to_pyarrow_table()
    write_deltalake(str(folder / "partition_summary"), rows, mode="append")
    for view in users.rows.values():
        for row in view.values():
            row["event_timestamp"] = row["event_timestamp"].replace(year=2060)


def opened(folder: Path) -> tuple[Publisher, OnlineUsers]:
    users = OnlineUsers()
    return published_folder(folder, users), users


def test_whatever_became_of_the_stores_they_are_row_for_row_what_they_were(tmp_path: Path) -> None:
    publisher, users = opened(tmp_path)
    tables, rows = without_log(tmp_path), {view: dict(some) for view, some in seen(users).items()}
    kept = {view: {user: dict(row) for user, row in some.items()} for view, some in rows.items()}
    spoil(tmp_path, users)
    found = republish_all(publisher, say=quietly)
    assert found.delta_rows == ALL
    assert found.online_rows == dict.fromkeys((*VIEWS.values(), "behaviors", "behavior_sequence"), 2)
    assert without_log(tmp_path) == tables
    assert users.rows == kept


def test_each_table_is_replaced_in_one_commit(tmp_path: Path) -> None:
    publisher, _ = opened(tmp_path)
    before = versions(tmp_path)
    republish_all(publisher, say=quietly)
    assert versions(tmp_path) == {view: number + 1 for view, number in before.items()}


def test_what_is_sent_afterwards_is_published_once(tmp_path: Path) -> None:
    for name in ("republished", "not"):
        publisher, users = opened(tmp_path / name)
        if name == "republished":
            republish_all(publisher, say=quietly)
        send(publisher, [behavior(second, user="bob") for second in (7, 8, 9)], folder=tmp_path / name)
    times = ("created_timestamp",)
    republished, plain = (
        {
            view: sorted(repr({key: one for key, one in row.items() if key not in times}) for row in rows)
            for view, rows in without_log(tmp_path / name).items()
        }
        for name in ("republished", "not")
    )
    assert republished == plain


def test_one_stage_or_one_user_alone_is_written_anew(tmp_path: Path) -> None:
    publisher, users = opened(tmp_path)
    tables, before = without_log(tmp_path), versions(tmp_path)
    found = republish_all(publisher, stage="shift", say=quietly)
    assert (found.delta_rows, found.online_rows) == ({"shift": 4}, {"partition_shift": 2})
    assert versions(tmp_path) == {**before, "partition_shift": before["partition_shift"] + 1}
    one = DeltaTable(str(tmp_path / "partition_summary"))
    write_deltalake(one, one.to_pyarrow_table(), mode="append")
    republish_all(publisher, user_id=ANN, say=quietly)
    doubled = without_log(tmp_path)["partition_summary"]
    assert [row["user_id"] for row in doubled].count(ANN) == 3
    assert [row["user_id"] for row in doubled].count("bob") == 6
    republish_all(publisher, user_id="bob", say=quietly)
    assert without_log(tmp_path) == tables
    assert set(users.rows["fused_vector"]) == {ANN, "bob"}


def test_what_was_begun_and_not_finished_is_there_once(tmp_path: Path) -> None:
    publisher, _ = opened(tmp_path)
    tables = without_log(tmp_path)
    with publisher.memory.writing() as connection:
        connection.execute(publications.update().where(publications.c.publication_id >= 6).values(done_time=None))
    republish_all(publisher, say=quietly)
    assert publisher.publish() == dict.fromkeys(VIEWS, 0)
    assert without_log(tmp_path) == tables


def test_what_no_publication_has_is_published_at_the_end(tmp_path: Path) -> None:
    publisher, _ = opened(tmp_path)
    tables = without_log(tmp_path)
    with publisher.memory.writing() as connection:
        forget_stage(connection, "summary", done_time=1)
    republish_all(publisher, say=quietly)
    assert without_log(tmp_path) == tables


def test_a_user_whom_the_memory_does_not_know_is_refused(tmp_path: Path) -> None:
    publisher, _ = opened(tmp_path)
    before = versions(tmp_path)
    with pytest.raises(ConfigError, match="does not know the user 'nobody'"):
        republish_all(publisher, user_id="nobody", say=quietly)
    assert versions(tmp_path) == before


class NoLearner:
    """Refuses every request."""

    counts_behaviors, model, prompt_version = True, "none", "none"

    def summarize(self, requests: Iterable[SummaryRequest]) -> Iterator[Answers[SummaryRequest]]:
        raise AssertionError("a summary was asked for")

    def learn_shifts(self, requests: Iterable[ShiftRequest]) -> Iterator[Answers[ShiftRequest]]:
        raise AssertionError("a shift was asked for")


def test_the_command_calls_neither_llm_nor_bert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_learner(_config: LiberComputeEngineConfig, *, base: Path) -> InterestLearner:
        return NoLearner()

    def no_bert(_self: Encoding) -> Any:
        raise AssertionError("BERT was loaded")

    repo = materialized_repo(tmp_path / "repo")
    monkeypatch.setattr(job, "open_learner", no_learner)
    monkeypatch.setattr(Encoding, "bert", no_bert)
    store = open_store(repo)
    users = users_of(repo)
    before = {name: published(repo, name, without=()) for name in PUBLISHED_TABLES}
    was_online = online(store, users)
    items = published(repo, ITEM_VIEW, key="item_id", without=())
    for name in ("partition_vector", "partition_evidence", "item_text"):
        shutil.rmtree(repo / "data" / name)
    app(["republish", "--repo", str(repo), "--json"], standalone_mode=False)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    of_users = {"summary": 16, "shift": 12, "vector": 16, "fused": 16, "evidence": 16}
    assert facts["delta_rows"] == {**of_users, "item_text": len(items)}
    assert facts["online_rows"]["item_text"] == len(items)
    assert published(repo, ITEM_VIEW, key="item_id", without=()) == items
    assert {name: published(repo, name, without=()) for name in PUBLISHED_TABLES} == before
    assert online(store, users) == was_online
    app(["republish", "--repo", str(repo), "--stage", "vector", "--user", users[0]], standalone_mode=False)
    assert {name: published(repo, name, without=()) for name in PUBLISHED_TABLES} == before
    close(store)


def test_an_empty_memory_leaves_the_tables_as_they_are(tmp_path: Path) -> None:
    repo = materialized_repo(tmp_path / "repo")
    for path in (repo / "data").glob("memory.db*"):
        path.unlink()
    found = republish(repo, stage=None, user_id=None, say=quietly)
    assert set(found["delta_rows"].values()) == {0}
    assert len(published(repo, "fused_vector")) == SEALED_COUNT


def test_stages_of_items_are_written_anew_by_themselves_but_not_for_a_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = materialized_repo(tmp_path / "repo")
    items = published(repo, ITEM_VIEW, key="item_id")
    for stage, view in (("evidence", "partition_evidence"), ("item_text", ITEM_VIEW)):
        app(["republish", "--repo", str(repo), "--json", "--stage", stage], standalone_mode=False)
        facts = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert list(facts["delta_rows"]) == [stage]
        assert list(facts["online_rows"]) == [view]
    assert published(repo, ITEM_VIEW, key="item_id") == items
    with pytest.raises(ConfigError, match="none of a user"):
        republish(repo, stage="item_text", user_id=users_of(repo)[0], say=quietly)
