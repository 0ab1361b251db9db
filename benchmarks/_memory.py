"""A memory and a catalog made of a data set, for benchmarks of the interest stage alone."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from liber_feast.behavior import EVENT_TIME, ITEM, RATING, TIMESTAMP, USER, check_behaviors
from liber_feast.budget import Budget, Limits, Prices
from liber_feast.condition import CountCondition
from liber_feast.datasets.data_set import DataSet
from liber_feast.interest import Item
from liber_feast.llm.chat import ChatBackend
from liber_feast.llm.chat_learner import ChatLearner
from liber_feast.llm.rate_limit import RateLimits
from liber_feast.materialize import utc_microseconds
from liber_feast.memory import Memory
from liber_feast.memory.ledger import MemoryLedger
from liber_feast.prompt import load_prompt
from liber_feast.waves import MemoryWaves

PARTITION_SIZE = 20
PRICES = Prices(input=0.15, cached_input=0.075, output=0.6)
LARGE_BUDGET = Budget(run=Limits(calls=1_000_000, dollars=1_000.0), day=Limits(tokens=10**10))
"""Limits that are checked and never reached."""


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

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        """Return items by (id, time); they do not change."""
        return {(item_id, time): self._items[item_id] for item_id, time in wanted}

    def profiles_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], str]:
        """Return profiles by (user id, time); they do not change."""
        return {(user_id, time): self._profiles[user_id] for user_id, time in wanted}

    @cached_property
    def _items(self) -> dict[str, Item]:
        return {row[ITEM]: _item(row) for row in self.data_set.items.to_pylist()}

    @cached_property
    def _profiles(self) -> dict[str, str]:
        return {row[USER]: row.get("profile") or "" for row in self.data_set.users.to_pylist()}


def memory_of(behaviors: pa.Table, folder: Path, *, partition_size: int = PARTITION_SIZE) -> Memory:
    """Return a new memory that holds canonical behaviors in partitions."""
    memory = Memory.open("sqlite:///memory.db", base=folder)
    memory.append(behaviors, condition=CountCondition(partition_size))
    return memory


def even_behaviors(data_set: DataSet, *, users: int, per_user: int) -> pa.Table:
    """Return so many canonical behaviors for each user, with items and ratings drawn from the data set."""
    rng = np.random.default_rng(0)
    start = int(datetime(2022, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
    minutes = np.tile(np.arange(per_user), users) * 60_000_000
    table = pa.table(
        {
            USER: pa.array(np.repeat(data_set.users[USER].to_pylist()[:users], per_user)),
            ITEM: pa.array(rng.choice(data_set.items[ITEM].to_pylist(), users * per_user)),
            RATING: pa.array(rng.integers(1, 6, users * per_user).astype(float)),
            EVENT_TIME: pa.array(start + minutes).cast(TIMESTAMP),
        }
    )
    return check_behaviors(table, scale=data_set.scale, now=datetime.now(UTC)).table


def cascade_of(
    memory: Memory,
    data_set: DataSet,
    *,
    model: str,
    open_backend: Callable[[], ChatBackend],
    max_attempts: int,
    budget: Budget = LARGE_BUDGET,
    prices: Prices = PRICES,
) -> tuple[ChatLearner, MemoryWaves]:
    """Return what `interest.learn` runs on: a learner that asks a backend, and the waves of a memory."""
    prompt = load_prompt(data_set.prompt)
    ledger = MemoryLedger(
        memory, budget=budget, prices=prices, model=model, prompt_version=prompt.version, clock=utc_microseconds
    )
    learner = ChatLearner(
        prompt=prompt,
        model=model,
        open_backend=open_backend,
        ledger=ledger,
        rates=RateLimits(),
        prices=prices,
        max_attempts=max_attempts,
    )
    waves = MemoryWaves(
        memory=memory,
        catalog=TableCatalog(data_set),
        learner=learner,
        like_above=data_set.scale.like_above,
        clock=utc_microseconds,
    )
    return learner, waves


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
