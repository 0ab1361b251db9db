"""`feast materialize` and pushes with a server that writes the texts, and with all that can go wrong on the way."""

import logging
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from feast import FeatureStore

from benchmarks._llm_server import LLMServer
from liber_feast import llm_backend
from liber_feast.errors import (
    BackendRefused,
    BudgetExhausted,
    ConfigError,
    MissingExtra,
    PartitionsFailed,
    PromptError,
)
from liber_feast.job import open_job
from liber_feast.llm_commands import retry
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit
from tests import llm_repo
from tests.processes import PROCESSES

FAULTS = "timeout=0.03,429=0.08,500=0.06,drop=0.05,truncate=0.03,empty=0.05"
"""Thirty of a hundred calls."""


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer(latency_s=0.01) as started:
        yield started


@pytest.fixture(autouse=True)
def _count_from_zero(server: LLMServer) -> None:
    server.reset()


def last_report(repo: Path) -> dict[str, object]:
    with llm_repo.opened(repo) as store:
        engine = store._get_provider().batch_engine  # type: ignore[attr-defined]  # Feast has no public way to it
        report: dict[str, object] = engine.job(store.registry).memory.last_report()
    return report


def test_every_text_takes_one_call_and_a_second_run_makes_none(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, prices={"input": 1, "cached_input": 0.5, "output": 2})
    llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)
    counts = server.counts()
    assert (counts["calls"], counts["answered_again"]) == (llm_repo.CALL_COUNT, 0)
    report, ledger = last_report(repo), llm_repo.calls(repo)
    assert report["call_count"] == len(ledger) == llm_repo.CALL_COUNT
    assert report["input_tokens"] == sum(call["input_tokens"] for call in ledger)
    assert report["dollars"] == pytest.approx(sum(call["nanodollars"] for call in ledger) / 1e9)
    assert {row["model"] for row in kit.published(repo, "partition_summary")} == {"stub"}
    llm_repo.materialize(repo)
    assert server.counts()["calls"] == llm_repo.CALL_COUNT
    llm_repo.assert_whole(repo)


def failure_of(repo: Path) -> PartitionsFailed | None:
    """Materialize; return the error that it ends with where texts failed."""
    try:
        llm_repo.materialize(repo)
    except PartitionsFailed as error:
        assert error.exit_code == 3
        assert "\n" not in error.message
        assert "`liber retry`" in error.message
        return error
    return None


@pytest.mark.parametrize("seed", [1, 2])
def test_with_faults_every_partition_is_done_or_failed_and_a_retry_heals_all(
    tmp_path: Path, server: LLMServer, seed: int
) -> None:
    with LLMServer(faults=FAULTS, seed=seed, retry_after="0") as faulty:
        repo = llm_repo.repo_of(tmp_path / "repo", faulty, timeout_s=0.5)
        error = failure_of(repo)  # which texts fail, if any do, depends on the order in which calls arrive
    failed, keys = llm_repo.failures(repo), llm_repo.text_keys(repo)
    assert (error.failed_count if error else 0) == last_report(repo)["failed_count"] >= len(failed)
    assert (error is None) == (not failed)
    assert all(reason and attempts >= 1 for reason, attempts in failed.values())
    assert len(set(keys)) == len(keys)
    summaries = {(user, index) for user, index, stage, _ in keys if stage == "summary"}
    shifts = {(user, index) for user, index, stage, _ in keys if stage == "shift"}
    assert len(summaries | failed.keys()) == kit.SEALED_COUNT
    first = {user: min(index for other, index in summaries if other == user) for user, _ in summaries}
    assert {(user, index) for user, index in summaries if index > first[user]} == shifts | (summaries & failed.keys())
    assert len(kit.published(repo, "partition_summary")) == len(summaries)
    assert len(kit.published(repo, "partition_shift")) == len(shifts)
    assert len(kit.published(repo, "partition_vector")) == len(summaries)
    assert repo_status(repo)["failed_partitions"] == sum(repo_status(repo)["failures"].values()) == len(failed)

    llm_repo.set_interest(repo, llm_repo.interest(server))
    done = retry(repo, user_id=None)
    assert done.error is None
    assert not llm_repo.failures(repo)
    keys = llm_repo.text_keys(repo)
    assert len(set(keys)) == len(keys)
    assert {(user, index) for user, index, stage, _ in keys if stage == "summary"} >= summaries
    assert sum(stage == "summary" for _, _, stage, _ in keys) == kit.SEALED_COUNT
    llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)


