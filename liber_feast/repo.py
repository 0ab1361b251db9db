"""What the `liber` commands do on a feature repo."""

import json
import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from feast import FeatureStore

from liber_feast.datasets import describe, read_data_set, write_data_set
from liber_feast.errors import ArtifactError, ConfigError, DataSetError
from liber_feast.fuser import load_fusion
from liber_feast.job import liber_views, open_memory, repo_folder
from liber_feast.materialize import Job, Report
from liber_feast.memory.schema import behaviors
from liber_feast.memory.status import memory_status
from liber_feast.provider import LiberProvider

DESCRIPTION = "dataset.json"


def open_store(repo: Path) -> FeatureStore:
    """Open a feature repo.

    Raises:
        ConfigError: the folder has no feature_store.yaml, or the file cannot be used.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise ConfigError(f"{repo}: there is no feature_store.yaml. Name the feature repo with --repo.")
    return FeatureStore(repo_path=str(repo))


def load_data_set(
    source: str,
    *,
    repo: Path,
    seed: int = 0,
    users: int | None = None,
    behaviors: int | None = None,
    move_aside: bool = False,
) -> dict[str, Any]:
    """Read a data set and write it into a feature repo; return its counts.

    Raises:
        DataSetError: the source cannot be read, or the repo holds another data set and `move_aside` is False.
    """
    store = open_store(repo)
    data_set = read_data_set(source, seed=seed, users=users, behaviors=behaviors)
    facts = describe(data_set)
    _make_room(store, repo, facts, move_aside=move_aside)
    write_data_set(data_set, repo)
    block = store.config.batch_engine
    return {
        "name": data_set.name,
        **data_set.counts,
        "start": facts["start"],
        "end": facts["end"],
        "prompt": data_set.prompt,
        "prompt_in_use": block.interest.prompt,
    }


def repo_status(repo: Path) -> dict[str, Any]:
    """Return what the memory and the stores of a feature repo hold.

    Raises:
        StoreNotReady: the repo was never applied.
    """
    store = open_store(repo)
    liber_views(store.registry, project=store.project)
    memory = open_memory(store.config)
    with memory.reading() as connection:
        facts = memory_status(connection)
    facts["fusion_weights"] = store.config.batch_engine.fusion.weights or memory.setting("fusion_folder") or "mean"
    facts["bytes_on_disk"] = _bytes_on_disk(repo_folder(store.config) / "data")
    return facts


def open_repo_job(repo: Path) -> Job:
    """Return the job of a feature repo that was applied.

    Raises:
        StoreNotReady: it was not.
    """
    store = open_store(repo)
    provider = store._get_provider()  # Feast has no public way to it
    if not isinstance(provider, LiberProvider):
        raise ConfigError(f"{repo}: `provider` is not liber_feast.provider.LiberProvider in feature_store.yaml.")
    return provider.engine.job(store.registry)


def use_run(run: Path, *, repo: Path) -> dict[str, Any]:
    """Bring a run's fusion weights into use and publish every fused vector anew, without LLM or BERT.

    Raises:
        ArtifactError: the run has no fusion weights, or was trained on vectors of another encoder.
    """
    if not (run / "fusion").is_dir():
        raise ArtifactError(f"{run}: there are no fusion weights. Train with `--features liber`.")
    fuser = load_fusion(run / "fusion")
    job = open_repo_job(repo)
    config = open_store(repo).config
    if config.batch_engine.fusion.weights is not None:
        raise ConfigError(
            f"batch_engine.fusion.weights pins {config.batch_engine.fusion.weights!r}. Set it to null to switch by"
            " `liber fuse`, or name the new folder there."
        )
    pca = job.encoding.pca()
    if pca is None or fuser.encoder_version != pca.version:
        raise ArtifactError(
            f"{run}: its fusion was trained on vectors of encoder {fuser.encoder_version}, the store has"
            f" {pca.version if pca else 'none'}. Train again on this store."
        )
    folder = f"data/fusion/{fuser.version}"
    _copy_folder(run / "fusion", repo_folder(config) / folder)
    job.use_fusion(folder)
    report = Report()
    with report.timed("publish"):
        published = job.publisher().publish()
    return {"fusion_version": fuser.version, "rows": published, "seconds": round(report.seconds["publish"], 2)}


def _make_room(store: FeatureStore, repo: Path, facts: Mapping[str, Any], *, move_aside: bool) -> None:
    """Refuse to mix two data sets in one memory; with `move_aside` the data folder of the other gets a new name."""
    data = repo / "data"
    description = data / DESCRIPTION
    known = _description(description)
    if known == facts or not _holds_behaviors(store):
        return
    other = known.get("name", "another data set")
    if not move_aside:
        raise DataSetError(
            f"{data} holds features of {other} ({known.get('counts', {}).get('behaviors', 'unknown')} behaviors)."
            " Load with --move-aside to keep them under another name, or use another feature repo."
        )
    data.rename(repo / f"data-{other}-{datetime.now(UTC):%Y%m%d-%H%M%S}")


def _description(path: Path) -> dict[str, Any]:
    """Return what was loaded, or nothing where the description is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _holds_behaviors(store: FeatureStore) -> bool:
    memory = open_memory(store.config)
    with memory.reading() as connection:
        found = connection.execute(behaviors.select().limit(1)).first() is not None
    memory.close()
    return found


def _copy_folder(source: Path, target: Path) -> None:
    """Copy a folder so that it is there whole or not at all."""
    if target.exists():
        return
    part = target.with_name(f".{target.name}-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, part)
    part.rename(target)


def _bytes_on_disk(data: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in data.rglob("*"):
        if path.is_file():
            part = path.relative_to(data).parts[0].split(".db")[0]
            found[part] = found.get(part, 0) + path.stat().st_size
    return dict(sorted(found.items()))
