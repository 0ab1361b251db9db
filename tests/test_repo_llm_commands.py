"""`liber plan`, `costs`, `retry`, `recompute` and `status`: what they say, what they leave alone, how they end."""

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks._llm_server import LLMServer
from liber_feast import cli
from liber_feast.errors import BadWindow, BudgetExhausted, ConfigError, PartitionsFailed, StoreNotReady
from liber_feast.llm_commands import costs, recompute
from liber_feast.plan import plan_window
from liber_feast.repo import repo_status
from tests import feature_repo_kit as kit
from tests import llm_repo

PRICES = {"input": 1.0, "cached_input": 0.5, "output": 2.0}


@pytest.fixture(scope="module")
def server() -> Iterator[LLMServer]:
    with LLMServer(latency_s=0.01) as started:
        yield started


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, server: LLMServer) -> Path:
    """A materialized repo that no test changes; its key is not in the environment any more."""
    repo = llm_repo.repo_of(tmp_path_factory.mktemp("learned") / "repo", server, prices=PRICES)
    llm_repo.materialize(repo)
    llm_repo.set_interest(repo, llm_repo.interest(server, prices=PRICES, api_key_env="NOT_SET_ANYWHERE"))
    return repo


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["liber", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def shown_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0
) -> dict[str, Any]:
    capsys.readouterr()
    assert run(monkeypatch, *arguments, "--json") == exit_code
    (line,) = capsys.readouterr().out.splitlines()
    facts: dict[str, Any] = json.loads(line)
    return facts


def error_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(monkeypatch, *arguments) == 1
    shown = capsys.readouterr()
    assert not shown.out
    (line,) = [line for line in shown.err.splitlines() if line.startswith("Error: ")]
    return line.removeprefix("Error: ")


