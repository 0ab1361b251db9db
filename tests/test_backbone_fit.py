"""Every backbone through a fit: the recorded losses, and the run folder that serving loads."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from liber_feast.artifact import load_artifact
from tests.backbone_parts import SMALL, randomize, small
from tests.test_training_fit import OPTIONS, Recorder, samples
from tests.training_parts import sample_table
from training.artifact import export_run
from training.backbones import BACKBONES
from training.backbones.behaviors import DISTINCT, PLACES, Batch
from training.data import Features
from training.fit import FitOptions, FittedRun, Prepared, fit, prepare

GOLDEN = Path(__file__).parent / "golden" / "backbone_losses.json"
EVERY = pytest.mark.parametrize("name", BACKBONES)


def options(name: str) -> FitOptions:
    """Return one epoch over 800 samples, with the dropout of a real fit."""
    config = {**SMALL[name], "embedding_width": 8, "hidden": (32, 16), "dropout": 0.3}
    return FitOptions(
        backbone=BACKBONES[name],
        backbone_config=config,
        batch_size=64,
        epochs=1,
        fused_width=8,
        memory_dropout=0.0,
        device="cpu",
    )


@cache
def prepared(features: Features) -> Prepared:
    return prepare(samples(features), options=OPTIONS)


def batches_of(rows: np.ndarray) -> tuple[Batch, Batch]:
    """Return a batch as a fit makes it, and as serving has it: without the distinct items."""
    batch = prepared("liber").load(torch.device("cpu")).batch(rows)
    return batch, {field: values for field, values in batch.items() if field not in (*DISTINCT, PLACES)}


@cache
def fitted(name: str, features: Features) -> tuple[FittedRun, list[float]]:
    """Return a fit and the losses of its steps."""
    recorder = Recorder([])
    run = fit(prepared(features), options=options(name), on_step=recorder)
    return run, recorder.losses


@EVERY
@pytest.mark.parametrize("features", ["baseline", "liber"])
def test_ten_steps_on_a_thousand_rows_give_the_recorded_losses(name: str, features: Features) -> None:
    expected = json.loads(GOLDEN.read_text())[name][features]
    assert len(expected) == 10
    assert fitted(name, features)[1][:10] == pytest.approx(expected, abs=2e-5)


@EVERY
def test_a_loaded_run_scores_as_the_fitted_one(tmp_path: Path, name: str) -> None:
    run, rows = fitted(name, "liber")[0], np.arange(900, 1_000)
    export_run(run, folder=tmp_path / name, samples=samples("liber"), options=options(name))
    loaded = load_artifact(tmp_path / name)
    assert type(loaded.model) is type(run.model)
    assert loaded.model.config == run.model.config
    with torch.inference_mode():
        once, every = (torch.sigmoid(run.model(batch)).numpy() for batch in batches_of(rows))
    found = loaded.score(loaded.spec.encode(sample_table().slice(900, 100)))
    np.testing.assert_array_equal(found, every)
    np.testing.assert_allclose(found, once, rtol=1e-5)


@EVERY
def test_what_repeats_in_a_batch_is_embedded_once_with_the_same_logits_and_gradients(name: str) -> None:
    batches = batches_of(np.arange(700, 800))
    assert len(batches[0][DISTINCT[0]]) < batches[0][PLACES].numel() / 2
    found = []
    for given in batches:
        model = small(name, shape=prepared("liber").spec.shape)
        randomize(model, deviation=0.2)
        logits = model(given)
        logits.square().mean().backward()
        found.append([logits.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for once, every in zip(*found, strict=True):
        torch.testing.assert_close(once, every, rtol=1e-4, atol=1e-4)


def test_equal_seeds_draw_equal_behaviors_for_the_auxiliary_loss() -> None:
    recorder = Recorder([])
    fit(prepared("baseline"), options=options("dien"), on_step=recorder)
    assert recorder.losses == fitted("dien", "baseline")[1]
