"""Fits that are logged to MLflow, as feature_store.yaml says."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from liber_feast.errors import ConfigError, MissingExtra, TrackingFailure
from tests.feature_repo_kit import materialized_repo
from tests.test_training_fit import OPTIONS
from training import tracking
from training.options import FitOptions
from training.run import run_fit
from training.tracking import mlflow_run

SHORT = FitOptions(**{**OPTIONS.to_json(), "epochs": 2, "batch_size": 16})
needs_mlflow = pytest.mark.skipif(
    find_spec("mlflow") is None,
    reason="mlflow is not installed: pip install --no-deps --requirement requirements-peers.lock",
)


def repo_with(folder: Path, block: Any) -> Path:
    repo = materialized_repo(folder / "repo")
    path = repo / "feature_store.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "mlflow": block}))
    return repo


@pytest.mark.parametrize("block", [None, {"enabled": False}])
def test_a_repo_that_does_not_ask_for_it_is_logged_nowhere(tmp_path: Path, block: Any) -> None:
    with mlflow_run(repo_with(tmp_path, block), name="run") as run:
        assert run is None


@pytest.mark.parametrize(
    ("block", "message"),
    [({"enabled": "perhaps"}, "mlflow.enabled of feature_store.yaml"), (True, "it must be a block")],
)
def test_a_block_that_cannot_be_used_is_refused_in_one_line(tmp_path: Path, block: Any, message: str) -> None:
    with (
        pytest.raises(ConfigError, match=message) as error,
        mlflow_run(repo_with(tmp_path, block), name="run"),
    ):
        pass
    assert "\n" not in error.value.message


def test_without_mlflow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = repo_with(tmp_path, {"enabled": True})
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with (
        pytest.raises(MissingExtra, match=r"mlflow is not installed. Run: pip install 'liber-feast\[mlflow\]'"),
        mlflow_run(repo, name="run"),
    ):
        pass


@needs_mlflow
@pytest.mark.filterwarnings("default")
def test_a_fit_is_logged_with_its_options_curves_figures_and_folder(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    repo = repo_with(tmp_path, {"enabled": True, "tracking_uri": uri})
    figures = run_fit(repo, features="liber", folder=tmp_path / "din", options=SHORT, console=Console(quiet=True))
    from mlflow import MlflowClient  # noqa: PLC0415 (it may be missing)

    client = MlflowClient(tracking_uri=uri)
    project = yaml.safe_load((repo / "feature_store.yaml").read_text())["project"]
    (run,) = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    config = json.loads((tmp_path / "din" / "config.json").read_text())
    assert (run.info.run_name, run.info.status) == ("din", "FINISHED")
    assert run.data.params["batch_size"] == "16"
    assert json.loads(run.data.params["backbone_config"]) == config["backbone_config"]
    assert run.data.params["data_fingerprint"] == config["data_fingerprint"]
    assert run.data.tags["feast.project"] == project
    assert run.data.tags["liber.git_revision"] == (config["git_revision"] or "none")
    assert run.data.metrics["test_auc"] == figures["auc"]
    curves = json.loads((tmp_path / "din" / "curves.json").read_text())
    history = client.get_metric_history(run.info.run_id, "validation_auc")
    looks = [(point.step, point.value) for point in history if point.step]
    assert looks == list(zip(curves["step"], curves["validation_auc"], strict=True))
    losses = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "training_loss")}
    first = curves["step"][0]
    assert losses[first] == pytest.approx(sum(curves["loss"][:first]) / first)
    assert {file.path for file in client.list_artifacts(run.info.run_id, "run")} >= {
        "run/config.json",
        "run/curves.png",
        "run/model.safetensors",
    }


@needs_mlflow
@pytest.mark.filterwarnings("default")
def test_a_server_that_is_away_ends_the_command_before_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    repo = repo_with(tmp_path, {"enabled": True, "tracking_uri": "http://127.0.0.1:9"})
    with pytest.raises(TrackingFailure, match=r"MLflow at http://127.0.0.1:9 takes no run: .* Start its server"):
        run_fit(repo, features="liber", folder=tmp_path / "din", options=SHORT, console=Console(quiet=True))
    assert not (tmp_path / "din").exists()
