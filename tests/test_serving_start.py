import shutil
from pathlib import Path

import pytest
from feast import FeatureStore

from serving.__main__ import main
from serving.ranker import open_ranker
from tests.serving_parts import OTHER_VERSION, VERSION, make_run, make_store, publish_fused, write_configuration
from tests.serving_process import PATIENT_OPTIONS, fetch, serving


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "din-liber")


@pytest.fixture(scope="module")
def repo(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("repo"), run=run)


def refusal(capsys: pytest.CaptureFixture[str], *, repo: Path, run: Path) -> str:
    """Return what `python -m serving` writes to stderr when it refuses to start."""
    with pytest.raises(SystemExit) as ended:
        main(["--repo", str(repo), "--model", str(run)])
    assert ended.value.code == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith("Error: ")
    assert written.err.count("\n") == 1
    return written.err


def test_a_missing_run_folder_is_one_line(capsys: pytest.CaptureFixture[str], repo: Path, tmp_path: Path) -> None:
    line = refusal(capsys, repo=repo, run=tmp_path / "absent")
    assert str(tmp_path / "absent") in line
    assert "python -m training fit" in line


def test_a_folder_that_is_no_feature_repo_is_one_line(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    assert f"{tmp_path}: there is no feature_store.yaml" in refusal(capsys, repo=tmp_path, run=run)


def test_a_repo_that_was_never_applied_is_one_line_and_stays_untouched(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    assert "Run `feast apply`" in refusal(capsys, repo=write_configuration(tmp_path), run=run)
    assert [path.name for path in tmp_path.iterdir()] == ["feature_store.yaml"]


def test_a_store_without_the_feature_service_is_one_line(
    capsys: pytest.CaptureFixture[str], repo: Path, run: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(repo, tmp_path / "repo")
    FeatureStore(repo_path=str(other)).delete_feature_service("ctr_serving")
    line = refusal(capsys, repo=other, run=run)
    assert "feature service 'ctr_serving'" in line
    assert "it has: ctr_baseline" in line


def test_a_store_without_a_feature_of_the_run_is_one_line(
    capsys: pytest.CaptureFixture[str], repo: Path, run: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(repo, tmp_path / "repo")
    store = FeatureStore(repo_path=str(other))
    view = store.get_feature_view("user_profile")
    service = store.get_feature_service("ctr_serving")
    service.feature_view_projections[0] = view[["profile"]].projection
    store.apply([service])
    assert "lacks the feature 'age_group'" in refusal(capsys, repo=other, run=run)


def test_an_online_store_that_lost_its_tables_is_one_line(
    capsys: pytest.CaptureFixture[str], repo: Path, run: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(repo, tmp_path / "repo")
    (other / "data" / "online.db").unlink()
    assert "No such file" in refusal(capsys, repo=other, run=run)
    (other / "data" / "online.db").touch()
    assert "no such table" in refusal(capsys, repo=other, run=run)


def test_a_store_that_publishes_vectors_of_other_weights_alone_is_refused(
    capsys: pytest.CaptureFixture[str], repo: Path, run: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(repo, tmp_path / "repo")
    publish_fused(other, user_ids=["of other weights", "of other weights", "forgotten"])
    line = refusal(capsys, repo=other, run=run)
    assert VERSION in line
    assert OTHER_VERSION in line
    assert "liber fuse" in line


def test_a_store_that_publishes_vectors_of_the_run_is_served(repo: Path, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(repo, tmp_path / "repo")
    publish_fused(other, user_ids=["of other weights", "u1"])
    assert open_ranker(other, run=run).model.fusion_version == VERSION


def test_a_baseline_run_does_not_care_for_fusion_versions(repo: Path, tmp_path: Path) -> None:
    other = shutil.copytree(repo, tmp_path / "repo")
    publish_fused(other, user_ids=["of other weights"])
    baseline = make_run(tmp_path / "din-baseline", features="baseline")
    assert open_ranker(other, run=baseline).model.fusion_version is None


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_server_answers_over_http_until_it_is_terminated(
    repo: Path, run: Path, tmp_path: Path, workers: int
) -> None:
    log = tmp_path / "stderr"
    options = [*PATIENT_OPTIONS, "--workers", str(workers)]
    with serving(*options, repo=repo, run=run, log=log) as address:
        body = fetch(f"{address}/v1/score", body={"user_id": "u1", "item_ids": ["i1", "ghost"]})
        assert [item["title"] for item in body["scores"]] == ["Title of i1", None]
        assert fetch(f"{address}/healthz")["model"] == body["model"]
    text = log.read_text(encoding="utf-8")
    assert text.startswith(
        f"serving din-liber (training.backbones.din:DIN, ctr_serving, fusion {VERSION}) on {address}\n"
    )
    assert "Traceback" not in text
