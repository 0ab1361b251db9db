"""`liber compact`: join small Delta files, remove old ones and old logs, and tidy up the memory."""

import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from liber_feast import delta_maintenance as maintenance
from liber_feast.delta_maintenance import Compacted, Place
from liber_feast.errors import ConfigError
from liber_feast.forget import behavior_log
from liber_feast.job import liber_views, open_job
from liber_feast.memory import Memory
from liber_feast.memory.evidence_tables import item_texts
from liber_feast.memory.leases import PUBLISH, held
from liber_feast.memory.schema import publications, published, runs
from liber_feast.publish import Publisher
from liber_feast.repo import open_engine
from liber_feast.sequences import BEHAVIORS

SHORTEST = timedelta(hours=1)
"""What is read now may be older than the newest version, but hardly by more."""
RUNS_KEPT = 1_000
_UNITS = {"h": "hours", "d": "days"}


def compact(repo: Path, *, retention: str, is_now: bool, say: Callable[[str], object]) -> dict[str, Any]:
    """Compact the tables of a feature repo and tidy up its memory; return what was done.

    Raises:
        StoreNotReady: there is no feature repo, or one that was never applied.
        ConfigError: the retention is no number of hours or days, or too short.
        RetryableError, StoreFailure: a table cannot be written; it is to be run again.
    """
    hours = 0 if is_now else retention_hours(retention)
    store, engine = open_engine(repo)
    log = behavior_log(liber_views(store.registry, project=store.project)[BEHAVIORS], config=store.config)
    job = open_job(store.config, registry=store.registry, online_store=engine.online_store, with_llm=False)
    try:
        tables = compact_published(job.publisher(), hours=hours, say=say)
        if log.location.is_delta:
            place = Place(path=log.location.path, options=log.location.storage_options)
            if place.is_made():
                say("behaviors ...")
                tables[BEHAVIORS] = maintenance.compact(place, retention_hours=hours)
        say("memory ...")
        tidied = tidy(job.memory)
    finally:
        job.memory.close()
    return {"tables": {name: asdict(one) for name, one in tables.items()}, **tidied}


def retention_hours(retention: str) -> int:
    """Return the hours of a time like 7d or 12h.

    Raises:
        ConfigError: it is none, or too short for those who read now.
    """
    found = re.fullmatch(r"([0-9]{1,5})([hd])", retention.strip())
    if found is None:
        raise ConfigError(f"--retention {retention!r} is no number of hours or days. Say 12h or 7d, for example.")
    kept = timedelta(**{_UNITS[found[2]]: int(found[1])})
    if kept < SHORTEST:
        raise ConfigError(
            f"--retention {retention!r} is too short: who reads a table now may need files of the last hour. Say 1h or"
            " more, or --now where nobody reads."
        )
    return int(kept / timedelta(hours=1))


def compact_published(publisher: Publisher, *, hours: int, say: Callable[[str], object]) -> dict[str, Compacted]:
    """Compact the tables that are published, while nobody publishes; return what was done, by table."""
    done = {}
    with held(publisher.memory, PUBLISH):
        for table in publisher.tables.values():
            place = Place(path=str(table.path))
            if place.is_made():
                say(f"{table.path.name} ...")
                done[table.path.name] = maintenance.compact(place, retention_hours=hours)
    return done


def tidy(memory: Memory) -> dict[str, int]:
    """Remove publications that no row is left of and reports of old runs; return how many.

    The newest publication stays: its number is that of a commit, and the next one has to be higher.
    """
    newest = sa.select(sa.func.max(publications.c.publication_id)).scalar_subquery()
    is_held = sa.exists().where(published.c.publication_id == publications.c.publication_id)
    is_of_items = sa.exists().where(item_texts.c.publication_id == publications.c.publication_id)
    is_done = publications.c.done_time.is_not(None)
    is_old = is_done & ~is_held & ~is_of_items & (publications.c.publication_id < newest)
    oldest = sa.select(runs.c.run_id).order_by(runs.c.run_id.desc()).offset(RUNS_KEPT - 1).limit(1).scalar_subquery()
    with held(memory, PUBLISH), memory.writing("tidy") as connection:
        gone = connection.execute(publications.delete().where(is_old)).rowcount
        forgotten = connection.execute(runs.delete().where(runs.c.run_id < oldest)).rowcount
    return {"publications_removed": gone, "runs_removed": forgotten}
