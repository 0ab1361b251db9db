"""The memory means the same on SQLite and on PostgreSQL, through its public functions."""

import logging
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liber_feast.errors import LiberError, RetryableError
from liber_feast.interest import SHIFT, SUMMARY
from liber_feast.memory import Memory, schema
from liber_feast.memory.bulk import among, execute_many, insert_rows, join_pairs, pair_parameters, plain_rows
from liber_feast.memory.connect import MemoryBusy, PoolOptions
from liber_feast.memory.missing import mark_recomputations, recomputation_count
from liber_feast.memory.publications import PublishedRow, finish, next_unfinished, plan
from liber_feast.memory.settings import keep_setting
from liber_feast.memory.status import memory_status
from liber_feast.memory.texts import newest_texts, sealed_behaviors
from liber_feast.memory.vectors import partition_vectors
from tests import services
from tests.memory_parts import (
    START,
    EchoLearner,
    append_all,
    behavior,
    contents,
    encode_all,
    everything,
    learn_all,
    new_memory,
)

memory_url = services.memory_url
postgres_url = services.postgres_url

NAMES = ["user_key", "behavior_id", "item_id", "rating", "event_time", "order_time", "partition_index"]


@pytest.fixture
def memory(memory_url: str) -> Iterator[Memory]:
    made = Memory.open(memory_url, base=Path())
    yield made
    made.close()


def fill(memory: Memory) -> None:
    """Append behaviors of ids that databases sort in different ways, some of them late, tied or sent twice."""
    for user in ("ann", "Zoë", "_b", "a-b", "10", "9"):
        append_all(memory, [behavior(second, user=user) for second in range(5)])
    append_all(memory, [behavior(second, user="ann") for second in (0.5, 1, 7)])
    append_all(memory, [behavior(9, user="ann", name=name) for name in ("b", "B", "_", "é")])


def told(memory: Memory, folder: Path) -> dict[str, object]:
    """Return what a memory says of itself through every function that reads."""
    with memory.reading() as connection:
        keys = connection.scalars(sa.select(schema.users.c.user_key).order_by(schema.users.c.user_id)).all()
        of_users = [(key, index) for key in keys for index in range(3)]
        names = dict(connection.execute(sa.select(schema.users.c.user_key, schema.users.c.user_id)).all())
        version = connection.scalar(sa.select(schema.text_vectors.c.encoder_version).limit(1)) or ""
        vectors = partition_vectors(connection, keys, encoder_version=version, version="1", width=2)
        return {
            "order of users": list(map(names.get, keys)),
            "status": {name: one for name, one in memory_status(connection).items() if name != "waiting"},
            "behaviors": {
                (names[key], index): rows for (key, index), rows in sealed_behaviors(connection, of_users).items()
            },
            "texts": {
                (names[key], index, stage): text
                for stage in (SUMMARY, SHIFT)
                for (key, index), text in newest_texts(connection, of_users, stage=stage).items()
            },
            "vectors": sorted((names[one.user_key], one.partition_index, one.vector.tolist()) for one in vectors),
            "contents": contents(memory),
        }


def test_the_same_run_gives_the_same_memory_on_both(postgres_url: str, tmp_path: Path) -> None:
    said = []
    for name, url in (("one", f"sqlite:///{tmp_path / 'memory.db'}"), ("other", postgres_url)):
        memory = Memory.open(url, base=Path())
        fill(memory)
        learn_all(memory)
        encode_all(memory, folder=tmp_path / name)
        said.append(told(memory, tmp_path))
        memory.close()
    sqlite, postgres = said
    assert sqlite["texts"]
    assert sqlite["vectors"]
    for part, expected in sqlite.items():
        assert postgres[part] == expected, part


def test_a_memory_opened_again_is_the_same_memory(memory_url: str, memory: Memory) -> None:
    fill(memory)
    learn_all(memory)
    memory.keep_report({"seconds": 1.5}, finished_time=1)
    again = Memory.open(memory_url, base=Path())
    assert again.identity == memory.identity
    assert again.last_report() == {"seconds": 1.5}
    assert everything(again) == everything(memory)
    again.close()


def test_settings_are_kept_replaced_and_forgotten(memory: Memory) -> None:
    assert memory.setting("one") is None
    memory.keep_setting("one", "1")
    memory.keep_setting("one", "2")
    assert memory.setting("one") == "2"
    with memory.writing() as connection:
        keep_setting(connection, "one", None)
    assert memory.setting("one") is None


