"""What the catalog says of items and users at a time."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.types import String

from liber_feast.catalog import FeastCatalog
from liber_feast.errors import ConfigError
from tests.feature_repo_kit import loaded_repo
from tests.offline_repo import open_store, parquet, times, write_parquet

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


def mapped_catalog(repo: Path, *, key: str) -> FeastCatalog:
    """A catalog of one table of one's own, whose source gives its columns our names."""
    write_parquet(
        repo / "products.parquet",
        {
            key: ["one", "one"],
            "name": ["second", "first"],
            "title": ["not", "these"],
            "shop": ["s", "s"],
            "at": times([20, 10]),
        },
    )
    source = parquet("products.parquet", field_mapping={"asin": "item_id", "name": "title", "at": "event_timestamp"})
    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    schema = [Field(name=name, dtype=String) for name in ("title", "shop")]
    view = FeatureView(name="products", entities=[item], ttl=timedelta(0), schema=schema, source=source)
    store = open_store(repo)
    store.apply([item, view])
    view = store.get_feature_view("products")
    return FeastCatalog(items=view, profiles=view, config=store.config)


def test_columns_have_the_names_that_the_source_gives_them(tmp_path: Path) -> None:
    catalog = mapped_catalog(tmp_path, key="asin")
    found = catalog.items(["one"])["one"]
    assert (found.title, found.attributes["shop"]) == ("second", "s")
    assert not {"asin", "name"} & set(found.attributes)


def test_a_table_without_its_key_is_named(tmp_path: Path) -> None:
    catalog = mapped_catalog(tmp_path, key="sku")
    with pytest.raises(ConfigError, match="feature view 'products': column 'item_id' is missing in .*found sku, name"):
        catalog.items(["one"])
