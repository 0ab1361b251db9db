"""`feast materialize` and pushes while the server that writes the texts is away, or refuses."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest
from feast import FeatureStore
from feast.data_source import PushMode
from prometheus_client import REGISTRY

from benchmarks._llm_server import LLMServer
from liber_feast import engine
from liber_feast.errors import BackendRefused, BackendUnreachable
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit
from tests import llm_repo

AWAY = {"base_url": "http://127.0.0.1:9/v1"}
LEFT = "; texts are left to the next materialization: "


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer() as started:
        yield started


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch, server: LLMServer) -> None:
    monkeypatch.setattr(engine, "PUSH_PATIENCE_S", 1.0)
    server.reset()


def sequence_length(repo: Path, user_id: str) -> int:
    """Return how many behaviors of a user are readable online."""
    with llm_repo.opened(repo) as store:
        found = store.get_online_features(["behavior_sequence:behavior_count"], [{"user_id": user_id}]).to_dict()
    return int(found["behavior_count"][0] or 0)


def push_rows(store: FeatureStore, repo: Path, *, start: int, count: int) -> None:
    """Push rows of the log, which has them then twice."""
    rows = kit.log_of(repo).slice(start, count)
    store.push("behavior_push", kit.frame(rows), to=PushMode.ONLINE_AND_OFFLINE)


def last_report(repo: Path) -> dict[str, object]:
    with llm_repo.opened(repo) as store:
        job = store._get_provider().batch_engine.job(store.registry)  # type: ignore[attr-defined]
        report: dict[str, object] = job.memory.last_report()
    return report


def test_a_server_that_is_away_fails_nothing_and_the_next_run_makes_everything(
    tmp_path: Path, server: LLMServer, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, **AWAY)
    capsys.readouterr()
    with pytest.raises(BackendUnreachable, match=r"^http://127.0.0.1:9/v1 does not answer") as caught:
        llm_repo.materialize(repo)
    assert "\n" not in caught.value.message
    assert not llm_repo.failures(repo)
    behaviors = len(kit.log_of(repo))
    line = f"{behaviors} behaviors (0 duplicates, 0 late)"
    assert capsys.readouterr().err.count(line) == 1
    assert last_report(repo)["behavior_count"] == repo_status(repo)["behaviors"] == behaviors
    assert min(sequence_length(repo, user) for user in kit.users_of(repo)) > 0
    with pytest.raises(BackendUnreachable):
        llm_repo.materialize(repo)
    assert " behaviors (" not in capsys.readouterr().err  # nothing at all was done
    assert last_report(repo)["behavior_count"] == behaviors
    llm_repo.set_interest(repo, llm_repo.interest(server))
    llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)


def test_the_views_of_feast_are_materialized_while_the_server_is_away(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, **AWAY)
    with pytest.raises(BackendUnreachable):
        llm_repo.materialize(repo)
    store = kit.open_store(repo)
    assert not store.get_feature_view("partition_summary").materialization_intervals
    assert store.get_feature_view("user_profile").materialization_intervals


def test_evidence_needs_no_server(tmp_path: Path, server: LLMServer) -> None:
    whole, repo = kit.materialized_repo(tmp_path / "whole"), llm_repo.repo_of(tmp_path / "repo", server, **AWAY)
    with llm_repo.opened(repo) as store:
        push_rows(store, repo, start=0, count=40)
        assert kit.published(repo, "partition_evidence")
    with pytest.raises(BackendUnreachable):
        llm_repo.materialize(repo)
    assert not kit.published(repo, "partition_summary")
    users, items = kit.users_of(repo), kit.published(repo, kit.ITEM_VIEW, key="item_id")
    assert kit.published(repo, "partition_evidence") == kit.published(whole, "partition_evidence")
    assert items == kit.published(whole, kit.ITEM_VIEW, key="item_id")
    found, expected = (kit.online(kit.open_store(one), users, "partition_evidence") for one in (repo, whole))
    assert found == expected


def test_evidence_is_online_while_the_first_texts_are_asked_for(tmp_path: Path) -> None:
    with LLMServer(latency_s=2.0) as slow:
        repo = llm_repo.repo_of(tmp_path / "repo", slow)
        rows = kit.frame(kit.log_of(repo).slice(0, 40))
        with llm_repo.opened(repo) as store:
            pushing = Thread(target=store.push, args=("behavior_push", rows))
            pushing.start()
            while pushing.is_alive() and not kit.published(repo, "partition_evidence"):
                time.sleep(0.05)
            summaries = repo_status(repo)["summaries"]
            assert pushing.is_alive()
            pushing.join()
        assert (summaries, repo_status(repo)["summaries"] > 0) == (0, True)


def assert_kept(repo: Path, logs: pytest.LogCaptureFixture, *, count: int, logged: int, message: str) -> None:
    """Assert that pushed behaviors are in the memory, online and in the log, and that one warning says what is not."""
    (record,) = logs.records
    shown = record.getMessage()
    assert (record.levelname, LEFT in shown, message in shown, "\n" in shown) == ("WARNING", True, True, False)
    assert not [user for user in kit.users_of(repo) if user in shown]
    status = repo_status(repo)
    assert (status["behaviors"], status["failed_partitions"]) == (count, 0)
    assert REGISTRY.get_sample_value("liber_pending_partitions") == status["pending_partitions"] > 0
    assert sum(sequence_length(repo, user) for user in kit.users_of(repo)) == count
    assert len(kit.log_of(repo)) == logged


def test_pushes_are_kept_and_published_while_the_server_is_away_before_its_first_answer(
    tmp_path: Path, server: LLMServer, caplog: pytest.LogCaptureFixture
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, **AWAY)
    whole = len(kit.log_of(repo))
    with llm_repo.opened(repo) as store, caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        push_rows(store, repo, start=0, count=40)
    assert_kept(repo, caplog, count=40, logged=whole + 40, message="does not answer")
    llm_repo.set_interest(repo, llm_repo.interest(server))
    llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)


def test_pushes_are_kept_and_published_just_so_when_the_server_goes_away_later(
    tmp_path: Path, server: LLMServer, caplog: pytest.LogCaptureFixture
) -> None:
    with LLMServer() as leaving:
        repo = llm_repo.repo_of(tmp_path / "repo", leaving)
        whole, log = len(kit.log_of(repo)), kit.log_of(repo)
        with llm_repo.opened(repo) as store, caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
            store.push("behavior_push", kit.frame(log.slice(0, 40)), to=PushMode.ONLINE)
            assert not caplog.records
            texts = len(llm_repo.text_keys(repo))
            assert texts > 0
            leaving.close()
            store.push("behavior_push", kit.frame(log.slice(40, 20)), to=PushMode.ONLINE_AND_OFFLINE)
            assert_kept(repo, caplog, count=60, logged=whole + 20, message="The LLM")
            assert len(llm_repo.text_keys(repo)) == texts
            caplog.clear()
            store.push("behavior_push", kit.frame(log.slice(60)), to=PushMode.ONLINE_AND_OFFLINE)
            assert_kept(repo, caplog, count=whole, logged=2 * whole - 40, message="")
    llm_repo.set_interest(repo, llm_repo.interest(server))
    llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)


def test_pushes_are_kept_and_published_while_the_server_refuses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(llm_repo.KEY_ENV, llm_repo.KEY)
    with LLMServer(api_key="another") as strict:
        repo = llm_repo.repo_of(tmp_path / "repo", strict, api_key_env=llm_repo.KEY_ENV)
        whole = len(kit.log_of(repo))
        with llm_repo.opened(repo) as store, caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
            push_rows(store, repo, start=0, count=40)
    assert_kept(repo, caplog, count=40, logged=whole + 40, message="refuses the API key (401)")
    assert llm_repo.KEY not in caplog.text


def test_a_tokenizer_that_cannot_be_loaded_refuses_a_run_and_keeps_a_push(
    tmp_path: Path, server: LLMServer, caplog: pytest.LogCaptureFixture
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, tokenizer=str(tmp_path / "nowhere"))
    whole = len(kit.log_of(repo))
    with llm_repo.opened(repo) as store, caplog.at_level(logging.WARNING, logger="liber_feast.engine"):
        push_rows(store, repo, start=0, count=40)
    assert_kept(repo, caplog, count=40, logged=whole + 40, message="batch_engine.interest.tokenizer: ")
    with pytest.raises(BackendRefused, match=r"^batch_engine\.interest\.tokenizer: "):
        llm_repo.materialize(repo)
    assert server.counts()["calls"] == 0
