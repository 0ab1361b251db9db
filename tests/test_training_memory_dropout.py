"""Dropout of the memory: hidden from steps, never from scores; a hidden memory is one without partitions."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from liber_feast.encoded import MEMORY_COLUMNS
from tests.test_training_evidence import prepared
from tests.test_training_fit import OPTIONS, Recorder
from training.backbones.fusing import WINDOWS, fuse_windows
from training.batches import SampleBatches
from training.data import Features
from training.fit import fit
from training.memory_dropout import hide_memory

MEMORY: tuple[Features, ...] = ("liber", "evidence", "liber+evidence")

pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def loaded(features: Features) -> SampleBatches:
    return prepared(features).load(torch.device("cpu"))


def hidden(batch: dict[str, Tensor], *, features: Features, share: float, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return hide_memory(batch, share=share, has_evidence=loaded(features).has_evidence)


def is_hidden(rows: int, *, share: float, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.rand(rows) < share


@pytest.mark.parametrize("features", MEMORY)
@given(seed=st.integers(0, 99), share=st.floats(0, 1, exclude_max=True))
def test_a_memory_is_hidden_whole_or_not_at_all_and_nothing_else_changes(
    features: Features, seed: int, share: float
) -> None:
    rows = np.arange(0, 1_000, 9)
    batch = loaded(features).batch(rows)
    before = {name: values.clone() for name, values in batch.items()}
    found, gone = hidden(batch, features=features, share=share, seed=seed), is_hidden(len(rows), share=share, seed=seed)
    for name, values in before.items():
        assert torch.equal(batch[name], values)  # what was given is as it was
        if name in ("dense", "sealed"):
            assert torch.equal(found[name][~gone], values[~gone])
        else:
            assert torch.equal(found[name], values)
    if "liber" in features:
        assert not found["sealed"][gone].any()
    of_memory = sorted(column % before["dense"].shape[1] for column in MEMORY_COLUMNS) if "evidence" in features else []
    others = [column for column in range(before["dense"].shape[1]) if column not in of_memory]
    assert not found["dense"][gone][:, of_memory].any()
    assert torch.equal(found["dense"][:, others], before["dense"][:, others])


@pytest.mark.parametrize("features", ["liber", "liber+evidence"])
def test_a_step_hides_where_the_vectors_lie_and_the_vectors_themselves(features: Features) -> None:
    rows = np.arange(0, 1_000, 9)
    step, gone = loaded(features).step_batch(rows), is_hidden(len(rows), share=0.5, seed=3)
    found = hidden(step, features=features, share=0.5, seed=3)
    _, sealed = step["vectors"], step["sealed"]
    assert torch.equal(found["sealed"], sealed & ~gone[:, None])
    fusion = torch.nn.Module()
    width = found[WINDOWS[0]].shape[1]
    for name in ("query", "key", "value"):
        setattr(fusion, name, torch.nn.Linear(width, 4))
    fused = fuse_windows(fusion, *(found[name] for name in WINDOWS))  # type: ignore[arg-type]
    assert not fused[gone].any()
    assert fused[~gone][sealed.any(dim=1)[~gone]].abs().sum(dim=1).all()


def losses_of(features: Features, *, share: float) -> list[float]:
    recorder = Recorder([])
    fitted = fit(prepared(features), options=replace(OPTIONS, memory_dropout=share), on_step=recorder)
    assert fitted.test_logits is not None and np.isfinite(fitted.test_logits).all()
    return recorder.losses


@pytest.mark.parametrize("features", MEMORY)
def test_a_fit_hides_the_memory_where_there_is_one(features: Features) -> None:
    assert losses_of(features, share=0.5) != losses_of(features, share=0.0)


def test_a_fit_without_a_memory_is_as_it_was() -> None:
    assert losses_of("baseline", share=0.5) == losses_of("baseline", share=0.0)


def test_as_many_are_hidden_as_were_asked_for() -> None:
    batch = {"dense": torch.ones(20_000, 7), "sealed": torch.ones(20_000, 1, dtype=torch.bool)}
    torch.manual_seed(0)
    found = hide_memory(batch, share=0.3, has_evidence=True)
    assert abs(found["sealed"].float().mean().item() - 0.7) < 0.01
    assert torch.equal(found["dense"][:, 3], found["sealed"][:, 0].float())
