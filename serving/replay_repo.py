"""A feature repo of its own to replay a day in: nothing of the repo it is made from is written to."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml  # type: ignore[import-untyped]
from deltalake import DeltaTable, write_deltalake

from liber_feast.behavior import EVENT_TIME, TIMESTAMP, USER
from liber_feast.datasets.writer import DESCRIPTION, TABLES
from liber_feast.errors import ConfigError, DataSetError

LOCAL = {"registry": "data/registry.db", "online_store": {"type": "sqlite", "path": "data/online.db"}}
KEPT = ("encoder", "item_encoder")
"""Folders of fitted PCAs: vectors must be those that the run was trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """What happened on one day, and the users it happened to."""

    start: datetime
    behaviors: pa.Table
    earlier: pa.Table
    """The behaviors of these users before that day."""

    @property
    def user_ids(self) -> list[str]:
        """The users, each once."""
        found: list[str] = pc.unique(self.behaviors[USER]).to_pylist()
        return found


def find_day(repo: Path, *, day: date | None, user_limit: int | None) -> Day:
    """Return a day (UTC) of the log of a feature repo, the last one where none is named.

    Raises:
        DataSetError: nothing happened on that day.
    """
    log = _table(repo, "behaviors")
    times = log[EVENT_TIME].cast(TIMESTAMP)
    chosen = day or pc.max(times).as_py().astimezone(UTC).date()
    start = datetime.combine(chosen, time(), UTC)
    end = start + timedelta(days=1)
    is_then = pc.and_(pc.greater_equal(times, start), pc.less(times, end))
    behaviors = log.filter(is_then)
    if not behaviors.num_rows:
        raise DataSetError(f"{repo} has no behavior on {chosen.isoformat()} (UTC). Name another --day.")
    users = pc.unique(behaviors[USER])[:user_limit]
    earlier = log.filter(pc.and_(pc.less(times, start), pc.is_in(log[USER], value_set=users)))
    return Day(start=start, behaviors=behaviors.filter(pc.is_in(behaviors[USER], value_set=users)), earlier=earlier)


def make_repo(folder: Path, *, repo: Path, day: Day, run: Callable[[Sequence[str], Path], object]) -> Path:
    """Make a repo in `folder` with the state at the start of a day; `run` runs a command of Feast in a folder.

    Raises:
        ConfigError: the repo's feature_store.yaml cannot be used.
    """
    shutil.copytree(repo, folder, ignore=shutil.ignore_patterns("data", "data-*", "__pycache__"))
    _make_local(folder)
    for name in KEPT:
        if (repo / "data" / name).is_dir():
            shutil.copytree(repo / "data" / name, folder / "data" / name)
    for name in TABLES:
        rows = day.earlier if name == "behaviors" else _table(repo, name)
        write_deltalake(folder / "data" / name, rows)
    shutil.copy(repo / "data" / DESCRIPTION, folder / "data" / DESCRIPTION)
    run(["apply"], folder)
    first = json.loads((folder / "data" / DESCRIPTION).read_text(encoding="utf-8"))["start"]
    run(["materialize", first, day.start.replace(tzinfo=None).isoformat()], folder)
    return folder


def _make_local(folder: Path) -> None:
    """Keep memory, registry and online store in the folder, and make what a push fills before it returns."""
    path = folder / "feature_store.yaml"
    try:
        document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        engine = {**document["batch_engine"], "memory": "sqlite:///data/memory.db", "on_the_fly": "inline"}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be used: {error!r}.") from error
    engine["fusion"] = {"weights": None}
    (folder / "data").mkdir()
    path.write_text(yaml.safe_dump({**document, **LOCAL, "batch_engine": engine}), encoding="utf-8")


def _table(repo: Path, name: str) -> pa.Table:
    return DeltaTable(str(repo / "data" / name)).to_pyarrow_table()
