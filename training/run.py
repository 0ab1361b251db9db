"""One training run or one search: samples, fits, what is written, with a progress bar on stderr."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from liber_feast.errors import ArtifactError
from training.artifact import check_run_folder, export_run
from training.checkpoint import Checkpoints
from training.data import Features, load_samples
from training.fit import Progress, fit, prepare
from training.options import FitConfig, FitOptions
from training.search import Outcome, Point, SearchFile, search, search_identity
from training.tracking import mlflow_run

LOSS_EVERY = 20
"""Steps between two readings of the loss: reading it waits for the device."""


def run_fit(
    repo: Path,
    *,
    features: Features,
    folder: Path,
    options: FitOptions,
    overwrite: bool = False,
    checkpoint_every: int | None = None,
    resume: bool = False,
    pay: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Fit a backbone on the features of `repo`, write the run folder and return its figures as JSON values.

    Raises:
        ArtifactError: the run folder or a checkpoint of it exists, and neither `overwrite` nor `resume` says what to do
            with it; the checkpoint is of another fit; or the folder cannot be written.
        LiberError: see `load_samples`, `prepare`, `fit` and `mlflow_run`.
    """
    check_run_folder(folder, overwrite=overwrite)
    checkpoints = open_checkpoints(folder, every=checkpoint_every, resume=resume, overwrite=overwrite)
    started = time.perf_counter()
    with mlflow_run(repo, name=folder.name) as tracked:
        with FitBar(console) as bar:
            bar.stage(f"reading {features} features")
            samples = load_samples(repo, features=features, pay=pay)
            stored, wanted = samples.stored_length, options.sequence_length
            if stored is not None and stored < wanted:
                bar.say(f"{wanted} recent behaviors are asked for; the store shows {stored} (`sequence.length`).")
            bar.stage("encoding inputs")
            prepared = prepare(samples, options=options)
            fit_started = time.perf_counter()
            on_step = bar.step if tracked is None else tracked.after(bar.step)
            fitted = fit(prepared, options=options, checkpoints=checkpoints, on_step=on_step)
        metrics = export_run(fitted, folder=folder, samples=samples, options=options, overwrite=overwrite)
        checkpoints.remove()
        if tracked is not None:
            tracked.end(folder, metrics=metrics)
    return {
        "backbone": options.backbone,
        "features": features,
        "run": str(folder),
        "seed": options.seed,
        "user_id": options.user_id,
        "id_dropout": options.id_dropout,
        **metrics,
        "data_seconds": fit_started - started,
        "seconds": time.perf_counter() - started,
    }


def open_checkpoints(folder: Path, *, every: int | None, resume: bool, overwrite: bool) -> Checkpoints:
    """Return where the checkpoint of the run `folder` is kept: beside it, until the run is written.

    Raises:
        ArtifactError: there is one already, and neither `resume` nor `overwrite` says what to do with it.
    """
    checkpoints = Checkpoints(folder=folder.with_name(f"{folder.name}.checkpoint"), every=every, resume=resume)
    if checkpoints.path.exists() and not resume:
        if not overwrite:
            raise ArtifactError(
                f"{checkpoints.path} exists: a fit of {folder} was cut off, or is running. Go on with --resume, or"
                " start anew with --overwrite."
            )
        checkpoints.remove()
    return checkpoints


def run_search(
    repo: Path,
    *,
    base: FitConfig,
    points: Sequence[Point],
    path: Path,
    jobs: int,
    overwrite: bool = False,
    resume: bool = False,
    pay: bool = False,
    console: Console,
) -> list[Outcome]:
    """Fit at every point, keep what comes of each in `path`, and return all outcomes in the order of `points`.

    Raises:
        ArtifactError: `path` exists, and neither `overwrite` nor `resume` says what to do with it, or it is of another
            search, or cannot be written.
        LiberError: see `load_samples`, `prepare` and `search`.
    """
    if path.exists() and not (overwrite or resume):
        raise ArtifactError(f"{path} exists. Go on with --resume, or start anew with --overwrite.")
    with FitBar(console) as bar:
        bar.stage(f"reading {base.features} features")
        samples = load_samples(repo, features=base.features, pay=pay)
        bar.stage("encoding inputs")
        prepared = prepare(samples, options=base.options)
        file = SearchFile(path=path, base=base, identity=search_identity(prepared, base=base))
        done = file.read() if resume and path.exists() else []
        bar.outcomes(done, count=len(points))

        def keep(outcomes: Sequence[Outcome]) -> None:
            file.write(outcomes, complete=len(outcomes) == len(points))
            bar.outcomes(outcomes, count=len(points))

        outcomes = search(prepared, options=base.options, points=points, jobs=jobs, done=done, on_outcome=keep)
        file.write(outcomes, complete=True)
    return outcomes


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

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(line, highlight=False)

    @contextmanager
    def counting(self, name: str, count: int) -> Iterator[Callable[[int], None]]:
        """Show `name` and how much of `count` is done; what it gives is called with how much more is."""
        self._bar.update(self._task, description=name, completed=0, total=count)
        yield lambda more: self._bar.advance(self._task, more)
        self._bar.update(self._task, completed=0, total=None)

    def outcomes(self, outcomes: Sequence[Outcome], *, count: int) -> None:
        """Show how much of a search of `count` fits is done."""
        ended = [outcome.validation_auc for outcome in outcomes if outcome.validation_auc is not None]
        text = f"searching: best validation AUC {max(ended):.4f}" if ended else "searching"
        self._bar.update(self._task, description=text, completed=len(outcomes), total=count)

    def step(self, progress: Progress) -> None:
        """Show one step of the fit."""
        if progress.validation is not None:
            self._auc = f", validation AUC {progress.validation.auc:.4f}"
        shown = progress.validation is not None or progress.step % LOSS_EVERY == 1
        text = f"fitting: loss {float(progress.loss):.4f}{self._auc}" if shown else None
        self._bar.update(self._task, description=text, completed=progress.step, total=progress.step_count)