def state(repo: Path) -> dict[str, str]:
    """Return the hash of every file of the repo but Python's caches."""
    files = [path for path in repo.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(repo)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_plan_of_a_repo_that_was_never_materialized_is_what_the_run_then_calls(
    tmp_path: Path, server: LLMServer
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, prices=PRICES, api_key_env="NOT_SET_ANYWHERE")
    before = state(repo)
    server.reset()
    plan = plan_window(repo, *llm_repo.WINDOW)
    assert state(repo) == before
    assert server.counts()["calls"] == 0
    assert dict(plan.missing) == {"summary": kit.SEALED_COUNT, "shift": kit.SHIFT_COUNT}
    summary, shift = plan.estimate.stages
    assert (summary.calls, shift.calls) == (kit.SEALED_COUNT, kit.SHIFT_COUNT)
    assert (summary.basis, shift.basis, plan.estimate.prompt_tokens) == ("assumed", "assumed", "estimated")
    assert (summary.model, plan.versions["model"]) == ("stub", "stub")
    llm_repo.set_interest(repo, llm_repo.interest(server, prices=PRICES))
    llm_repo.materialize(repo)
    assert server.counts()["calls"] == plan.estimate.calls
    spent = costs(repo, by="stage")["total"]
    assert spent["input_tokens"] < summary.input_tokens + shift.input_tokens  # estimated high
    assert spent["dollars"] < plan.estimate.dollars


def test_a_plan_counts_what_is_missing_and_measures_what_it_knows(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, budget={"run": {"calls": 20}, "day": {"tokens": 10**6}})
    with pytest.raises(BudgetExhausted):
        llm_repo.materialize(repo)
    before = state(repo)
    plan = plan_window(repo, *llm_repo.WINDOW)
    assert state(repo) == before
    assert (plan.behavior_count, plan.sealed_count) == (0, 0)
    assert dict(plan.missing) == {"summary": 0, "shift": llm_repo.CALL_COUNT - 20}
    assert [stage.basis for stage in plan.estimate.stages] == ["measured", "measured"]
    left = {(one.scope, one.unit): one.left for one in plan.budget_left}
    spent = costs(repo, by="day")["total"]
    assert left == {("run", "calls"): 20, ("day", "tokens"): 10**6 - spent["input_tokens"] - spent["output_tokens"]}


def test_a_plan_sees_the_window_alone(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    times = kit.log_of(repo)["event_timestamp"].to_pylist()
    plan = plan_window(repo, kit.START.isoformat(), times[30].isoformat())
    assert 0 < plan.behavior_count < len(times)
    assert 0 < plan.missing["summary"] == plan.sealed_count < kit.SEALED_COUNT


def test_a_plan_says_which_prompts_do_not_fit(
    tmp_path: Path, server: LLMServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, context_tokens=300)
    summary, _ = plan_window(repo, *llm_repo.WINDOW).estimate.stages
    assert (summary.calls, summary.too_long) == (0, kit.SEALED_COUNT)
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, "plan", *llm_repo.WINDOW, "--repo", str(repo)) == 0
    shown = capsys.readouterr().out
    assert "too long for the context" in shown
    assert f"{kit.SEALED_COUNT} (these fail" in " ".join(shown.split())


def test_a_plan_under_the_idle_and_the_drift_rule_seals_as_the_run_does(tmp_path: Path, server: LLMServer) -> None:
    for name, partition in {
        "idle": {"condition": "time", "idle_s": "10d"},
        "drift": {"condition": "drift", "threshold": 0.6, "minimum": 2, "maximum": 5},
    }.items():
        repo = kit.repo_to_push_to(
            tmp_path / name, interest=llm_repo.interest(server, budget={"run": {"calls": 0}}), partition=partition
        )
        plan = plan_window(repo, *llm_repo.WINDOW)
        with pytest.raises(BudgetExhausted):
            llm_repo.materialize(repo)
        assert repo_status(repo)["sealed_partitions"] == plan.sealed_count == plan.missing["summary"] > 0


def test_a_plan_without_an_llm_makes_no_calls(tmp_path: Path) -> None:
    plan = plan_window(kit.loaded_repo(tmp_path / "repo"), *llm_repo.WINDOW)
    assert (plan.estimate.calls, plan.missing["summary"]) == (0, kit.SEALED_COUNT)
    assert plan.facts()["total"]["dollars"] == 0


def test_a_window_that_cannot_be_read_is_refused(learned: Path) -> None:
    with pytest.raises(BadWindow, match="after its end"):
        plan_window(learned, kit.END.isoformat(), kit.START.isoformat())
    with pytest.raises(ConfigError, match=r"^START: .*yesterday.*Write it as ISO 8601"):
        plan_window(learned, "yesterday", kit.END.isoformat())


def test_status_plan_and_costs_need_no_key_and_show_what_is_there(
    learned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = str(learned)
    plan = shown_json(monkeypatch, capsys, "plan", *llm_repo.WINDOW, "--repo", repo)
    assert plan["total"]["calls"] == 0
    assert plan["prompt_version"].startswith("movielens-")
    status = shown_json(monkeypatch, capsys, "status", "--repo", repo)
    assert status["in_use"]["model"] == "stub"
    assert (status["failed_partitions"], status["failures"], status["recomputations"]) == (0, {}, 0)
    assert sum(status["text_versions"].values()) == llm_repo.CALL_COUNT
    for by, keys in {"day": 1, "model": 1, "stage": 2, "user": 4}.items():
        spent = shown_json(monkeypatch, capsys, "costs", "--by", by, "--repo", repo)
        assert len(spent["rows"]) == keys
        assert spent["total"]["calls"] == spent["total"]["answered"] == llm_repo.CALL_COUNT
        assert spent["total"]["dollars"] == pytest.approx(sum(row["dollars"] for row in spent["rows"]))
    for arguments in (("plan", *llm_repo.WINDOW), ("costs",), ("costs", "--by", "user"), ("status",)):
        assert run(monkeypatch, *arguments, "--repo", repo) == 0
        assert "stub" in capsys.readouterr().out or arguments[0] == "costs"


def test_another_prompt_or_model_spends_nothing_and_the_status_shows_the_mix(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    middle = kit.log_of(repo)["event_timestamp"][40].as_py()
    with llm_repo.opened(repo) as store:
        store.materialize(kit.START, middle)
    first = len(llm_repo.text_keys(repo))
    llm_repo.set_interest(repo, llm_repo.interest(server, prompt="music"))
    server.reset()
    llm_repo.materialize(repo)
    assert server.counts()["calls"] == llm_repo.CALL_COUNT - first
    status = repo_status(repo)
    mix = {key.split()[1].split("-")[0]: 0 for key in status["text_versions"]}
    assert set(mix) == {"movielens", "music"}
    assert status["in_use"]["prompt_version"].startswith("music-")


def failed_repo(target: Path) -> Path:
    """Return a repo all of whose summaries failed."""
    with LLMServer(faults="cutoff=1.0") as faulty:
        repo = llm_repo.repo_of(target, faulty)
        with pytest.raises(PartitionsFailed):
            llm_repo.materialize(repo)
    return repo


def test_retry_takes_up_what_failed_of_one_user_and_then_of_all(
    tmp_path: Path, server: LLMServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = failed_repo(tmp_path / "repo")
    llm_repo.set_interest(repo, llm_repo.interest(server))
    server.reset()
    done = shown_json(monkeypatch, capsys, "retry", "--user", "u0001", "--repo", str(repo))
    assert done["retried_users"] == 1
    assert done["summary_count"] == done["shift_count"] + 1
    assert {row["user_id"] for row in kit.published(repo, "partition_summary")} == {"u0001"}
    done = shown_json(monkeypatch, capsys, "retry", "--repo", str(repo))
    assert done["failed_count"] == 0
    assert server.counts()["calls"] == llm_repo.CALL_COUNT
    llm_repo.assert_whole(repo)
    assert shown_json(monkeypatch, capsys, "retry", "--repo", str(repo)) == {"retried_users": 0}
    assert run(monkeypatch, "retry", "--repo", str(repo)) == 0
    assert "No text has failed." in capsys.readouterr().err


def test_retry_ends_with_the_exit_codes_of_a_run(
    tmp_path: Path, server: LLMServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = failed_repo(tmp_path / "repo")
    with LLMServer(faults="empty=1.0") as faulty:
        llm_repo.set_interest(repo, llm_repo.interest(faulty))
        done = shown_json(monkeypatch, capsys, "retry", "--repo", str(repo), exit_code=3)
    assert done["failed_count"] == kit.SEALED_COUNT
    attempts = {count for _, count in llm_repo.failures(repo).values()}
    assert attempts == {4}  # two of the run, two of the retry
    llm_repo.set_interest(repo, llm_repo.interest(server, budget={"run": {"calls": 5}}))
    done = shown_json(monkeypatch, capsys, "retry", "--repo", str(repo), exit_code=4)
    assert (done["summary_count"], done["exhausted"]) == (5, "the 5 calls of this run")


def test_retry_names_a_user_that_is_not_there(
    learned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(monkeypatch, capsys, "retry", "--user", "nobody", "--repo", str(learned))
    assert line == "The memory has no user 'nobody'. Write the id as the source has it."


def test_recompute_writes_what_was_sealed_since_anew_and_leaves_the_old_rows(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.materialize(repo)
    old = kit.published(repo, "partition_summary", without=())
    since = sorted(row["event_timestamp"] for row in old)[kit.SEALED_COUNT // 2]
    wanted = [row for row in old if row["event_timestamp"] >= since]
    server.reset()
    llm_repo.set_interest(repo, llm_repo.interest(server, prompt="music"))
    done = recompute(repo, since=since.isoformat(), stage="summary")
    assert done.error is None
    assert done.facts["marked_texts"] == done.facts["summary_count"] == len(wanted) == server.counts()["calls"]
    assert (done.facts["shift_count"], done.facts["texts_to_write_anew"]) == (0, 0)
    rows = kit.published(repo, "partition_summary", without=())
    assert [row for row in rows if row in old] == old
    new = [row for row in rows if row not in old]
    keys = {(row["user_id"], row["partition_index"]) for row in wanted}
    assert {(row["user_id"], row["partition_index"]) for row in new} == keys
    assert min(row["created_timestamp"] for row in new) > max(row["created_timestamp"] for row in old)
    assert {row["prompt_version"].split("-")[0] for row in new} == {"music"}


def test_an_interrupted_recompute_is_gone_on_with_by_the_next_materialization(
    tmp_path: Path, server: LLMServer
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.materialize(repo)
    server.reset()
    llm_repo.set_interest(repo, llm_repo.interest(server, budget={"run": {"calls": 7}}))
    done = recompute(repo, since=kit.START.isoformat(), stage=None)
    assert isinstance(done.error, BudgetExhausted)
    assert done.facts["marked_texts"] == llm_repo.CALL_COUNT
    assert done.facts["texts_to_write_anew"] == repo_status(repo)["recomputations"] == llm_repo.CALL_COUNT - 7
    assert plan_window(repo, *llm_repo.WINDOW).estimate.calls == llm_repo.CALL_COUNT - 7
    llm_repo.set_interest(repo, llm_repo.interest(server))
    llm_repo.materialize(repo)
    assert server.counts()["calls"] == llm_repo.CALL_COUNT
    assert repo_status(repo)["recomputations"] == 0
    keys = llm_repo.text_keys(repo)
    assert len(set(keys)) == len(keys) == 2 * llm_repo.CALL_COUNT


def test_a_recompute_that_is_interrupted_and_asked_for_again_goes_on_and_writes_each_text_once(
    tmp_path: Path, server: LLMServer
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.materialize(repo)
    server.reset()
    budget = llm_repo.CALL_COUNT // 3 + 1
    llm_repo.set_interest(repo, llm_repo.interest(server, budget={"run": {"calls": budget}}))
    facts = [recompute(repo, since=kit.START.isoformat(), stage=None).facts for _ in range(3)]
    lefts = [llm_repo.CALL_COUNT - budget, llm_repo.CALL_COUNT - 2 * budget, 0]
    assert [one["texts_to_write_anew"] for one in facts] == lefts
    assert [one["marked_texts"] for one in facts] == [llm_repo.CALL_COUNT, 0, 0]
    assert [one["texts_marked_before"] for one in facts] == [0, *lefts[:2]]
    assert server.counts()["calls"] == llm_repo.CALL_COUNT
    keys = llm_repo.text_keys(repo)
    assert len(set(keys)) == len(keys) == 2 * llm_repo.CALL_COUNT
    assert {revision for *_, revision in keys} == {0, 1}


def test_recompute_of_nothing_says_so(
    tmp_path: Path, server: LLMServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.materialize(repo)
    server.reset()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    line = error_line(monkeypatch, capsys, "recompute", "--since", tomorrow, "--repo", str(repo))
    assert "lies in the future; no partition was sealed after it" in line
    assert run(monkeypatch, "recompute", "--since", kit.END.isoformat(), "--repo", str(repo)) == 0
    assert "nothing is written anew" in capsys.readouterr().err
    assert "Write it as ISO 8601" in error_line(
        monkeypatch, capsys, "recompute", "--since", "then", "--repo", str(repo)
    )
    assert server.counts()["calls"] == 0


@pytest.mark.parametrize(
    "arguments",
    [("costs",), ("retry",), ("recompute", "--since", "2023-01-01"), ("status",)],
    ids=lambda arguments: arguments[0],
)
def test_a_repo_without_a_memory_says_what_to_run_and_gets_none(
    tmp_path: Path,
    server: LLMServer,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    assert "There is no memory yet" in error_line(monkeypatch, capsys, *arguments, "--repo", str(repo))
    assert not (repo / "data" / "memory.db").exists()


def test_a_repo_that_was_never_applied_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotReady, match="was never applied"):
        plan_window(kit.copy_feature_repo(tmp_path / "repo"), *llm_repo.WINDOW)


def test_a_key_of_the_file_is_one_line_in_every_program(
    tmp_path: Path, server: LLMServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server)
    llm_repo.set_interest(repo, llm_repo.interest(server, api_key=llm_repo.KEY, budget={"run": {"calls": 1}}))
    done = kit.feast(repo, "materialize", *llm_repo.WINDOW)
    assert done.exit_code == 1
    (of_feast,) = llm_repo.errors_of(done)
    of_liber = error_line(monkeypatch, capsys, "plan", *llm_repo.WINDOW, "--repo", str(repo))
    for line in (of_feast, of_liber):
        assert "unknown key 'batch_engine.interest.api_key'. API keys come from the environment alone" in line
    assert llm_repo.KEY not in done.output + of_liber


def test_the_programs_end_with_the_exit_code_of_a_budget(tmp_path: Path, server: LLMServer) -> None:
    repo = llm_repo.repo_of(tmp_path / "repo", server, budget={"run": {"calls": 20}})
    done = llm_repo.program("feast", repo, "materialize", *llm_repo.WINDOW)
    assert done.returncode == 4
    (line,) = llm_repo.errors_of(done)
    assert line.startswith("Error: The budget is out: the 20 calls of this run. Left are 0 summaries and 8 shifts")
    done = llm_repo.program("liber", repo, "recompute", "--since", "2022-01-01", "--repo", ".", "--json")
    assert done.returncode == 4
    (line,) = llm_repo.errors_of(done)
    facts = json.loads(done.stdout)
    assert (facts["call_count"], facts["exhausted"]) == (20, "the 20 calls of this run")