def test_failed_texts_leave_the_views_of_feast_materialized_and_ours_not_counted(tmp_path: Path) -> None:
    with LLMServer(faults="empty=1.0") as faulty:
        repo = llm_repo.repo_of(tmp_path / "repo", faulty)
        with pytest.raises(PartitionsFailed, match=f"^{kit.SEALED_COUNT} texts could not be had: "):
            llm_repo.materialize(repo)
    store = kit.open_store(repo)
    assert not store.get_feature_view("partition_summary").materialization_intervals
    assert store.get_feature_view("user_profile").materialization_intervals
    profiles = store.get_online_features(["user_profile:profile"], [{"user_id": "u0001"}]).to_dict()
    assert profiles["profile"][0]


def test_a_run_stops_at_its_budget_and_the_next_one_goes_on(tmp_path: Path, server: LLMServer) -> None:
    budget = {"run": {"calls": 10}}
    repo = llm_repo.repo_of(tmp_path / "repo", server, budget=budget, prices={"input": 1, "output": 2})
    for run in range(1, 3):
        with pytest.raises(BudgetExhausted, match="^The budget is out: the 10 calls of this run") as caught:
            llm_repo.materialize(repo)
        assert caught.value.exit_code == 4
        assert "\n" not in caught.value.message
        assert server.counts()["calls"] == 10 * run
        texts = llm_repo.text_keys(repo)
        assert len(texts) == 10 * run
        published = [kit.published(repo, table) for table in ("partition_summary", "partition_shift")]
        assert sum(map(len, published)) == len(texts)
        left = {stage: most - sum(key[2] == stage for key in texts) for stage, most in (("summary", 16), ("shift", 12))}
        assert f"Left are {left['summary']} summaries and {left['shift']} shifts, about " in caught.value.message
        assert " dollars. What was learned is published." in caught.value.message
    llm_repo.materialize(repo)
    assert server.counts()["calls"] == llm_repo.CALL_COUNT
    llm_repo.assert_whole(repo)


@pytest.mark.parametrize("limit", [{"calls": 0}, {"tokens": 0}, {"dollars": 0}], ids=lambda limit: next(iter(limit)))
def test_a_budget_of_nothing_makes_no_call(tmp_path: Path, server: LLMServer, limit: dict[str, int]) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, budget={"day": limit}, prices={"input": 1})
    with pytest.raises(BudgetExhausted, match="Left are 16 summaries and 12 shifts, about 28 calls"):
        llm_repo.materialize(repo)
    assert server.counts()["calls"] == 0
    assert repo_status(repo)["pending_partitions"] == kit.SEALED_COUNT


def test_a_day_is_never_overdrawn_over_runs(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, budget={"day": {"tokens": 5_000}})
    for _ in range(3):
        with pytest.raises(BudgetExhausted, match=r"the 5,000 tokens of \d{4}-\d\d-\d\d \(UTC\)"):
            llm_repo.materialize(repo)
    assert sum(call["input_tokens"] + call["output_tokens"] for call in llm_repo.calls(repo)) <= 5_000
    assert 0 < server.counts()["calls"] < llm_repo.CALL_COUNT


@pytest.mark.parametrize("killed_after", [2, 12, 22])
def test_a_killed_run_that_is_started_again_loses_the_calls_in_flight_at_most(
    tmp_path: Path, killed_after: int
) -> None:
    with LLMServer(latency_s=0.15) as slow:
        repo = llm_repo.repo_of(tmp_path / "repo", slow)
        run = PROCESSES.Process(target=llm_repo.materialize, args=(repo,), daemon=True)
        run.start()
        until = time.monotonic() + 90
        while slow.counts()["calls"] < killed_after:
            assert run.is_alive()
            assert time.monotonic() < until
            time.sleep(0.02)
        run.kill()
        run.join()
        llm_repo.materialize(repo)
        assert llm_repo.CALL_COUNT <= slow.counts()["calls"] <= llm_repo.CALL_COUNT + 4
    llm_repo.assert_whole(repo)
    open_calls = [call for call in llm_repo.calls(repo) if call["outcome"] is None]
    assert len(open_calls) <= 4