def test_of_many_that_keep_one_setting_at_once_none_fails(memory: Memory) -> None:
    start, failures = threading.Barrier(4), []

    def keep(value: int) -> None:
        start.wait()
        try:
            for _ in range(10):
                memory.keep_setting("one", str(value))
        except LiberError as error:
            failures.append(error)

    threads = [threading.Thread(target=keep, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert memory.setting("one") in {"0", "1", "2", "3"}


def test_a_reading_is_one_snapshot_whatever_others_write(memory: Memory) -> None:
    memory.keep_setting("one", "before")
    newest = sa.select(schema.settings.c.value).where(schema.settings.c.name == "one")
    with memory.reading() as connection:
        assert connection.scalar(newest) == "before"
        writer = threading.Thread(target=memory.keep_setting, args=("one", "after"))
        writer.start()
        writer.join()
        assert connection.scalar(newest) == "before"
    assert memory.setting("one") == "after"


def test_a_transaction_that_fails_leaves_nothing(memory: Memory) -> None:
    with pytest.raises(ZeroDivisionError), memory.writing() as connection:
        keep_setting(connection, "one", "1")
        raise ZeroDivisionError
    assert memory.setting("one") is None


def test_texts_marked_to_be_written_anew_are_counted(memory: Memory) -> None:
    fill(memory)
    learn_all(memory)
    with memory.writing() as connection:
        marked = mark_recomputations(
            connection, since=0, stages=[SUMMARY], asked_time=10**18, prompt_version="test-1", model="echo-1"
        )
        assert marked == recomputation_count(connection) > 0
    assert len(learn_all(memory, EchoLearner(says="anew")).summaries) == marked


def test_publications_are_planned_taken_in_order_and_done(memory: Memory) -> None:
    append_all(memory, [behavior(second) for second in range(4)])
    learn_all(memory)
    rows = [PublishedRow(user_key=1, partition_index=index, version="1", text_id=index + 1) for index in range(2)]
    with memory.writing() as connection:
        for row in rows:
            plan(connection, [(SUMMARY, [row])], clock_time=5)
        plan(connection, [(SUMMARY, rows[:1])], clock_time=6)
    taken = []
    for _ in range(3):
        with memory.writing() as connection:
            (publication,) = next_unfinished(connection)
            taken.append([row.partition_index for row in publication.rows])
            finish(connection, publication, done_time=7)
    with memory.writing() as connection:
        assert next_unfinished(connection) == []
    assert taken == [[], [1], [0]]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
ROW = st.tuples(TEXT, TEXT, st.floats(allow_nan=False), st.integers(-(2**62), 2**62), st.none() | st.integers(0, 9))


@given(
    rows=st.lists(ROW, max_size=6, unique_by=lambda row: row[0]),
    times=st.sampled_from([1, 40, 70]),
    wanted=st.lists(st.integers(0, 400), max_size=6, unique=True),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_inserted_at_once_are_read_back_and_found_by_pairs(
    memory: Memory, rows: list[tuple[str, str, float, int, int | None]], times: int, wanted: list[int]
) -> None:
    table = schema.behaviors
    many = [(f"{row[0]}/{number}", *row[1:]) for number in range(times) for row in rows]
    columns = list(zip(*many, strict=True)) if many else [()] * 5
    behavior_id, item_id, rating, time, index = (list(column) for column in columns)
    with memory.writing() as connection:
        connection.execute(table.delete())
        connection.execute(schema.users.delete())
        insert_rows(connection, schema.users, one_user())
        values = [[1] * len(many), behavior_id, item_id, rating, time, time, index]
        insert_rows(connection, table, dict(zip(NAMES, values, strict=True)))
    with memory.reading() as connection:
        found = {row.behavior_id: tuple(row) for row in connection.execute(sa.select(*(table.c[one] for one in NAMES)))}
        pairs = [(1, behavior_id[one]) for one in wanted if one < len(many)]
        on = (table.c.user_key, table.c.behavior_id)
        query = sa.select(*on).select_from(join_pairs(table, on=on))
        asked = pair_parameters([*pairs, (2, "x"), (1, "no such")])
        by_pairs = sorted(connection.execute(query, asked).all())
    assert found == {row[0]: (1, row[0], row[1], row[2], row[3], row[3], row[4]) for row in many}
    assert by_pairs == sorted(pairs)


@pytest.mark.parametrize("count", [0, 1, 40_000], ids=["none", "one", "more than a statement has parameters"])
def test_rows_are_found_by_any_number_of_values(memory: Memory, count: int) -> None:
    with memory.writing() as connection:
        insert_rows(connection, schema.users, one_user())
    by_key = sa.select(schema.users.c.user_id).where(among(schema.users.c.user_key, "keys"))
    by_id = sa.select(schema.users.c.user_id).where(
        among(schema.users.c.user_id, "ids"), schema.users.c.late_count == 0
    )
    ids = ["ann", *(f"b{one}'\u00e9" for one in range(count))][:count]
    with memory.reading() as connection:
        assert connection.scalars(by_key, {"keys": list(range(1, count + 1))}).all() == ["ann"][:count]
        assert plain_rows(connection, by_id, {"ids": ids}) == [("ann",)][:count]


def one_user() -> dict[str, list[object]]:
    counts = {name: [0] for name in ("partition_count", "late_count", "duplicate_count")}
    return {"user_key": [1], "user_id": ["ann"], **counts}


@pytest.mark.parametrize("count", [1, 150], ids=["one row", "a copy"])
def test_no_error_names_a_user_or_holds_a_text(memory: Memory, count: int, caplog: pytest.LogCaptureFixture) -> None:
    columns = {"name": ["the-user-id"] * count, "value": ["a text"] * count}
    memory.keep_setting("the-user-id", "a text")
    shown = []
    with caplog.at_level(logging.DEBUG):
        for insert in (
            lambda connection: insert_rows(connection, schema.settings, columns),
            lambda connection: execute_many(connection, schema.settings.insert(), columns),
        ):
            with pytest.raises(Exception) as caught, memory.writing() as connection:  # noqa: PT011, B017
                insert(connection)
            shown.append("".join(traceback.format_exception(caught.value)))
    said = "\n".join([*shown, caplog.text])
    assert "unique" in said.lower()
    assert "Key (name)" not in said
    assert "=(the-user-id)" not in said
    assert "DETAIL" not in said


def test_a_value_that_the_server_cannot_read_is_not_quoted(postgres_url: str) -> None:
    memory = Memory.open(postgres_url, base=Path())
    with pytest.raises(sa.exc.DataError) as caught, memory.writing() as connection:
        connection.execute(sa.text("SELECT CAST(:value AS bigint)"), {"value": "the-user-id"})
    assert "the-user-id" not in f"{caught.value!s}{caught.value!r}{caught.value.orig!s}"
    memory.close()


def test_two_transactions_that_wait_for_each_other_both_end_well(postgres_url: str) -> None:
    memory = Memory.open(postgres_url, base=Path())
    memory.keep_setting("a", "0")
    memory.keep_setting("b", "0")
    meet, results = threading.Barrier(2), []

    def add(names: str) -> None:
        tries = []

        def work(connection: sa.Connection) -> int:
            tries.append(names)
            for position, name in enumerate(names):
                keep_setting(connection, name, names)
                if position == 0 and len(tries) == 1:
                    meet.wait()
            return len(tries)

        results.append(memory.retrying(work, what="settings"))

    threads = [threading.Thread(target=add, args=(names,)) for names in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory.close()
    assert sorted(results) == [1, 2]


def test_a_pool_that_is_used_up_is_said_in_one_line(postgres_url: str) -> None:
    memory = Memory.open(postgres_url, base=Path(), pool=PoolOptions(size=1, overflow=0, timeout_s=0.05))
    with memory.reading(), pytest.raises(MemoryBusy) as caught, memory.reading():
        pass
    assert "memory_pool.size" in caught.value.message
    assert "\n" not in caught.value.message
    assert isinstance(caught.value, RetryableError)
    memory.close()


def test_work_is_not_done_again_for_an_error_of_its_own() -> None:
    memory, tries = new_memory(), []

    def work(connection: sa.Connection) -> None:
        tries.append(1)
        raise RetryableError("the backend, not the memory")

    with pytest.raises(RetryableError, match="not the memory"):
        memory.retrying(work, what="nothing")
    assert len(tries) == 1


def test_the_clock_of_the_memory_is_microseconds_and_moves_on(memory: Memory) -> None:
    with memory.reading() as connection:
        first, second = memory.now(connection), memory.now(connection)
    assert START.timestamp() * 1e6 < first <= second
