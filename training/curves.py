"""The curves of a fit: loss by step, and what each look saw of the validation part; as JSON and as a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from liber_feast.errors import MissingExtra
from training.state import Look

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingExtra(package="matplotlib", extra="train") from error

CURVES, PICTURE = "curves.json", "curves.png"
MOST_POINTS = 500
"""Points of the loss in the picture; each is the mean of as many steps as it takes."""


def write_curves(folder: Path, *, losses: npt.NDArray[np.float32], looks: Sequence[Look], title: str) -> None:
    """Write curves.json and curves.png into `folder`."""
    (folder / CURVES).write_text(json.dumps(curves(losses, looks=looks)) + "\n", encoding="utf-8")
    draw(losses, looks=looks, title=title).savefig(folder / PICTURE)


def curves(losses: npt.NDArray[np.float32], *, looks: Sequence[Look]) -> dict[str, Any]:
    """Return the curves as JSON values: the loss of every step, the first being step 1, and the looks by their step."""
    return {
        "loss": losses.astype(float).tolist(),
        "step": [look.step for look in looks],
        "validation_auc": [look.validation.auc for look in looks],
        "validation_log_loss": [look.validation.log_loss for look in looks],
    }


def draw(losses: npt.NDArray[np.float32], *, looks: Sequence[Look], title: str) -> Figure:
    """Return the picture: loss and validation log loss above, validation AUC below, both by step."""
    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps, means = _thinned(losses)
    seen = [look.step for look in looks]
    upper.plot(steps, means, color="tab:gray", linewidth=1, label="training loss")
    upper.plot(seen, [look.validation.log_loss for look in looks], "o-", color="tab:blue", label="validation log loss")
    lower.plot(seen, [look.validation.auc for look in looks], "o-", color="tab:blue", label="validation AUC")
    if looks:
        best = max(looks, key=lambda look: look.validation.auc)
        lower.axvline(best.step, color="tab:orange", linewidth=1, label="weights kept")
    upper.set_title(title)
    lower.set_xlabel("step")
    for axes in (upper, lower):
        axes.legend()
        axes.grid(alpha=0.3)
    return figure


def _thinned(losses: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the middle step and the mean loss of each of at most `MOST_POINTS` runs of steps."""
    bounds = np.linspace(0, len(losses), min(len(losses), MOST_POINTS) + 1).astype(np.int64)
    sums = np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])
    counts = np.diff(bounds)
    return (bounds[:-1] + bounds[1:] + 1) / 2, np.diff(sums[bounds]) / counts
