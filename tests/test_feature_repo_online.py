"""What serving reads now is what training would get for now, feature by feature."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from feast.data_source import PushMode

from tests import feature_repo_kit as kit


def assert_online_is_history_now(repo: Path) -> dict[str, list[object]]:
    """Compare every LIBER feature of every user; return the online ones."""
    store, users = kit.open_store(repo), kit.users_of(repo)
    entities = pd.DataFrame({"user_id": users, "event_timestamp": datetime.now(UTC)})
    features = kit.features_of(store, *kit.LIBER_VIEWS)
    history = store.get_historical_features(entities, features, full_feature_names=True).to_arrow().to_pydict()
    online = kit.online(store, users)
    assert len(online) == 1 + 4 + 7 + 5 + 3 + 3 + 8
    for name, values in online.items():
        assert values == history[name], name
    items = sorted({row["item_id"] for row in kit.published(repo, kit.ITEM_VIEW, key="item_id")})
    asked = pd.DataFrame({"item_id": items, "event_timestamp": datetime.now(UTC)})
    then = store.get_historical_features(asked, kit.features_of(store, kit.ITEM_VIEW)).to_arrow().to_pydict()
    for name, values in kit.online_items(store, items).items():
        assert values == then[name], name
    return online


def test_online_is_history_after_a_materialization(tmp_path: Path) -> None:
    online = assert_online_is_history_now(kit.materialized_repo(tmp_path / "repo"))
    assert online["long_term_memory__partition_count"] == [3, 1, 3, 3, None]
    assert online["behavior_sequence__behavior_count"] == [19, 7, 23, 25, 3]
    assert [len(times) for times in online["behavior_sequence__times"]] == [6, 6, 6, 6, 3]  # type: ignore[arg-type]


def test_online_is_history_after_pushes_late_ones_and_repetitions(tmp_path: Path) -> None:
    repo = kit.materialized_repo(tmp_path / "repo")
    store, now = kit.open_store(repo), kit.END - timedelta(days=1)
    pushes = [
        kit.behavior("u0001", "i0003", at=now),  # fills a partition
        kit.behavior("u0002", "i0003", at=kit.START, rating=1.0),  # late, and fills one
        kit.behavior("u0005", "i0003", at=now),  # the user's first partition
        kit.behavior("u0006", "i0003", at=now),  # a new user
        kit.behavior("u0001", "i0003", at=now),  # seen before
        kit.behavior("u0001", "i0001", at=now),  # the same time
        kit.behavior("u0001", "i0005", at=now),
    ]
    for rows in pushes:
        store.push("behavior_push", rows, to=PushMode.ONLINE_AND_OFFLINE)
    kit.close(store)
    online = assert_online_is_history_now(repo)
    assert online["partition_summary__partition_index"] == [4, 1, 4, 5, 0, None]
    assert online["behavior_sequence__behavior_count"] == [22, 8, 23, 25, 4, 1]


@pytest.mark.parametrize("size", [1, 2, 20])
def test_online_is_history_whatever_the_partition_size(tmp_path: Path, size: int) -> None:
    repo = kit.loaded_repo(tmp_path / "repo")
    path = repo / "feature_store.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(f"size: {kit.SIZE}", f"size: {size}"), encoding="utf-8")
    store = kit.open_store(repo)
    store.materialize(kit.START, kit.END)
    kit.close(store)
    assert_online_is_history_now(repo)
