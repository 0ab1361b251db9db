"""`liber republish`: write Delta tables and online store anew from the memory, with no call to an LLM or BERT.

A table is replaced in one commit, so that its readers see the rows of before or those of now. Nothing else is
published meanwhile: who republishes holds the lease `publish`.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from deltalake import DeltaTable

from liber_feast import delta_maintenance as maintenance
from liber_feast.behavior import CREATED_TIME, TIMESTAMP, USER
from liber_feast.delta_maintenance import Numbered, Place
from liber_feast.errors import ConfigError, RetryableError
from liber_feast.evidence import EVIDENCE, ITEM_TEXT
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.job import liber_views, open_job
from liber_feast.memory.forgetting import reserve_number
from liber_feast.memory.item_vectors import item_encoder_in_use, published_item_texts
from liber_feast.memory.leases import PUBLISH, held, renew
from liber_feast.memory.publications import Publication, PublishedRow
from liber_feast.memory.schema import publications, published, users
from liber_feast.memory.settings import setting
from liber_feast.memory.texts import known_user_ids
from liber_feast.memory.vectors import VECTOR
from liber_feast.newest_rows import newest_of_items, online_rows
from liber_feast.online import FeastOnlineSink
from liber_feast.projection import Projection
from liber_feast.publish import ALL_VIEWS, USERS_PER_WRITE, Publisher
from liber_feast.repo import open_engine

TRIES = 20
"""How often what others have begun is finished before it is somebody's turn."""
REPUBLISH = "republish"
_ROW = (published.c.user_key, published.c.partition_index, published.c.version, published.c.text_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Republished:
    """What was written anew, rows by name of the stage or view."""

    delta_rows: dict[str, int] = field(default_factory=dict)
    online_rows: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """Return the counts by name."""
        return {"delta_rows": self.delta_rows, "online_rows": self.online_rows, "seconds": round(self.seconds, 2)}


class OnlineRowsOfUsers(Protocol):
    """An online store from which users can be deleted."""

    def delete(self, user_ids: Sequence[str | int]) -> int:
        """Delete the rows of users in every view that the plugin fills; return how many there were."""
        ...


@contextmanager
def own_turn(publisher: Publisher, what: str, *, when_unfinished: bool = False) -> Iterator[Numbered]:
    """Hold the lease `publish` with a number for the commits of something that is no publication.

    What others have begun is finished before, unless it is part of what is written (`when_unfinished`).

    Raises:
        RetryableError: others begin something all the time.
    """
    memory = publisher.memory
    for _ in range(TRIES):
        with held(memory, PUBLISH) as lease:
            with memory.writing(what) as connection:
                renew(connection, lease)
                number = reserve_number(connection, what, when_unfinished=when_unfinished)
            if number is not None:
                yield Numbered(app_id=f"liber/{memory.identity}", number=number)
                return
        publisher.publish(user_keys=())
    raise RetryableError("Others publish all the time; nothing was changed. Run the same command again.")


def republish(
    repo: Path,
    *,
    stage: str | None,
    user_id: str | None,
    say: Callable[[str], object],
    were_online: Collection[str] | None = None,
) -> dict[str, Any]:
    """Write the tables and online rows of a feature repo anew, of all stages or one, of all users or one.

    Online rows that the memory does not have stay, unless it is said whose there may be (`were_online`).

    Raises:
        StoreNotReady: there is no feature repo, or one that was never applied.
        ConfigError: the memory does not know the user.
        RetryableError, StoreFailure, MemoryFailure: a store cannot be written; it is to be run again.
    """
    store, engine = open_engine(repo)
    job = open_job(store.config, registry=store.registry, online_store=engine.online_store, with_llm=False)
    online = FeastOnlineSink(
        store=engine.online_store, config=store.config, views=liber_views(store.registry, project=store.project)
    )
    publisher = replace(job.publisher(), online=online)
    try:
        if were_online is not None:
            delete_strangers(publisher, online=online, were_online=were_online)
        return republish_all(publisher, stage=stage, user_id=user_id, say=say).facts()
    finally:
        online.close()
        job.memory.close()


def delete_strangers(publisher: Publisher, *, online: OnlineRowsOfUsers, were_online: Collection[str]) -> None:
    """Delete the online rows of users of whom the memory lacks some or all: they are written anew after this.

    Of whom there may be rows: the memory's users, `were_online`, and whoever is in a Delta table.
    """
    with publisher.memory.reading() as connection:
        projection, keys = publisher.projection(connection), _user_keys(connection, None)
        ids = known_user_ids(connection, keys)
        has_all = set(keys)
        for start in range(0, len(keys), USERS_PER_WRITE):
            some = keys[start : start + USERS_PER_WRITE]
            for stage in publisher.tables:
                if stage == ITEM_TEXT:
                    continue
                has_all -= set(some) - _created_times(connection, projection, stage, some).keys()
        is_integer = setting(connection, f"{USER}_type") == "int64"
    found = {*were_online, *ids.values(), *_published_ids(publisher)}
    gone = sorted(found - {ids[key] for key in has_all})
    for start in range(0, len(gone), USERS_PER_WRITE):
        some_ids = gone[start : start + USERS_PER_WRITE]
        online.delete([int(one) for one in some_ids] if is_integer else some_ids)


def _published_ids(publisher: Publisher) -> set[str]:
    """Return whose rows the Delta tables have."""
    found: set[str] = set()
    for stage, table in publisher.tables.items():
        if stage != ITEM_TEXT and table.is_made():
            rows = DeltaTable(str(table.path)).to_pyarrow_dataset().to_table(columns=[USER])
            found.update(map(str, pc.unique(rows[USER]).to_pylist()))
    return found


def republish_all(
    publisher: Publisher, *, stage: str | None = None, user_id: str | None = None, say: Callable[[str], object]
) -> Republished:
    """Write everything anew, or one stage, or one user; return what was written.

    At the end, what waited to be published is published too.

    Raises:
        ConfigError: the memory does not know the user, or the feature repo has no view of the stage.
    """
    started = time.perf_counter()
    with publisher.memory.reading() as connection:
        keys = _user_keys(connection, user_id)
        has_behaviors = publisher.projection(connection).knows_ids()
    stages = _stages(publisher, stage, is_one_user=user_id is not None)
    delta_rows, online_rows = dict.fromkeys(stages, 0), {}
    if has_behaviors:
        anew = _Anew(publisher=publisher, user_keys=keys, is_one_user=user_id is not None)
        with own_turn(publisher, REPUBLISH, when_unfinished=user_id is None) as numbered:
            for one in stages:
                say(f"{one}: Delta table ...")
                delta_rows[one] = anew.to_delta(one, numbered)
            say("online store ...")
            online_rows = anew.to_online(stages, with_sequences=stage is None)
            if ITEM_TEXT in stages:
                online_rows[ALL_VIEWS[ITEM_TEXT]] = anew.items_to_online()
    publisher.publish(user_keys=None if user_id is None else keys)
    return Republished(delta_rows=delta_rows, online_rows=online_rows, seconds=time.perf_counter() - started)


def _stages(publisher: Publisher, stage: str | None, *, is_one_user: bool) -> list[str]:
    """Return what is written anew: all, of one user all that is of users, or the one that was asked for."""
    if stage is None:
        return [one for one in publisher.tables if not (is_one_user and one == ITEM_TEXT)]
    if stage not in publisher.tables:
        raise ConfigError(
            f"The feature repo has no view {ALL_VIEWS[stage]!r}, so there is nothing to publish of the stage {stage!r}."
            " Define it (README, feature views) and run `feast apply`."
        )
    if is_one_user and stage == ITEM_TEXT:
        raise ConfigError("The stage 'item_text' has rows of items, none of a user. Leave out --user.")
    return [stage]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Anew:
    """What is written while the lease is held."""

    publisher: Publisher
    user_keys: Sequence[int]
    is_one_user: bool

    def to_delta(self, stage: str, numbered: Numbered) -> int:
        """Replace the rows of a stage by those that are published, each as it was when it was published last."""
        if stage == ITEM_TEXT:
            return self._items_to_delta(numbered)
        publisher = self.publisher
        with publisher.memory.reading() as connection:
            projection = publisher.projection(connection)
            nothing = Publication(publication_id=0, stage=stage, created_time=0, rows=())
            ids = known_user_ids(connection, self.user_keys) if self.is_one_user else {}
            schema = publisher.delta_rows(projection, nothing).schema
            is_integer = pa.types.is_integer(schema.field(USER).type)
            return maintenance.replace(
                Place(path=str(publisher.tables[stage].path)),
                (
                    publisher.delta_rows(projection, one)
                    for one in _publications(connection, stage, self.user_keys if self.is_one_user else None)
                ),
                schema=schema,
                numbered=numbered,
                user_ids=[int(one) if is_integer else one for one in ids.values()] if self.is_one_user else None,
            )

    def to_online(self, stages: Sequence[str], *, with_sequences: bool) -> dict[str, int]:
        """Write the newest row of every user over what is online, whatever that is."""
        counts: dict[str, int] = {}
        for start in range(0, len(self.user_keys), USERS_PER_WRITE):
            keys = self.user_keys[start : start + USERS_PER_WRITE]
            for stage in stages:
                if stage == ITEM_TEXT:
                    continue
                view = ALL_VIEWS[stage]
                counts[view] = counts.get(view, 0) + self._stage_to_online(stage, keys)
            if with_sequences:
                for view, count in self._sequences_to_online(keys).items():
                    counts[view] = counts.get(view, 0) + count
        return counts

    def items_to_online(self) -> int:
        """Write the newest row of every item over what is online, whatever that is."""
        publisher = self.publisher
        with publisher.memory.reading() as connection:
            newest = newest_of_items(published_item_texts(connection))
            rows = publisher.projection(connection).item_rows(newest)
        if newest:
            numbers = [one.number for one in newest]
            publisher.online.write(ALL_VIEWS[ITEM_TEXT], rows, number=numbers, force=True)
        return len(newest)

    def _items_to_delta(self, numbered: Numbered) -> int:
        publisher = self.publisher
        with publisher.memory.reading() as connection:
            rows = publisher.projection(connection).item_rows(published_item_texts(connection))
        place = Place(path=str(publisher.tables[ITEM_TEXT].path))
        return maintenance.replace(place, [rows], schema=rows.schema, numbered=numbered)

    def _stage_to_online(self, stage: str, keys: Sequence[int]) -> int:
        publisher = self.publisher
        with publisher.memory.reading() as connection:
            projection = publisher.projection(connection)
            created = _created_times(connection, projection, stage, keys)
            rows = online_rows(projection, stage, sorted(created), created_time=0)
            ids = known_user_ids(connection, sorted(created))
        if not len(rows):
            return 0
        of_user = {ids[key]: time for key, time in created.items()}
        numbers = [of_user[str(user)] for user in rows[USER].to_pylist()]
        if stage not in (SUMMARY, SHIFT):  # a vector was created with its publication
            place = rows.column_names.index(CREATED_TIME)
            rows = rows.set_column(place, CREATED_TIME, pa.array(numbers, pa.int64()).cast(TIMESTAMP))
        publisher.online.write(ALL_VIEWS[stage], rows, number=numbers, force=True)
        return len(rows)

    def _sequences_to_online(self, keys: Sequence[int]) -> Mapping[str, int]:
        before = self._write_sequences(keys, force=True)
        with self.publisher.memory.reading() as connection:
            numbers = _sequence_numbers(connection, keys)
        # A push may have written a newer one meanwhile, and would not write it again.
        changed = [key for key, number in numbers.items() if before.numbers.get(key) != number]
        if changed:
            self._write_sequences(changed, force=False)
        return before.counts

    def _write_sequences(self, keys: Sequence[int], *, force: bool) -> "_Sequences":
        publisher = self.publisher
        with publisher.memory.reading() as connection:
            numbers = _sequence_numbers(connection, keys)
            found = publisher.projection(connection).behavior_rows(keys)
        for view, rows in found.items():
            if len(rows):
                publisher.online.write(view, rows, force=force)
        return _Sequences(numbers=numbers, counts={view: len(rows) for view, rows in found.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sequences:
    """What was written, as of which sequence number of each user."""

    numbers: Mapping[int, int]
    counts: Mapping[str, int]


def _user_keys(connection: sa.Connection, user_id: str | None) -> list[int]:
    query = sa.select(users.c.user_key).where(users.c.forgotten_time.is_(None)).order_by(users.c.user_key)
    if user_id is None:
        return list(connection.scalars(query))
    found = list(connection.scalars(query.where(users.c.user_id == user_id)))
    if not found:
        raise ConfigError(f"The memory does not know the user {user_id[:80]!r}. Nothing was written.")
    return found


def _publications(connection: sa.Connection, stage: str, user_keys: Sequence[int] | None) -> Iterator[Publication]:
    """Yield what was published of a stage, of all users or some, in the order of publishing."""
    is_of_stage = published.c.stage == stage
    if user_keys is not None:
        is_of_stage &= published.c.user_key.in_(user_keys)
    holds = sa.exists().where(published.c.publication_id == publications.c.publication_id, is_of_stage)
    for one in connection.execute(sa.select(publications).where(holds).order_by(publications.c.publication_id)).all():
        rows = sa.select(*_ROW, published.c.index_sum).where(
            published.c.publication_id == one.publication_id, is_of_stage
        )
        rows = rows.order_by(published.c.user_key, published.c.partition_index, published.c.version)
        yield Publication(
            publication_id=one.publication_id,
            stage=stage,
            created_time=one.created_time,
            rows=tuple(PublishedRow(**row._mapping) for row in connection.execute(rows)),
        )


def _created_times(
    connection: sa.Connection, projection: Projection, stage: str, keys: Sequence[int]
) -> dict[int, int]:
    """Return when the newest rows of users were published, by user key; of vectors: those of the version in use."""
    query = (
        sa.select(published.c.user_key, sa.func.max(publications.c.created_time))
        .join(publications, publications.c.publication_id == published.c.publication_id)
        .where(published.c.stage == stage, published.c.user_key.in_(keys))
        .group_by(published.c.user_key)
    )
    if stage == VECTOR:
        query = query.where(published.c.version == projection.vector_version)
    if stage == EVIDENCE:
        query = query.where(published.c.version == item_encoder_in_use(connection))
    return {key: time for key, time in connection.execute(query)}


def _sequence_numbers(connection: sa.Connection, keys: Sequence[int]) -> dict[int, int]:
    query = sa.select(users.c.user_key, users.c.sequence_number).where(users.c.user_key.in_(keys))
    return {key: number for key, number in connection.execute(query)}
