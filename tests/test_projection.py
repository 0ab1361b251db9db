"""Feature rows made from the memory: the newest, the windows, and both types of ids."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from liber_feast.fuser import mean_fuser
from liber_feast.memory import Memory
from liber_feast.memory.publications import text_version
from liber_feast.memory.schema import partitions, text_vectors, texts, users
from liber_feast.projection import Projection
from tests.memory_parts import (
    SECOND_US,
    START_US,
    EchoLearner,
    append_all,
    behavior,
    encode_all,
    learn_all,
    new_memory,
)

TIME = pa.timestamp("us", tz="UTC")
KEYS = (ANN, BOB, CID) = (1, 2, 3)
"""User keys, in the order in which the users came."""


@contextmanager
def projected(
    memory: Memory, *, version: str | None = None, memory_window: int = 50, sequence_length: int = 50
) -> Iterator[Projection]:
    with memory.reading() as connection:
        yield Projection(
            connection=connection,
            fuser=mean_fuser(width=4),
            vector_version=None if version is None else f"0/{version}",
            vector_width=2,
            memory_window=memory_window,
            sequence_length=sequence_length,
        )


def seal_us(second: int) -> int:
    return START_US + second * SECOND_US + 1


def micros(rows: pa.Table, column: str) -> list[int]:
    found: list[int] = rows[column].cast(pa.int64()).to_pylist()
    return found


@pytest.fixture
def memory() -> Memory:
    """Three partitions of ann, one of bob, none of cid; every text is there, none is encoded."""
    found = new_memory()
    append_all(found, [behavior(second, item=f"a{second}") for second in range(7)])
    append_all(found, [behavior(second, user="bob", item=f"b{second}") for second in range(2)])
    append_all(found, [behavior(1, user="cid")])
    learn_all(found)
    return found


def test_a_summary_row_says_everything_of_its_partition(memory: Memory) -> None:
    with projected(memory) as projection:
        rows = projection.text_rows("summary", user_keys=KEYS, keep=lambda key, _version: key[1] == 1)
    (row,) = rows.to_pylist()
    assert rows.column_names[0] == "user_id"
    assert rows.schema.field("event_timestamp").type == rows.schema.field("created_timestamp").type == TIME
    assert micros(rows, "event_timestamp") == [seal_us(3)]
    assert micros(rows, "created_timestamp")[0] > START_US
    del row["event_timestamp"], row["created_timestamp"]
    assert row == {
        "user_id": "ann",
        "partition_index": 1,
        "summary": "ann likes the a2, the a3",
        "behavior_count": 2,
        "first_time": START_US + 2 * SECOND_US,
        "last_time": START_US + 3 * SECOND_US,
        "prompt_version": "test-1",
        "model": "echo-1",
    }


def test_the_newest_text_rows_are_one_of_each_user_that_has_a_text(memory: Memory) -> None:
    with projected(memory) as projection:
        summaries = projection.newest_text_rows("summary", user_keys=KEYS)
        shifts = projection.newest_text_rows("shift", user_keys=KEYS)
        nobody = projection.newest_text_rows("shift", user_keys=[])
    assert [(row["user_id"], row["partition_index"]) for row in summaries.to_pylist()] == [("ann", 2), ("bob", 0)]
    assert [(row["user_id"], row["previous_partition_index"]) for row in shifts.to_pylist()] == [("ann", 1)]
    assert nobody.schema == shifts.schema
    assert nobody.num_rows == 0


def test_of_two_texts_of_a_partition_the_later_one_is_the_newest(memory: Memory) -> None:
    with memory.writing() as connection:
        connection.execute(texts.delete().where(texts.c.partition_index == 2))
        old = connection.execute(sa.select(texts).where(texts.c.partition_index == 1, texts.c.stage == "summary")).one()
        again = {**old._mapping, "text_id": None, "prompt_version": "test-2", "text": "anew", "text_hash": "x"}
        connection.execute(texts.insert().values(again))
    with projected(memory) as projection:
        newest = projection.newest_text_rows("summary", user_keys=KEYS).to_pylist()[0]
        version = text_version(prompt_version="test-2", model="echo-1", revision=0)
        chosen = projection.text_rows("summary", user_keys=KEYS, keep=lambda _key, one: one == version)
    assert (newest["partition_index"], newest["summary"]) == (1, "anew")
    assert chosen["summary"].to_pylist() == ["anew"]


def test_a_partition_vector_is_the_summary_beside_the_shift_and_zeros_where_there_is_none(
    memory: Memory, tmp_path: Path
) -> None:
    version = encode_all(memory, folder=tmp_path)
    with memory.reading() as connection:
        joined = sa.select(texts, text_vectors.c.vector).join(text_vectors, text_vectors.c.text_id == texts.c.text_id)
        encoded = {
            (row.user_key, row.partition_index, row.stage): np.frombuffer(row.vector, "<f4")
            for row in connection.execute(joined)
        }
    with projected(memory, version=version) as projection:
        found = {(one.user_key, one.partition_index): one for one in projection.vectors(KEYS)}
        rows = projection.vector_rows(found.values(), encoder_version=version, created_time=START_US)
    assert list(found) == [(ANN, 0), (ANN, 1), (ANN, 2), (BOB, 0)]
    assert found[ANN, 0].vector.tolist() == [*encoded[ANN, 0, "summary"], 0, 0]
    assert found[ANN, 2].vector.tolist() == [*encoded[ANN, 2, "summary"], *encoded[ANN, 2, "shift"]]
    assert rows["vector"].to_pylist() == [one.vector.tolist() for one in found.values()]
    assert micros(rows, "event_timestamp") == [seal_us(second) for second in (1, 3, 5, 1)]
    assert set(micros(rows, "created_timestamp")) == {START_US}
    with memory.reading() as connection:
        written = connection.execute(
            sa.select(texts.c.text_id).where(texts.c.user_key == ANN, texts.c.partition_index == 2)
        )
        assert found[ANN, 2].text_id == max(written.scalars())


def test_the_memory_row_holds_the_last_partitions_of_its_user_row_major(memory: Memory, tmp_path: Path) -> None:
    version = encode_all(memory, folder=tmp_path)
    with projected(memory, version=version, memory_window=2) as projection:
        rows = projection.memory_rows(KEYS, created_time=START_US)
        vectors = [one.vector for one in projection.vectors(KEYS)]
    assert micros(rows, "created_timestamp") == [START_US] * 2
    ann, bob = rows.to_pylist()
    assert (ann["user_id"], ann["partition_count"], ann["encoder_version"]) == ("ann", 2, version)
    assert ann["vectors"] == np.concatenate(vectors[1:3]).tolist()
    assert (bob["user_id"], bob["partition_count"], bob["vectors"]) == ("bob", 1, vectors[3].tolist())


def test_each_fused_row_sees_its_partition_and_those_before_it_but_none_after(memory: Memory, tmp_path: Path) -> None:
    version = encode_all(memory, folder=tmp_path)
    with projected(memory, version=version, memory_window=2) as projection:
        windows = projection.windows(KEYS)
        rows = projection.fused_rows(list(windows.values()), created_time=START_US)
        newest = projection.newest_fused_rows(KEYS, created_time=START_US)
        vectors = [one.vector for one in projection.vectors([ANN])]
    assert [(key, len(window)) for key, window in windows.items()] == [
        ((ANN, 0), 1),
        ((ANN, 1), 2),
        ((ANN, 2), 2),
        ((BOB, 0), 1),
    ]
    assert rows["partition_count"].to_pylist() == [1, 2, 2, 1]
    np.testing.assert_allclose(rows["fused"].to_pylist()[2], np.mean(vectors[1:], axis=0), rtol=1e-6)
    assert newest.equals(rows.take([2, 3]))
    assert set(rows["fusion_version"].to_pylist()) == {"mean"}


def test_without_an_encoder_there_are_texts_and_no_vectors(memory: Memory) -> None:
    with projected(memory) as projection:
        assert list(projection.vectors(KEYS)) == []
        assert projection.windows(KEYS) == {}
        assert projection.memory_rows(KEYS, created_time=0).num_rows == 0
        assert projection.newest_fused_rows(KEYS, created_time=0).num_rows == 0


@pytest.mark.parametrize(
    ("without", "waiting"),
    [
        ([("ann", 1, "shift")], {("ann", 1)}),
        ([("ann", 0, "summary")], {("ann", 0)}),
        ([("ann", 0, "summary"), ("ann", 1, "shift")], {("ann", 0), ("ann", 1)}),
        ([("ann", 1, "summary")], {("ann", 1)}),
    ],
    ids=["a shift", "the first summary", "the first summary and the shift after it", "a summary"],
)
def test_a_partition_with_a_text_that_is_not_yet_encoded_has_no_vector(
    memory: Memory, tmp_path: Path, without: list[tuple[str, int, str]], waiting: set[tuple[str, int]]
) -> None:
    version = encode_all(memory, folder=tmp_path)
    with memory.writing() as connection:
        for user, index, stage in without:
            found = sa.select(texts.c.text_id).join(users, users.c.user_key == texts.c.user_key)
            found = found.where(users.c.user_id == user, texts.c.partition_index == index, texts.c.stage == stage)
            connection.execute(text_vectors.delete().where(text_vectors.c.text_id.in_(found)))
    with projected(memory, version=version) as projection:
        vectors = projection.vectors(KEYS)
        rows = projection.vector_rows(vectors, encoder_version=version, created_time=START_US).to_pylist()
    complete = {("ann", 0), ("ann", 1), ("ann", 2), ("bob", 0)}
    assert {(row["user_id"], row["partition_index"]) for row in rows} == complete - waiting


def test_a_partition_whose_shift_is_not_yet_written_has_no_vector_unless_nothing_comes_before_it(
    memory: Memory, tmp_path: Path
) -> None:
    version = encode_all(memory, folder=tmp_path)
    with memory.writing() as connection:
        connection.execute(text_vectors.delete())
        connection.execute(texts.delete().where(texts.c.stage == "shift"))
        connection.execute(texts.delete().where(texts.c.partition_index == 0, texts.c.user_key == ANN))
    assert encode_all(memory, folder=tmp_path) == version
    with projected(memory, version=version) as projection:
        found = [(one.user_key, one.partition_index) for one in projection.vectors(KEYS)]
    assert found == [(ANN, 1), (BOB, 0)]


def test_a_partition_whose_shift_failed_has_zeros_in_its_place(memory: Memory, tmp_path: Path) -> None:
    version = encode_all(memory, folder=tmp_path)
    with memory.writing() as connection:
        shift = sa.select(texts.c.text_id).where(texts.c.partition_index == 1, texts.c.stage == "shift")
        connection.execute(text_vectors.delete().where(text_vectors.c.text_id.in_(shift)))
        connection.execute(texts.delete().where(texts.c.partition_index == 1, texts.c.stage == "shift"))
    with projected(memory, version=version) as projection:
        assert [one.partition_index for one in projection.vectors([ANN])] == [0, 2]
    with memory.writing() as connection:
        failed = partitions.update().where(partitions.c.user_key == ANN, partitions.c.partition_index == 1)
        connection.execute(failed.values(failure="no answer"))
    with projected(memory, version=version) as projection:
        first, second, third = projection.vectors([ANN])
    assert (second.partition_index, second.vector[2:].tolist()) == (1, [0, 0])
    assert second.vector[:2].any()
    assert third.vector[2:].any()


def test_a_text_that_was_written_anew_is_another_version_of_its_row(memory: Memory) -> None:
    with memory.writing() as connection:
        old = connection.execute(sa.select(texts).where(texts.c.partition_index == 1, texts.c.stage == "summary")).one()
        again = {**old._mapping, "text_id": None, "revision": 2, "text": "anew", "text_hash": "x"}
        connection.execute(texts.insert().values(again))
    seen: list[str] = []
    with projected(memory) as projection:
        projection.text_rows("summary", user_keys=[ANN], keep=lambda _key, version: bool(seen.append(version)))
    assert seen == ["test-1/echo-1", "test-1/echo-1", "test-1/echo-1#2", "test-1/echo-1"]


def test_a_shift_alone_is_no_vector(memory: Memory, tmp_path: Path) -> None:
    version = encode_all(memory, folder=tmp_path)
    with memory.writing() as connection:
        lost = sa.select(texts.c.text_id).where(texts.c.partition_index == 2, texts.c.stage == "summary")
        connection.execute(text_vectors.delete().where(text_vectors.c.text_id.in_(lost)))
        connection.execute(texts.delete().where(texts.c.partition_index == 2, texts.c.stage == "summary"))
    with projected(memory, version=version) as projection:
        found = [(one.user_key, one.partition_index) for one in projection.vectors(KEYS)]
    assert found == [(ANN, 0), (ANN, 1), (BOB, 0)]


def test_the_sequence_is_the_last_behaviors_in_time_sealed_or_not(memory: Memory) -> None:
    append_all(memory, [behavior(0.5, name="late", item="late", rating=1)])
    with projected(memory, sequence_length=3) as projection:
        rows = projection.behavior_rows(KEYS)
    ann, bob, cid = rows["behavior_sequence"].to_pylist()
    assert (ann["item_ids"], ann["ratings"], ann["behavior_count"]) == (["a4", "a5", "a6"], [4.0, 4.0, 4.0], 8)
    assert ann["times"] == [START_US + second * SECOND_US for second in (4, 5, 6)]
    assert (bob["item_ids"], bob["behavior_count"]) == (["b0", "b1"], 2)
    assert cid["behavior_count"] == 1
    assert micros(rows["behavior_sequence"], "event_timestamp") == [START_US + s * SECOND_US for s in (6, 1, 1)]
    assert [(row["user_id"], row["item_id"], row["rating"]) for row in rows["behaviors"].to_pylist()] == [
        ("ann", "a6", 4.0),
        ("bob", "b1", 4.0),
        ("cid", "a", 4.0),
    ]


def test_users_without_behaviors_have_no_sequence(memory: Memory) -> None:
    with projected(memory) as projection:
        rows = projection.behavior_rows([99])
    assert {name: table.num_rows for name, table in rows.items()} == {"behaviors": 0, "behavior_sequence": 0}


def test_integer_ids_stay_integers_in_every_row(tmp_path: Path) -> None:
    memory = new_memory()
    append_all(memory, [behavior(second, user=7, item=100 + second) for second in range(4)])
    learn_all(memory, EchoLearner())
    version = encode_all(memory, folder=tmp_path)
    with projected(memory, version=version) as projection:
        tables = {
            **projection.behavior_rows(KEYS),
            "summary": projection.newest_text_rows("summary", user_keys=KEYS),
            "memory": projection.memory_rows(KEYS, created_time=START_US),
        }
    assert {name: table["user_id"].to_pylist() for name, table in tables.items()} == dict.fromkeys(tables, [7])
    assert tables["behaviors"]["item_id"].to_pylist() == [103]
    assert tables["behavior_sequence"]["item_ids"].to_pylist() == [[100, 101, 102, 103]]
    assert tables["behaviors"].schema.field("item_id").type == pa.int64()
