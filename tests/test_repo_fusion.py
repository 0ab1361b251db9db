"""What `liber fuse` refuses, and what it brings into use."""

import shutil
from pathlib import Path

import pytest
import yaml

from liber_feast.errors import ArtifactError, ConfigError, LiberError
from liber_feast.fusion import AttentionFusion, save_fusion
from liber_feast.repo import repo_status, use_run
from tests import feature_repo_kit as kit


def make_run(folder: Path, *, encoder_version: str) -> Path:
    fusion = AttentionFusion(width=2 * kit.WIDTH, fused_width=4)
    save_fusion(fusion, folder / "fusion", encoder_version=encoder_version)
    return folder


def encoder_version(repo: Path) -> str:
    return str(repo_status(repo)["in_use"]["encoder_version"])


def refusal(run: Path, *, repo: Path, kind: type[LiberError]) -> str:
    """Return the one line with which `use_run` refuses; the memory stays as it was."""
    before = kit.memory_rows(repo)
    with pytest.raises(kind) as caught:
        use_run(run, repo=repo)
    assert "\n" not in caught.value.message
    assert kit.memory_rows(repo) == before
    return caught.value.message


def test_a_run_of_this_encoder_comes_into_use(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    facts = use_run(make_run(tmp_path / "run", encoder_version=encoder_version(repo)), repo=repo)
    nothing = dict.fromkeys(("summary", "shift", "vector", "evidence", "item_text"), 0)
    assert facts["rows"] == {**nothing, "fused": kit.SEALED_COUNT}
    assert repo_status(repo)["in_use"]["fusion_version"] == facts["fusion_version"] != "mean"


def test_a_run_without_fusion_is_refused(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    (tmp_path / "run").mkdir()
    assert "there are no fusion weights" in refusal(tmp_path / "run", repo=repo, kind=ArtifactError)


def test_a_run_of_another_encoder_is_refused(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    run = make_run(tmp_path / "run", encoder_version="other")
    message = refusal(run, repo=repo, kind=ArtifactError)
    assert "encoder other" in message
    assert encoder_version(repo) in message


def test_a_store_without_an_encoder_is_refused(tmp_path: Path) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    run = make_run(tmp_path / "run", encoder_version="of another store")
    with pytest.raises(ArtifactError, match="the store has none"):
        use_run(run, repo=repo)


def test_weights_that_the_configuration_pins_are_not_switched(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    run = make_run(tmp_path / "run", encoder_version=encoder_version(repo))
    shutil.copytree(run / "fusion", repo / "data" / "pinned")
    path = repo / "feature_store.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["batch_engine"]["fusion"] = {"weights": "data/pinned"}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert "fusion.weights pins 'data/pinned'" in refusal(run, repo=repo, kind=ConfigError)
