"""What the `liber` commands do on a feature repo."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from feast import FeatureStore, RepoConfig
from feast.errors import FeastError, FeastObjectNotFoundException
from feast.repo_config import FeastConfigError
from yaml import YAMLError  # type: ignore[import-untyped]

from liber_feast.config import LiberComputeEngineConfig
from liber_feast.datasets import DataSet, describe, read_data_set, write_data_set
from liber_feast.datasets.writer import DESCRIPTION
from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import ArtifactError, ConfigError, DataSetError, StoreNotReady
from liber_feast.feast_cli import user_message
from liber_feast.fuser import load_fusion
from liber_feast.job import (
    active_fuser,
    interest_versions,
    item_encoder_folder,
    liber_views,
    open_encoding,
    open_item_encoding,
    open_job,
    open_memory,
    repo_folder,
)
from liber_feast.materialize import Job, Report
from liber_feast.memory import Memory
from liber_feast.memory.item_vectors import item_encoder_in_use
from liber_feast.memory.publications import encoder_in_use
from liber_feast.memory.schema import behaviors
from liber_feast.memory.status import failure_reasons, memory_status, stream_status
from liber_feast.memory.store import FUSION_FOLDER
from liber_feast.memory.vectors import distinct_text_count
from liber_feast.pca import FACTS
from liber_feast.provider import LiberProvider
from liber_feast.service_schema import Schema
from liber_feast.shortfall import alike
from liber_feast.worker import supervise


def open_store(repo: Path) -> FeatureStore:
    """Open a feature repo, applied or not.

    Raises:
        StoreNotReady: the folder has no feature_store.yaml.
        ConfigError: the file cannot be used.
    """
    if not (repo / "feature_store.yaml").is_file():
        raise StoreNotReady(f"{repo}: there is no feature_store.yaml. Name the folder of the feature repo with --repo.")
    with feast_errors(repo):
        return FeatureStore(repo_path=str(repo))


def open_applied_store(repo: Path) -> FeatureStore:
    """Open a feature repo that was applied; nothing is written to it.

    Raises:
        StoreNotReady: there is no feature repo, or one that was never applied.
        ConfigError: its feature_store.yaml cannot be used.
    """
    store = open_store(repo)
    registry = store.config.registry.path
    # Feast would create an empty registry file, and the folders above it, on the first look.
    if "://" not in registry and not (repo / registry).is_file():
        raise StoreNotReady(f"{repo} was never applied: {registry} is missing. Run `feast apply` in {repo}.")
    return store


def service_schema(store: FeatureStore, service: str) -> Schema:
    """Return the features of a feature service as the registry has them.

    Raises:
        FeastObjectNotFoundException: there is no such service.
    """
    projections = store.get_feature_service(service).feature_view_projections
    return {
        f"{projection.name_to_use()}:{feature.name}": str(feature.dtype)
        for projection in projections
        for feature in projection.features
    }


@contextmanager
def feast_errors(repo: Path) -> Iterator[None]:
    """Raise errors of Feast as ours, in one line.

    Raises:
        StoreNotReady: the registry lacks what was asked for.
        ConfigError: every other error of Feast that a user can correct.
    """
    try:
        yield
    except FeastObjectNotFoundException as error:
        line = str(error).strip().split("\n", maxsplit=1)[0].rstrip(".")
        raise StoreNotReady(f"{repo}: {line}. Run `feast apply` in {repo}.") from error
    except (FeastError, FeastConfigError, YAMLError) as error:
        raise ConfigError(f"{repo}: {user_message(error)}") from error


def load_data_set(
    source: str,
    *,
    repo: Path,
    say: Callable[[str], object],
    seed: int = 0,
    users: int | None = None,
    behaviors: int | None = None,
    move_aside: bool = False,
) -> dict[str, Any]:
    """Read a data set and write it into a feature repo; return its counts.

    `say` gets a line about what was moved, and one for each key of feature_store.yaml that does not fit the data.

    Raises:
        DataSetError: the source cannot be read, or the repo holds another data set and `move_aside` is False.
        ConfigError: with `move_aside`, features of the other data set lie outside the folder that is moved.
    """
    store = open_store(repo)
    data_set = read_data_set(source, seed=seed, users=users, behaviors=behaviors)
    facts = describe(data_set)
    moved = _make_room(store, repo, facts, move_aside=move_aside)
    if moved:
        say(f"Moved {repo / 'data'} to {moved}.")
    write_data_set(data_set, repo)
    block: LiberComputeEngineConfig = store.config.batch_engine
    is_fitted = (item_encoder_folder(store.config) / FACTS).exists()
    for line in unfit_keys(data_set, block=block, is_fitted=is_fitted):
        say(f"Warning: {repo / 'feature_store.yaml'}: {line}")
    return {
        "name": data_set.name,
        **data_set.counts,
        "start": facts["start"],
        "end": facts["end"],
        "prompt": data_set.prompt,
        "prompt_in_use": block.interest.prompt,
        "item_text": data_set.item_text,
        "item_text_in_use": None if block.evidence is None else block.evidence.text,
    }


def unfit_keys(data_set: DataSet, *, block: LiberComputeEngineConfig, is_fitted: bool = False) -> list[str]:
    """Return a line for each key of the engine block that does not fit the data set: what to set, and why.

    `is_fitted` is whether the PCA of item texts is there already, which fixes them.
    """
    lines = []
    if not fits_prompt(data_set.prompt, in_use=block.interest.prompt):
        lines.append(
            f"set `interest: {{prompt: {data_set.prompt}}}`; texts about {data_set.name} would be those of the template"
            f" {block.interest.prompt!r}."
        )
    wanted, used = data_set.scale, block.behavior.rating_scale()
    if not used.low <= wanted.low <= wanted.high <= used.high or wanted.like_above != used.like_above:
        lines.append(
            f"set `behavior: {{scale: [{wanted.low:g}, {wanted.high:g}], like_above: {wanted.like_above:g}}}`; ratings"
            f" of {data_set.name} do not fit [{used.low:g}, {used.high:g}] and {used.like_above:g}."
        )
    if not is_fitted and block.evidence is not None and block.evidence.text != data_set.item_text:
        better = "categories" if data_set.item_text == "categories" else "titles"
        lines.append(
            f"set `evidence: {{text: {data_set.item_text}}}` before the first `feast materialize`; {better} say more"
            f" of what users of {data_set.name} like."
        )
    return lines


def fits_prompt(wanted: str, *, in_use: str) -> bool:
    """Return whether a data set's template is in use, or one of the user's own."""
    return wanted == in_use or in_use.endswith(".toml")


def repo_status(repo: Path) -> dict[str, Any]:
    """Return what the memory and the stores of a feature repo hold; nothing is written.

    Raises:
        StoreNotReady: the repo was never applied, or has no memory yet.
    """
    store = open_applied_store(repo)
    liber_views(store.registry, project=store.project)
    memory = open_memory(store.config, create=False)
    with memory.reading() as connection:
        facts = {**memory_status(connection), **stream_status(connection)}
        facts["failures"] = alike(failure_reasons(connection))
    facts["in_use"] = _versions_in_use(store.config, memory)
    facts["fusion_weights"] = store.config.batch_engine.fusion.weights or memory.setting(FUSION_FOLDER) or "mean"
    facts["bytes_on_disk"] = _bytes_on_disk(repo_folder(store.config) / "data")
    memory.close()
    return facts


def open_engine(repo: Path) -> tuple[FeatureStore, LiberComputeEngine]:
    """Return a feature repo that was applied, and its engine.

    Raises:
        StoreNotReady: it was not.
        ConfigError: its provider or its engine is not ours.
    """
    store = open_applied_store(repo)
    provider = store._get_provider()  # Feast has no public way to it
    if not isinstance(provider, LiberProvider):
        raise ConfigError(f"{repo}: `provider` is not liber_feast.provider.LiberProvider in feature_store.yaml.")
    return store, provider.engine


def open_repo_job(repo: Path) -> Job:
    """Open the job of a feature repo, for a process that works on what waits.

    Raises:
        StoreNotReady: the repo was never applied, or its registry lacks a view.
        ConfigError: its feature_store.yaml cannot be used.
    """
    store, engine = open_engine(repo)
    with feast_errors(repo):
        return engine.job(store.registry)


def run_workers(repo: Path, *, concurrency: int, once: bool) -> int:
    """Run worker processes on a feature repo; return the exit code.

    Raises:
        StoreNotReady: the repo was never applied, or its registry lacks a view.
        ConfigError: its feature_store.yaml cannot be used.
    """
    open_repo_job(repo).close()  # what is wrong is said once, and before any process starts
    return supervise(partial(open_repo_job, repo), concurrency=concurrency, once=once)


def use_run(run: Path, *, repo: Path) -> dict[str, Any]:
    """Bring a run's fusion weights into use and publish every fused vector anew, without LLM or BERT.

    Raises:
        ArtifactError: the run has no fusion weights, or was trained on vectors of another encoder.
    """
    if not (run / "fusion").is_dir():
        raise ArtifactError(f"{run}: there are no fusion weights. Train with `--features liber`.")
    fuser = load_fusion(run / "fusion")
    store, engine = open_engine(repo)
    config = store.config
    job = open_job(config, registry=store.registry, online_store=engine.online_store, with_llm=False)
    if config.batch_engine.fusion.weights is not None:
        raise ConfigError(
            f"batch_engine.fusion.weights pins {config.batch_engine.fusion.weights!r}. Set it to null to switch by"
            " `liber fuse`, or name the new folder there."
        )
    with job.memory.reading() as connection:
        encoder_version = encoder_in_use(connection)
    if encoder_version is None or fuser.encoder_version != encoder_version:
        raise ArtifactError(
            f"{run}: its fusion was trained on vectors of encoder {fuser.encoder_version}, the store has"
            f" {encoder_version or 'none'}. Train again on this store."
        )
    folder = f"data/fusion/{fuser.version}"
    _copy_folder(run / "fusion", repo_folder(config) / folder)
    job.use_fusion(folder)
    report = Report()
    with report.timed("publish"):
        published = job.publisher().publish()
    return {"fusion_version": fuser.version, "rows": published, "seconds": round(report.seconds["publish"], 2)}


def _make_room(store: FeatureStore, repo: Path, facts: Mapping[str, Any], *, move_aside: bool) -> Path | None:
    """Refuse to mix two data sets in one memory; with `move_aside` return the new name of the other's data folder."""
    data = repo / "data"
    known = _description(data / DESCRIPTION)
    if known == facts or not _holds_behaviors(store):
        return None
    other = known.get("name", "another data set")
    if not move_aside:
        raise DataSetError(
            f"{data} holds features of {other} ({known.get('counts', {}).get('behaviors', 'unknown')} behaviors)."
            " Load with --move-aside to keep them under another name, or use another feature repo."
        )
    for key, place in _places(store.config).items():
        if place is None or not place.resolve().is_relative_to(data.resolve()):
            raise ConfigError(
                f"{key} lies outside {data}, so moving that folder aside would leave features of {other} in it."
                " Load into another feature repo, or name a place below data/."
            )
    aside = repo / f"data-{other.replace(' ', '-')}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    data.rename(aside)
    return aside


