"""Export a fitted backbone as a run folder, whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from liber_feast.artifact import (
    CONFIG,
    FUSION_FOLDER,
    INPUT_TENSORS,
    INPUTS,
    METRICS,
    MODEL_TENSORS,
    RunFacts,
    write_artifact,
)
from liber_feast.errors import ArtifactError
from liber_feast.fusion import AttentionFusion, save_fusion
from liber_feast.service_schema import schema_hash
from training.curves import CURVES, PICTURE, write_curves
from training.data import SERVING_SERVICE, TRAINING_SERVICE, Samples
from training.fit import FittedRun
from training.options import FitOptions
from training.provenance import git_revision, versions

RUN_FILES = frozenset({CONFIG, METRICS, INPUTS, INPUT_TENSORS, MODEL_TENSORS, FUSION_FOLDER, CURVES, PICTURE})
"""All that a run folder holds."""


def check_run_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a run may be written to `folder`.

    Raises:
        ArtifactError: it exists and `overwrite` was not asked for, or it holds what no run wrote.
    """
    if not folder.exists():
        return
    if not (overwrite and folder.is_dir()):
        raise ArtifactError(f"{folder} exists. Choose another --run, or replace it with --overwrite.")
    check_ours(folder, names=RUN_FILES, writer="run", option="--run")
    if any(folder.iterdir()) and not is_run(folder):
        raise ArtifactError(f"{folder} holds no run that `fit` wrote. Name another one with --run.")


def is_run(folder: Path) -> bool:
    """Return whether config.json of a folder is one of a run."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"backbone", "feature_service"} <= config.keys()


def check_ours(folder: Path, *, names: Collection[str], writer: str, option: str) -> None:
    """Check that a folder that is to be replaced or removed holds nothing but `names`.

    Raises:
        ArtifactError: it holds something else, or cannot be read.
    """
    try:
        strange = sorted({path.name for path in folder.iterdir()} - set(names))
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be read: {error.strerror}.") from error
    if strange:
        raise ArtifactError(f"{folder} holds {strange[0]!r}, which no {writer} wrote. Name another one with {option}.")


def export_run(
    fitted: FittedRun, *, folder: Path, samples: Samples, options: FitOptions, overwrite: bool = False
) -> dict[str, Any]:
    """Write the run folder and return its metrics. A reader sees the old run, none, or the new one.

    Raises:
        ArtifactError: see `check_run_folder`.
    """
    metrics = run_metrics(fitted, samples=samples)
    with replaced_folder(folder, overwrite=overwrite) as whole:
        version = None
        fusion = find_fusion(fitted.model)
        if fusion is not None and samples.encoder_version is not None:
            extra = {"run": folder.name, "backbone": options.backbone, "seed": options.seed}
            version = save_fusion(fusion, whole / FUSION_FOLDER, encoder_version=samples.encoder_version, extra=extra)
        facts = run_facts(fitted, samples=samples, options=options, fusion_version=version)
        write_artifact(
            whole,
            facts=facts,
            spec=fitted.spec,
            model=fitted.model,
            metrics=metrics,
            extra={
                "options": {**options.to_json(), "backbone_config": dict(facts.backbone_config)},
                "git_revision": git_revision(Path.cwd()),
                "versions": versions(),
            },
        )
        title = f"{options.backbone.rpartition(':')[2]}, {samples.features}, seed {options.seed}"
        write_curves(whole, losses=fitted.losses, looks=fitted.looks, title=title)
    return metrics


def run_facts(fitted: FittedRun, *, samples: Samples, options: FitOptions, fusion_version: str | None) -> RunFacts:
    """Return what config.json says of the run."""
    config: Any = getattr(fitted.model, "config", None)
    return RunFacts(
        backbone=options.backbone,
        backbone_config=dict(options.backbone_config) if config is None else asdict(config),
        features=samples.features,
        feature_service=SERVING_SERVICE[samples.features],
        training_service=TRAINING_SERVICE[samples.features],
        encoder_version=samples.encoder_version,
        fusion_version=fusion_version,
        item_encoder_version=samples.item_encoder_version,
        seed=options.seed,
        like_above=samples.like_above,
        data_fingerprint=samples.fingerprint,
        service_schema=samples.service_schema,
        service_schema_hash=None if samples.service_schema is None else schema_hash(samples.service_schema),
    )


def run_metrics(fitted: FittedRun, *, samples: Samples) -> dict[str, Any]:
    """Return the figures of the run as JSON values; `auc` and `log_loss` are of the test part, if it was scored."""
    labels = samples.labels
    return {
        **({} if fitted.test is None else asdict(fitted.test)),
        "validation_auc": fitted.validation.auc,
        "validation_log_loss": fitted.validation.log_loss,
        "sample_count": len(labels),
        **{f"{name}_count": len(rows) for name, rows in fitted.split.parts().items()},
        **{f"{name}_like_rate": float(labels[rows].mean()) for name, rows in fitted.split.parts().items()},
        "best_epoch": fitted.best_epoch,
        "epochs": fitted.epochs,
        "fit_seconds": fitted.seconds,
    }


def find_fusion(model: nn.Module) -> AttentionFusion | None:
    """Return the fusion layer of a backbone, None where it has none."""
    return next((module for module in model.modules() if isinstance(module, AttentionFusion)), None)


@contextmanager
def replaced_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder beside `folder` that takes its place at the end, or vanishes on an error.

    Raises:
        ArtifactError: see `check_run_folder`; also where the folder cannot be written.
    """
    check_run_folder(folder, overwrite=overwrite)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written: {error.strerror}.") from error
    try:
        whole = scratch / "run"
        whole.mkdir()
        yield whole
        check_run_folder(folder, overwrite=overwrite)
        if folder.exists():
            folder.rename(scratch / "old")
        whole.rename(folder)
    finally:
        shutil.rmtree(scratch)
