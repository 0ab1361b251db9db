"""Batches made on the device: equal to what the lists of the same samples give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from feast import FeatureStore
from hypothesis import given
from hypothesis import strategies as st

from liber_feast.artifact import to_tensors
from tests.feature_repo_kit import materialized_repo
from tests.test_training_fit import OPTIONS, samples
from tests.training_parts import sample_table, without_vectors
from training.backbones.behaviors import DISTINCT, PLACES
from training.backbones.embedding import InputEmbedding
from training.backbones.fusing import WINDOWS
from training.data import TRAINING_SERVICE, Features, load_samples
from training.fit import Prepared, prepare
from training.id_dropout import hide_ids

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
FEATURES: tuple[Features, ...] = ("baseline", "liber")

PREPARED = {features: prepare(samples(features), options=OPTIONS) for features in FEATURES}
LOADED = {features: PREPARED[features].load(CPU) for features in FEATURES}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() - {*DISTINCT, PLACES} == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].cpu(), tensor), name


def in_numpy(prepared: Prepared, rows: np.ndarray) -> dict[str, torch.Tensor]:
    return to_tensors(prepared.spec.batch(prepared.users, items=prepared.items, user_rows=rows, item_rows=rows))


@pytest.mark.parametrize("features", FEATURES)
@given(numbers=st.lists(st.integers(0, 999), max_size=40))
def test_a_batch_is_what_numpy_makes_of_the_same_samples(features: Features, numbers: list[int]) -> None:
    rows = np.array(numbers, np.int64)
    assert_same(LOADED[features].batch(rows), in_numpy(PREPARED[features], rows))
    assert LOADED[features].labels(rows).tolist() == PREPARED[features].labels[rows].tolist()


@pytest.mark.parametrize("features", FEATURES)
def test_a_batch_is_what_the_lists_of_the_same_samples_give(features: Features) -> None:
    table = sample_table() if features == "liber" else without_vectors(sample_table())
    assert_same(LOADED[features].batch(np.arange(1_000)), to_tensors(PREPARED[features].spec.encode(table)))


@pytest.mark.parametrize("features", FEATURES)
@given(numbers=st.lists(st.integers(0, 999), max_size=40))
def test_items_that_a_batch_holds_several_times_are_in_it_once_too(features: Features, numbers: list[int]) -> None:
    batch = LOADED[features].batch(np.array(numbers, np.int64))
    codes, values = (batch[name] for name in DISTINCT)
    assert torch.equal(codes[batch[PLACES]], batch["history_codes"])
    assert torch.equal(values[batch[PLACES]], batch["history_numbers"])
    encoded = torch.cat([codes.float(), values.flatten(1)], dim=1).tolist()
    assert len(encoded) == len({tuple(row) for row in encoded})
    assert set(range(len(encoded))) == set(batch[PLACES].flatten().tolist())


@given(numbers=st.lists(st.integers(0, 999), max_size=40))
def test_a_training_step_gathers_the_partition_vectors_only_when_they_are_asked_for(numbers: list[int]) -> None:
    rows = np.array(numbers, np.int64)
    batch, expected = LOADED["liber"].step_batch(rows), LOADED["liber"].batch(rows)
    assert expected.keys() - batch.keys() == {"vectors", "sealed"}
    assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())
    assert batch.keys() - expected.keys() == set(WINDOWS)
    hidden = hide_ids(LOADED["liber"].step_batch(rows), share=0.5)
    assert torch.equal(hidden["vectors"], expected["vectors"]), "nor are they lost with the ids"


def test_the_batch_of_a_step_fuses_the_same_whichever_way_it_tells_of_partitions() -> None:
    torch.manual_seed(0)
    inputs = InputEmbedding(PREPARED["liber"].spec.shape, width=4)
    windows, whole = LOADED["liber"].step_batch(np.arange(300)), LOADED["liber"].batch(np.arange(300))
    found, of_vectors = inputs.fused(windows), inputs.fused(whole)
    assert "vectors" not in windows
    assert inputs.fusion is not None
    expected = inputs.fusion(whole["vectors"], whole["sealed"])
    assert expected.any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_vectors, expected, rtol=1e-4, atol=1e-6)
    doubled = windows | {"vectors": whole["vectors"] * 2, "sealed": whole["sealed"]}
    torch.testing.assert_close(inputs.fused(doubled), inputs.fusion(whole["vectors"] * 2, whole["sealed"]))


def test_a_batch_without_partitions_has_no_other_form_in_a_step() -> None:
    batch = LOADED["baseline"].step_batch(np.arange(5))
    assert batch.keys() == LOADED["baseline"].batch(np.arange(5)).keys()
    with pytest.raises(KeyError, match="fused"):
        LOADED["liber"].step_batch(np.arange(5))["fused"]


@needs_gpu
@pytest.mark.parametrize("features", FEATURES)
def test_a_batch_is_the_same_on_a_gpu(features: Features) -> None:
    rows = np.random.default_rng(0).permutation(1_000)[:300]
    batches = PREPARED[features].load(torch.device("cuda"))
    assert {tensor.device.type for tensor in batches.batch(rows).values()} == {"cuda"}
    assert_same(batches.batch(rows), in_numpy(PREPARED[features], rows))


@pytest.mark.parametrize("features", FEATURES)
def test_the_tensors_equal_those_of_the_features_that_feast_returns(tmp_path: Path, features: Features) -> None:
    repo = materialized_repo(tmp_path / "repo")
    found = load_samples(repo, features=features)
    prepared = prepare(found, options=OPTIONS)
    batches = prepared.load(CPU)
    store = FeatureStore(repo_path=str(repo))
    service = store.get_feature_service(TRAINING_SERVICE[features])
    frame = found.table.select(["user_id", "item_id", "event_timestamp", "rating"])
    lists = store.get_historical_features(entity_df=frame.to_pandas(), features=service).to_arrow()
    assert max(map(len, lists["item_ids"].drop_null().to_pylist())) > 1
    assert_same(batches.batch(np.arange(len(found.labels))), to_tensors(prepared.spec.encode(lists)))