def _places(config: RepoConfig) -> dict[str, Path | None]:
    """Return the files that hold what was learned of a data set, by key; None for what is no file."""
    base, url = repo_folder(config), sa.make_url(config.batch_engine.memory)
    registry, online = config.registry.path, getattr(config.online_store, "path", None)
    return {
        "batch_engine.memory": base / url.database if url.get_backend_name() == "sqlite" and url.database else None,
        "registry": None if "://" in registry else base / registry,
        "online_store": base / online if online else None,
    }


def _description(path: Path) -> dict[str, Any]:
    """Return what was loaded, or nothing where the description is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _holds_behaviors(store: FeatureStore) -> bool:
    try:
        memory = open_memory(store.config, create=False)
    except StoreNotReady:  # there is none
        return False
    with memory.reading() as connection:
        found = connection.execute(behaviors.select().limit(1)).first() is not None
    memory.close()
    return found


def _versions_in_use(config: RepoConfig, memory: Memory) -> dict[str, str]:
    """Return the versions that the next text and vector will have; the tallies count those of all that is kept."""
    with memory.reading() as connection:
        encoder_version, text_count = encoder_in_use(connection), distinct_text_count(connection)
        of_items = item_encoder_in_use(connection)
    encoding, width = open_encoding(config), config.batch_engine.encoder.width
    pca, items = encoding.pca(), open_item_encoding(config, encoding=encoding)
    item_pca = items.pca() if items else None
    none_yet = f"none yet: vectors wait until there are about {width} different texts; there are {text_count}"
    found = encoding.version_of(pca) if pca else None
    item_version = _encoder(of_items, item_pca.version if item_pca else None, folder="item_encoder")
    return {
        **interest_versions(config.batch_engine, base=repo_folder(config)),
        "encoder_version": _encoder(encoder_version, found, folder="encoder", none_yet=none_yet),
        "item_encoder_version": item_version if items else "off",
        "fusion_version": active_fuser(config, memory)(encoder_version).version,
    }


def _encoder(version: str | None, found: str | None, *, folder: str, none_yet: str = "none yet") -> str:
    """Return the PCA that the memory's vectors are made by, and what is wrong where the repo has not that one."""
    if version is None:
        return found or none_yet
    return version if version == found else f"{version}, and data/{folder} has {found or 'none'}"


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
