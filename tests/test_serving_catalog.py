from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.catalog import ItemCatalog
from serving.online import OnlineRow


class CountingFeatures:
    """Item attributes in a dictionary; remembers every read."""

    def __init__(self, titles: dict[str, str]) -> None:
        self.titles = titles
        self.reads: list[list[str]] = []

    def items(self, item_ids: Sequence[str]) -> list[OnlineRow]:
        self.reads.append(list(item_ids))
        return [self._row(name) for name in item_ids]

    def _row(self, name: str) -> OnlineRow:
        values: dict[str, Any] = {"item_id": name, "title": self.titles.get(name)}
        return OnlineRow(values=values, views=frozenset({"item_attributes"} if name in self.titles else ()))


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_item_is_read_once_while_it_is_fresh() -> None:
    features = CountingFeatures({"a": "A", "b": "B"})
    catalog = ItemCatalog(features, clock=Clock())
    catalog.attributes(["a", "a", "b"])
    assert catalog.attributes(["b", "a"])["a"]["title"] == "A"
    assert features.reads == [["a", "b"]]


def test_only_the_items_the_cache_lacks_are_read() -> None:
    features = CountingFeatures({"a": "A", "b": "B"})
    catalog = ItemCatalog(features, clock=Clock())
    catalog.attributes(["a"])
    catalog.attributes(["a", "b"])
    assert features.reads == [["a"], ["b"]]


def test_an_edited_title_and_a_new_item_are_seen_once_the_old_answer_has_expired() -> None:
    features, clock = CountingFeatures({"a": "old"}), Clock()
    catalog = ItemCatalog(features, time_to_live_s=60, clock=clock)
    assert catalog.attributes(["new"]) == {"new": None}
    assert catalog.attributes(["a"])["a"]["title"] == "old"
    features.titles = {"a": "edited", "new": "New"}
    clock.now = 59
    assert catalog.attributes(["a"])["a"]["title"] == "old"
    clock.now = 60
    found = catalog.attributes(["a", "new"])
    assert (found["a"]["title"], found["new"]["title"]) == ("edited", "New")


def test_the_least_recently_used_item_leaves_a_full_cache() -> None:
    features = CountingFeatures({name: name.upper() for name in "abc"})
    catalog = ItemCatalog(features, capacity=2, clock=Clock())
    for name in ("a", "b", "a", "c", "a"):
        catalog.attributes([name])
    assert features.reads == [["a"], ["b"], ["c"]]
    catalog.attributes(["b"])
    assert features.reads[-1] == ["b"]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1)), st.integers(1, 4))
def test_a_cache_of_any_size_answers_what_the_store_holds(requests: list[list[str]], capacity: int) -> None:
    features = CountingFeatures({name: name.upper() for name in "abcde"})
    catalog = ItemCatalog(features, capacity=capacity, clock=Clock())
    for request in requests:
        found = catalog.attributes(request)
        assert {name: row and row["title"] for name, row in found.items()} == {
            name: features.titles.get(name) for name in request
        }
