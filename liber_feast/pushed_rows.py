"""Data frames that producers push, as Arrow tables: what pandas holds in one column may be of any mixture of types.

A column that is not of one type is refused by name. Arrow would take some mixtures, and change their values: a number
among timestamps, or a timestamp that is too far away, becomes a time in 1970; a short float among integers loses its
fraction.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from liber_feast.behavior import BEHAVIOR_ID, EVENT_TIME, ITEM, RATING, TIMESTAMP, USER
from liber_feast.errors import InvalidBehaviors, printable
from liber_feast.offline_write import fitted

UNREADABLE = (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError)
"""What pandas and pyarrow raise of values that they cannot read."""
QUOTED = 200
"""Characters of somebody else's message, or of a pushed name, that are quoted."""
OURS = (USER, ITEM, RATING, EVENT_TIME, BEHAVIOR_ID)
TEXTS = (pa.string(), pa.large_string(), pa.string_view())


def as_table(df: pd.DataFrame, *, names: Mapping[str, str]) -> pa.Table:
    """Return a frame as a table without its index.

    `names` are those of the behavior schema by the frame's own, where they differ.

    Raises:
        InvalidBehaviors: a column is there twice, or cannot be read; the message names it.
    """
    if not df.columns.is_unique:
        name = df.columns[df.columns.duplicated()][0]
        raise InvalidBehaviors(f"push: column {quoted(name)} is there twice. Push it once.", column=str(name))
    df = _of_one_type(df, names=names)
    try:
        table = pa.Table.from_pandas(df, preserve_index=False)
        plain = pa.schema([(field.name, _plain(field.type)) for field in table.schema])
        return table if plain.types == table.schema.types else table.cast(plain)
    except UNREADABLE as error:
        raise _unreadable(_first_unreadable(df), _reason(error)) from error


def with_times(table: pa.Table, *, name: str) -> pa.Table:
    """Read times written as ISO 8601 texts: JSON, and so the feature server's /push, has no other.

    Raises:
        InvalidBehaviors: a text is no such time.
    """
    if name not in table.column_names or table.schema.field(name).type not in TEXTS:
        return table
    try:  # not by pandas: among texts with an offset it takes one without for another with the offset before it
        times = pa.array([None if one is None else _moment(one) for one in table[name].to_pylist()], TIMESTAMP)
    except UNREADABLE as error:
        raise InvalidBehaviors(
            f"push: column {name!r} has a text that is no ISO 8601 time: {_reason(error)}.", column=name
        ) from error
    return table.set_column(table.column_names.index(name), name, times)


def _moment(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def check_fit(rows: pa.Table, log: Mapping[str, pa.DataType]) -> None:
    """See to it that rows, columns by name, can be written to a log whose columns have these types.

    Of the columns of behaviors that a log has as their schema says, this says nothing.

    Raises:
        InvalidBehaviors: a column does not fit.
    """
    for name, kind in log.items():
        if name not in rows.column_names or (name in OURS and _is_usual(kind)):
            continue
        try:
            fitted(rows[name], kind)
        except UNREADABLE as error:
            raise InvalidBehaviors(
                f"push: column {quoted(name)} has type {printable(str(rows[name].type))[:QUOTED]} and does not fit"
                f" {kind} of the log: {_reason(error)}.",
                column=name,
            ) from error


def _is_usual(kind: pa.DataType) -> bool:
    return kind in TEXTS or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)


def quoted(name: object) -> str:
    """Return a name as messages quote it."""
    return repr(name)[:QUOTED]


def _of_one_type(df: pd.DataFrame, *, names: Mapping[str, str]) -> pd.DataFrame:
    """Refuse columns of behaviors whose objects are of more than one type; read times as pandas does."""
    for name, kind in zip(df.columns, df.dtypes.array, strict=True):
        ours = names.get(str(name), name)
        if not (isinstance(kind, np.dtype) and kind.hasobject) or ours not in OURS:
            continue
        found = pd.api.types.infer_dtype(df[name], skipna=True)
        is_mixed = found.startswith("mixed")
        if found == "mixed-integer-float":
            is_mixed = any(isinstance(one, (np.float16, np.longdouble)) for one in df[name])
        if is_mixed:
            raise _unreadable(name, "it holds values of more than one type")
        if ours == EVENT_TIME and found.startswith("datetime"):
            df = df.assign(**{str(name): _times(df[name])})
    return df


def _times(column: pd.Series) -> pd.Series:
    """Return times that are objects as times; naive ones are UTC."""
    try:
        return pd.to_datetime(column, utc=True)
    except UNREADABLE as error:
        raise _unreadable(column.name, _reason(error)) from error


def _unreadable(name: object, reason: str) -> InvalidBehaviors:
    remedy = "Push values of one type, texts in UTF-8."
    if "Out of bounds" in reason:
        remedy = "Push times from 1678 on that are not ahead of the clock."
    return InvalidBehaviors(
        f"push: column {quoted(name)} cannot be read: {reason}. {remedy}",
        column=str(name),
    )


def _first_unreadable(df: pd.DataFrame) -> object:
    """Return the name of the first column that is no Arrow array by itself."""
    for name in df.columns:
        try:
            pa.Table.from_pandas(df[[name]], preserve_index=False)
        except UNREADABLE:
            return name
    return list(df.columns)


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type of a column that pandas calls categorical without its categories."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _reason(error: Exception) -> str:
    """Return the message of an error, short: it may quote a value of any size."""
    return printable(", ".join(str(part) for part in error.args))[:QUOTED].rstrip(".")