def test_a_refused_key_is_one_line_that_stands_nowhere(tmp_path: Path) -> None:
    with LLMServer(api_key="another") as strict:
        repo = llm_repo.repo_of(tmp_path / "repo", strict, api_key_env=llm_repo.KEY_ENV)
        environment = {llm_repo.KEY_ENV: llm_repo.KEY}
        done = llm_repo.program("feast", repo, "--log-level", "debug", "materialize", *llm_repo.WINDOW, **environment)
        calls = strict.counts()["calls"]
    assert done.returncode == 1
    (line,) = llm_repo.errors_of(done)
    assert f"refuses the API key (401). Correct the environment variable {llm_repo.KEY_ENV}." in line
    assert calls == 0
    for text in (done.stdout, done.stderr, str(llm_repo.everything_written(repo))):
        assert llm_repo.KEY not in text
    assert not llm_repo.failures(repo)


def test_a_key_that_works_stands_nowhere_and_no_log_shows_what_users_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(llm_repo.KEY_ENV, llm_repo.KEY)
    textfile = tmp_path / "liber.prom"
    with LLMServer(api_key=llm_repo.KEY, faults="500=0.2,empty=0.2", retry_after="0") as strict:
        repo = llm_repo.repo_of(tmp_path / "repo", strict, api_key_env=llm_repo.KEY_ENV, max_attempts=6)
        llm_repo.set_interest(
            repo,
            llm_repo.interest(strict, api_key_env=llm_repo.KEY_ENV, max_attempts=6),
            metrics={"textfile": str(textfile)},
        )
        with caplog.at_level(logging.DEBUG):
            try:
                llm_repo.materialize(repo)
            except PartitionsFailed as error:
                caplog.records.append(logging.makeLogRecord({"msg": error.message}))
    shown = capsys.readouterr()
    logs = "\n".join(record.getMessage() for record in caplog.records)
    for text in (shown.out, shown.err, logs, textfile.read_text("utf-8"), str(llm_repo.everything_written(repo))):
        assert llm_repo.KEY not in text
    titles = {title for title in kit.small_data_set().items["title"].to_pylist() if title}
    for text in (shown.out, shown.err, logs, textfile.read_text("utf-8")):
        assert not [title for title in titles if title in text]
        assert not [user for user in kit.users_of(repo) if user in text]
    assert 'liber_llm_calls_total{model="stub",outcome="answered",stage="summary"}' in textfile.read_text("utf-8")
    assert "liber_pending_partitions 0.0" in textfile.read_text("utf-8")


def test_an_unknown_model_stops_the_run(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, model="other")
    with pytest.raises(BackendRefused, match="does not know the model 'other'") as caught:
        llm_repo.materialize(repo)
    assert (caught.value.exit_code, "\n" in caught.value.message) == (1, False)
    assert server.counts()["calls"] <= 1
    assert not llm_repo.failures(repo)


def test_a_context_too_small_for_any_prompt_fails_every_summary_without_a_call(
    tmp_path: Path, server: LLMServer
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, context_tokens=300)
    done = kit.feast(repo, "materialize", *llm_repo.WINDOW)
    assert done.exit_code == 3
    (line,) = llm_repo.errors_of(done)
    assert line.startswith("Error: 16 texts could not be had: 16 x prompt of ")
    assert "does not fit the context of 300" in line
    assert server.counts()["calls"] == 0


TEMPLATE = Path(kit.FEATURE_REPO).parent / "liber_feast" / "prompts" / "movielens.toml"


def test_a_template_without_a_placeholder_is_refused_before_anything_is_written(
    tmp_path: Path, server: LLMServer
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, prompt="mine.toml")
    (repo / "mine.toml").write_text(TEMPLATE.read_text("utf-8").replace("$behaviors", "some films"), encoding="utf-8")
    with pytest.raises(PromptError, match=r"mine: summary: 'user' lacks the placeholder \$behaviors") as caught:
        llm_repo.materialize(repo)
    assert "\n" not in caught.value.message
    assert not (repo / "data" / "memory.db").exists()


def absent(_package: str) -> None:
    return None


@pytest.mark.parametrize("backend", ["openai", "vllm"])
def test_a_missing_extra_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: LLMServer, backend: str
) -> None:
    monkeypatch.setattr(llm_backend.importlib.util, "find_spec", absent)
    block = llm_repo.interest(server) if backend == "openai" else {"backend": "vllm", "model": "some-model"}
    repo = kit.repo_to_push_to(tmp_path / "repo", interest=block)
    with llm_repo.opened(repo) as store:
        with pytest.raises(
            MissingExtra, match=rf"{backend} is not installed. Run: pip install 'liber-feast\[{backend}"
        ):
            store.materialize(kit.START, kit.END)
        with pytest.raises(MissingExtra):
            store.push("behavior_push", kit.frame(kit.log_of(repo).slice(0, 1)))
    assert not (repo / "data" / "memory.db").exists()


