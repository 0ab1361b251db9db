"""One training run: samples, fit, run folder, with a progress bar on stderr."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from training.artifact import check_run_folder, export_run
from training.data import Features, load_samples
from training.fit import FitOptions, Progress, fit, prepare

LOSS_EVERY = 20
"""Steps between two readings of the loss: reading it waits for the device."""


def run_fit(
    repo: Path, *, features: Features, folder: Path, options: FitOptions, overwrite: bool = False, console: Console
) -> dict[str, Any]:
    """Fit a backbone on the features of `repo`, write the run folder and return its figures as JSON values.

    Raises:
        ArtifactError: the run folder exists, and `overwrite` was not asked for, or cannot be written.
        LiberError: see `load_samples`, `prepare` and `fit`.
    """
    check_run_folder(folder, overwrite=overwrite)
    started = time.perf_counter()
    with FitBar(console) as bar:
        bar.stage(f"reading {features} features")
        samples = load_samples(repo, features=features)
        bar.stage("encoding inputs")
        prepared = prepare(samples, options=options)
        fit_started = time.perf_counter()
        fitted = fit(prepared, options=options, on_step=bar.step)
    metrics = export_run(fitted, folder=folder, samples=samples, options=options, overwrite=overwrite)
    return {
        "backbone": options.backbone,
        "features": features,
        "run": str(folder),
        "seed": options.seed,
        **metrics,
        "data_seconds": fit_started - started,
        "seconds": time.perf_counter() - started,
    }


class FitBar:
    """The progress bar of a run."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console)
        self._task = self._bar.add_task("", total=None)
        self._auc = ""

    def __enter__(self) -> "FitBar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def stage(self, name: str) -> None:
        """Say what is done now, of unknown length."""
        self._bar.update(self._task, description=name)

    def step(self, progress: Progress) -> None:
        """Show one step of the fit."""
        if progress.validation is not None:
            self._auc = f", validation AUC {progress.validation.auc:.4f}"
        shown = progress.validation is not None or progress.step % LOSS_EVERY == 1
        text = f"fitting: loss {float(progress.loss):.4f}{self._auc}" if shown else None
        self._bar.update(self._task, description=text, completed=progress.step, total=progress.step_count)
