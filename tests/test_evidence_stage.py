"""The stage `evidence` on the memory: every sealed partition has evidence, made once of what its behaviors say."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.behavior import Behavior
from liber_feast.compact import tidy
from liber_feast.delta import DeltaSink
from liber_feast.errors import EncoderError, StoreFailure
from liber_feast.evidence import PartitionEvidence, item_text, memory_evidence, partition_evidence
from liber_feast.evidence_stage import EvidenceStage
from liber_feast.memory import Memory
from liber_feast.memory.evidence_tables import item_texts, item_vectors
from liber_feast.memory.forgetting import forget_user
from liber_feast.memory.item_vectors import drop_item_encoder
from liber_feast.memory.texts import text_hash
from liber_feast.publish import ALL_VIEWS, EVIDENCE_VIEWS, VIEWS
from liber_feast.republish import republish_all
from tests.evidence_stage_parts import (
    ITEMS,
    ItemVersions,
    OnlineFeatures,
    described_items,
    kept,
    publisher_of,
    run,
    stage_of,
    titled,
)
from tests.memory_parts import SECOND_US, START_US, TinyBert, append_all, behavior, contents, new_memory

RATINGS = (1.0, 3.0, 4.0)


@st.composite
def streams(draw: st.DrawFn) -> list[Behavior]:
    """Behaviors of two users; item 6 is not described."""
    size = draw(st.integers(0, 14))
    return [
        behavior(
            second,
            user=draw(st.sampled_from(["ann", "bob"])),
            item=f"i{draw(st.integers(0, ITEMS))}",
            rating=draw(st.sampled_from(RATINGS)),
        )
        for second in range(size)
    ]


def expected(memory: Memory, stream: Sequence[Behavior], stage: EvidenceStage) -> dict[tuple[str, int], object]:
    """Return the evidence of the partitions as they were sealed."""
    by_id = {(one.user_id, one.behavior_id): one for one in stream}
    with memory.reading() as connection:
        rows = connection.execute(sa.select(item_vectors.c.text_hash, item_vectors.c.vector))
        vectors = {name: np.frombuffer(vector, "<f4") for name, vector in rows}
    found: dict[tuple[str, int], object] = {}
    for user, partitions in contents(memory).partitions.items():
        for index, partition in enumerate(partitions):
            some = sorted((by_id[user, name] for name in partition.behavior_ids), key=lambda one: one.event_time)
            items = stage.catalog.items_at([(str(one.item_id), START_US + SECOND_US) for one in some])
            texts = [text_hash(item_text(items[str(one.item_id), START_US + SECOND_US])) for one in some]
            one = partition_evidence(
                np.stack([vectors[text] for text in texts]), liked=np.array([one.rating > 3 for one in some])
            )
            found[user, index] = (one.like_count, one.behavior_count, one.signed_sum.tobytes())
    return found


@given(streams(), st.lists(st.integers(0, 14), max_size=4))
def test_a_stream_fed_in_any_split_has_the_evidence_of_one_feed(stream: list[Behavior], cuts: list[int]) -> None:
    found = []
    for edges in ([0, len(stream)], sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})):
        with TemporaryDirectory() as folder:
            memory, items = new_memory(), described_items()
            stage = stage_of(memory, Path(folder), items=items)
            for start, end in zip(edges, edges[1:], strict=False):
                if start < end:
                    append_all(memory, stream[start:end])
                    run(stage, *{str(one.user_id) for one in stream[start:end]})
            found.append(kept(memory))
            assert found[-1] == expected(memory, stream, stage)
    assert found[0] == found[1]


@given(streams().flatmap(lambda stream: st.tuples(st.just(stream), st.permutations(stream))))
def test_evidence_never_changes_whatever_comes_late(given: tuple[list[Behavior], list[Behavior]]) -> None:
    stream, arrived = given
    memory, before = new_memory(), dict[tuple[str, int], tuple[int, int, bytes]]()
    with TemporaryDirectory() as folder:
        stage = stage_of(memory, Path(folder), items=described_items())
        for one in arrived:
            append_all(memory, [one])
            run(stage, str(one.user_id))
            after = kept(memory)
            assert {key: after[key] for key in before} == before
            before = after
        assert before == expected(memory, stream, stage)


def test_partitions_that_were_sealed_before_get_evidence_at_the_next_run_and_only_once(tmp_path: Path) -> None:
    memory = new_memory()
    append_all(memory, [behavior(second, user=user, item="i1") for second in range(4) for user in ("ann", "bob")])
    bert = TinyBert()
    stage = stage_of(memory, tmp_path, items=described_items(), bert=bert)
    counts = run(stage)
    assert (counts.partition_count, counts.item_count) == (4, ITEMS)
    assert len(kept(memory)) == 4
    asked = list(bert.asked)
    again = run(stage)
    assert (again.partition_count, again.item_count, bert.asked) == (0, 0, asked)


def test_a_first_run_for_some_users_makes_the_evidence_of_all(tmp_path: Path) -> None:
    memory = new_memory()
    append_all(memory, [behavior(second, user=user, item="i1") for second in range(2) for user in ("ann", "bob")])
    assert run(stage_of(memory, tmp_path, items=described_items()), "ann").partition_count == 2


def test_with_too_few_texts_of_items_evidence_waits_until_there_are_more(tmp_path: Path) -> None:
    memory, items = new_memory(), ItemVersions()
    items.describe(titled(0), titled(1, title="The item 0"))
    append_all(memory, [behavior(second, item="i0") for second in range(2)])
    stage = stage_of(memory, tmp_path, items=items)
    assert run(stage).encoder_version is None
    assert (stage.encoding.missing_count, kept(memory)) == (1, {})
    items.describe(titled(2))
    assert run(stage).partition_count == 1
    assert stage.encoding.missing_count == 0


def test_an_item_without_attributes_says_nothing_and_counts(tmp_path: Path) -> None:
    memory = new_memory()
    append_all(memory, [behavior(0, item="i1", rating=5.0), behavior(1, item="unknown", rating=1.0)])
    run(stage_of(memory, tmp_path, items=described_items()))
    ((likes, count, signed),) = kept(memory).values()
    assert (likes, count) == (1, 2)
    with memory.reading() as connection:
        one = text_hash("The item 1. Drama.")
        vector = connection.scalar(sa.select(item_vectors.c.vector).where(item_vectors.c.text_hash == one))
    assert np.frombuffer(signed, "<f8").tolist() == (0.5 * np.frombuffer(vector or b"", "<f4").astype(float)).tolist()


def test_an_item_is_what_it_was_when_the_behavior_happened(tmp_path: Path) -> None:
    memory, items = new_memory(), described_items()
    items.describe(titled(1, title="Renamed"), at=START_US + 10 * SECOND_US)
    append_all(memory, [behavior(second, item=item, rating=rate) for second, item, rate in MIXED])
    run(stage_of(memory, tmp_path, items=items))
    sums = [signed for _, _, signed in kept(memory).values()]
    assert len(sums) == 2
    assert sums[0] != sums[1]


MIXED = ((0, "i1", 5.0), (1, "i2", 1.0), (20, "i1", 5.0), (21, "i2", 1.0))


def published(folder: Path, view: str) -> list[dict[str, object]]:
    rows = DeltaTable(str(folder / view)).to_pyarrow_table().to_pylist()
    return sorted(rows, key=lambda row: (row.get("user_id", row.get("item_id")), row["event_timestamp"]))


def test_evidence_is_published_without_any_text_and_online_is_the_newest_row(tmp_path: Path) -> None:
    memory, online = new_memory(tmp_path), OnlineFeatures()
    publisher, stage = (
        publisher_of(memory, tmp_path, online=online),
        stage_of(memory, tmp_path, items=described_items()),
    )
    append_all(memory, [behavior(second, item=f"i{second % 3}", rating=1.0 + second % 4) for second in range(6)])
    run(stage)
    counts = publisher.publish()
    assert counts == {**dict.fromkeys(ALL_VIEWS, 0), "evidence": 3, "item_text": ITEMS}
    rows = published(tmp_path, "partition_evidence")
    assert [row["partition_index"] for row in rows] == [0, 1, 2]
    assert online.rows["partition_evidence"]["ann"] == rows[-1]
    assert list(online.rows["item_text"]) == [f"i{number}" for number in range(ITEMS)]
    assert publisher.publish() == dict.fromkeys(ALL_VIEWS, 0)


def test_a_row_of_a_memory_does_not_depend_on_later_partitions(tmp_path: Path) -> None:
    found = []
    for count in (4, 8):
        folder = tmp_path / str(count)
        folder.mkdir()
        memory = new_memory(folder)
        append_all(
            memory, [behavior(second, item=f"i{second % 5}", rating=1.0 + second % 4) for second in range(count)]
        )
        run(stage_of(memory, folder, items=described_items()))
        publisher_of(memory, folder, online=OnlineFeatures()).publish()
        rows = published(folder, "partition_evidence")
        found.append([{**row, "created_timestamp": None} for row in rows])
    assert found[0] == found[1][:2]
    sums = [
        PartitionEvidence(behavior_count=count, like_count=likes, signed_sum=np.frombuffer(signed, "<f8"))
        for likes, count, signed in kept(new_memory(tmp_path / "8")).values()
    ]
    memories = memory_evidence(sums)
    assert [row["memory_evidence"] for row in found[1]] == memories.evidence.tolist()
    assert [row["memory_like_rate"] for row in found[1]] == memories.like_rates.tolist()
    assert [row["memory_behavior_count"] for row in found[1]] == [2, 4, 6, 8]


def test_an_item_that_was_described_anew_is_published_anew_and_the_newest_row_is_online(tmp_path: Path) -> None:
    memory, online, items = new_memory(tmp_path), OnlineFeatures(), described_items()
    publisher, stage = publisher_of(memory, tmp_path, online=online), stage_of(memory, tmp_path, items=items)
    append_all(memory, [behavior(second, item="i0") for second in range(2)])
    run(stage)
    publisher.publish()
    before = online.rows["item_text"]["i1"]["vector"]
    items.versions["i1"] = [(START_US, titled(1, title="Corrected"))]  # in its place
    items.describe(titled(2, title="Renamed"), at=START_US + SECOND_US)
    run(stage)
    assert publisher.publish()["item_text"] == 2
    assert online.rows["item_text"]["i1"]["vector"] != before
    rows = published(tmp_path, "item_text")
    assert len(rows) == ITEMS + 2
    assert online.rows["item_text"]["i2"]["event_timestamp"] == max(row["event_timestamp"] for row in rows)  # type: ignore[type-var]


def test_an_item_whose_id_no_behavior_can_have_is_passed_over(tmp_path: Path) -> None:
    memory, online, items = new_memory(tmp_path), OnlineFeatures(), ItemVersions()
    items.describe(*(replace(titled(number), item_id=name) for number, name in enumerate(("1", "2", "03", "three"))))
    append_all(memory, [behavior(second, item=1) for second in range(2)])
    run(stage_of(memory, tmp_path, items=items))
    publisher_of(memory, tmp_path, online=online).publish()
    assert list(online.rows["item_text"]) == [1, 2]
    assert len(kept(memory)) == 1


class FullDelta(DeltaSink):
    """A table whose disk is full."""

    def append(self, rows: pa.Table, *, app_id: str, version: int) -> bool:
        raise StoreFailure("The disk is full.")


def test_what_was_begun_of_views_that_are_gone_stops_nothing_and_is_published_when_they_come_back(
    tmp_path: Path,
) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(second, item="i1") for second in range(4)])
    run(stage_of(memory, tmp_path, items=described_items()))
    whole = publisher_of(memory, tmp_path, online=OnlineFeatures())
    full = {stage: FullDelta(path=whole.tables[stage].path) for stage in EVIDENCE_VIEWS}
    with pytest.raises(StoreFailure):
        replace(whole, tables={**whole.tables, **full}).publish()
    before = replace(whole, tables={stage: whole.tables[stage] for stage in VIEWS})
    assert before.publish() == dict.fromkeys(VIEWS, 0)
    assert whole.publish() == {**dict.fromkeys(ALL_VIEWS, 0), "evidence": 2, "item_text": ITEMS}


def test_tidying_up_keeps_the_publications_that_items_are_of(tmp_path: Path) -> None:
    memory, items = new_memory(tmp_path), described_items()
    publisher, stage = publisher_of(memory, tmp_path, online=OnlineFeatures()), stage_of(memory, tmp_path, items=items)
    append_all(memory, [behavior(second, item="i1") for second in range(2)])
    run(stage)
    publisher.publish()
    for number in (7, 8):
        items.describe(titled(number))
        run(stage)
        publisher.publish()
    assert tidy(memory) == {"publications_removed": 0, "runs_removed": 0}
    found = republish_all(publisher, say=lambda _line: None)
    assert (found.delta_rows["item_text"], found.online_rows["item_text"]) == (ITEMS + 2, ITEMS + 2)
    assert len(published(tmp_path, "item_text")) == ITEMS + 2


def test_a_forgotten_user_has_no_evidence(tmp_path: Path) -> None:
    memory = new_memory()
    append_all(memory, [behavior(second, user=user, item="i1") for second in range(2) for user in ("ann", "bob")])
    stage = stage_of(memory, tmp_path, items=described_items())
    run(stage)
    with memory.writing() as connection:
        assert forget_user(connection, "ann").evidence == 1
    assert list(kept(memory)) == [("bob", 0)]
    assert run(stage).partition_count == 0


def test_another_pca_than_that_of_the_memory_is_refused_until_everything_is_made_anew(tmp_path: Path) -> None:
    memory = new_memory(tmp_path)
    append_all(memory, [behavior(second, item="i1") for second in range(2)])
    first = stage_of(memory, tmp_path / "first", items=described_items())
    run(first)
    publisher = publisher_of(memory, tmp_path, online=OnlineFeatures())
    publisher.publish()
    other = stage_of(memory, tmp_path / "other", items=described_items(), bert=TinyBert(seed=1))
    with pytest.raises(EncoderError, match="Bring that folder back"):
        run(other)
    with memory.writing() as connection:
        drop_item_encoder(connection, done_time=START_US)
        assert connection.scalar(sa.select(sa.func.count()).select_from(item_texts)) == 0
    assert run(other).partition_count == 1
    assert publisher.publish() == {**dict.fromkeys(ALL_VIEWS, 0), "evidence": 1, "item_text": ITEMS}
    rows = published(tmp_path, "partition_evidence")
    assert len({row["encoder_version"] for row in rows}) == len(rows) == 2
