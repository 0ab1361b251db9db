"""The benchmark of training: its peers read what ours reads, and a small run prints what it documents."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import training
from benchmarks._training_deepctr import MODELS, make_deepctr_peer
from benchmarks._training_features import flat_columns
from benchmarks._training_samples import benchmark_samples
from liber_feast.fields import InputField
from tests.peers import peer
from training.backbones.embedding import InputEmbedding
from training.fit import Prepared, prepare
from training.options import FitOptions

USERS = 30


@cache
def prepared() -> Prepared:
    return prepare(benchmark_samples("synthetic", users=USERS, with_memory=False), options=FitOptions())


def test_the_columns_of_peers_are_the_codes_of_ours() -> None:
    found, train = prepared(), prepared().split.train
    columns = flat_columns(found, train=train)
    sides = {"user": (found.spec.user_fields, found.users.codes), "item": (found.spec.item_fields, found.items.codes)}
    for side, (fields, codes) in sides.items():
        assert_same_codes(side, fields, codes[train], columns.values)
    history_QN, mask_QN = found.users.history.pad(train, width=found.spec.sequence_length)
    codes_QNT = found.spec.items.codes[history_QN] * mask_QN[..., None]
    assert_same_codes("history", found.spec.item_fields, codes_QNT, columns.values)
    assert ((columns.values["history_feedback"] > 0) == mask_QN).all()


def assert_same_codes(side: str, fields: tuple[InputField, ...], codes: np.ndarray, columns: dict[str, Any]) -> None:
    first, start = 0, 0
    for field in fields:
        if field.is_number:
            continue
        ours = codes[..., start : start + field.slots].reshape(len(codes), -1)
        theirs = columns[f"{side}_{field.name}"].reshape(len(codes), -1)
        np.testing.assert_array_equal(np.where(theirs > 0, theirs + first, 0), ours)
        first, start = first + len(field.values), start + field.slots


@pytest.mark.parametrize("name", MODELS)
def test_a_peer_of_deepctr_has_the_fields_and_the_size_of_ours_and_learns(name: str) -> None:
    peer("deepctr_torch.models")
    theirs = make_deepctr_peer(name, prepared(), width=8, hidden=[8, 4], dropout=0.3, batch_size=4096)
    columns = flat_columns(prepared(), train=prepared().split.train, binned=True)
    assert theirs.model.feature_index.keys() == columns.features.keys()
    assert theirs.inputs_QC.shape[1] == sum(
        values.reshape(len(values), -1).shape[1] for values in columns.values.values()
    )
    shape = prepared().spec.shape
    ours = InputEmbedding(shape, width=8, history="mean")
    numbers = shape.user_number_count + 2 * shape.item_number_count
    theirs_count = len(columns.features)
    assert theirs_count == ours.field_count - numbers
    before = {key: weight.clone() for key, weight in theirs.model.state_dict().items()}
    theirs.train_epoch()
    after = theirs.model.state_dict()
    tables = [key for key in before if key.startswith("embedding_dict")]
    assert len(tables) == theirs_count - (name in {"dcn", "deepfm"}) * (theirs_count_of_history(columns.features))
    assert all(not torch.equal(before[key], after[key]) for key in tables)


def theirs_count_of_history(features: dict[str, dict[str, Any]]) -> int:
    return sum("share_embedding" in about for about in features.values())


def test_a_small_run_ends_with_one_json_object_of_the_documented_figures(capsys: pytest.CaptureFixture[str]) -> None:
    peer("fuxictr.pytorch.models"), peer("deepctr_torch.models")
    threads = torch.get_num_threads()
    try:
        training.main(data="synthetic", backbones=["dcn", "din"], runs=1, users=USERS, step_count=2)
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["speedup"].keys() == {"dcn", "din"}
    assert figures["speedup_over_fuxictr_layers"].keys() == {"dcn"}
    assert figures["fusion_overhead"].keys() == figures["fusion_overhead_nothing_hidden"].keys() == {"din"}
    assert [rate["beside"] for rate in figures["samples_per_s"]["dcn"]] == [training.DEEPCTR, training.FUXICTR_LAYERS]
    assert all(rate["ours"] > 0 and rate["peer"] > 0 for one in figures["samples_per_s"].values() for rate in one)
    assert figures["train_samples"] == len(prepared().split.train)
    assert all(name in training.__doc__ for name in figures if name.startswith(("gpu_", "speedup", "fusion")))
