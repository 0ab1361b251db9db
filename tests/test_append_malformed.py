"""Whatever a table holds, it is refused with one line that names the column or taken whole; the memory is unharmed."""

import decimal
import itertools
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.behavior import (
    BEHAVIOR_ID,
    EVENT_TIME,
    ITEM,
    MAX_ID_LENGTH,
    QUOTED_LENGTH,
    RATING,
    REQUIRED,
    TIMESTAMP,
    USER,
    RatingScale,
    check_behaviors,
)
from liber_feast.errors import InvalidBehaviors
from liber_feast.memory import Memory
from liber_feast.memory.schema import behaviors, metadata
from tests import services
from tests.memory_parts import SECOND_US, START_US, TWO, append_all, behavior, contents, new_memory

memory_url = services.memory_url

COLUMNS = (*REQUIRED, BEHAVIOR_ID)
NOW = datetime(2024, 5, 1, tzinfo=UTC)
COUNTS = {"sqlite": 2_000, "postgresql": 400}
SQL = "'; DROP TABLE behaviors; --"

TEXTS = [
    "ann",
    "",
    " ",
    SQL,
    '"); DELETE FROM users; --',
    "%s %(x)s ? :x $1 {0} \\",
    "NULL",
    "a\nb\r\tc",
    "a\0b",
    "\0",
    "\x1f",
    "\x7f\x01",
    "\u202eevil\u200d\ufeff",
    "e\u0301 \U0001f600",
    "x" * MAX_ID_LENGTH,
    "\U0001f600" * MAX_ID_LENGTH,
    "x" * (MAX_ID_LENGTH + 1),
    "y" * 1_000_000,
]
NUMBERS = [0.5, 5.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324]
YEAR_9999 = 253_402_300_799


def three(value: object, kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([value] * 3, kind)


def texts(data: bytes, offsets: Sequence[int]) -> pa.Array:
    """Return texts of any bytes at any offsets."""
    edges = pa.array(offsets, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, edges, pa.py_buffer(data)])


def odd_arrays() -> Iterator[pa.Array]:
    """Yield columns of three rows: of every type that Arrow has, and with every value we heard of."""
    for text in TEXTS:
        yield pa.array(["ann", text, "bob"])
        yield pa.array([text, "ann", text]).dictionary_encode()
    yield pa.array(["ann", "bob", "cid"], pa.large_string())
    yield pa.array(["ann", "b\0b", "cid"], pa.string_view())
    yield texts(b"ab\xffdef", [0, 2, 4, 6])
    yield texts(b"\xed\xa0\x80abc", [0, 3, 4, 6])
    yield texts(b"abcdef", [0, 4, 2, 6])
    yield from (pa.array([4.0, number, 4.0]) for number in NUMBERS)
    yield pa.array([1, 2, 3], pa.float16())
    yield from (three(1, kind) for kind in (pa.int8(), pa.int64(), pa.uint32(), pa.uint64(), pa.date32()))
    yield three(True)
    yield from (three(edge) for edge in (2**63 - 1, -(2**63)))
    yield three(2**64 - 1, pa.uint64())
    yield three(decimal.Decimal("4.5"), pa.decimal128(38, 10))
    yield three(decimal.Decimal(10) ** 60, pa.decimal256(76, 2))
    yield from (three(1, kind) for kind in (pa.date64(), pa.time32("s"), pa.time64("ns"), pa.duration("us")))
    yield three((1, 2, 3), pa.month_day_nano_interval())
    yield from (three(b"ann", kind) for kind in (pa.binary(), pa.large_binary(), pa.binary(3), pa.binary_view()))
    yield from (three(["a"], kind(pa.string())) for kind in (pa.list_, pa.large_list, pa.list_view))
    yield three([1.0, 2.0], pa.list_(pa.float64(), 2))
    yield three({"a": 1})
    yield three([("a", 1)], pa.map_(pa.string(), pa.int64()))
    yield pa.nulls(3)
    yield pa.array(["ann", None, "bob"])
    yield pa.array([1, None, 3])
    yield pa.array([None, START_US, START_US], TIMESTAMP)
    yield pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array(["ann", None]))
    yield pa.DictionaryArray.from_arrays(pa.array([0, None, 0]), pa.array(["ann", "bob"]))
    yield pa.DictionaryArray.from_arrays(pa.array([0, 9, -7]), pa.array(["ann", "bob"]), safe=False)
    yield pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([["a"], ["b"]]))
    yield pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["ann", "bob"]))
    yield pa.UnionArray.from_sparse(pa.array([0, 1, 0], pa.int8()), [pa.array(["a", "b", "c"]), pa.array([1, 2, 3])])
    yield pa.ExtensionArray.from_storage(pa.uuid(), three(b"0123456789abcdef", pa.binary(16)))
    yield pa.ExtensionArray.from_storage(pa.json_(), three("{}"))
    for unit, zone in itertools.product(("s", "ms", "us", "ns"), (None, "UTC", "+05:30", "Mars/Olympus", "")):
        yield pa.array([1_577_836_800, YEAR_9999, 0], pa.timestamp(unit, zone))
        yield pa.array([2**63 - 1, -(2**63), 1], pa.timestamp(unit, zone))


