"""The interests behind a score, from the tables and vectors that the plugin publishes."""

from pathlib import Path

import numpy as np
import pytest

from liber_feast.fuser import Fuser, load_fusion
from liber_feast.fusion import AttentionFusion, save_fusion
from liber_feast.repo import repo_status, use_run
from serving.interests import InterestReader, Interests
from serving.online import open_features
from tests import feature_repo_kit as kit

USER = "u0001"


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.materialized_repo(tmp_path_factory.mktemp("store") / "repo")


def read(repo: Path, user_id: str, *, fuser: Fuser | None = None, limit: int = 50) -> Interests:
    return InterestReader(open_features(repo, service="ctr_serving"), fuser=fuser).read(user_id, limit=limit)


def test_partitions_are_told_newest_first_with_their_texts_and_times(repo: Path) -> None:
    found = read(repo, USER).partitions
    indexes = [one.partition_index for one in found]
    assert len(indexes) > kit.WINDOW
    assert indexes == list(reversed(range(len(indexes))))
    assert all(one.summary and one.behavior_count == kit.SIZE and one.model for one in found)
    assert all(one.first_time <= one.last_time for one in found if one.first_time and one.last_time)
    assert [bool(one.shift) for one in found] == [True] * (len(found) - 1) + [False]


def test_the_newest_partitions_alone_where_asked(repo: Path) -> None:
    every = read(repo, USER).partitions
    assert read(repo, USER, limit=2).partitions == every[:2]


def test_the_mean_weighs_the_partitions_of_the_window_alike_and_no_other(repo: Path) -> None:
    found = read(repo, USER)
    assert found.fusion_version == "mean"
    weights = [one.weight for one in found.partitions]
    assert weights[: kit.WINDOW] == [pytest.approx(1 / kit.WINDOW)] * kit.WINDOW
    assert set(weights[kit.WINDOW :]) == {None}


def test_weights_of_trained_attention_make_the_fused_vector_that_is_online(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    fusion = AttentionFusion(width=2 * kit.WIDTH, fused_width=4)
    save_fusion(fusion, tmp_path / "run" / "fusion", encoder_version=repo_status(repo)["in_use"]["encoder_version"])
    use_run(tmp_path / "run", repo=repo)
    fuser = load_fusion(tmp_path / "run" / "fusion")
    partitions = read(repo, USER, fuser=fuser).partitions[: kit.WINDOW]
    features = open_features(repo, service="ctr_serving")
    rows = {row["partition_index"]: row["vector"] for row in features.published_rows("long_term_memory", USER)}
    vectors = np.array([rows[one.partition_index] for one in partitions])
    values = vectors @ fuser.weights["value.weight"].T + fuser.weights["value.bias"]
    (user,) = features.users([USER])
    assert sum(one.weight or 0 for one in partitions) == pytest.approx(1)
    np.testing.assert_allclose([one.weight for one in partitions] @ values, user.values["fused"], atol=1e-6)
    assert {one.weight for one in read(repo, USER).partitions} == {None}  # of weights that are not the run's


def test_a_user_nobody_has_seen_has_no_partitions(repo: Path) -> None:
    assert read(repo, "nobody") == Interests(user_id="nobody", fusion_version=None, partitions=())
