"""`feast materialize` in a feature repo whose texts vLLM writes, its engine in a process of its own by default."""

from pathlib import Path

import pytest

from benchmarks import _vllm_cpu
from liber_feast.errors import BackendRefused
from tests import feature_repo_kit as kit
from tests import llm_repo
from tests.vllm.parts import CONTEXT_TOKENS


def interest(model: Path, **keys: object) -> dict[str, object]:
    block = {"backend": "vllm", "model": str(model), "dtype": "float32", "max_model_len": CONTEXT_TOKENS}
    return {**block, "engine": dict(_vllm_cpu.ENGINE), "chunk_size": 8, "max_output_tokens": 64, **keys}


def test_a_repo_is_materialized_and_a_second_run_makes_no_call(model: Path, tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", interest=interest(model))
    separate = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = llm_repo.program("feast", repo, "materialize", *llm_repo.WINDOW, **separate)
    assert done.returncode == 0, done.stderr
    assert llm_repo.errors_of(done) == []
    assert "vllm" not in done.stdout.lower()  # what it logs goes to stderr
    llm_repo.assert_whole(repo)
    calls = llm_repo.calls(repo)
    assert len(calls) == llm_repo.CALL_COUNT
    assert {call["outcome"] for call in calls} == {"answered"}
    assert all(call["input_tokens"] > 0 and call["output_tokens"] > 0 for call in calls)
    assert sum(call["cached_tokens"] for call in calls) > 0
    assert {row["model"] for row in kit.published(repo, "partition_summary")} == {str(model)}

    llm_repo.materialize(repo)
    assert len(llm_repo.calls(repo)) == llm_repo.CALL_COUNT


def test_a_model_that_is_not_there_ends_in_one_line_and_nothing_is_spent(tmp_path: Path) -> None:
    repo = kit.repo_to_push_to(tmp_path / "repo", interest=interest(tmp_path / "missing"))
    with pytest.raises(BackendRefused, match=r"^vLLM cannot start with model '.*missing': ") as caught:
        llm_repo.materialize(repo)
    assert "\n" not in caught.value.message
    assert llm_repo.calls(repo) == []
    assert llm_repo.failures(repo) == {}
