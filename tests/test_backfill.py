"""Appending a whole log in groups of users: what one append of it gives, with the memory of one group."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from liber_feast.behavior import Behavior, CheckedBehaviors, RatingScale, check_behaviors
from liber_feast.condition import Condition, CountCondition, DriftCondition
from liber_feast.errors import InvalidBehaviors, StoreFailure
from liber_feast.memory import Appended, Memory
from liber_feast.memory.backfill import append_in_groups
from liber_feast.memory.schema import users
from tests import services
from tests.memory_parts import TWO, append_all, behavior, contents, everything, new_memory, table_of
from tests.test_memory_append import feeds, vectors_of
from tests.test_partition import conditions

memory_url = services.memory_url

COUNTS = ("user_id", "partition_count", "sealed_time", "sealed_behavior_id", "seal_time", "behavior_count")


def check(table: pa.Table) -> CheckedBehaviors:
    return check_behaviors(table, scale=RatingScale(), now=datetime.now(UTC))


def in_groups(
    memory: Memory, tables: Sequence[pa.Table], *, folder: Path, batch: int, condition: Condition = TWO
) -> Appended:
    used = vectors_of if isinstance(condition, DriftCondition) else None
    return append_in_groups(
        memory, iter(tables), condition=condition, folder=folder, batch=batch, item_vectors=used, check=check
    )


def states(memory: Memory) -> list[tuple[object, ...]]:
    with memory.reading() as connection:
        query = sa.select(*(users.c[name] for name in (*COUNTS, "late_count", "tied_count"))).order_by("user_id")
        return [tuple(row) for row in connection.execute(query)]


def counts(appended: Appended) -> tuple[int, ...]:
    """Return the counts; users are numbered in another order."""
    every = (appended.behavior_count, appended.duplicate_count, appended.late_count, appended.tied_count)
    return (*every, appended.sealed_count, len(appended.user_keys))


def sliced(table: pa.Table, cuts: Sequence[int]) -> Iterator[pa.Table]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(table)), len(table)]
    for left, right in zip(edges[:-1], edges[1:], strict=True):
        yield table.slice(left, right - left)


@settings(max_examples=40)
@given(
    feeds(),
    conditions,
    st.integers(1, 50),
    st.lists(st.integers(0, 150), max_size=5),
    st.lists(st.integers(0, 150), max_size=8),
    st.randoms(use_true_random=False),
)
def test_a_log_in_any_order_and_pieces_gives_what_one_append_of_it_gives(
    stream: list[Behavior],
    condition: Condition,
    batch: int,
    cuts: list[int],
    repeats: list[int],
    random: "st.random.Random",
) -> None:
    before, rest = stream[::7], stream + [stream[one % len(stream)] for one in repeats if stream]
    log = table_of(rest).take(pa.array(random.sample(range(len(rest)), len(rest)), pa.int64()))
    whole, grouped = new_memory(), new_memory()
    for memory in (whole, grouped):
        memory.append(table_of(before), condition=condition, item_vectors=vectors_of)
    once = check(log)
    one = whole.append(once.table, condition=condition, repeated=once.repeated, item_vectors=vectors_of)
    with TemporaryDirectory() as folder:
        many = in_groups(grouped, list(sliced(log, cuts)), folder=Path(folder), batch=batch, condition=condition)
        assert not list(Path(folder).iterdir())
    assert contents(grouped) == contents(whole)
    assert states(grouped) == states(whole)
    assert counts(many) == counts(one)


class CountingMemory:
    """A memory that keeps how many behaviors each append had."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.sizes = memory, list[int]()

    def append(self, table: pa.Table, **options: object) -> Appended:
        self.sizes.append(len(table))
        return self.memory.append(table, **options)


def test_a_transaction_has_at_most_a_batch_of_behaviors_or_one_user(tmp_path: Path) -> None:
    stream = [behavior(second, user=f"user {user}") for user in range(300) for second in range(5)]
    stream += [behavior(second, user="busy") for second in range(90)]
    memory = CountingMemory(new_memory())
    in_groups(memory, [table_of(stream)], folder=tmp_path, batch=40)
    assert sum(memory.sizes) == len(stream)
    assert sorted(memory.sizes)[-1] == 90
    assert sorted(memory.sizes)[-2] <= 40
    assert len(memory.sizes) < 150, "users share transactions"


