"""Evidence in samples: what is compared with a candidate, in which scales; equal from lists and on the device."""

from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
import torch

from liber_feast.artifact import to_tensors
from liber_feast.errors import ConfigError, DataSetError, StoreNotReady
from liber_feast.evidence import partition_evidence
from liber_feast.inputs import Batch
from tests.evidence_parts import (
    EVIDENCE_WIDTH,
    ITEM_ENCODER,
    catalog_of,
    evidence_table,
    item_vector,
    published_evidence,
    published_items,
)
from tests.test_training_fit import OPTIONS, samples_of
from tests.training_parts import sample_table, without_vectors
from training.backbones.behaviors import DISTINCT, PLACES
from training.data import Features, Samples
from training.evidence_samples import evidence_of, item_texts, with_vectors
from training.fit import Prepared, fit, prepare
from training.fit_inputs import item_versions

WINDOW, MEMORY_RATE, MEMORY = 3, 3, 6
"""Where in `dense` the match of the window, and the like rate and match of the memory, stand."""
FEATURES: tuple[Features, ...] = ("baseline", "liber", "evidence", "liber+evidence")


@cache
def listed(features: Features = "liber+evidence") -> pa.Table:
    table = evidence_table()
    return table if "liber" in features else without_vectors(table)


@cache
def samples(features: Features = "liber+evidence") -> Samples:
    table = sample_table()
    texts = item_texts(published_items(table))
    published = published_evidence(table)
    return replace(
        samples_of(table, features="liber" if "liber" in features else "baseline"),
        catalog=with_vectors(item_versions(catalog_of(table)), texts=texts),
        item_encoder_version=texts.encoder_version,
        evidence=evidence_of(table, published=published, texts=texts) if "evidence" in features else None,
    )


@cache
def prepared(features: Features = "liber+evidence") -> Prepared:
    return prepare(samples(features), options=OPTIONS)


def dense(features: Features = "liber+evidence") -> np.ndarray:
    found: np.ndarray = batch_of(features)["dense"]
    return found


@cache
def batch_of(features: Features) -> Batch:
    made, rows = prepared(features), np.arange(1_000)
    return made.spec.batch(made.users, items=made.items, user_rows=rows, item_rows=rows)


@pytest.mark.parametrize("features", FEATURES)
def test_the_features_of_samples_are_told_by_what_they_hold(features: Features) -> None:
    assert samples(features).features == features


@pytest.mark.parametrize("features", FEATURES)
def test_a_batch_on_the_device_is_what_the_lists_of_the_same_samples_give(features: Features) -> None:
    found = prepared(features).load(torch.device("cpu")).batch(np.arange(1_000))
    expected = to_tensors(prepared(features).spec.encode(listed(features)))
    assert found.keys() - {*DISTINCT, PLACES} == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("features", "count"), [("baseline", 4), ("liber", 4), ("evidence", 7)])
def test_every_backbone_gets_the_matches_as_dense_numbers(features: Features, count: int) -> None:
    assert prepared(features).spec.shape.dense_count == count == dense(features).shape[1]


def test_without_item_texts_the_inputs_are_as_they_were() -> None:
    plain = prepare(samples_of(without_vectors(sample_table()), features="baseline"), options=OPTIONS)
    assert plain.spec.match is None
    assert plain.spec.shape.dense_count == 3
    np.testing.assert_array_equal(plain.users.dense, dense("baseline")[:, :3])


@pytest.mark.parametrize("row", [0, 1, 60, 500, 999])
def test_the_match_of_the_window_is_its_evidence_times_the_candidate(row: int) -> None:
    one = listed().slice(row, 1).to_pylist()[0]
    categories = {name["item_id"]: name["categories"] for name in sample_table().to_pylist()}
    window = [item_vector(categories[name], number=int(name[1:])) for name in one["item_ids"]]
    expected = 0.0
    if window:
        evidence = partition_evidence(np.stack(window), liked=np.array(one["ratings"]) > 3).evidence
        expected = float(evidence @ np.array(one["vector"]))
    match = prepared().spec.match
    assert match is not None
    assert dense()[row, WINDOW + 2] * match.window_deviation == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("row", [0, 200, 500, 999])
def test_the_numbers_of_the_memory_are_the_published_ones_smoothed_with_20_behaviors(row: int) -> None:
    one = listed().slice(row, 1).to_pylist()[0]
    found, count = one["memory_evidence"], one["memory_behavior_count"]
    expected, like_rate = 0.0, prepared().spec.like_rate
    rate = like_rate
    if found is not None:
        expected = float(np.array(found) @ np.array(one["vector"])) * count / (count + 20)
        rate = (one["memory_like_rate"] * count + 20 * like_rate) / (count + 20)
    match = prepared().spec.match
    assert match is not None
    assert dense()[row, MEMORY] * match.memory_deviation == pytest.approx(expected, abs=1e-6)
    assert dense()[row, MEMORY_RATE] == pytest.approx(rate - like_rate, abs=1e-6)
    assert (found is None) == (row == 0)


