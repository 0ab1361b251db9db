"""Make the job of a feature repo from its configuration and registry."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from feast import FeatureStore, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry

from liber_feast.catalog import FeastCatalog
from liber_feast.config import LiberComputeEngineConfig
from liber_feast.encoding import Encoding
from liber_feast.errors import ConfigError, StoreNotReady
from liber_feast.evidence_stage import EvidenceStage
from liber_feast.form_vectors import text_width
from liber_feast.fuser import Fuser, open_fuser
from liber_feast.interest import InterestLearner
from liber_feast.interest_config import ExtractiveConfig
from liber_feast.item_encoding import ItemEncoding
from liber_feast.job_origin import origin_of
from liber_feast.llm.extractive import ExtractiveLearner
from liber_feast.llm_backend import OpenedLlm, configure_llm, open_prompt
from liber_feast.materialize import Job, utc_microseconds
from liber_feast.memory import Memory, publications
from liber_feast.memory.connect import PoolOptions
from liber_feast.memory.store import FUSION_FOLDER
from liber_feast.offline_read import locate
from liber_feast.online import FeastOnlineSink
from liber_feast.pace import Exposed, Pace
from liber_feast.publish import ALL_VIEWS, EVIDENCE_VIEWS, VIEWS, DeltaSink
from liber_feast.title_vectors import TitleVectors

NEEDED_VIEWS = ("user_profile", "item_attributes", "behaviors", "behavior_sequence", *VIEWS.values())
OPTIONAL_VIEWS = tuple(EVIDENCE_VIEWS.values())
"""Those of the stage `evidence`: a feature repo has both or goes without the stage."""


def repo_folder(config: RepoConfig) -> Path:
    """Return the folder that relative paths of a feature repo are relative to."""
    return Path(config.repo_path) if config.repo_path else Path.cwd()


def open_registry(config: RepoConfig) -> BaseRegistry:
    """Open the registry of a feature repo, from whatever working folder."""
    return FeatureStore(repo_path=str(repo_folder(config)), config=config).registry


def open_memory(config: RepoConfig, *, create: bool = True) -> Memory:
    """Open the memory of a feature repo, making it where there is none.

    Raises:
        StoreNotReady: there is none and `create` is false.
    """
    block: LiberComputeEngineConfig = config.batch_engine
    pool = PoolOptions(**block.memory_pool.model_dump())
    return Memory.open(block.memory, base=repo_folder(config), create=create, pool=pool)


def forget_online(config: RepoConfig) -> None:
    """Let the next publishing write the whole online store anew, which was torn down."""
    try:
        memory = open_memory(config, create=False)
    except StoreNotReady:  # then nothing was ever online
        return
    with memory.writing() as connection:
        publications.forget_online(connection)
    memory.close()


def liber_views(registry: BaseRegistry, *, project: str) -> dict[str, FeatureView]:
    """Return the views that the plugin reads and fills, by name.

    Raises:
        StoreNotReady: the registry lacks one, or is gone.
        ConfigError: it has one of the views of evidence and not the other.
    """
    try:
        every = registry.list_all_feature_views(project, allow_cache=True)
    except FileNotFoundError as error:
        raise StoreNotReady(
            "The registry of the feature repo is gone. Run `feast apply` in the feature repo."
        ) from error
    found = {view.name: view for view in every if isinstance(view, FeatureView)}
    missing = [name for name in NEEDED_VIEWS if name not in found]
    if missing:
        raise StoreNotReady(
            f"Feature view {missing[0]!r} is not in the registry of project {project!r}. Run `feast apply` in the"
            " feature repo; if it was run, define the view (README, feature views)."
        )
    optional = [name for name in OPTIONAL_VIEWS if name in found]
    if len(optional) == 1:
        (absent,) = set(OPTIONAL_VIEWS) - set(optional)
        raise ConfigError(
            f"Feature view {optional[0]!r} is in the registry of project {project!r} and {absent!r} is not. Define both"
            " (README, feature views) or none, and run `feast apply`."
        )
    return {name: found[name] for name in (*NEEDED_VIEWS, *optional)}


def open_learner(config: LiberComputeEngineConfig, *, base: Path) -> InterestLearner:
    """Return the learner that the interest block names and that is no LLM."""
    return ExtractiveLearner(open_prompt(config.interest.prompt, base=base, form=config.interest.form))


def interest_versions(config: LiberComputeEngineConfig, *, base: Path) -> dict[str, str]:
    """Return under which versions the next text is kept; asks for no key and no package."""
    block = config.interest
    model = ExtractiveLearner.model if isinstance(block, ExtractiveConfig) else block.model
    return {"prompt_version": open_prompt(block.prompt, base=base, form=block.form).version, "model": model}


def open_catalog(config: RepoConfig, *, registry: BaseRegistry) -> FeastCatalog:
    """Return what the feature repo says of items and users.

    Raises:
        StoreNotReady: the registry lacks a view.
    """
    views = liber_views(registry, project=config.project)
    return FeastCatalog(items=views["item_attributes"], profiles=views["user_profile"], config=config)


def open_encoding(config: RepoConfig) -> Encoding:
    """Return the encoder stage of a feature repo; its PCA lies in `data/encoder`."""
    block: LiberComputeEngineConfig = config.batch_engine
    folder = repo_folder(config) / "data" / "encoder"
    return Encoding(folder=folder, model=block.encoder.model, width=block.encoder.width, form=block.interest.form)


def item_encoder_folder(config: RepoConfig) -> Path:
    """Return where the PCA of item texts lies."""
    return repo_folder(config) / "data" / "item_encoder"


def open_item_encoding(config: RepoConfig, *, encoding: Encoding) -> ItemEncoding | None:
    """Return the space of item texts of a feature repo, None without evidence."""
    block: LiberComputeEngineConfig = config.batch_engine
    if block.evidence is None:
        return None
    folder = item_encoder_folder(config)
    return ItemEncoding(folder=folder, width=block.evidence.width, encoding=encoding, form=block.evidence.text)


def active_fuser(config: RepoConfig, memory: Memory) -> Callable[[str | None], Fuser]:
    """Return a function of the encoder version that gives the fusion in use.

    That is the configured one, else the last that `liber fuse` brought, else the masked mean.
    """
    block: LiberComputeEngineConfig = config.batch_engine
    base = repo_folder(config)
    opened = cache(open_fuser)

    def fuser(encoder_version: str | None) -> Fuser:
        weights = block.fusion.weights or memory.setting(FUSION_FOLDER)
        if weights is not None and not (base / weights).is_dir():
            raise ConfigError(
                f"The fusion weights {base / weights} are missing. Correct batch_engine.fusion.weights, or run"
                " `liber fuse RUN` with a trained run."
            )
        width = 2 * text_width(block.encoder.width, form=block.interest.form)
        return opened(None if weights is None else base / weights, width=width, encoder_version=encoder_version)

    return fuser


def open_job(config: RepoConfig, *, registry: BaseRegistry, online_store: OnlineStore, with_llm: bool = True) -> Job:
    """Open everything a job needs; models are loaded when a text needs them.

    Without the LLM, and so without its package and its key, a job can publish and not learn.

    Raises:
        LiberError: a part of the configuration cannot be used, or the repo was never applied.
    """
    block: LiberComputeEngineConfig = config.batch_engine
    names = (*NEEDED_VIEWS, *OPTIONAL_VIEWS)
    origin = origin_of(config, registry=registry, base=repo_folder(config), names=names)  # before all is read
    views = liber_views(registry, project=config.project)
    open_learner_of = _prepared_learner(block, base=repo_folder(config), with_llm=with_llm)
    encoding = open_encoding(config)
    encoding.pca()  # says at once where it does not fit the configuration
    items = open_item_encoding(config, encoding=encoding) if OPTIONAL_VIEWS[0] in views else None
    if items is not None:
        items.pca()
    catalog = open_catalog(config, registry=registry)
    memory = open_memory(config)  # the first thing that is written
    if with_llm:  # else `liber encode` could not change to another form
        encoding.check_form(memory)
    learner, llm = open_learner_of(memory)
    like_above = block.behavior.like_above
    evidence = None
    if items is not None:
        evidence = EvidenceStage(memory=memory, catalog=catalog, encoding=items, like_above=like_above)
    return Job(
        memory=memory,
        condition=block.condition(),
        learner=learner,
        llm=llm,
        catalog=catalog,
        like_above=like_above,
        encoding=encoding,
        title_vectors=TitleVectors(encoding=encoding, catalog=catalog),
        fuser=active_fuser(config, memory),
        tables={
            stage: DeltaSink(path=_delta_path(views[view], config))
            for stage, view in ALL_VIEWS.items()
            if view in views
        },
        online=FeastOnlineSink(store=online_store, config=config, views=views),
        memory_window=block.memory_window,
        sequence_length=block.sequence.length,
        pace=Pace(**block.worker.model_dump()),
        exposed=_exposed(config),
        origin=origin,
        evidence=evidence,
    )


def _exposed(config: RepoConfig) -> Exposed:
    block = config.batch_engine.metrics
    textfile = None if block.textfile is None else repo_folder(config) / block.textfile
    return Exposed(textfile=textfile, port=block.port)


def _prepared_learner(
    config: LiberComputeEngineConfig, *, base: Path, with_llm: bool
) -> Callable[[Memory], tuple[InterestLearner, OpenedLlm | None]]:
    """Check everything that needs no memory, and return what opens the learner of one."""
    block = config.interest
    if isinstance(block, ExtractiveConfig) or not with_llm:
        learner = open_learner(config, base=base)
        return lambda _memory: (learner, None)
    configured = configure_llm(block, base=base)

    def open_llm(memory: Memory) -> tuple[InterestLearner, OpenedLlm | None]:
        llm = configured.open(memory, clock=utc_microseconds)
        return llm.learner, llm

    return open_llm


def _delta_path(view: FeatureView, config: RepoConfig) -> Path:
    location = locate(view.batch_source, config=config, view=view)
    if not location.is_delta:
        raise ConfigError(f"{location.owner}: its sink_source must be a Delta table; set file_format=DeltaFormat().")
    return Path(location.path)
