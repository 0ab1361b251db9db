"""What each part of LIBER is worth: fits without it (the paper's figure 4), and what takes its place costs (table 6).

Every variant is fitted on the same samples, split and seeds, and changes one thing. AUC and log loss are of the last
block of time.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from liber_feast.errors import ArtifactError, ConfigError, StoreNotReady, one_line
from liber_feast.form_vectors import lay_out
from liber_feast.materialize import Job
from liber_feast.repo import open_repo_job, repo_status
from liber_feast.tensor_file import write_atomically
from training.checkpoint import check_identity
from training.data import Samples, load_samples
from training.fit import choose_device, fit, prepare
from training.history_texts import plan_texts, requests, with_texts, write_texts
from training.knowledge_texts import text_file
from training.memory_variants import mean_pooled, without_shift
from training.options import FitOptions
from training.paid import check_paid
from training.run import FitBar
from training.statistics import LEAST_PAIRS, paired_t_test
from training.variant_repo import repo_with_partitions

ANOTHER_FOLDER = "Name another folder with --out."
FORMAT_VERSION = 1
FILE = "ablation.json"
SIZES = (5, 10, 20, 50)
BASELINE, LIBER = "baseline", "liber"
WINDOWS = {"every_behavior_last_100": 100, "every_behavior_last_20": 20}
PARTITION = "partition_"

VARIANTS: Mapping[str, str] = {
    BASELINE: "no LIBER features",
    LIBER: "LIBER",
    "without_partition": "one text over the whole history, anew for each partition",
    "without_shift": "summaries alone",
    "mean_pooling": "mean of the partitions instead of self-attention",
    **{name: f"a text over the last {last} behaviors at every sample" for name, last in WINDOWS.items()},
    **{f"{PARTITION}{size}": f"partitions of {size} behaviors" for size in SIZES},
}
"""What each variant is, by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """What the texts of a variant took of the interest backend."""

    calls: int
    """With every retry, as the backend counts them; for texts that are kept in a store, one each."""
    texts: int
    users: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What the fits of one variant came to, a value a seed."""

    auc: tuple[float, ...]
    log_loss: tuple[float, ...]
    validation_auc: tuple[float, ...]
    calls: Calls


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """What is fitted."""

    repo: Path
    options: FitOptions
    """Of every fit but for the seed."""
    seeds: Sequence[int]
    variants: Sequence[str]
    pay: bool = False
    """Whether texts of variants may be asked of an LLM."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.variants if name not in VARIANTS and partition_size(name) is None]
        if unknown:
            raise ConfigError(
                f"variant {unknown[0]!r} is unknown. Known: {', '.join(VARIANTS)}, and {PARTITION}N for other sizes."
            )


def partition_size(name: str) -> int | None:
    """Return the N of `partition_N`; None where that is no name of such a variant."""
    number = name.removeprefix(PARTITION) if name.startswith(PARTITION) else ""
    return int(number) if number.isascii() and number.isdigit() and int(number) > 0 else None


def ablate(ablation: Ablation, *, folder: Path, resume: bool, console: Console) -> dict[str, Figures]:
    """Fit every variant that `folder` does not have yet, and keep what came of each there.

    Raises:
        ArtifactError: `folder` holds an ablation and `resume` is False, or one of other options or samples.
        LiberError: see `load_samples`, `prepare`, `fit`, `write_texts` and `repo_with_partitions`.
    """
    path = folder / FILE
    if path.exists() and not resume:
        raise ArtifactError(f"{path} exists. Go on with --resume, or name another folder with --out.")
    with FitBar(console) as bar:
        bar.stage("reading liber features")
        liber = load_samples(ablation.repo, features="liber")
        identity = _identity(ablation, samples=liber)
        found = _read(path, identity=identity) if path.exists() else {}
        for name in ablation.variants:
            if name not in found:
                with _variant(name, liber=liber, ablation=ablation, bar=bar) as (samples, calls):
                    found[name] = _fitted(samples, calls=calls, ablation=ablation, name=name, bar=bar)
                _write(path, identity=identity, found=found)
    return {name: found[name] for name in ablation.variants}


@contextmanager
def _variant(name: str, *, liber: Samples, ablation: Ablation, bar: FitBar) -> Iterator[tuple[Samples, Calls]]:
    """Give the samples of a variant and what their texts took."""
    repo, size = ablation.repo, partition_size(name)
    if name == BASELINE:
        yield replace(liber, vectors=None, encoder_version=None), _kept(repo, stages=())
    elif name in {LIBER, "mean_pooling"}:
        yield (mean_pooled(liber) if name != LIBER else liber), _kept(repo, stages=("summaries", "shifts"))
    elif name == "without_shift":
        yield without_shift(liber), _kept(repo, stages=("summaries",))
    elif size is not None:
        check_paid(ablation.repo, pay=ablation.pay, owner=f"variant {name!r}", what="all its texts anew")
        bar.stage(f"{name}: materializing")
        with repo_with_partitions(repo, size=size) as copy:
            yield load_samples(copy, features="liber"), _kept(copy, stages=("summaries", "shifts"))
    else:
        yield _with_texts(name, liber=liber, ablation=ablation, bar=bar)


