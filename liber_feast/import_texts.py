"""`liber import-texts`: texts that were written elsewhere become summaries and shifts of their partitions; no LLM.

Everything is checked before anything is written. A partition that is not sealed yet is sealed from the behaviors of the
log that its line names, user by user in the order of the lines' indexes: a text may have been written of the newest
behaviors first. The older ones are then late, and by the rule for late behaviors their partition's seal time is not
before that of the partition before it: no sample sees a text from before the last behavior that its writer had read.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from liber_feast.behavior import ITEM, USER
from liber_feast.condition import CountCondition
from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import DataSetError
from liber_feast.interest import SHIFT, SUMMARY, LearnedText
from liber_feast.job import open_job
from liber_feast.materialize import Job, Report
from liber_feast.memory import Memory
from liber_feast.memory.schema import behaviors, partitions, users
from liber_feast.memory.texts import (
    NewText,
    PartitionKey,
    add_texts,
    has_text,
    newest_texts,
    sealed_behaviors,
    sealed_partitions,
    user_chunks,
)
from liber_feast.ready_texts import ReadyText, ReadyTexts, TextKey, read_ready_texts
from liber_feast.repo import open_engine

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def import_texts(
    repo: Path, path: Path, *, model: str, is_partial: bool, say: Callable[[str], object]
) -> dict[str, Any]:
    """Keep the texts of a file as those of their partitions, written by `model`; encode and publish them.

    A text that is there already, word for word, is passed over. With `is_partial` partitions may stay without a text,
    which the configured backend writes later.

    Raises:
        StoreNotReady: the repo was never applied.
        ConfigError: the vectors of the memory are of texts of another form.
        DataSetError: the file cannot be used, or a text is missing, foreign or there already in other words; nothing
            was written.
    """
    store, engine = open_engine(repo)
    job = open_job(store.config, registry=store.registry, online_store=engine.online_store, with_llm=False)
    try:
        texts = read_ready_texts(path, form=job.encoding.form)
        sealing = _checked(texts, job=job, log=lambda: _log(engine, store.registry), is_partial=is_partial)
        sealed_count = sealing.run(job.memory)
        counts = _keep(texts, job=job, model=model)
        report = Report()
        if is_partial:  # what is missing is not to be written now
            job.write_out(report)
        else:
            job.drain(report)
    finally:
        job.memory.close()
    if not counts[SUMMARY] + counts[SHIFT]:
        say("Every text is there already.")
    return {
        "sealed_partitions": sealed_count,
        "summaries": counts[SUMMARY],
        "shifts": counts[SHIFT],
        "shortened_lines": sum(one.is_shortened for one in texts.by_partition.values()),
        "prompt_version": texts.version,
        "model": model,
        "encoded_texts": report.encoded_count,
        "rows": report.published,
    }


def _checked(texts: ReadyTexts, *, job: Job, log: Callable[[], pa.Table], is_partial: bool) -> "_Sealing":
    """Check all that can be wrong; return what is to be sealed."""
    job.encoding.check_form(job.memory)
    found = _Found.of(job.memory)
    sealing = _Sealing.of(texts, found=found, log=log)
    _check_texts(texts, found=found, memory=job.memory)
    if not is_partial:
        _check_whole(texts, found=found)
    return sealing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What the memory has."""

    keys: Mapping[TextKey, PartitionKey]
    """Of every sealed partition."""
    with_summary: frozenset[TextKey]
    with_shift: frozenset[TextKey]
    partition_counts: Mapping[str, int]
    with_cache: frozenset[str]
    """Users with behaviors in the short-term cache."""

    @classmethod
    def of(cls, memory: Memory) -> "_Found":
        columns = (users.c.user_id, partitions.c.user_key, partitions.c.partition_index)
        joined = partitions.join(users, users.c.user_key == partitions.c.user_key)
        marks = [sa.case((has_text(stage), 1), else_=0).label(stage) for stage in (SUMMARY, SHIFT)]
        cached = sa.select(users.c.user_id).join(behaviors, behaviors.c.user_key == users.c.user_key)
        with memory.reading() as connection:
            rows = connection.execute(sa.select(*columns, *marks).select_from(joined)).all()
            with_cache = frozenset(connection.scalars(cached.where(behaviors.c.partition_index.is_(None)).distinct()))
        return cls(
            keys={(row.user_id, row.partition_index): (row.user_key, row.partition_index) for row in rows},
            with_summary=frozenset((row.user_id, row.partition_index) for row in rows if row.summary),
            with_shift=frozenset((row.user_id, row.partition_index) for row in rows if row.shift),
            partition_counts=Counter(row.user_id for row in rows),
            with_cache=with_cache,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sealing:
    """The partitions that are to be sealed: rows of the log, canonical, by user and in the order of the indexes."""

    log: pa.Table
    rows: Mapping[str, Sequence[Sequence[int]]]

    @classmethod
    def of(cls, texts: ReadyTexts, *, found: _Found, log: Callable[[], pa.Table]) -> "_Sealing":
        """Check that the lines of partitions that are not sealed name behaviors of the log, each of them once."""
        new = [one for one in texts.by_partition.values() if one.key not in found.keys]
        expected = dict(found.partition_counts)
        for one in new:
            if one.item_ids is None:
                raise DataSetError(f"{one.where}: the memory has no {one.whose}. Name its behaviors by 'item_ids'.")
            if one.user_id in found.with_cache:
                raise DataSetError(
                    f"{one.where}: {one.whose} is not sealed, and the user has behaviors in the short-term cache, which"
                    " would come into it. Import into a memory that has none of the user's behaviors."
                )
            if one.partition_index != expected.setdefault(one.user_id, 0):
                raise DataSetError(
                    f"{one.where}: {one.whose} is not the next one, which is partition {expected[one.user_id]}."
                )
            expected[one.user_id] += 1
        table = log() if new else pa.table({USER: pa.array([], pa.string()), ITEM: pa.array([], pa.string())})
        return cls(log=table, rows=_rows_of(new, table))

    def run(self, memory: Memory) -> int:
        """Seal them; return how many. Each append takes one partition of users whose next ones are of one size."""
        for round_number in range(max(map(len, self.rows.values()), default=0)):
            by_size: dict[int, list[int]] = defaultdict(list)
            for of_user in self.rows.values():
                if round_number < len(of_user):
                    by_size[len(of_user[round_number])] += of_user[round_number]
            for size, rows in sorted(by_size.items()):
                memory.append(self.log.take(pa.array(sorted(rows))), condition=CountCondition(size))
        return sum(map(len, self.rows.values()))


def _rows_of(new: Sequence[ReadyText], log: pa.Table) -> dict[str, list[list[int]]]:
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    wanted = {one.user_id for one in new}
    for row, (user_id, item_id) in enumerate(zip(_ids(log, USER), _ids(log, ITEM), strict=True)):
        if user_id in wanted:
            places[user_id, item_id].append(row)
    taken: dict[int, ReadyText] = {}
    found: dict[str, list[list[int]]] = defaultdict(list)
    for one in new:
        rows = []
        for item_id in one.item_ids or ():
            known = places.get((one.user_id, item_id), [])
            if len(known) != 1:
                count = f"{len(known)} behaviors" if known else "no behavior"
                raise DataSetError(f"{one.where}: user {one.user_id!r} has {count} with item {item_id!r} in the log.")
            if known[0] in taken:
                raise DataSetError(
                    f"{one.where}: item {item_id!r} is also one of {taken[known[0]].whose} in {taken[known[0]].where}."
                )
            taken[known[0]] = one
            rows += known
        found[one.user_id].append(rows)
    return found


def _ids(table: pa.Table, name: str) -> list[str]:
    ids: list[str] = table[name].cast(pa.string()).to_pylist()
    return ids


def _log(engine: LiberComputeEngine, registry: Any) -> pa.Table:
    return engine.window(registry, start=BEGINNING, end=datetime.now(UTC)).table


def _check_texts(texts: ReadyTexts, *, found: _Found, memory: Memory) -> None:
    """Check that sealed partitions are those that the lines mean, and have no text of other words."""
    with_summary = {*found.with_summary, *texts.by_partition}
    for one in texts.by_partition.values():
        if one.shift is not None and not any(
            (one.user_id, index) in with_summary for index in range(one.partition_index)
        ):
            raise DataSetError(f"{one.where}: {one.whose} has a 'shift', and no partition before it has a summary.")
    sealed = [one for one in texts.by_partition.values() if one.key in found.keys]
    for some in user_chunks(sealed):
        keys = [found.keys[one.key] for one in some]
        with memory.reading() as connection:
            kept = {stage: newest_texts(connection, keys, stage=stage) for stage in (SUMMARY, SHIFT)}
            held = sealed_behaviors(connection, [found.keys[one.key] for one in some if one.item_ids is not None])
        for one in some:
            key = found.keys[one.key]
            if one.item_ids is not None and sorted(one.item_ids) != sorted(row.item_id for row in held[key]):
                raise DataSetError(f"{one.where}: {one.whose} is sealed and holds other items than 'item_ids'.")
            for stage, text in ((SUMMARY, one.summary), (SHIFT, one.shift)):
                if text is not None and kept[stage].get(key, text) != text:
                    raise DataSetError(f"{one.where}: {one.whose} has another {stage} already, which stays as it is.")


def _check_whole(texts: ReadyTexts, *, found: _Found) -> None:
    """Check that no sealed partition is left without a summary, or without a shift where one is due."""
    hint = "Add it, or import with --partial: the configured backend writes what is missing."
    every = sorted(found.keys.keys() | texts.by_partition.keys())
    for key in every:
        one = texts.by_partition.get(key)
        user_id, index = key
        if one is None and key not in found.with_summary:
            raise DataSetError(f"no line has a summary for partition {index} of user {user_id!r}. {hint}")
        if index > 0 and key not in found.with_shift and (one is None or one.shift is None):
            place = f"{one.where}: " if one else "no line has "
            raise DataSetError(f"{place}no shift for partition {index} of user {user_id!r}. {hint}")


def _keep(texts: ReadyTexts, *, job: Job, model: str) -> dict[str, int]:
    """Keep the texts that are not there, all summaries before the first shift; return how many of each stage."""
    found, counts = _Found.of(job.memory), dict[str, int]()
    with_summary = {*found.with_summary, *texts.by_partition}
    for stage in (SUMMARY, SHIFT):
        counts[stage] = 0
        missing = [one for one in texts.by_partition.values() if stage == SUMMARY or one.shift is not None]
        for some in user_chunks(missing):
            by_key = {found.keys[one.key]: one for one in some}
            with job.memory.reading() as connection:
                waiting = sealed_partitions(connection, list(by_key), stage=stage)
            new = [
                NewText(
                    partition=partition,
                    stage=stage,
                    learned=LearnedText(text=_text_of(by_key[key], stage), attempt_count=0),
                    prompt_version=texts.version,
                    model=model,
                    created_time=job.clock(),
                    previous_partition_index=_index_before(by_key[key], with_summary) if stage == SHIFT else None,
                )
                for key, partition in sorted(waiting.items())
            ]
            job.memory.retrying(partial(_add, new=new), what="texts")
            counts[stage] += len(new)
    return counts


def _add(connection: sa.Connection, *, new: Sequence[NewText]) -> None:
    add_texts(connection, new)


def _text_of(one: ReadyText, stage: str) -> str:
    return one.summary if stage == SUMMARY else one.shift or ""


def _index_before(one: ReadyText, with_summary: Set[TextKey]) -> int:
    """Return the last partition before it that has a summary; a shift whose user has none is refused before."""
    return max(index for index in range(one.partition_index) if (one.user_id, index) in with_summary)