ODD = list(odd_arrays())


def table_with(**columns: pa.Array) -> pa.Table:
    """Return three sound rows with some columns replaced."""
    times = pa.array([START_US, START_US + SECOND_US, START_US + 2 * SECOND_US], TIMESTAMP)
    sound = {
        USER: pa.array(["ann", "bob", "ann"]),
        ITEM: pa.array(["i1", "i1", "i2"]),
        RATING: pa.array([4.0, 0.5, 5.0]),
        EVENT_TIME: times,
    }
    return pa.table(sound | columns)


def malformed(source: random.Random) -> pa.Table:
    """Return a table with up to three odd columns, and sometimes one too many or too few, in chunks or without rows."""
    table = table_with(
        **{name: source.choice(ODD) for name in source.sample(COLUMNS, source.choice((0, 1, 1, 1, 2, 3)))}
    )
    if source.random() < 0.05:
        table = table.drop_columns([source.choice(REQUIRED)])
    if source.random() < 0.05:
        name = source.choice([*COLUMNS, "a\nb", "x" * 5_000])
        table = table.append_column(name, source.choice(ODD))
    if source.random() < 0.1:
        table = pa.concat_tables([table, table])
    return table.slice(0, 0) if source.random() < 0.02 else table


def row_counts(memory: Memory) -> dict[str, int]:
    with memory.reading() as connection:
        every = {name: sa.select(sa.func.count()).select_from(table) for name, table in metadata.tables.items()}
        return {name: int(connection.scalar(query) or 0) for name, query in every.items()}


def taken(memory: Memory, table: pa.Table) -> bool:
    """Check and append a table; return whether it was taken, and see to it that a refusal says what it should."""
    try:
        checked = check_behaviors(table, scale=RatingScale(), now=NOW)
        appended = memory.append(checked.table, condition=TWO)
    except InvalidBehaviors as error:
        assert "\n" not in error.message
        assert len(error.message) < 4 * QUOTED_LENGTH + 100
        assert "\0" not in error.message
        return False
    assert appended.behavior_count + appended.duplicate_count == len(checked.table)
    return True


def see_that_it_is_sound(memory: Memory) -> None:
    contents(memory)  # counts, indexes and caches agree
    with memory.reading() as connection:
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            assert not connection.exec_driver_sql("PRAGMA foreign_key_check").all()


def test_thousands_of_malformed_tables_are_refused_or_taken_and_the_memory_is_unharmed(memory_url: str) -> None:
    memory, source = Memory.open(memory_url, base=Path()), random.Random(5)
    count = COUNTS[memory.engine.dialect.name]
    append_all(memory, [behavior(1), behavior(2), behavior(3)])
    counts, taken_count = row_counts(memory), 0
    for number in range(count):
        was_taken = taken(memory, malformed(source))
        taken_count += was_taken
        if was_taken or number % 10 == 0:
            now = row_counts(memory)
            assert was_taken or now == counts
            counts = now
    see_that_it_is_sound(memory)
    memory.close()
    assert count / 10 < taken_count < count / 2