def _with_texts(name: str, *, liber: Samples, ablation: Ablation, bar: FitBar) -> tuple[Samples, Calls]:
    """Have the backend of the repo write the texts of a variant, and encode them by the repo's PCA."""
    job = open_repo_job(ablation.repo)
    try:
        last = WINDOWS.get(name)
        every = 1 if last is not None else _partition_size(job, name=name)
        plan = plan_texts(liber, every=every, last=last)
        count = len(plan.starts)
        check_paid(ablation.repo, pay=ablation.pay, owner=f"variant {name!r}", what=f"{count:,} texts")
        with bar.counting(f"{name}: writing texts", count) as step:
            asked = requests(plan, liber, catalog=job.catalog)
            file = text_file(ablation.repo, learner=job.learner)
            written = write_texts(asked, learner=job.learner, file=file, progress=step)
        distinct = len(set(written.texts.values()))
        with bar.counting(f"{name}: encoding texts", distinct) as step:
            samples = with_texts(liber, plan=plan, written=written, encode=_encoder(job, progress=step))
        users = repo_status(ablation.repo)["users"]
        return samples, Calls(calls=written.call_count, texts=len(written.texts), users=users)
    finally:
        job.close()


def _partition_size(job: Job, *, name: str) -> int:
    size = getattr(job.condition, "size", None)
    if size is None:
        raise ConfigError(
            f"variant {name!r} gives a user a new text with each partition of so many behaviors, and the feature repo"
            " has another `partition.condition` than count. Leave the variant out."
        )
    return int(size)


def _encoder(job: Job, *, progress: Callable[[int], object]) -> Callable[[Sequence[str]], npt.NDArray[np.float32]]:
    from liber_feast.encoder import TextEncoder  # noqa: PLC0415 (BERT loads only where a text is encoded)

    pca = job.encoding.pca_of(job.memory)
    if pca is None:
        raise StoreNotReady("The repo has no PCA yet. Run `feast materialize START END` in the feature repo.")
    encoder = TextEncoder(bert=job.encoding.bert(), pca=pca)

    def encode(pieces: Sequence[str]) -> npt.NDArray[np.float32]:
        return encoder.encode(pieces, progress=progress)

    return lambda texts: lay_out(texts, encode=encode, form=job.encoding.form)


def _fitted(samples: Samples, *, calls: Calls, ablation: Ablation, name: str, bar: FitBar) -> Figures:
    prepared = prepare(samples, options=ablation.options)
    runs = []
    for number, seed in enumerate(ablation.seeds, start=1):
        bar.stage(f"{name}, fit {number} of {len(ablation.seeds)}")
        runs.append(fit(prepared, options=replace(ablation.options, seed=seed)))
    return Figures(
        auc=tuple(run.test.auc for run in runs if run.test is not None),
        log_loss=tuple(run.test.log_loss for run in runs if run.test is not None),
        validation_auc=tuple(run.validation.auc for run in runs),
        calls=calls,
    )


def _kept(repo: Path, *, stages: Sequence[str]) -> Calls:
    """Return the calls that the texts of a repo stand for: one each."""
    status = repo_status(repo)
    texts = sum(int(status[stage]) for stage in stages)
    return Calls(calls=texts, texts=texts, users=int(status["users"]))


def _identity(ablation: Ablation, *, samples: Samples) -> dict[str, Any]:
    """Return what the figures of a variant depend on."""
    options = {name: value for name, value in ablation.options.to_json().items() if name != "seed"}
    return {
        **options,
        "device": choose_device(ablation.options.device).type,
        "seeds": list(ablation.seeds),
        "samples": samples.fingerprint,
        "encoder_version": samples.encoder_version,
    }


def _write(path: Path, *, identity: Mapping[str, Any], found: Mapping[str, Figures]) -> None:
    variants = {name: asdict(figures) for name, figures in found.items()}
    document = {"format_version": FORMAT_VERSION, "ablation_of": identity, "variants": variants}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(document, indent=2) + "\n").encode())


def _read(path: Path, *, identity: Mapping[str, Any]) -> dict[str, Figures]:
    try:
        document = json.loads(path.read_bytes())
        owner = document["ablation_of"] if document["format_version"] == FORMAT_VERSION else {}
        found = {
            name: Figures(
                **{key: tuple(value) for key, value in figures.items() if key != "calls"},
                calls=Calls(**figures["calls"]),
            )
            for name, figures in document["variants"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no ablation: {one_line(error)}. {ANOTHER_FOLDER}") from error
    check_identity(owner, wanted=identity, owner=f"ablation {path}", remedy=ANOTHER_FOLDER)
    return found


def rows_of(found: Mapping[str, Figures]) -> dict[str, dict[str, float | None]]:
    """Return the means over seeds of each variant, and its gain over the baseline, if that is there.

    `p_value` is that of a t-test of the gains, paired by their seeds; None for one seed, for the baseline and without
    it.
    """
    base = found.get(BASELINE)

    def p_value(figures: Figures) -> float | None:
        if base is None or figures is base or len(figures.auc) < LEAST_PAIRS:
            return None
        return paired_t_test(np.subtract(figures.auc, base.auc).tolist())

    return {
        name: {
            "auc": mean(figures.auc),
            "log_loss": mean(figures.log_loss),
            "validation_auc": mean(figures.validation_auc),
            "auc_gain": None if base is None else mean(figures.auc) - mean(base.auc),
            "p_value": p_value(figures),
            "calls_per_user": figures.calls.calls / max(figures.calls.users, 1),
            "calls": figures.calls.calls,
            "texts": figures.calls.texts,
        }
        for name, figures in found.items()
    }