def test_scales_are_fitted_on_the_training_part_alone() -> None:
    train, test = prepared().split.train, prepared().split.test
    for place in (WINDOW + 2, MEMORY):
        assert dense()[train, place].std() == pytest.approx(1, abs=0.02)  # a few are cut at the limit
    moved = replace(samples().evidence, behavior_counts=samples().evidence.behavior_counts.copy())
    seen = np.unique(moved.evidence.rows[train])
    unseen = np.setdiff1d(moved.evidence.rows[test], seen)
    moved.behavior_counts[unseen] = 1e6
    assert len(unseen)
    assert prepare(replace(samples(), evidence=moved), options=OPTIONS).spec.match == prepared().spec.match


def test_a_memory_without_partitions_says_nothing() -> None:
    evidence = samples().evidence
    assert evidence is not None
    none = evidence.evidence.rows < 0
    assert none.any()
    assert not dense()[none][:, [3, 4, MEMORY]].any()
    train = np.intersect1d(prepared().split.train, np.flatnonzero(~none))
    assert dense()[train, 4].mean() == pytest.approx(0, abs=0.05)
    assert dense()[train, 4].std() == pytest.approx(1, abs=0.05)


def test_evidence_raises_what_a_backbone_knows() -> None:
    options = replace(OPTIONS, epochs=6)
    found = {name: fit(prepared(name), options=options).test for name in ("baseline", "evidence")}
    assert found["evidence"].auc > found["baseline"].auc


def test_evidence_is_that_of_the_last_publication_of_the_last_partition_sealed_by_then() -> None:
    table = sample_table()
    texts, published = item_texts(published_items(table)), published_evidence(table)
    created = pa.array([2] * len(published), pa.timestamp("us", tz="UTC"))
    older = published.append_column("created_timestamp", pa.array([1] * len(published), created.type))
    wrong = older.set_column(
        older.column_names.index("memory_like_rate"), "memory_like_rate", pa.array([0.5] * len(older))
    )
    both = pa.concat_tables([published.append_column("created_timestamp", created), wrong])
    found = evidence_of(table, published=both, texts=texts)
    expected = samples().evidence
    assert expected is not None
    np.testing.assert_array_equal(found.like_rates, expected.like_rates)
    np.testing.assert_array_equal(found.evidence.rows, expected.evidence.rows)


def test_item_vectors_of_two_encoders_are_refused() -> None:
    published = published_items(sample_table())
    other = pa.array(["items-2", *[ITEM_ENCODER] * (len(published) - 1)])
    mixed = published.set_column(published.column_names.index("encoder_version"), "encoder_version", other)
    with pytest.raises(DataSetError, match=r"item_text holds vectors of 2 encoder versions \(items-1, items-2\)"):
        item_texts(mixed)


def test_evidence_of_another_encoder_than_the_items_is_refused() -> None:
    table = sample_table()
    texts = replace(item_texts(published_items(table)), encoder_version="items-2")
    with pytest.raises(DataSetError, match=r"partition_evidence is of the encoder items-1 and item_text of items-2"):
        evidence_of(table, published=published_evidence(table), texts=texts)


def test_a_value_that_is_not_finite_is_refused() -> None:
    table = sample_table()
    published = published_items(table)
    bad = [[float("nan")] * EVIDENCE_WIDTH, *published["vector"].to_pylist()[1:]]
    column = pa.array(bad, pa.list_(pa.float32()))
    with pytest.raises(DataSetError, match=r"'vector' has a value that is not finite in row 0"):
        item_texts(published.set_column(published.column_names.index("vector"), "vector", column))
    evidence = published_evidence(table)
    rates = pa.array([float("nan")] * len(evidence))
    evidence = evidence.set_column(evidence.column_names.index("memory_like_rate"), "memory_like_rate", rates)
    with pytest.raises(DataSetError, match="a like rate or a count that is not a number"):
        evidence_of(table, published=evidence, texts=item_texts(published))


def test_a_store_without_rows_of_the_stages_says_what_to_run() -> None:
    table = sample_table()
    with pytest.raises(StoreNotReady, match="item_text holds no vectors. Run `feast materialize"):
        item_texts(published_items(table).slice(0, 0))
    with pytest.raises(StoreNotReady, match="partition_evidence holds no partition for any sample"):
        evidence_of(table, published=published_evidence(table).slice(0, 0), texts=item_texts(published_items(table)))


def test_rows_without_the_columns_of_evidence_are_refused() -> None:
    with pytest.raises(ConfigError, match="evidence features need the column 'memory_evidence'"):
        prepared("evidence").spec.encode(without_vectors(sample_table()))
