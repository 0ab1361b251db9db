"""A memory and a catalog made of a data set, for benchmarks of the interest stage alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from liber_feast.behavior import ITEM, USER
from liber_feast.condition import CountCondition
from liber_feast.datasets.data_set import DataSet
from liber_feast.interest import Item
from liber_feast.memory import Memory

PARTITION_SIZE = 20


@dataclass(frozen=True)
class TableCatalog:
    """The items and users of a data set."""

    data_set: DataSet

    def items(self, item_ids: Iterable[str]) -> Mapping[str, Item]:
        """Return every item asked for."""
        return {item_id: self._items[item_id] for item_id in item_ids}

    def profiles(self, user_ids: Iterable[str]) -> Mapping[str, str]:
        """Return every profile asked for; empty where nothing is known."""
        return {user_id: self._profiles[user_id] for user_id in user_ids}

    @cached_property
    def _items(self) -> dict[str, Item]:
        return {row[ITEM]: _item(row) for row in self.data_set.items.to_pylist()}

    @cached_property
    def _profiles(self) -> dict[str, str]:
        return {row[USER]: row.get("profile") or "" for row in self.data_set.users.to_pylist()}


def memory_of(behaviors: pa.Table, folder: Path) -> Memory:
    """Return a new memory that holds canonical behaviors, in partitions of 20."""
    memory = Memory.open("sqlite:///memory.db", base=folder)
    memory.append(behaviors, condition=CountCondition(PARTITION_SIZE))
    return memory


def _item(row: Mapping[str, Any]) -> Item:
    own = ("title", "categories", "period")
    texts = {name: value for name, value in row.items() if isinstance(value, str) and value}
    return Item(
        item_id=row[ITEM],
        title=texts.get("title"),
        categories=tuple(row["categories"] or ()),
        period=texts.get("period"),
        attributes={name: value for name, value in texts.items() if name not in (*own, ITEM)},
    )
