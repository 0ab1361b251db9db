"""Compare feature sets on every backbone: from a feature repo to the figures of a comparison."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from liber_feast.datasets.writer import DESCRIPTION
from liber_feast.errors import ArtifactError, DataSetError
from liber_feast.interest_config import ExtractiveConfig
from liber_feast.repo import open_store
from training.artifact import check_ours
from training.comparison import BASE, FITS, IDENTITY, Comparison, Fits, Task, claim_folder, run_fits
from training.comparison_figures import Table
from training.comparison_report import FIGURES, PICTURE, TABLE
from training.data import Features, Samples, load_samples
from training.data_repo import LOCK, state_of
from training.run import FitBar

REPO_IN_FOLDER = "feature_repo"
"""Where the folder of a comparison has the feature repo of its data set."""


def compare(
    repo: Path,
    *,
    comparison: Comparison,
    folder: Path,
    data: str,
    history: str,
    processes: int,
    pay: bool = False,
    console: Console,
) -> dict[str, Any]:
    """Make the fits that `folder` lacks and return all figures as JSON values, with what held for all of them.

    `data` and `history` are what tables call the data set, and what backbones without a sequence see of behaviors;
    `pay` is whether an LLM may be asked for texts of KAR.

    Raises:
        ArtifactError: `folder` is of another comparison.
        LiberError: see `load_samples`, `Fits` and `run_fits`.
    """
    with FitBar(console) as bar:
        samples: dict[Features, Samples] = {}
        for name in comparison.features:
            bar.stage(f"reading {name} features")
            samples[name] = load_samples(repo, features=name, pay=pay)
        check_same(samples)
        store = store_facts(repo)
        fits = Fits(comparison, samples=samples, folder=folder)
        claim_folder(folder, identity=comparison.identity(samples[BASE]))
        with bar.counting("fitting", len(fits.tasks())) as step:

            def fitted(_: Task) -> None:
                step(1)

            found = run_fits(fits, processes=processes, on_fit=fitted)
        bar.stage("resampling users")
        table = Table(fits, found=found)
        facts = held_facts(table, fits=fits, data=data, store=store, history=history)
        return plain({"backbones": table.to_json(), "held": facts})


def store_facts(repo: Path) -> dict[str, Any]:
    """Return what the store of a feature repo is made by: when partitions are sealed, and which texts there are."""
    block = open_store(repo).config.batch_engine
    interest = {"backend": block.interest.backend, "form": block.interest.form}
    if not isinstance(block.interest, ExtractiveConfig):
        interest["model"] = block.interest.model
    item_text = None if block.evidence is None else block.evidence.text
    return {"partition": dict(block.partition), "interest": interest, "item_text": item_text}


def held_facts(table: Table, *, fits: Fits, data: str, store: Mapping[str, Any], history: str) -> dict[str, Any]:
    """Return what all fits had in common, and the sizes of the test slices."""
    options, base = table.comparison.options, fits.samples[BASE]
    stored = math.inf if base.stored_length is None else base.stored_length
    lengths = {
        name: min(table.comparison.options_of(name).sequence_length, stored) for name in table.comparison.backbones
    }
    common = min(options.sequence_length, stored)
    return {
        "data": data,
        "store": dict(store),
        "samples": len(base.labels),
        "user_id": options.user_id,
        "id_dropout": options.id_dropout,
        "memory_dropout": options.memory_dropout,
        "match": options.match,
        "epochs": options.epochs,
        "configs": {name: dict(config) for name, config in table.comparison.configs.items() if config},
        "sequence_length": common,
        "longer_histories": {name: length for name, length in lengths.items() if length != common},
        "history": history,
        "window_match": base.item_width > 0,
        "like_above": base.like_above,
        "seeds": table.comparison.seeds,
        "folds": table.comparison.folds,
        "test_samples": {name: len(part.labels) for name, part in table.parts.items()},
        "test_users": {name: len(np.unique(part.users)) for name, part in table.parts.items()},
        "data_fingerprint": base.fingerprint,
    }


def check_same(samples: Mapping[Features, Samples]) -> None:
    """Check that all feature sets have the same samples in the same order.

    Raises:
        DataSetError: they have not: behaviors came while they were read.
    """
    prints = {name: one.fingerprint for name, one in samples.items()}
    other = [name for name, found in prints.items() if found != prints[BASE]]
    if other:
        raise DataSetError(f"the behaviors changed while {other[0]} features were read. Run the comparison again.")


def clear(folder: Path) -> None:
    """Remove what an earlier comparison left in `folder`.

    Raises:
        ArtifactError: it is no folder of a comparison, or cannot be removed.
    """
    if not folder.exists():
        return
    repo = folder / REPO_IN_FOLDER
    known = {FITS, repo.name, repo.name + LOCK, IDENTITY, TABLE, FIGURES, PICTURE}
    check_ours(folder, names=known, writer="comparison", option="--out")
    if repo.exists() and state_of(repo) is None:
        raise ArtifactError(f"{repo} is of no comparison. Name another folder with --out.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be removed: {error.strerror}.") from error


def data_name(repo: Path) -> str:
    """Return what the data set of a repo is called, as `liber load` wrote it."""
    path = repo / "data" / DESCRIPTION
    try:
        return str(json.loads(path.read_bytes())["name"])
    except (OSError, ValueError, KeyError):
        return str(repo)


def plain(value: Any) -> Any:
    """Return JSON values: null for what is no number, lists for tuples."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
