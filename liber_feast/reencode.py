"""`liber encode`: make every vector of the memory anew, by the PCA that lies in the feature repo or by one fitted now.

Texts stay, and no LLM is called. Vectors, and what is fused of them, get a version of their own and replace those of
before as a whole.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from liber_feast.engine import LiberComputeEngine
from liber_feast.errors import ConfigError
from liber_feast.fuser import load_fusion
from liber_feast.item_encoding import FIT_ITEM_PCA
from liber_feast.job import open_job, repo_folder
from liber_feast.materialize import Job, Report
from liber_feast.memory.item_vectors import drop_item_encoder, item_encoder_in_use
from liber_feast.memory.leases import FIT_PCA, PUBLISH, held
from liber_feast.memory.publications import drop_encoder, encoder_in_use, use_encoder
from liber_feast.memory.settings import keep_setting
from liber_feast.memory.store import FUSION_FOLDER
from liber_feast.repo import open_engine
from liber_feast.run_display import bars


def encode_anew(repo: Path, *, say: Callable[[str], object]) -> dict[str, Any]:
    """Let the PCA in `data/encoder` be that of the memory, or a new one where there is none; encode and publish all.

    Where the memory's vectors are made by it already, what is missing is done.

    Raises:
        StoreNotReady: the repo was never applied.
        ConfigError: fusion weights that were trained on other vectors are pinned.
        EncoderError: the model or the PCA cannot be used.
    """
    store, engine = open_engine(repo)
    job = open_job(store.config, registry=store.registry, online_store=engine.online_store, with_llm=False)
    pca, report = job.encoding.pca(), Report()
    with job.memory.reading() as connection:
        before = encoder_in_use(connection)
    try:
        if before is None or pca is None or job.encoding.version_of(pca) != before:
            _release(job, engine=engine, say=say)
        _release_items(job)
        with bars(lambda total: tqdm(total=total, ncols=100)) as progress:
            job.write_out(report, progress=progress)
        with job.memory.reading() as connection:
            after = encoder_in_use(connection)
    finally:
        job.memory.close()
    return {
        "encoder_before": before or "none",
        "encoder": after or f"none yet: {report.missing_text_count} texts are missing",
        "encoded_texts": report.encoded_count,
        "rows": report.published,
    }


def _release_items(job: Job) -> None:
    """Let the vectors of items be made by the PCA that lies there, or by whatever comes next, if it is another one."""
    if job.evidence is None:
        return
    pca = job.evidence.encoding.pca()
    with job.memory.reading() as connection:
        before = item_encoder_in_use(connection)
    if before is None or (pca is not None and pca.version == before):
        return
    # Nobody publishes or fits meanwhile: what they began would be of the PCA of before.
    with held(job.memory, FIT_ITEM_PCA), held(job.memory, PUBLISH), job.memory.writing("encoder") as connection:
        drop_item_encoder(connection, done_time=job.clock())


def _release(job: Job, *, engine: LiberComputeEngine, say: Callable[[str], object]) -> None:
    """Let the memory's vectors be made by the PCA that lies there, or by whatever comes next."""
    pca, version = job.encoding.pca(), None
    pinned, folder = engine.config.fusion.weights, job.memory.setting(FUSION_FOLDER)
    if pinned or folder:
        version = load_fusion(repo_folder(engine.repo_config) / str(pinned or folder)).encoder_version
    is_other = version is not None and (pca is None or job.encoding.version_of(pca) != version)
    if is_other and pinned:
        raise ConfigError(
            f"batch_engine.fusion.weights pins weights that were trained on vectors of {version}. Set it to null:"
            " the masked mean is used until a fusion is trained on the new vectors."
        )
    # Nobody publishes or fits meanwhile: what they began would be of the PCA of before.
    with held(job.memory, FIT_PCA), held(job.memory, PUBLISH), job.memory.writing("encoder") as connection:
        drop_encoder(connection)
        if pca is not None:
            use_encoder(connection, job.encoding.version_of(pca))
        if is_other:
            keep_setting(connection, FUSION_FOLDER, None)
    if is_other:
        say("The fusion weights were trained on the vectors of before; the masked mean is used until `liber fuse`.")
