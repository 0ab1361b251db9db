"""A data set: behaviors, items and users as Arrow tables, made whole from what a format's reader parsed.

A reader only parses. What every data set must have whatever its format (canonical behaviors, each item and each
user of a behavior in its table, the known counts of a published set) is made and checked here, once.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from liber_feast.behavior import EVENT_TIME, ITEM, TIMESTAMP, USER, RatingScale, check_behaviors
from liber_feast.errors import DataSetError
from liber_feast.evidence import ItemTextForm

TITLE, CATEGORIES, PERIOD, PROFILE = "title", "categories", "period", "profile"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Three tables and what is known of them.

    `behaviors` is canonical (see `check_behaviors`) with string ids. `items` has item_id, title, categories,
    period, the data set's own columns and event_timestamp; `users` has user_id, profile, own columns and
    event_timestamp; every item and user of a behavior is in them once. Their event time is `first_day` of the
    behaviors: not after any behavior, so that an as-of join always finds them, and inside the window that
    materializes the whole set.

    `counts` has: behaviors, users, items (rows of the three tables), duplicates (behaviors seen before, left out),
    items_without_attributes (kept, with null attributes), items_repeated (further rows of an item id, left out),
    users_without_attributes, unsorted and count_checked (0 or 1: the published count was known and is met). With a
    slice of users, duplicates, items_repeated and unsorted are those of the whole source.
    """

    name: str
    behaviors: pa.Table
    items: pa.Table
    users: pa.Table
    scale: RatingScale
    prompt: str
    item_text: ItemTextForm
    counts: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedCounts:
    """The published counts of a data set; its files are taken only if they have them."""

    behaviors: int
    users: int
    items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedSource:
    """What a reader found, not yet checked.

    `behaviors` has the columns of `check_behaviors`; `items` item_id, title, categories, period and own columns;
    `users` user_id, profile and own columns, or is None where the format says nothing of users. Ids are strings.
    `files` names the file behind each of the three, for messages.
    """

    name: str
    behaviors: pa.Table
    items: pa.Table
    users: pa.Table | None
    scale: RatingScale
    prompt: str
    files: Mapping[str, str]
    item_text: ItemTextForm = "full"
    """What `evidence.text` fits: `categories` where these tell apart what users like, and titles say little of it."""
    expected: ExpectedCounts | None = None
    users_are_closed: bool = False
    """Whether a behavior of a user without attributes means an edited file."""
    notes: tuple[str, ...] = ()
    """Sentences for the log, for example that a count could not be checked."""


def make_data_set(source: ParsedSource, *, now: datetime, user_limit: int | None = None) -> DataSet:
    """Return the checked data set of `source`, all of it or its first `user_limit` users by first behavior.

    Raises:
        InvalidBehaviors: rows that break the behavior schema.
        DataSetError: no behaviors, counts other than the published ones, an id that is null or empty, or fewer
            users than asked for.
    """
    checked = check_behaviors(source.behaviors, scale=source.scale, now=now, source=source.files["behaviors"])
    if not len(checked.table):
        raise DataSetError(f"{source.files['behaviors']}: found no behaviors. Get the data set again.")
    items, repeated = _once(source.items, key=ITEM, file=source.files["items"])
    given = _profiles(checked.table[USER]) if source.users is None else source.users
    users, _ = _once(given, key=USER, file=source.files["users"])
    _check_counts(source, items=items, users=users)
    behaviors, users = _first_users(checked.table, users=users, limit=user_limit, name=source.name)
    items, bare_items = _with_missing(items, key=ITEM, ids=behaviors[ITEM])
    users, bare_users = _with_missing(users, key=USER, ids=behaviors[USER])
    counts = {
        "behaviors": len(behaviors),
        "users": len(users),
        "items": len(items),
        "duplicates": checked.duplicate_count,
        "items_without_attributes": bare_items,
        "items_repeated": repeated,
        "users_without_attributes": bare_users,
        "unsorted": int(not checked.was_sorted),
        "count_checked": int(source.expected is not None),
    }
    _log(source, counts=counts)
    return DataSet(
        name=source.name,
        behaviors=behaviors,
        items=_timed(items, time=first_day(behaviors)),
        users=_timed(users, time=first_day(behaviors)),
        scale=source.scale,
        prompt=source.prompt,
        item_text=source.item_text,
        counts=counts,
    )


