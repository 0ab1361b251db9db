"""A memory with the stage `evidence` and a few described items, published into a folder."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from liber_feast.delta import DeltaSink
from liber_feast.evidence_stage import EvidenceCounts, EvidenceStage
from liber_feast.fuser import mean_fuser
from liber_feast.interest import Item
from liber_feast.item_encoding import ItemEncoding
from liber_feast.memory import Memory
from liber_feast.memory.evidence_tables import partition_evidence
from liber_feast.memory.schema import users
from liber_feast.publish import ALL_VIEWS, Publisher
from tests.memory_parts import START_US, OnlineRows, TickingClock, TinyBert, TinyEncoding, no_progress

WIDTH = 2
ITEMS = 6


def titled(number: int, *, title: str = "") -> Item:
    return Item(item_id=f"i{number}", title=title or f"The item {number}", categories=("Drama",), period=None)


@dataclass(kw_only=True)
class ItemVersions:
    """Items by id and time, oldest first; what is not described has its id alone."""

    versions: dict[str, list[tuple[int, Item]]] = field(default_factory=dict)

    def describe(self, *items: Item, at: int = START_US) -> None:
        for item in items:
            self.versions.setdefault(item.item_id, []).append((at, item))

    def items_at(self, wanted: Iterable[tuple[str, int]]) -> Mapping[tuple[str, int], Item]:
        found = {}
        for item_id, time in wanted:
            known = self.versions.get(item_id, [(0, Item(item_id=item_id))])
            found[item_id, time] = [item for at, item in known if at <= time or at == known[0][0]][-1]
        return found

    def item_versions(self, item_ids: Iterable[str] | None = None) -> Iterator[tuple[str, int, Item]]:
        for item_id in sorted(self.versions if item_ids is None else self.versions.keys() & set(item_ids)):
            for at, item in self.versions[item_id]:
                yield item_id, at, item


def described_items() -> ItemVersions:
    items = ItemVersions()
    items.describe(*(titled(number) for number in range(ITEMS)))
    return items


def stage_of(memory: Memory, folder: Path, *, items: ItemVersions, bert: TinyBert | None = None) -> EvidenceStage:
    """Return the stage; its PCA lies in `folder`."""
    encoding = ItemEncoding(folder=folder, width=WIDTH, encoding=TinyEncoding(folder=folder / "texts", bert=bert))
    return EvidenceStage(memory=memory, catalog=items, encoding=encoding, like_above=3.0)


def run(stage: EvidenceStage, *names: str) -> EvidenceCounts:
    """Run the stage, for all users or for those of `names`."""
    keys = None
    if names:
        with stage.memory.reading() as connection:
            keys = list(connection.scalars(sa.select(users.c.user_key).where(users.c.user_id.in_(names))))
    return stage.run(user_keys=keys, progress=no_progress)


def kept(memory: Memory) -> dict[tuple[str, int], tuple[int, int, bytes]]:
    """Return likes, behaviors and the sum of every partition that has evidence, by user and index."""
    joined = partition_evidence.join(users, users.c.user_key == partition_evidence.c.user_key)
    columns = (partition_evidence.c[name] for name in ("like_count", "behavior_count", "signed_sum"))
    query = sa.select(users.c.user_id, partition_evidence.c.partition_index, *columns).select_from(joined)
    with memory.reading() as connection:
        return {(user, index): tuple(row) for user, index, *row in connection.execute(query)}  # type: ignore[misc]


@dataclass(kw_only=True)
class OnlineFeatures(OnlineRows):
    """An online store that knows items, too."""

    def write(self, view: str, rows: pa.Table, **order: Any) -> None:
        if "item_id" in rows.column_names and view == "item_text":
            rows = rows.rename_columns(["user_id" if name == "item_id" else name for name in rows.column_names])
        super().write(view, rows, **order)


def publisher_of(memory: Memory, folder: Path, *, online: OnlineRows) -> Publisher:
    """Return a publisher of all stages, without a PCA of texts."""
    return Publisher(
        memory=memory,
        tables={stage: DeltaSink(path=folder / view) for stage, view in ALL_VIEWS.items()},
        online=online,
        fuser=lambda _encoder_version: replace(mean_fuser(width=4), version="mean"),
        encoder_version=None,
        vector_width=2,
        memory_window=2,
        sequence_length=3,
        clock=TickingClock(),
    )


def floats(values: bytes) -> list[float]:
    return [float(one) for one in np.frombuffer(values, "<f8")]
