"""Search batch size and learning rate by validation AUC.

The split that the fits get has no test part: nothing here can see it.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from liber_feast.errors import ArtifactError, ConfigError, one_line
from liber_feast.tensor_file import write_atomically
from training.checkpoint import check_identity, fit_identity
from training.fit import Prepared, choose_device, fit
from training.options import FitConfig, FitOptions
from training.shared_work import shared_work

FORMAT_VERSION = 1
BATCH_SIZES = (512, 1024)
LEARNING_RATES = (1e-3, 7.5e-4, 5e-4, 2.5e-4, 1e-4)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A point of the grid."""

    batch_size: int
    learning_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a fit at a point came to; `failure` says why there are no figures."""

    point: Point
    validation_auc: float | None = None
    validation_log_loss: float | None = None
    best_epoch: float | None = None
    epochs: float | None = None
    seconds: float | None = None
    failure: str | None = None


def grid(*, batch_sizes: Sequence[int] = BATCH_SIZES, learning_rates: Sequence[float] = LEARNING_RATES) -> list[Point]:
    """Return every pair of values, in their order, once."""
    pairs = dict.fromkeys(product(batch_sizes, learning_rates))
    return [Point(batch_size=batch_size, learning_rate=learning_rate) for batch_size, learning_rate in pairs]


def without_test(prepared: Prepared) -> Prepared:
    """Return the samples with a split that has no test part."""
    return replace(prepared, split=replace(prepared.split, test=prepared.split.test[:0]))


def search(
    prepared: Prepared,
    *,
    options: FitOptions,
    points: Sequence[Point],
    jobs: int,
    done: Sequence[Outcome] = (),
    on_outcome: Callable[[Sequence[Outcome]], None] = lambda _: None,
) -> list[Outcome]:
    """Fit at every point that `done` lacks, `jobs` at a time, and return the outcomes in the order of `points`.

    `on_outcome` gets all outcomes so far after each fit.

    Raises:
        ConfigError: a process of a fit was ended from outside.
    """
    found = {outcome.point: outcome for outcome in done if outcome.point in points}
    left = [point for point in points if point not in found]
    work = partial(fit_at, without_test(prepared), options=options)
    with shared_work(work, processes=min(jobs, max(len(left), 1)), broken=BROKEN) as fitted:
        for point, outcome in fitted(left):
            found[point] = outcome
            on_outcome([found[point] for point in points if point in found])
    return [found[point] for point in points]


def best(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of the highest validation AUC; of equal ones that of the lowest log loss, then the first.

    Raises:
        ConfigError: every fit failed.
    """
    tried = list(outcomes)
    ended = [outcome for outcome in tried if outcome.validation_auc is not None]
    if not ended:
        raise ConfigError(f"every fit of the search failed; the first one: {tried[0].failure}")
    return max(ended, key=lambda outcome: (outcome.validation_auc, -(outcome.validation_log_loss or 0.0)))


def at_point(options: FitOptions, point: Point) -> FitOptions:
    """Return the options of the fit at a point."""
    return replace(options, batch_size=point.batch_size, learning_rate=point.learning_rate)


BROKEN = (
    "a process of the search was ended from outside, perhaps for want of memory. Go on with --resume and fewer --jobs."
)


def fit_at(prepared: Prepared, point: Point, *, options: FitOptions) -> Outcome:
    """Fit at a point and return what came of it; a loss that is not finite is an outcome, too."""
    try:
        fitted = fit(prepared, options=at_point(options, point), with_test=False)
    except ConfigError as error:
        return Outcome(point=point, failure=error.message)
    return Outcome(
        point=point,
        validation_auc=fitted.validation.auc,
        validation_log_loss=fitted.validation.log_loss,
        best_epoch=fitted.best_epoch,
        epochs=fitted.epochs,
        seconds=fitted.seconds,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFile:
    """What a search found so far, as JSON; once it is complete, `python -m training fit --config` fits by it."""

    path: Path
    base: FitConfig
    identity: Mapping[str, Any]
    """What the outcomes depend on, beside their points."""

    def write(self, outcomes: Sequence[Outcome], *, complete: bool) -> None:
        """Write the outcomes, and once the search is complete the options of the best one."""
        document = {
            "format_version": FORMAT_VERSION,
            "features": self.base.features,
            "search_of": self.identity,
            "fits": [asdict(outcome) for outcome in outcomes],
        }
        if complete:
            document["options"] = at_point(self.base.options, best(outcomes).point).to_json()
        write_atomically(self.path, (json.dumps(document, indent=2) + "\n").encode())

    def read(self) -> list[Outcome]:
        """Return the outcomes that were written.

        Raises:
            ArtifactError: the file cannot be used, or is of a search on other options or samples.
        """
        try:
            document = json.loads(self.path.read_bytes())
            found = document["search_of"] if document["format_version"] == FORMAT_VERSION else None
            outcomes = [Outcome(**{**fit, "point": Point(**fit["point"])}) for fit in document["fits"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{self.path} is no search: {one_line(error)}. Start anew with --overwrite.") from error
        check_identity(found if isinstance(found, dict) else {}, wanted=self.identity, owner=f"search {self.path}")
        return outcomes


def search_identity(prepared: Prepared, *, base: FitConfig) -> dict[str, Any]:
    """Return what the outcomes of a search depend on, beside their points."""
    identity = fit_identity(without_test(prepared), options=base.options, device=choose_device(base.options.device))
    return {name: value for name, value in identity.items() if name not in Point.__dataclass_fields__}
