"""Items that were edited before and after a fit: a served score is that of the offline features, in every place."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from feast import FeatureStore
from rich.console import Console

from liber_feast.artifact import load_artifact
from serving.ranker import open_ranker
from tests.feature_repo_kit import END, START, close, log_of, materialized_repo, users_of
from tests.test_training_fit import OPTIONS
from training.run import run_fit

pytestmark = pytest.mark.usefixtures("one_thread")
LATER = datetime(2023, 12, 31, tzinfo=UTC)


def edit(repo: Path, *, at: datetime, chosen: Callable[[int], bool]) -> None:
    """Give some items the categories and period of their neighbor from a time on, and materialize."""
    path = str(repo / "data" / "items")
    rows = DeltaTable(path).to_pyarrow_table().sort_by([("item_id", "ascending"), ("event_timestamp", "ascending")])
    others = rows.take(pa.array(np.roll(np.arange(len(rows)), 1)))
    for name in ("categories", "period"):
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), others[name])
    place = rows.column_names.index("event_timestamp")
    moment = pa.array([at] * len(rows), pa.timestamp("us", tz="UTC")).cast(rows.schema.field(place).type)
    rows = rows.set_column(place, rows.schema.field(place), moment)
    write_deltalake(path, rows.filter(pa.array([chosen(row) for row in range(len(rows))])), mode="append")
    store = FeatureStore(repo_path=str(repo))
    store.materialize(START, END)
    close(store)


@pytest.mark.parametrize("features", ["baseline", "evidence"])
def test_a_served_score_is_that_of_the_offline_features(tmp_path: Path, features: str) -> None:
    repo = materialized_repo(tmp_path / "repo")
    times = log_of(repo)["event_timestamp"].to_pylist()
    edit(repo, at=times[len(times) // 2], chosen=lambda row: row % 2 == 0)
    run_fit(repo, features=features, folder=tmp_path / "run", options=OPTIONS, console=Console(quiet=True))  # type: ignore[arg-type]
    run = load_artifact(tmp_path / "run")
    assert len(run.spec.items.ids) > len(set(run.spec.items.ids))
    items = sorted(set(run.spec.items.ids))[:20]
    before = {
        user: [one.score for one in open_ranker(repo, run=tmp_path / "run").score(user, item_ids=items).scores]
        for user in users_of(repo)
    }
    edit(repo, at=LATER, chosen=lambda row: row % 3 == 0)
    ranker, store = open_ranker(repo, run=tmp_path / "run"), FeatureStore(repo_path=str(repo))
    service = store.get_feature_service(run.facts.training_service)
    changed = 0
    for user in users_of(repo):
        frame = pd.DataFrame(
            {"user_id": user, "item_id": items, "event_timestamp": pd.Timestamp("2030-01-01", tz="UTC")}
        )
        rows = store.get_historical_features(entity_df=frame, features=service).to_arrow()
        expected = dict(zip(rows["item_id"].to_pylist(), run.score(run.spec.encode(rows)), strict=True))
        found = [one.score for one in ranker.score(user, item_ids=items).scores]
        assert found == pytest.approx([expected[name] for name in items], abs=1e-6)
        changed += sum(abs(new - old) > 1e-5 for new, old in zip(found, before[user], strict=True))
    assert changed
