"""Log a fit to MLflow where feature_store.yaml says so, through the client that Feast has for it.

    mlflow: {enabled: true, tracking_uri: "http://localhost:5000"}

The experiment has the name of the Feast project. The run is active while the samples are read, so that Feast adds its
own tags: which features were read, by which service.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from feast import FeatureStore
from feast.mlflow_integration.config import MlflowConfig
from pydantic import ValidationError
from torch import Tensor

from liber_feast.errors import ConfigError, MissingExtra, TrackingFailure, one_line
from liber_feast.repo import open_applied_store
from training.fit import Progress

logger = logging.getLogger(__name__)
ARTIFACTS = "run"
"""The folder of a run's artifacts that holds our run folder."""


@dataclass(kw_only=True, slots=True, eq=False)
class MlflowRun:
    """The active run of MLflow that a fit is logged to.

    What MLflow does not take during the fit is offered again later, at the latest with the end.
    """

    mlflow: Any
    """The module."""
    uri: str
    _losses: list[Tensor] = field(default_factory=list, init=False)
    """Of the steps since the last look."""
    _waiting: list[dict[str, Any]] = field(default_factory=list, init=False)

    def after(self, on_step: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return what to call after each step: `on_step`, then this run."""

        def both(progress: Progress) -> None:
            on_step(progress)
            self.step(progress)

        return both

    def step(self, progress: Progress) -> None:
        """Log the figures of a look, with the mean training loss since the one before."""
        self._losses.append(progress.loss)
        if progress.validation is None:
            return
        metrics = {
            "training_loss": float(torch.stack(self._losses).mean()),
            "validation_auc": progress.validation.auc,
            "validation_log_loss": progress.validation.log_loss,
        }
        self._losses.clear()
        self._waiting.append({"metrics": metrics, "step": progress.step, "timestamp": int(time.time() * 1000)})
        try:
            self._send()
        except self.mlflow.exceptions.MlflowException as error:
            logger.warning("MLflow at %s took no metrics of step %d: %s", self.uri, progress.step, one_line(error))

    def end(self, folder: Path, *, metrics: Mapping[str, Any]) -> None:
        """Log what config.json of a run folder says, the figures of the run, and the folder itself.

        Raises:
            TrackingFailure: MLflow does not take them.
        """
        config = json.loads((folder / "config.json").read_bytes())
        parameters = {**config["options"], **{name: config[name] for name in ("features", "data_fingerprint")}}
        try:
            self._send()
            self.mlflow.log_params({name: _text(value) for name, value in parameters.items()})
            self.mlflow.set_tag("liber.git_revision", config["git_revision"] or "none")
            self.mlflow.log_metrics({_metric(name): float(value) for name, value in metrics.items()})
            self.mlflow.log_artifacts(str(folder), ARTIFACTS)
        except (self.mlflow.exceptions.MlflowException, OSError) as error:
            raise TrackingFailure(
                f"the run is in {folder}, but MLflow at {self.uri} did not take all of it: {one_line(error)}."
            ) from error

    def _send(self) -> None:
        while self._waiting:
            self.mlflow.log_metrics(**self._waiting[0])
            self._waiting.pop(0)


@contextmanager
def mlflow_run(repo: Path, *, name: str) -> Iterator[MlflowRun | None]:
    """Yield a run of MLflow called `name`, active until the end; None where the feature repo does not enable MLflow.

    An error ends the run as failed.

    Raises:
        StoreNotReady: see `open_applied_store`.
        ConfigError: the block `mlflow` cannot be used.
        MissingExtra: mlflow is not installed.
        TrackingFailure: MLflow does not answer or cannot be used.
    """
    store = open_applied_store(repo)
    config = _config(store, repo=repo)
    if config is None or not config.enabled:
        yield None
        return
    if find_spec("mlflow") is None:
        raise MissingExtra(package="mlflow", extra="mlflow")
    uri = config.get_tracking_uri() or "its default store"
    with _started(store, name=name, uri=uri) as module:
        yield MlflowRun(mlflow=module, uri=uri)


def _config(store: FeatureStore, *, repo: Path) -> MlflowConfig | None:
    try:
        config = store.config.mlflow
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"{repo}: mlflow.{wrong['loc'][0]} of feature_store.yaml: {wrong['msg']}.") from error
    if not isinstance(config, MlflowConfig | None):
        raise ConfigError(f"{repo}: `mlflow` of feature_store.yaml is {config!r}; it must be a block.")
    return config


@contextmanager
def _started(store: FeatureStore, *, name: str, uri: str) -> Iterator[Any]:
    client = store.mlflow
    if client is None:
        raise TrackingFailure(f"MLflow at {uri} cannot be used; the warning above says why.")
    try:
        run = client.start_run(run_name=name)
    except client.mlflow.exceptions.MlflowException as error:
        raise TrackingFailure(
            f"MLflow at {uri} takes no run: {one_line(error)}. Start its server, or set `mlflow: {{enabled: false}}` in"
            " feature_store.yaml."
        ) from error
    with run:
        yield client.mlflow


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _metric(name: str) -> str:
    """Return the name of a figure in MLflow: there, what is of the test part says so."""
    return f"test_{name}" if name in {"auc", "log_loss"} else name