@pytest.mark.parametrize("value", [None, "", "  "], ids=["unset", "empty", "blank"])
@pytest.mark.parametrize("name", [None, "STUB_API_KEY"], ids=["OpenAI's", "another"])
def test_a_key_that_is_not_in_the_environment_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None, value: str | None
) -> None:
    variable = name or "OPENAI_API_KEY"
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    block = {"backend": "openai", "model": "x", **({"api_key_env": name} if name else {})}
    repo = kit.repo_to_push_to(tmp_path / "repo", interest=block)
    with pytest.raises(ConfigError, match=f"environment variable {variable} is not set"):
        llm_repo.materialize(repo)
    assert not (repo / "data" / "memory.db").exists()


def push_all(store: FeatureStore, repo: Path, *, count: int) -> None:
    log = kit.log_of(repo)
    for row in range(0, count, 7):
        store.push("behavior_push", kit.frame(log.slice(row, min(7, count - row))))


def test_a_push_whose_texts_fail_is_logged_and_not_refused(
    tmp_path: Path, server: LLMServer, caplog: pytest.LogCaptureFixture
) -> None:
    with LLMServer(faults="cutoff=1.0") as faulty:
        repo = llm_repo.repo_of(tmp_path / "repo", faulty)
        with llm_repo.opened(repo) as store, caplog.at_level("WARNING", logger="liber_feast.engine"):
            push_all(store, repo, count=40)
            calls = faulty.counts()["calls"]
            push_all(store, repo, count=40)  # duplicates: a push does not try failed texts again
            assert faulty.counts()["calls"] == calls
    assert "texts failed" in caplog.text
    assert all(record.levelname == "WARNING" for record in caplog.records)
    assert not [user for user in kit.users_of(repo) if user in caplog.text]
    assert repo_status(repo)["failures"] == {"answer cut off at 256 tokens": len(llm_repo.failures(repo))}
    llm_repo.set_interest(repo, llm_repo.interest(server))
    with llm_repo.opened(repo) as store:
        store.push("behavior_push", kit.behavior("u0001", "i0001", at=kit.END - timedelta(hours=1)))
        store.materialize(kit.START, kit.END)
    assert not llm_repo.failures(repo)


def test_a_push_out_of_budget_is_logged_and_its_behaviors_are_kept(
    tmp_path: Path, server: LLMServer, caplog: pytest.LogCaptureFixture
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, budget={"day": {"calls": 3}})
    with llm_repo.opened(repo) as store, caplog.at_level("WARNING", logger="liber_feast.engine"):
        push_all(store, repo, count=70)
    assert "stopped at the 3 calls of " in caplog.text
    assert server.counts()["calls"] == 3
    assert repo_status(repo)["behaviors"] == 70


def test_a_store_can_materialize_again_after_its_server_was_given_back(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    middle = kit.log_of(repo)["event_timestamp"][40].as_py()
    with llm_repo.opened(repo) as store:
        store.materialize(kit.START, middle)
        store.materialize(middle, kit.END)
    llm_repo.assert_whole(repo)
    assert server.counts()["calls"] == llm_repo.CALL_COUNT


def test_a_text_file_that_cannot_be_written_stops_a_run_before_its_first_call(
    tmp_path: Path, server: LLMServer
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.set_interest(repo, llm_repo.interest(server), metrics={"textfile": "nowhere/liber.prom"})
    with pytest.raises(ConfigError, match=r"batch_engine\.metrics\.textfile: .*cannot be written"):
        llm_repo.materialize(repo)
    assert server.counts()["calls"] == 0


def test_a_port_that_is_taken_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, server: LLMServer, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.set_interest(repo, llm_repo.interest(server), metrics={"port": server.port})
    llm_repo.materialize(repo)
    assert f"Warning: batch_engine.metrics.port: {server.port} cannot be listened on" in capsys.readouterr().err
    llm_repo.assert_whole(repo)


def test_a_repo_can_be_published_without_the_package_and_the_key_of_its_llm(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", interest={"backend": "vllm", "model": "some-model"})
    store = kit.open_store(repo)
    online_store = store._get_provider().online_store  # type: ignore[attr-defined]  # Feast has no public way to it
    job = open_job(store.config, registry=store.registry, online_store=online_store, with_llm=False)
    assert set(job.publisher().publish().values()) == {0}
    job.memory.close()