def first_day(behaviors: pa.Table) -> datetime:
    """Return the UTC midnight at which the day of the first behavior began."""
    first: datetime = pc.min(behaviors[EVENT_TIME]).as_py()
    return first.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def decade_of(years: Sequence[str]) -> str | None:
    """Return the decade of the last of `years`, each of four digits ('1990s'); None where there is none."""
    return f"{years[-1][:3]}0s" if years else None


def _log(source: ParsedSource, *, counts: Mapping[str, int]) -> None:
    for note in source.notes:
        _LOG.warning("%s: %s", source.name, note)
    _LOG.info("%s: %s", source.name, ", ".join(f"{name} {count:,}" for name, count in counts.items()))


def _check_counts(source: ParsedSource, *, items: pa.Table, users: pa.Table) -> None:
    """Raise `DataSetError` where the files differ from what was published of them."""
    rated_by = pc.unique(source.behaviors[USER])
    if source.users_are_closed:
        unknown = rated_by.filter(pc.invert(pc.is_in(rated_by, pc.unique(users[USER].combine_chunks()))))
        if len(unknown):
            raise DataSetError(
                f"{source.files['behaviors']}: found user {unknown[0].as_py()!r}, who is not in"
                f" {source.files['users']}: one of the files is edited. Get the original files of {source.name} again."
            )
    if source.expected is None:
        return
    found = [
        ("behaviors", "rows", len(source.behaviors), source.expected.behaviors),
        ("behaviors", "users with behaviors", len(rated_by), source.expected.users),
        ("items", "items", len(items), source.expected.items),
    ]
    if source.users is not None:
        found.append(("users", "users", len(users), source.expected.users))
    for table, what, count, expected in found:
        if count != expected:
            raise DataSetError(
                f"{source.files[table]}: found {count:,} {what}, expected {expected:,}: the file is"
                f" {'truncated or edited' if count < expected else 'edited'}."
                f" Get the original files of {source.name} again."
            )


def _once(table: pa.Table, *, key: str, file: str) -> tuple[pa.Table, int]:
    """Return `table` with the first row of each id, and how many rows were left out."""
    ids = table[key].to_pandas()
    if ids.isna().any() or (ids == "").any():
        row = int((ids.isna() | (ids == "")).to_numpy().argmax())
        raise DataSetError(f"{file}: found a row without {key}, first row {row}. Every row needs its id; correct it.")
    repeated = ids.duplicated().to_numpy()
    if not repeated.any():
        return table, 0
    return table.filter(pa.array(~repeated)), int(repeated.sum())


def _first_users(behaviors: pa.Table, *, users: pa.Table, limit: int | None, name: str) -> tuple[pa.Table, pa.Table]:
    """Return the behaviors and rows of the `limit` users whose first behaviors are the earliest; of all with None."""
    if limit is None:
        return behaviors, users
    in_order = pc.unique(behaviors[USER])
    if not 1 <= limit <= len(in_order):
        raise DataSetError(
            f"{name} has {len(in_order):,} users with behaviors, {limit:,} were asked for."
            f" Ask for 1 to {len(in_order):,}."
        )
    kept = in_order.slice(0, limit)
    return behaviors.filter(pc.is_in(behaviors[USER], kept)), users.filter(pc.is_in(users[USER], kept))


def _with_missing(table: pa.Table, *, key: str, ids: pa.ChunkedArray) -> tuple[pa.Table, int]:
    """Return `table` with a row for each of `ids` that had none: no attributes, an empty list, an empty profile."""
    wanted = pc.unique(ids)
    missing = wanted.filter(pc.invert(pc.is_in(wanted, pc.unique(table[key]))))
    if not len(missing):
        return table, 0
    columns: dict[str, pa.Array] = {}
    for column in table.schema:
        if column.name == key:
            columns[key] = missing
        elif column.name == CATEGORIES:
            columns[CATEGORIES] = pa.array([[]] * len(missing), column.type)
        elif column.name == PROFILE:
            columns[PROFILE] = pa.array([""] * len(missing), column.type)
        else:
            columns[column.name] = pa.nulls(len(missing), column.type)
    return pa.concat_tables([table, pa.table(columns, schema=table.schema)]), len(missing)


def _profiles(ids: pa.ChunkedArray) -> pa.Table:
    users = pc.unique(ids)
    return pa.table({USER: users, PROFILE: pa.array([""] * len(users), pa.string())})


def _timed(table: pa.Table, *, time: datetime) -> pa.Table:
    times = pa.array([time] * len(table), TIMESTAMP)
    return table.append_column(EVENT_TIME, times).combine_chunks()
