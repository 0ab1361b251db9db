import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from training.curves import MOST_POINTS, curves, draw, write_curves
from training.metrics import Quality
from training.state import Look

LOOKS = [
    Look(step=step, validation=Quality(auc=auc, log_loss=1 - auc)) for step, auc in [(5, 0.6), (10, 0.7), (15, 0.65)]
]


def test_the_curves_are_the_losses_and_the_looks(tmp_path: Path) -> None:
    losses = np.linspace(0.7, 0.5, 15, dtype=np.float32)
    write_curves(tmp_path, losses=losses, looks=LOOKS, title="DIN")
    document = json.loads((tmp_path / "curves.json").read_text())
    assert document == {
        "loss": losses.tolist(),
        "step": [5, 10, 15],
        "validation_auc": [0.6, 0.7, 0.65],
        "validation_log_loss": pytest.approx([0.4, 0.3, 0.35]),
    }
    picture = imread(tmp_path / "curves.png")
    assert picture.shape == (600, 800, 4)
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 10, "something is drawn"


@pytest.mark.parametrize("count", [1, 7, MOST_POINTS, 12_345])
def test_the_picture_shows_the_mean_loss_of_every_step_once(count: int) -> None:
    losses = np.random.default_rng(0).random(count).astype(np.float32)
    upper, lower = draw(losses, looks=LOOKS, title="").axes
    steps, means = (np.asarray(values) for values in upper.lines[0].get_data())
    assert len(steps) == min(count, MOST_POINTS)
    assert (np.diff(steps) > 0).all()
    assert 1 <= steps[0] <= steps[-1] <= count
    if count <= MOST_POINTS:
        np.testing.assert_allclose(means, losses, rtol=1e-5)
        assert steps.tolist() == list(range(1, count + 1))
    assert means.mean() == pytest.approx(losses.mean(), rel=0.05)
    assert [line.get_label() for line in lower.lines] == ["validation AUC", "weights kept"]
    assert lower.lines[1].get_xdata()[0] == 10


def test_a_fit_of_no_look_has_a_picture_too() -> None:
    document = curves(np.zeros(3, np.float32), looks=[])
    assert document["step"] == []
    assert draw(np.zeros(3, np.float32), looks=[], title="").axes
