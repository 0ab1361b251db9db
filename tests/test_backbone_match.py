"""The match of the memory with learned weights of partitions: the plain one at first, and what its formula says."""

from dataclasses import replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from liber_feast.artifact import to_tensors
from liber_feast.errors import ConfigError
from liber_feast.evidence_rows import MEMORY_PRIOR, Match
from liber_feast.inputs import InputShape
from tests import test_training_evidence as parts
from tests.backbone_parts import randomize, small
from tests.test_training_fit import OPTIONS
from training.backbones.match import MatchHead
from training.fit import Prepared, fit, prepare

LEARNED = [choice for choice in get_args(Match) if choice != "mean"]
SEVEN = ("dcn", "deepfm", "xdeepfm", "autoint", "fibinet", "din", "dien")


@cache
def prepared(choice: Match) -> Prepared:
    return prepare(parts.samples("evidence"), options=replace(OPTIONS, match=choice))


@cache
def batch(choice: Match) -> dict[str, Tensor]:
    return prepared(choice).load(torch.device("cpu")).batch(np.arange(0, 1_000, 7))


def shape(choice: Match) -> InputShape:
    return prepared(choice).spec.shape


@pytest.mark.parametrize("choice", LEARNED)
def test_a_learned_match_starts_as_the_mean_over_behaviors(choice: Match) -> None:
    dense = MatchHead(shape(choice)).dense(batch(choice))
    torch.testing.assert_close(dense, batch("mean")["dense"], rtol=0, atol=2e-6)
    assert batch("mean")["dense"][:, -1].abs().max() > 0.5


@pytest.mark.parametrize("choice", LEARNED)
def test_the_arrays_are_the_same_in_numpy_and_on_the_device(choice: Match) -> None:
    made, rows = prepared(choice), np.arange(0, 1_000, 7)
    expected = to_tensors(made.spec.batch(made.users, items=made.items, user_rows=rows, item_rows=rows))
    for name in ("item_vector", "partitions", "partition_there"):
        assert torch.equal(batch(choice)[name], expected[name])
    assert batch(choice)["partition_there"].sum(1).min() == 0


def test_later_partitions_count_more_with_decay() -> None:
    head = MatchHead(shape("decay"))
    with torch.no_grad():
        head.weight.fill_(0.7)
    found = head(batch("decay")).detach()
    for row in range(0, 140, 13):
        there = batch("decay")["partition_there"][row]
        partitions = batch("decay")["partitions"][row][there]
        age = torch.arange(len(partitions)).flip(0)
        weight = partitions[:, -1].exp() * torch.exp(-0.7 * age)
        match = partitions[:, :-1] @ batch("decay")["item_vector"][row] / head.deviation
        behaviors = float(partitions[:, -1].exp().sum())
        smoothing = behaviors / (behaviors + MEMORY_PRIOR)
        expected = smoothing * float((weight * match).sum() / weight.sum()) if len(partitions) else 0.0
        assert float(found[row]) == pytest.approx(np.clip(expected, -4, 4), abs=1e-5)


def test_partitions_that_match_count_more_with_attention() -> None:
    head = MatchHead(shape("attention"))
    plain = head(batch("attention")).detach()
    with torch.no_grad():
        head.weight.fill_(1.0)
    raised = head(batch("attention")).detach()
    several = batch("attention")["partition_there"].sum(1) > 1
    inside = several & (raised.abs() < 4) & (plain.abs() < 4)
    assert (raised[inside] >= plain[inside] - 1e-6).all()
    assert (raised[inside] > plain[inside] + 1e-3).any()


def test_a_projection_changes_the_candidates_vector() -> None:
    head = MatchHead(shape("projected"))
    plain = head(batch("projected")).detach()
    with torch.no_grad():
        head.weight.mul_(-1)
    torch.testing.assert_close(head(batch("projected")), -plain)


@pytest.mark.parametrize("choice", LEARNED)
def test_what_stands_behind_the_last_partition_does_not_matter(choice: Match) -> None:
    head = MatchHead(shape(choice))
    there = batch(choice)["partition_there"]
    other = {**batch(choice), "partitions": batch(choice)["partitions"].masked_fill(~there[..., None], 7.0)}
    torch.testing.assert_close(head(other), head(batch(choice)))


@pytest.mark.parametrize("choice", LEARNED)
@pytest.mark.parametrize("name", SEVEN)
def test_every_backbone_learns_the_match(name: str, choice: Match) -> None:
    model = small(name, shape=shape(choice))
    randomize(model)
    model(batch(choice)).sum().backward()
    gradient = model.inputs.match.weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("choice", LEARNED)
def test_a_fit_changes_what_is_learned(choice: Match) -> None:
    fitted = fit(prepared(choice), options=replace(OPTIONS, match=choice, epochs=1))
    start = MatchHead(shape(choice)).weight
    assert not torch.equal(fitted.model.inputs.match.weight, start)
    assert fitted.test is not None


def test_rows_without_partitions_cannot_be_scored_with_a_learned_match() -> None:
    with pytest.raises(ConfigError, match="match 'decay' needs the evidence of each partition"):
        prepared("decay").spec.encode(parts.listed("evidence"))


def test_without_evidence_nothing_is_learned() -> None:
    made = prepare(parts.samples("baseline"), options=replace(OPTIONS, match="decay"))
    assert made.spec.shape.match == "mean"
    assert "partitions" not in made.load(torch.device("cpu")).batch(np.arange(5))