@pytest.mark.parametrize("bad", ["rating", "type", "memory"])
def test_a_log_with_one_bad_row_is_refused_whole(bad: str, tmp_path: Path) -> None:
    memory = new_memory()
    append_all(memory, [behavior(1)])
    before = everything(memory)
    good = [behavior(second, user=f"user {second}") for second in range(50)]
    last = {
        "rating": [behavior(99, rating=9.0)],
        "type": [behavior(99, user=7)],
        "memory": [behavior(99, user=7)],
    }[bad]
    tables = [table_of(last)] if bad == "memory" else [table_of(good), table_of(last)]
    with pytest.raises(InvalidBehaviors) as caught:
        in_groups(memory, tables, folder=tmp_path, batch=10)
    assert "\n" not in caught.value.message
    assert bad == "memory" or "from row 50 on" in caught.value.message
    assert everything(memory) == before
    assert not list(tmp_path.iterdir())


def test_a_log_appended_again_adds_nothing_and_counts_every_row_as_a_duplicate(tmp_path: Path) -> None:
    log = [table_of([behavior(second, user=f"user {second % 3}")]) for second in range(20)]
    memory = new_memory()
    in_groups(memory, log, folder=tmp_path, batch=8)
    before = contents(memory)
    again = in_groups(memory, log, folder=tmp_path, batch=8)
    assert (again.behavior_count, again.duplicate_count, again.sealed_count) == (0, 20, 0)
    assert contents(memory) == before


def test_a_backfill_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    class StopsAfterOne(CountingMemory):
        def append(self, table: pa.Table, **options: object) -> Appended:
            if self.sizes:
                raise KeyboardInterrupt
            return super().append(table, **options)

    log = [table_of([behavior(second, user=f"user {user}") for user in range(30) for second in range(4)])]
    memory, whole = new_memory(), new_memory()
    with pytest.raises(KeyboardInterrupt):
        in_groups(StopsAfterOne(memory), log, folder=tmp_path, batch=20)
    assert not list(tmp_path.iterdir())
    rest = in_groups(memory, log, folder=tmp_path, batch=20)
    assert 0 < rest.duplicate_count < 120
    in_groups(whole, log, folder=tmp_path, batch=1_000)
    assert contents(memory) == contents(whole)


def test_every_database_keeps_the_same_of_a_log(memory_url: str, tmp_path: Path) -> None:
    log = [behavior(number * 7 % 400, user=f"{'Zoë'[number % 3]} {number % 5}") for number in range(1_200)]
    tables = list(sliced(table_of(log[::-1]), [500, 900]))
    memory, plain = Memory.open(memory_url, base=tmp_path), new_memory()
    condition = CountCondition(7)
    plain.append(check(table_of(log)).table, condition=condition)
    in_groups(memory, tables[:1], folder=tmp_path, batch=300, condition=condition)
    in_groups(memory, tables, folder=tmp_path, batch=300, condition=condition)
    assert contents(memory) == contents(plain)
    assert [row[:7] for row in states(memory)] == [row[:7] for row in states(plain)]
    memory.close()


def test_what_is_put_aside_has_no_name_that_a_crash_could_leave_behind(tmp_path: Path) -> None:
    class Looks(CountingMemory):
        def append(self, table: pa.Table, **options: object) -> Appended:
            assert not list(tmp_path.iterdir())
            return super().append(table, **options)

    memory = Looks(new_memory())
    log = [table_of([behavior(second, user=f"user {second}") for second in range(50)])]
    assert in_groups(memory, log, folder=tmp_path, batch=10).behavior_count == 50
    assert len(memory.sizes) > 4


def test_a_folder_that_takes_no_files_is_said_in_one_line_and_nothing_is_appended(tmp_path: Path) -> None:
    memory = new_memory()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailure, match="cannot be put aside in .*file") as caught:
        in_groups(memory, [table_of([behavior(1)])], folder=tmp_path / "file", batch=10)
    assert "\n" not in caught.value.message
    assert not contents(memory).caches


def test_empty_tables_of_any_type_are_no_behaviors(tmp_path: Path) -> None:
    memory, empty = new_memory(), table_of([])
    odd = empty.set_column(0, "user_id", pa.array([], pa.float64()))
    assert in_groups(memory, [], folder=tmp_path, batch=5) == Appended()
    log = [odd, table_of([behavior(1, user=7)]), empty]
    assert in_groups(memory, log, folder=tmp_path, batch=5, condition=CountCondition(9)).behavior_count == 1
    assert memory.setting("user_id_type") == "int64"