@pytest.mark.parametrize("name", COLUMNS)
def test_an_odd_column_alone_is_refused_by_its_name_or_taken(name: str) -> None:
    refused = 0
    for odd in ODD:
        try:
            check_behaviors(table_with(**{name: odd}), scale=RatingScale(), now=NOW)
        except InvalidBehaviors as error:
            refused += 1
            assert error.column == name
    assert len(ODD) / 3 < refused < len(ODD)


@pytest.mark.parametrize("name", [USER, ITEM, BEHAVIOR_ID])
@pytest.mark.parametrize("text", [SQL, '"); DELETE FROM users; --', "%s ? :x $1", "\u202e \U0001f600", "x" * 512])
def test_any_text_without_nul_is_an_id_and_comes_back_as_it_was(name: str, text: str) -> None:
    memory = new_memory()
    assert taken(memory, table_with(**{BEHAVIOR_ID: pa.array(["1", "2", "3"])} | {name: pa.array([text, "b", "c"])}))
    see_that_it_is_sound(memory)
    with memory.reading() as connection:
        items = connection.scalars(sa.select(behaviors.c.item_id)).all()
    found = contents(memory)
    ids = [one for user in {*found.partitions, *found.caches} for one in found.behavior_ids(user)]
    assert text in [*items, *found.partitions, *found.caches, *ids]


@pytest.mark.parametrize(
    ("text", "what"),
    [("a\0b", "a NUL character"), ("x" * 513, "an id that is too long"), ("", "an empty id")],
    ids=["nul", "long", "empty"],
)
@pytest.mark.parametrize("name", [USER, ITEM, BEHAVIOR_ID])
def test_an_id_that_no_database_keeps_is_refused_with_its_first_characters(name: str, text: str, what: str) -> None:
    with pytest.raises(InvalidBehaviors, match=f"{name}.*{what} in 1 rows, first .* in row 1") as caught:
        check_behaviors(table_with(**{name: pa.array(["a", text, "c"])}), scale=RatingScale(), now=NOW)
    assert repr(text[:QUOTED_LENGTH])[:-1] in caught.value.message
    assert text[: QUOTED_LENGTH + 1] not in caught.value.message or len(text) <= QUOTED_LENGTH


values: dict[str, st.SearchStrategy[Any]] = {
    USER: st.text(max_size=3) | st.sampled_from(TEXTS),
    ITEM: st.text(max_size=3) | st.sampled_from(TEXTS),
    RATING: st.floats() | st.floats(0.5, 5.0),
    EVENT_TIME: st.integers(-(2**63), 2**63 - 1) | st.integers(START_US, START_US + 10**9),
    BEHAVIOR_ID: st.text(max_size=3) | st.integers(0, 3).map(str),
}
KINDS = {USER: pa.string(), ITEM: pa.string(), RATING: pa.float64(), EVENT_TIME: TIMESTAMP, BEHAVIOR_ID: pa.string()}
KEPT = new_memory()


@settings(max_examples=150)
@given(st.lists(st.tuples(*(values[name] for name in COLUMNS)), min_size=1, max_size=4))
def test_rows_of_any_values_are_refused_or_kept_whole(rows: list[tuple[Any, ...]]) -> None:
    before = row_counts(KEPT)
    table = pa.table({name: pa.array([row[place] for row in rows], KINDS[name]) for place, name in enumerate(COLUMNS)})
    if taken(KEPT, table):
        latest = NOW + timedelta(days=1)
        assert all(0.5 <= row[2] <= 5.0 for row in rows)
        assert all(row[3] <= latest.timestamp() * 1e6 for row in rows)
        assert not any("\0" in text or not 0 < len(text) <= 512 for row in rows for text in (row[0], row[1], row[4]))
        see_that_it_is_sound(KEPT)
    else:
        assert row_counts(KEPT) == before
