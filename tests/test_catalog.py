"""What the catalog says of items and users at a time."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from feast import FeatureStore

from liber_feast.catalog import FeastCatalog
from tests.feature_repo_kit import loaded_repo

SECOND_US = 1_000_000


def at(second: int) -> int:
    return second * SECOND_US


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> FeastCatalog:
    """A catalog of one item with two titles, from second 10 and from second 20 on, and one user likewise."""
    repo = loaded_repo(tmp_path_factory.mktemp("catalog") / "repo")
    for table, key, text in (("items", "item_id", "title"), ("users", "user_id", "profile")):
        times = pa.array([datetime.fromtimestamp(second, UTC) for second in (20, 10)], pa.timestamp("us", tz="UTC"))
        rows = pa.table({key: ["one", "one"], text: ["second", "first"], "event_timestamp": times})
        write_deltalake(str(repo / "data" / table), rows, mode="overwrite", schema_mode="overwrite")
    store = FeatureStore(repo_path=str(repo))
    views = {view.name: view for view in store.list_feature_views()}
    return FeastCatalog(items=views["item_attributes"], profiles=views["user_profile"], config=store.config)


@pytest.mark.parametrize(
    ("second", "text"),
    [(10, "first"), (19, "first"), (20, "second"), (99, "second"), (5, "first")],
    ids=[
        "from its first row on",
        "until the next",
        "from the next on",
        "for ever",
        "before its first row, as it has it",
    ],
)
def test_items_and_users_are_as_they_were_at_the_time(catalog: FeastCatalog, second: int, text: str) -> None:
    wanted = ("one", at(second))
    assert catalog.items_at([wanted])[wanted].title == text
    assert catalog.profiles_at([wanted])[wanted] == text


def test_without_a_time_the_newest_row_counts_and_what_is_unknown_has_its_id_alone(catalog: FeastCatalog) -> None:
    found = catalog.items(["one", "other"])
    assert (found["one"].title, found["other"].title, found["other"].item_id) == ("second", None, "other")
    assert catalog.items_at([("other", 0)])["other", 0].title is None
    assert catalog.profiles_at([("other", 0)])["other", 0] == ""
