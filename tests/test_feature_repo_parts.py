"""A feature repo whose texts are in parts, from behaviors to the fused vector, and how it changes to that form."""

from pathlib import Path
from typing import Any

import pytest

from liber_feast.errors import ConfigError, PartitionsFailed
from liber_feast.form_vectors import NUMBER_COUNT
from liber_feast.llm_commands import recompute, retry
from liber_feast.parts import PARTS, PARTS_SUFFIX, parse_parts
from liber_feast.reencode import encode_anew
from liber_feast.repo import repo_status
from liber_feast.republish import republish
from tests import feature_repo_kit as kit
from tests import llm_repo
from tests.parts_server import parts_server

PARTITION_WIDTH = 2 * (2 * kit.WIDTH + NUMBER_COUNT)
EXTRACTIVE_PARTS = {"backend": "extractive", "form": PARTS}


def quietly(_line: str) -> None:
    pass


def assert_in_parts(repo: Path) -> None:
    """Assert that everything is published, in parts and by one encoder version."""
    llm_repo.assert_whole(repo)
    for view, column in (("partition_summary", "summary"), ("partition_shift", "shift")):
        rows = kit.published(repo, view)
        assert all(parse_parts(row[column]) for row in rows)
        assert all(row["prompt_version"].endswith(PARTS_SUFFIX) for row in rows)
    vectors = kit.published(repo, "partition_vector")
    assert {len(row["vector"]) for row in vectors} == {PARTITION_WIDTH}
    assert len({row["encoder_version"] for row in vectors}) == 1
    assert all(row["encoder_version"].endswith(PARTS_SUFFIX) for row in vectors)
    assert {len(row["fused"]) for row in kit.published(repo, "fused_vector")} == {PARTITION_WIDTH}


def fused_online(repo: Path) -> set[int]:
    """Return the lengths of the fused vectors that are online."""
    store = kit.open_store(repo)
    found = kit.online(store, kit.users_of(repo), "fused_vector")["fused_vector__fused"]
    kit.close(store)
    return {len(one) for one in found if one is not None}


def loaded_repo(target: Path, **interest: Any) -> Path:
    """Return a loaded repo that is not materialized and has no PCA."""
    repo = kit.repo_to_push_to(target, interest=interest)
    for path in (repo / "data" / "encoder").iterdir():
        path.unlink()
    (repo / "data" / "encoder").rmdir()
    return repo


def test_extractive_texts_in_parts_go_the_whole_way(tmp_path: Path) -> None:
    repo = loaded_repo(tmp_path / "repo", **EXTRACTIVE_PARTS)
    llm_repo.materialize(repo)
    assert_in_parts(repo)
    assert fused_online(repo) == {PARTITION_WIDTH}
    before = kit.published(repo, "partition_vector")
    republish(repo, stage=None, user_id=None, say=quietly)
    assert kit.published(repo, "partition_vector") == before


def test_an_llm_is_asked_by_the_schema_and_what_is_no_answer_is_asked_for_again(tmp_path: Path) -> None:
    with parts_server(prose_count=2) as server:
        block = {"backend": "openai", "model": "stub", "base_url": server.base_url, "max_concurrency": 1}
        repo = loaded_repo(tmp_path / "repo", **block, form=PARTS)
        with pytest.raises(PartitionsFailed, match="^1 text could not be had: 1 x answer without a JSON object"):
            llm_repo.materialize(repo)
        assert retry(repo, user_id=None).error is None
        assert_in_parts(repo)
        calls = len(server.bodies)
        llm_repo.materialize(repo)
        assert len(server.bodies) == calls
    assert [call["outcome"] for call in llm_repo.calls(repo)].count("rejected") == 2
    schema = server.bodies[0]["response_format"]
    assert schema["type"] == "json_schema"
    assert schema["json_schema"]["strict"] is True
    assert schema["json_schema"]["schema"]["required"] == ["likes", "dislikes", "tendency"]


def test_a_plain_repo_sends_no_schema(tmp_path: Path) -> None:
    with parts_server() as server:
        repo = llm_repo.repo_of(tmp_path / "repo", server, max_concurrency=1)  # type: ignore[arg-type]  # has an address
        llm_repo.materialize(repo)
    assert {tuple(sorted(body)) for body in server.bodies} == {("max_tokens", "messages", "model", "temperature")}


def test_a_repo_changes_to_parts_by_encode_and_recompute_and_not_by_the_key_alone(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    llm_repo.set_interest(repo, EXTRACTIVE_PARTS)
    with pytest.raises(ConfigError, match=r"interest\.form is 'parts', and the memory's vectors"):
        llm_repo.materialize(repo)
    llm_repo.assert_whole(repo)  # nothing was written
    said = encode_anew(repo, say=quietly)
    assert said["encoder"].endswith(PARTS_SUFFIX)
    recompute(repo, since="2000-01-01", stage=None)
    assert fused_online(repo) == {PARTITION_WIDTH}
    rows = kit.published(repo, "partition_vector")
    newest = {row["encoder_version"] for row in rows if len(row["vector"]) == PARTITION_WIDTH}
    assert newest == {repo_status(repo)["in_use"]["encoder_version"]}
    assert sum(row["encoder_version"] in newest for row in rows) == kit.SEALED_COUNT


def test_a_form_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    llm_repo.set_interest(repo, {"backend": "extractive", "form": "pieces"})
    with pytest.raises(ConfigError, match=r"interest\.form: Input should be 'plain' or 'parts', found 'pieces'\.$"):
        repo_status(repo)
