"""Evidence that the stage published, in training, in serving and in a comparison: one score everywhere."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from feast import FeatureStore
from rich.console import Console

from liber_feast.artifact import load_artifact, to_tensors
from serving.ranker import open_ranker
from tests.feature_repo_kit import materialized_repo
from tests.test_training_fit import OPTIONS
from training.compare import compare
from training.comparison import Comparison
from training.data import TRAINING_SERVICE, Features, load_samples
from training.fit import prepare
from training.run import run_fit

FEATURES: tuple[Features, ...] = ("baseline", "liber", "evidence", "liber+evidence")
SCORED: tuple[Features, ...] = ("baseline", "evidence")
QUIET = Console(quiet=True)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialized_repo(tmp_path_factory.mktemp("evidence") / "repo")


@pytest.mark.parametrize("features", FEATURES)
def test_the_samples_are_those_of_the_features_that_feast_returns(repo: Path, features: Features) -> None:
    found = load_samples(repo, features=features)
    assert found.features == features
    assert found.item_width > 0
    prepared = prepare(found, options=OPTIONS)
    batch = prepared.load(torch.device("cpu")).batch(np.arange(len(found.labels)))
    store = FeatureStore(repo_path=str(repo))
    frame = found.table.select(["user_id", "item_id", "event_timestamp", "rating"]).to_pandas()
    service = store.get_feature_service(TRAINING_SERVICE[features])
    lists = to_tensors(
        prepared.spec.encode(store.get_historical_features(entity_df=frame, features=service).to_arrow())
    )
    torch.testing.assert_close(batch["dense"], lists["dense"], rtol=0, atol=1e-6)
    assert batch["dense"][:, 3:].abs().amax(0).min() > 0


@pytest.mark.parametrize("features", SCORED)
def test_a_served_score_is_that_of_the_offline_features(repo: Path, tmp_path: Path, features: Features) -> None:
    run_fit(repo, features=features, folder=tmp_path / "run", options=OPTIONS, console=QUIET)
    ranker, run = open_ranker(repo, run=tmp_path / "run"), load_artifact(tmp_path / "run")
    samples = load_samples(repo, features=features)
    items = sorted(set(samples.table["item_id"].to_pylist()))[:20]
    store = FeatureStore(repo_path=str(repo))
    service = store.get_feature_service(TRAINING_SERVICE[features])
    for user in sorted(set(samples.table["user_id"].to_pylist())):
        frame = pd.DataFrame(
            {"user_id": user, "item_id": items, "event_timestamp": pd.Timestamp("2030-01-01", tz="UTC")}
        )
        rows = store.get_historical_features(entity_df=frame, features=service).to_arrow()
        expected = dict(zip(rows["item_id"].to_pylist(), run.score(run.spec.encode(rows)), strict=True))
        ranking = ranker.score(user, item_ids=items)
        assert [one.score for one in ranking.scores] == pytest.approx([expected[name] for name in items], abs=1e-6)
        assert ranking.missing.evidence_version_mismatch is None


def test_a_comparison_reads_every_feature_set_of_a_store(repo: Path, tmp_path: Path) -> None:
    chosen = Comparison(
        backbones=("dcn",), features=FEATURES, seeds=2, folds=1, options=OPTIONS, configs={"dcn": {"hidden": (4,)}}
    )
    document = compare(
        repo, comparison=chosen, folder=tmp_path / "out", data="small", history="mean", processes=1, console=QUIET
    )
    assert document["held"]["window_match"]
    assert set(document["backbones"]["dcn"]) > set(FEATURES[1:])
